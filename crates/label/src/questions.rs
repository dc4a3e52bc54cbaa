//! The questions that a job's candidates make: about each document, about pairs of documents, or
//! about windows of them, as the prompt is; and which of them have no answer yet.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::path::PathBuf;

use retort_data::candidates::{self, Candidate};
use retort_data::collection::{Collection, Document};
use retort_data::label_set::text_digest;

use crate::apart::{Kill, apart};
use crate::collect::Collected;
use crate::dialect::{self, Texts};
use crate::graph;
use crate::job::{LabelSettings, Teacher};
use crate::ledger::{Alias, Found, Key, Outcome, Spent};
use crate::preflight::script::{Script, about_tokens};
use crate::prompt::Kind;
use crate::redact::{Counts, Redactor};
use crate::treatment::treated;
use crate::{Error, Result};

/// What the questions of a job are made from, and which of them are to be asked.
pub(crate) struct Questions {
    collection: Collection,
    redactor: Redactor,
    candidates: Vec<Candidate>,
    source: PathBuf,
    recipe: [u8; 32],
    /// The nonce is of the query alone.
    shares_nonce: bool,
    made: Made,
    /// Places in `made`.
    pub(crate) asked: Vec<usize>,
    /// About how many tokens the documents of the longest question have.
    longest: usize,
    pub(crate) all: usize,
    pub(crate) known: usize,
    pub(crate) given_up: usize,
    /// Those that are in batches.
    pub(crate) pending: usize,
}

/// A question on its way.
pub(crate) struct Asked {
    pub(crate) key: Key,
    pub(crate) query_id: String,
    pub(crate) document_ids: Vec<String>,
    pub(crate) sample: u32,
    /// For each document the digest of its text and the query's, a space between them.
    pub(crate) text: String,
    pub(crate) texts: Texts,
    /// What was replaced in the query, and in the documents.
    pub(crate) redacted: [Counts; 2],
}

impl Asked {
    /// For a message.
    pub(crate) fn in_words(&self) -> String {
        dialect::in_words(&self.query_id, &self.document_ids)
    }

    /// As what it shares a judgement that is there already.
    fn alias(self) -> Alias {
        Alias {
            key: self.key,
            query_id: self.query_id,
            document_ids: self.document_ids,
            text: self.text,
        }
    }
}

impl Questions {
    /// [`Self::read`] beside the runtime: a job that is told to stop need not wait for it.
    pub(crate) async fn read_apart(
        settings: &LabelSettings,
        teacher: Teacher,
    ) -> Result<(Teacher, Self)> {
        let settings = settings.clone();
        apart(move |kill| {
            let questions = Self::read(&settings, &teacher, kill)?;
            Ok((teacher, questions))
        })
        .await
    }

    /// Reads the pairs, those of this part of the job, and makes the questions; which of them to
    /// ask is still to be chosen. `kill` ends the command that texts go through.
    pub(crate) fn read(settings: &LabelSettings, teacher: &Teacher, kill: &Kill) -> Result<Self> {
        let collection = Collection::read(&settings.collection);
        let collection = collection.map_err(|error| Error::from(error).of_setting("collection"))?;
        let candidates = candidates::read_of(&settings.candidates, &collection);
        let mut candidates =
            candidates.map_err(|error| Error::from(error).of_setting("candidates"))?;
        if let Some(part) = &settings.part {
            let queries = part.queries(&candidates, &collection, settings, kill)?;
            candidates.retain(|candidate| queries.contains(&candidate.query_id));
        }
        Self::of_pairs(collection, candidates, settings, teacher, kill)
    }

    /// Questions about pairs that a collection has.
    pub(crate) fn of_pairs(
        collection: Collection,
        candidates: Vec<Candidate>,
        settings: &LabelSettings,
        teacher: &Teacher,
        kill: &Kill,
    ) -> Result<Self> {
        let source = settings.candidates.clone();
        let redactor = Redactor::new(settings, kill, || {
            let mut texts = BTreeSet::new();
            for candidate in &candidates {
                let query = collection.query(&candidate.query_id, &source)?;
                let document = collection.document(&candidate.document_id, &source)?;
                texts.extend([query.text, document.full_text()]);
            }
            Ok(texts)
        })?;
        let made = make(&candidates, settings, teacher.kind)?;
        Ok(Self {
            redactor,
            collection,
            candidates,
            source,
            recipe: teacher.recipe_digest,
            shares_nonce: teacher.dialect.shares_prefix(),
            all: made.questions.len(),
            made,
            asked: Vec::new(),
            longest: 0,
            known: 0,
            given_up: 0,
            pending: 0,
        })
    }

    /// Chooses the questions to ask: those that have not ended yet and are not `out` in batches,
    /// each text once. Returns the questions that share the texts of another.
    pub(crate) fn choose(
        &mut self,
        again: bool,
        out: &HashSet<Key>,
        find: impl Fn(&Key) -> Result<Option<Found>>,
    ) -> Result<Vec<Alias>> {
        (self.known, self.given_up, self.pending) = (0, 0, 0);
        self.asked.clear();
        let mut chosen = HashSet::new();
        let mut aliases = Vec::new();
        for place in 0..self.made.questions.len() {
            let asked = self.of(place)?;
            let tokens = asked.texts.documents.iter().map(|one| about_tokens(one));
            self.longest = self.longest.max(tokens.sum());
            let found = find(&asked.key)?;
            let alias = asked.alias();
            let is_alias = match &found {
                Some(found) => !found.is_of(&alias),
                None => chosen.contains(&alias.key),
            };
            match found.map(|found: Found| found.outcome) {
                _ if out.contains(&alias.key) => self.pending += 1,
                Some(Outcome::Ok) => self.known += 1,
                Some(ended) if !ended.is_passing() && !again => self.given_up += 1,
                _ if chosen.insert(alias.key) => self.asked.push(place),
                _ => self.known += 1,
            }
            if is_alias {
                aliases.push(alias);
            }
        }
        Ok(aliases)
    }

    /// What a job comes upon that has these questions.
    pub(crate) fn before(&self, spent: Spent) -> Collected {
        Collected {
            questions: self.all,
            known: self.known,
            given_up: self.given_up,
            pending: self.pending,
            ended: BTreeMap::new(),
            bought_twice: 0,
            spent,
        }
    }

    /// What to ask an endpoint before it is asked these.
    pub(crate) fn script(&self, teacher: &Teacher) -> Script {
        let known = teacher.dialect.known();
        let script = Script::new(teacher.kind, teacher.scale, known, self.longest);
        script.asking_why(teacher.asks_why())
    }

    /// One of the questions to ask.
    pub(crate) fn at(&self, place: usize) -> Result<Asked> {
        self.of(self.asked[place])
    }

    fn of(&self, place: usize) -> Result<Asked> {
        let (places, sample) = self.made.at(place);
        let candidate = |place: &u32| &self.candidates[*place as usize];
        let query = &candidate(&places[0]).query_id;
        let query = self.collection.query(query, &self.source)?;
        let documents = (places.iter())
            .map(|place| {
                let id = &candidate(place).document_id;
                Ok(self.collection.document(id, &self.source)?)
            })
            .collect::<Result<Vec<_>>>()?;
        let full: Vec<String> = documents.iter().map(Document::full_text).collect();
        let shown = self.redactor.redact(&query.text, &full)?;
        let raw: Vec<&str> = shown.documents.iter().map(String::as_str).collect();
        let key = |sample| Key::new(&self.recipe, sample, &shown.query, &raw);
        let texts = Texts {
            query: treated(&shown.query),
            documents: raw.iter().map(|text| treated(text)).collect(),
            // All samples are asked in the same words.
            nonce: if self.shares_nonce {
                Key::new(&self.recipe, 0, &shown.query, &[]).nonce()
            } else {
                key(0).nonce()
            },
        };
        let digests: Vec<_> = documents
            .iter()
            .map(|one| text_digest(&query, one))
            .collect();
        Ok(Asked {
            key: key(sample),
            query_id: query.id,
            document_ids: documents.into_iter().map(|one| one.id).collect(),
            sample,
            text: digests.join(" "),
            texts,
            redacted: shown.counts,
        })
    }
}

/// Questions, each as the candidates it shows. Of a graded prompt there are as many as pairs, so
/// they are kept small.
#[derive(Default)]
struct Made {
    /// The documents of one question after the other, as places among the candidates.
    shown: Vec<u32>,
    questions: Vec<Question>,
}

struct Question {
    /// The first place in `shown` that is not its own.
    end: usize,
    sample: u32,
}

impl Made {
    fn add(&mut self, documents: impl IntoIterator<Item = u32>, sample: u32) {
        self.shown.extend(documents);
        let end = self.shown.len();
        self.questions.push(Question { end, sample });
    }

    fn at(&self, place: usize) -> (&[u32], u32) {
        let before = place.checked_sub(1);
        let first = before.map_or(0, |before| self.questions[before].end);
        let Question { end, sample } = self.questions[place];
        (&self.shown[first..end], sample)
    }
}

/// The questions that candidates make for a prompt.
fn make(candidates: &[Candidate], settings: &LabelSettings, kind: Kind) -> Result<Made> {
    let (comparisons, window) = (settings.comparisons, settings.window);
    let problem = match kind {
        Kind::Pairwise if comparisons < 2 || comparisons % 2 == 1 => {
            Some("comparisons must be an even number from 2")
        }
        Kind::Listwise if window < 2 => Some("window must be at least 2"),
        _ => None,
    };
    if let Some(problem) = problem {
        return Err(Error::Setting(problem.to_owned()));
    }
    let file_problem = |problem: String| Error::File {
        path: settings.candidates.clone(),
        problem,
    };
    let count = u32::try_from(candidates.len())
        .map_err(|_| file_problem("has more than 4 billion pairs: split it".to_owned()))?;
    let samples = 0..settings.teacher.samples;
    let mut made = Made::default();
    if kind == Kind::Graded {
        for place in 0..count {
            samples.clone().for_each(|sample| made.add([place], sample));
        }
        return Ok(made);
    }
    for (query_id, places) in by_query(candidates, count) {
        if places.len() < 2 {
            return Err(file_problem(format!(
                "has one document for the query {query_id}, and the prompt asks about several: \
                 draw more, or leave the query out"
            )));
        }
        let id = |place: &u32| &*candidates[*place as usize].document_id;
        let ids: Vec<&str> = places.iter().map(id).collect();
        if kind == Kind::Pairwise {
            for (a, b) in graph::comparisons(query_id, &ids, comparisons) {
                let (a, b) = (places[a], places[b]);
                // In both orders: teachers prefer a place.
                for sample in samples.clone() {
                    made.add([a, b], sample);
                    made.add([b, a], sample);
                }
            }
        } else {
            for sample in samples.clone() {
                let order = graph::shuffled(query_id, sample as usize, &ids);
                for window in graph::windows(ids.len(), window) {
                    made.add(order[window].iter().map(|place| places[*place]), sample);
                }
            }
        }
    }
    Ok(made)
}

/// The places of each query's candidates, in the order of the first ones.
fn by_query(candidates: &[Candidate], count: u32) -> Vec<(&str, Vec<u32>)> {
    let mut queries: Vec<(&str, Vec<u32>)> = Vec::new();
    let mut number_of: HashMap<&str, usize> = HashMap::new();
    for (place, candidate) in (0..count).zip(candidates) {
        let query_id = &*candidate.query_id;
        let number = *number_of.entry(query_id).or_insert(queries.len());
        if number == queries.len() {
            queries.push((query_id, Vec::new()));
        }
        queries[number].1.push(place);
    }
    queries
}

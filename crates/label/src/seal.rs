//! From the ledger to a label set, and from judgements made elsewhere into the ledger.

use std::collections::{HashMap, HashSet};
use std::path::Path;

use retort_data::candidates;
use retort_data::collection::Collection;
use retort_data::jsonl;
use retort_data::label_set::{self, FORMAT, Label, Manifest, expected_grade, text_digest};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::dialect::rerank::Scale;
use crate::job::{LabelSettings, Teacher};
use crate::ledger::{Batch, Entry, Key, Ledger, Outcome, Reader, RecipeStatus, Record, now};
use crate::redact::Redactor;
use crate::{Error, Result};

/// A label set that was written.
#[derive(Clone, Debug, Serialize)]
pub struct Sealed {
    /// Judgements in it.
    pub rows: usize,
    /// What stands for all of them.
    pub digest: String,
}

/// Writes the judgements of one recipe as a label set: all of them, or those that `candidates`
/// names. Samples of a pair are averaged; of a pair whose text was edited, the text that was
/// judged last counts.
///
/// # Errors
/// A ledger with several recipes and none named, a pair of `candidates` without a judgement, a
/// folder that exists already, an I/O error; nothing is written then.
pub fn seal(
    ledger: &Path,
    recipe: Option<i64>,
    candidates: Option<&Path>,
    out: &Path,
) -> Result<Sealed> {
    let reader = Reader::open(ledger)?;
    let recipe = chosen(reader.recipes()?, recipe, ledger)?;
    let grades = recipe.spec["grades"].as_u64().unwrap_or_default();
    let scale = Scale::deserialize(&recipe.spec["scale"]).unwrap_or(Scale::Probability);
    let manifest = Manifest {
        format: FORMAT.to_owned(),
        top_grade: usize::try_from(grades)
            .unwrap_or_default()
            .saturating_sub(1),
        recipe: recipe.spec,
        models: recipe.models,
        probes: recipe.probes,
        rows: 0,
        shards: Vec::new(),
        sealed_by: format!("retort {}", env!("CARGO_PKG_VERSION")),
        sealed_at: now(),
    };
    let wanted = match candidates {
        None => None,
        Some(path) => Some(
            candidates::read(path)?
                .into_iter()
                .map(|one| (one.query_id, one.document_id))
                .collect(),
        ),
    };
    let mut rows = 0;
    let digest = reader.judgements(recipe.id, |entries| {
        let labels = Labels {
            entries: entries.peekable(),
            scale,
            wanted,
            ledger,
        };
        Ok(label_set::write(
            out,
            manifest,
            labels.inspect(|_| rows += 1),
        )?)
    })?;
    Ok(Sealed { rows, digest })
}

/// Entries, in the order of pairs and of time, as labels.
struct Labels<'a, I: Iterator> {
    entries: std::iter::Peekable<I>,
    /// What a reranker's scores are.
    scale: Scale,
    /// The pairs that are still to come; `None` takes all that comes.
    wanted: Option<HashSet<(String, String)>>,
    ledger: &'a Path,
}

impl<I: Iterator<Item = Result<Entry>>> Iterator for Labels<'_, I> {
    type Item = retort_data::Result<Label>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            let Some(first) = self.entries.next() else {
                return self.missing().map(Err);
            };
            let label = first.and_then(|first| self.label(first));
            match (label, &mut self.wanted) {
                (Err(error), _) => return Some(Err(self.problem(error.to_string()))),
                (Ok(label), None) => return Some(Ok(label)),
                (Ok(label), Some(wanted)) => {
                    let pair = (label.query_id.clone(), label.document_id.clone());
                    if wanted.remove(&pair) {
                        return Some(Ok(label));
                    }
                }
            }
        }
    }
}

impl<I: Iterator<Item = Result<Entry>>> Labels<'_, I> {
    /// The label of the pair that `first` and maybe the entries after it are about.
    fn label(&mut self, first: Entry) -> Result<Label> {
        let mut of_pair = vec![first];
        while let Some(more) = self.entries.next_if(|next| {
            next.as_ref().is_ok_and(|next| {
                next.query_id == of_pair[0].query_id && next.document_ids == of_pair[0].document_ids
            })
        }) {
            of_pair.push(more?);
        }
        let last = of_pair[of_pair.len() - 1].clone();
        of_pair.retain(|entry| entry.text == last.text);
        let samples = of_pair.len() as f64;
        let (mut probabilities, mut mass) = (Vec::new(), 0.0);
        for entry in &of_pair {
            let Ok(answer) = &entry.ended else { continue };
            let (of_answer, mass_of_answer) = self.read(answer)?;
            probabilities.resize(of_answer.len(), 0.0);
            for (sum, probability) in probabilities.iter_mut().zip(of_answer) {
                *sum += probability / samples;
            }
            mass += mass_of_answer / samples;
        }
        Ok(Label {
            grade: expected_grade(&probabilities),
            probabilities,
            mass,
            samples: u32::try_from(of_pair.len()).unwrap_or(u32::MAX),
            query_id: last.query_id,
            document_id: last.document_ids.into_iter().next().unwrap_or_default(),
            text: last.text,
            at: last.at,
        })
    }

    /// The probabilities of an answer's grades, and their mass.
    fn read(&self, answer: &Value) -> Result<(Vec<f64>, f64)> {
        let answer = Answer::deserialize(answer).map_err(|error| Error::File {
            path: self.ledger.to_owned(),
            problem: format!("a row can't be read: {error}"),
        })?;
        Ok(match (answer, self.scale) {
            (
                Answer::Graded {
                    probabilities,
                    mass,
                },
                _,
            ) => (probabilities, mass),
            (Answer::Scored { score }, Scale::Probability) => (vec![1.0 - score, score], 1.0),
            (Answer::Scored { score }, Scale::Logit) => {
                let relevant = 1.0 / (1.0 + (-score).exp());
                (vec![1.0 - relevant, relevant], 1.0)
            }
        })
    }

    /// What is wrong when all entries are read: pairs that were wanted and did not come.
    fn missing(&mut self) -> Option<retort_data::Error> {
        let wanted = self.wanted.take()?;
        let (query, document) = wanted.iter().min()?;
        Some(self.problem(format!(
            "has no judgement of {} of the pairs, such as {query} {document}: `retort label` asks \
             for them",
            wanted.len()
        )))
    }

    fn problem(&self, problem: String) -> retort_data::Error {
        retort_data::Error::File {
            path: self.ledger.to_owned(),
            problem,
        }
    }
}

/// An answer as the ledger has it.
#[derive(Deserialize)]
#[serde(untagged)]
enum Answer {
    /// Of a language model.
    Graded { probabilities: Vec<f64>, mass: f64 },
    /// Of a reranker.
    Scored { score: f64 },
}

fn chosen(recipes: Vec<RecipeStatus>, wanted: Option<i64>, ledger: &Path) -> Result<RecipeStatus> {
    let ids: Vec<String> = recipes.iter().map(|one| one.id.to_string()).collect();
    let several = recipes.len() > 1;
    let found = recipes
        .into_iter()
        .find(|one| wanted.is_none_or(|wanted| one.id == wanted));
    match found {
        Some(recipe) if wanted.is_some() || !several => Ok(recipe),
        _ => Err(Error::File {
            path: ledger.to_owned(),
            problem: format!(
                "holds the recipes {}: name one of them with --recipe (`labels status` shows what \
                 they are)",
                ids.join(", ")
            ),
        }),
    }
}

/// A judgement that was made elsewhere.
#[derive(Deserialize)]
struct Imported {
    query_id: String,
    document_id: String,
    probabilities: Vec<f64>,
    #[serde(default = "whole")]
    mass: f64,
    text: Option<String>,
    at: Option<String>,
}

fn whole() -> f64 {
    1.0
}

/// Puts judgements into a job's ledger that its teacher and prompt made elsewhere, as if they had
/// been asked for now; returns how many. What the ledger has an answer to already stays.
///
/// # Errors
/// A malformed line, a label outside the scale or one about other texts than the collection has
/// (file and line); nothing is imported then.
pub fn import(file: &Path, settings: &LabelSettings) -> Result<usize> {
    let teacher = Teacher::new(settings)?;
    let collection = Collection::read(&settings.collection)?;
    let top_grade = teacher.recipe["grades"]
        .as_u64()
        .and_then(|grades| usize::try_from(grades).ok())
        .unwrap_or_default()
        .saturating_sub(1);
    let expected = r#"{"query_id", "document_id", "probabilities"}"#;
    let rows = jsonl::read_numbered::<Imported>(file, expected)?;
    let mut texts = Vec::new();
    for (_, row) in &rows {
        texts.push(collection.query(&row.query_id, file)?.text.clone());
        texts.push(collection.document(&row.document_id, file)?.full_text());
    }
    let redactor = Redactor::new(settings, texts.into_iter())?;
    let mut entries = Vec::new();
    for (line, row) in rows {
        let refused = |problem: String| {
            Error::Data(retort_data::Error::Row {
                path: file.to_owned(),
                line,
                problem,
            })
        };
        let query = collection.query(&row.query_id, file)?;
        let document = collection.document(&row.document_id, file)?;
        let text = text_digest(query, document);
        if row.text.is_some_and(|judged| judged != text) {
            return Err(refused(
                "was made on other texts than the collection has now".to_owned(),
            ));
        }
        let label = Label {
            query_id: row.query_id,
            document_id: row.document_id,
            grade: expected_grade(&row.probabilities),
            probabilities: row.probabilities,
            mass: row.mass,
            samples: 1,
            text,
            at: row.at.unwrap_or_else(now),
        };
        if let Some(problem) = label.problem(top_grade) {
            return Err(refused(problem));
        }
        let sent = redactor.redact(&[&query.text, &document.full_text()])?;
        let (query, document) = (&sent[0].text, &sent[1].text);
        entries.push(Entry {
            key: Key::new(&teacher.recipe_digest, 0, query, &[document]),
            query_id: label.query_id,
            document_ids: vec![label.document_id],
            sample: 0,
            text: label.text,
            ended: Ok(json!({"probabilities": label.probabilities, "mass": label.mass})),
            at: label.at,
        });
    }
    let mut ledger = Ledger::open(&settings.ledger)?;
    let recipe = ledger.recipe(&teacher.recipe_digest, &teacher.recipe)?;
    let mut aliases = Vec::new();
    let mut imported = HashMap::new();
    for entry in &entries {
        let pair = (&entry.query_id, &entry.document_ids);
        let found = ledger.find(&entry.key)?;
        let is_known = found
            .as_ref()
            .is_some_and(|found| found.outcome == Outcome::Ok);
        let first = (!is_known).then(|| *imported.entry(entry.key).or_insert(pair));
        // Another pair may have the same texts.
        let shares = match found {
            Some(found) => !found.is_of(pair.0, pair.1),
            None => first != Some(pair),
        };
        if shares {
            aliases.push((
                entry.key,
                entry.query_id.clone(),
                entry.document_ids.clone(),
            ));
        }
    }
    let imported = imported.len();
    ledger.add_aliases(&aliases)?;
    ledger.commit(&[Record::Batch(Batch {
        recipe,
        model: None,
        entries,
        reply: None,
        request_id: None,
    })])?;
    ledger.close()?;
    Ok(imported)
}

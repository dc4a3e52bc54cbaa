//! From the ledger to a label set, and from judgements made elsewhere into the ledger.

mod strengths;

use std::collections::{BTreeSet, HashMap, HashSet};
use std::path::Path;

use retort_data::candidates;
use retort_data::collection::Collection;
use retort_data::jsonl;
use retort_data::label_set::{self, FORMAT, Label, Manifest, expected_grade, text_digest};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::dialect::rerank::Scale;
use crate::job::{LabelSettings, PROBE, Teacher};
use crate::ledger::{Alias, Batch, Entry, Key, Ledger, Outcome, Reader, RecipeStatus, Record, now};
use crate::prompt::Kind;
use crate::redact::Redactor;
use crate::{Error, Result};
use strengths::Strengths;

pub use strengths::{PositionBias, position_bias};

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
/// judged last counts. From comparisons and orders the strengths of a query's documents are fitted,
/// all that were judged together; a strength is sealed as the probability of its sigmoid.
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
    let scale = scale(&recipe.spec);
    let kind = Kind::of(&recipe.spec);
    let manifest = Manifest {
        format: FORMAT.to_owned(),
        top_grade: usize::try_from(grades)
            .unwrap_or_default()
            .saturating_sub(1),
        recipe: recipe.spec,
        models: recipe.models,
        preflights: recipe.preflights.iter().map(|one| json!(one)).collect(),
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
        let labels: Box<dyn Iterator<Item = Result<Label>> + '_> = match kind {
            Kind::Graded => Box::new(Graded {
                entries: entries.peekable(),
                scale,
                ledger,
            }),
            Kind::Pairwise | Kind::Listwise => Box::new(Strengths::new(entries, kind, ledger)),
        };
        let labels = Wanted {
            labels,
            missing: wanted,
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

/// Those of the labels that are wanted, and an error for those that did not come.
struct Wanted<'a, I> {
    labels: I,
    /// The pairs that are still to come; `None` takes all that comes.
    missing: Option<HashSet<(String, String)>>,
    ledger: &'a Path,
}

impl<I: Iterator<Item = Result<Label>>> Iterator for Wanted<'_, I> {
    type Item = retort_data::Result<Label>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            let Some(label) = self.labels.next() else {
                return self.missing().map(Err);
            };
            match (label, &mut self.missing) {
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

impl<I> Wanted<'_, I> {
    /// What is wrong when all labels came: pairs that were wanted and did not come.
    fn missing(&mut self) -> Option<retort_data::Error> {
        let wanted = self.missing.take()?;
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

/// Entries about one document each, in the order of pairs and of time, as labels.
struct Graded<'a, I: Iterator> {
    entries: std::iter::Peekable<I>,
    /// What a reranker's scores are.
    scale: Scale,
    ledger: &'a Path,
}

impl<I: Iterator<Item = Result<Entry>>> Iterator for Graded<'_, I> {
    type Item = Result<Label>;

    fn next(&mut self) -> Option<Self::Item> {
        let first = self.entries.next()?;
        Some(first.and_then(|first| self.label(first)))
    }
}

impl<I: Iterator<Item = Result<Entry>>> Graded<'_, I> {
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
        let answer = Answer::deserialize(answer).map_err(|error| unreadable(self.ledger, error))?;
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

fn unreadable(ledger: &Path, problem: impl std::fmt::Display) -> Error {
    Error::File {
        path: ledger.to_owned(),
        problem: format!("a row can't be read: {problem}"),
    }
}

/// Every label that a ledger's judgements by a recipe make, by query and document; none where there
/// is no such ledger or recipe.
pub(crate) fn labels(ledger: &Path, recipe: &Value) -> Result<HashMap<(String, String), Label>> {
    let mut found = HashMap::new();
    if !ledger.exists() {
        return Ok(found);
    }
    let reader = Reader::open(ledger)?;
    let recipes = reader.recipes()?;
    if let Some(recipe) = recipes.iter().find(|one| one.spec == *recipe) {
        reader.judgements(recipe.id, |entries| {
            let labels = Graded {
                entries: entries.peekable(),
                scale: scale(&recipe.spec),
                ledger,
            };
            for label in labels {
                let label = label?;
                found.insert((label.query_id.clone(), label.document_id.clone()), label);
            }
            Ok(())
        })?;
    }
    Ok(found)
}

/// What the scores of a recipe are, if it is a reranker's.
fn scale(recipe: &Value) -> Scale {
    Scale::deserialize(&recipe["scale"]).unwrap_or(Scale::Probability)
}

fn chosen(
    mut recipes: Vec<RecipeStatus>,
    wanted: Option<i64>,
    ledger: &Path,
) -> Result<RecipeStatus> {
    recipes.retain(|one| one.spec[PROBE].is_null());
    let ids: Vec<String> = recipes.iter().map(|one| one.id.to_string()).collect();
    let several = recipes.len() > 1;
    let found = recipes
        .into_iter()
        .find(|one| wanted.is_none_or(|wanted| one.id == wanted));
    match found {
        Some(recipe) if wanted.is_some() || !several => Ok(recipe),
        _ => Err(Error::File {
            path: ledger.to_owned(),
            problem: match &*ids {
                [] => "holds no labels yet: `retort label` collects them".to_owned(),
                ids => format!(
                    "holds the recipes {}: name one of them with --recipe (`labels status` shows \
                     what they are)",
                    ids.join(", ")
                ),
            },
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
    if teacher.kind != Kind::Graded {
        let problem = "prompt: judgements can be imported of one document each, and this one asks \
                       about several";
        return Err(Error::Setting(problem.to_owned()));
    }
    let collection = Collection::read(&settings.collection)?;
    let top_grade = teacher.top_grade();
    let expected = r#"{"query_id", "document_id", "probabilities"}"#;
    let rows = jsonl::read_numbered::<Imported>(file, expected)?;
    let redactor = Redactor::new(settings, || {
        let mut texts = BTreeSet::new();
        for (_, row) in &rows {
            texts.insert(collection.query(&row.query_id, file)?.text.clone());
            texts.insert(collection.document(&row.document_id, file)?.full_text());
        }
        Ok(texts)
    })?;
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
        let shown = redactor.redact(&query.text, &[document.full_text()])?;
        entries.push(Entry {
            key: Key::new(
                &teacher.recipe_digest,
                0,
                &shown.query,
                &[&shown.documents[0]],
            ),
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
        let alias = Alias {
            key: entry.key,
            query_id: entry.query_id.clone(),
            document_ids: entry.document_ids.clone(),
            text: entry.text.clone(),
        };
        let found = ledger.find(&entry.key)?;
        let is_known = found
            .as_ref()
            .is_some_and(|found| found.outcome == Outcome::Ok);
        let first = (!is_known).then(|| imported.entry(entry.key).or_insert_with(|| alias.clone()));
        // Another pair may have the same texts.
        let shares = match found {
            Some(found) => !found.is_of(&alias),
            None => first.is_some_and(|first| *first != alias),
        };
        if shares {
            aliases.push(alias);
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

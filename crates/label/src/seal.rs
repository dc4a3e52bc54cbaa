//! From the ledger to a label set.

mod strengths;

use std::collections::{HashMap, HashSet};
use std::path::Path;

use retort_data::candidates;
use retort_data::label_set::{self, FORMAT, Label, Manifest, expected_grade};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::dialect::rerank::Scale;
use crate::job::PROBE;
use crate::ledger::{Entry, Outcome, Reader, RecipeStatus, now};
use crate::prompt::Kind;
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
/// A ledger with several recipes and none named, or without a judgement, a pair of `candidates` without a judgement, a
/// folder that exists already, an I/O error; nothing is written then.
pub fn seal(
    ledger: &Path,
    recipe: Option<i64>,
    candidates: Option<&Path>,
    out: &Path,
) -> Result<Sealed> {
    let reader = Reader::open(ledger)?;
    let recipe = chosen(reader.recipes()?, recipe, ledger)?;
    if !recipe.outcomes.contains_key(&Outcome::Ok) {
        return Err(Error::File {
            path: ledger.to_owned(),
            problem: "has no judgement yet: `retort label` asks for them".to_owned(),
        });
    }
    let grades = recipe.spec["grades"].as_u64().unwrap_or_default();
    let manifest = Manifest {
        format: FORMAT.to_owned(),
        top_grade: usize::try_from(grades)
            .unwrap_or_default()
            .saturating_sub(1),
        recipe: recipe.spec.clone(),
        models: recipe.models,
        preflights: recipe.preflights.iter().map(|one| json!(one)).collect(),
        corrections: Vec::new(),
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
        let labels = Wanted {
            labels: labels_of(entries, &recipe.spec, ledger),
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

/// The labels that a recipe's entries make, which come in the order of pairs and of time.
pub(crate) fn labels_of<'a>(
    entries: impl Iterator<Item = Result<Entry>> + 'a,
    recipe: &Value,
    ledger: &'a Path,
) -> Box<dyn Iterator<Item = Result<Label>> + 'a> {
    match Kind::of(recipe) {
        Kind::Graded => Box::new(Graded {
            entries: entries.peekable(),
            scale: scale_of(recipe),
            ledger,
        }),
        kind => Box::new(Strengths::new(entries, kind, ledger)),
    }
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
            let (of_answer, mass_of_answer) = probabilities_of(answer, self.scale, self.ledger)?;
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
}

/// The probabilities of an answer's grades, and their mass.
pub(crate) fn probabilities_of(
    answer: &Value,
    scale: Scale,
    ledger: &Path,
) -> Result<(Vec<f64>, f64)> {
    let answer = Answer::deserialize(answer).map_err(|error| unreadable(ledger, error))?;
    Ok(match (answer, scale) {
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
            for label in labels_of(entries, &recipe.spec, ledger) {
                let label = label?;
                found.insert((label.query_id.clone(), label.document_id.clone()), label);
            }
            Ok(())
        })?;
    }
    Ok(found)
}

/// What the scores of a recipe are, if it is a reranker's.
pub(crate) fn scale_of(recipe: &Value) -> Scale {
    Scale::deserialize(&recipe["scale"]).unwrap_or(Scale::Probability)
}

/// The recipe of that number, or the only one whose judgements are labels.
pub(crate) fn chosen(
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

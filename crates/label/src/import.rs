//! Judgements made elsewhere, into the ledger.

use std::collections::{BTreeSet, HashMap};
use std::path::Path;

use retort_data::collection::Collection;
use retort_data::jsonl;
use retort_data::label_set::{Label, expected_grade, text_digest};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::apart::Kill;
use crate::job::{LabelSettings, Teacher};
use crate::ledger::{Alias, Batch, Entry, Key, Ledger, Outcome, Record, now};
use crate::prompt::Kind;
use crate::redact::Redactor;
use crate::seal::{probabilities_of, scale_of};
use crate::{Error, Result};

/// A line of the file.
#[derive(Deserialize)]
struct Imported {
    query_id: String,
    document_id: String,
    #[serde(default)]
    sample: u32,
    outcome: Option<Outcome>,
    probabilities: Option<Vec<f64>>,
    #[serde(default = "whole")]
    mass: f64,
    score: Option<f64>,
    problem: Option<String>,
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
    let expected = r#"{"query_id", "document_id", "probabilities"}"#;
    let rows = jsonl::read_numbered::<Imported>(file, expected)?;
    let redactor = Redactor::new(settings, &Kill::default(), || {
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
        if row.text.as_ref().is_some_and(|judged| *judged != text) {
            return Err(refused(
                "was made on other texts than the collection has now".to_owned(),
            ));
        }
        let ended = row.ended(&teacher, file).map_err(refused)?;
        let shown = redactor.redact(&query.text, &[document.full_text()])?;
        let documents = [&*shown.documents[0]];
        entries.push(Entry {
            key: Key::new(&teacher.recipe_digest, row.sample, &shown.query, &documents),
            query_id: row.query_id,
            document_ids: vec![row.document_id],
            sample: row.sample,
            text,
            ended,
            at: row.at.unwrap_or_else(now),
        });
    }
    record(entries, &teacher, settings)
}

impl Imported {
    /// How the question ended; what is wrong with the answer, if anything is.
    fn ended(
        &self,
        teacher: &Teacher,
        file: &Path,
    ) -> Result<Result<Value, (Outcome, String)>, String> {
        if let Some(outcome) = self.outcome.filter(|outcome| *outcome != Outcome::Ok) {
            return Ok(Err((outcome, self.problem.clone().unwrap_or_default())));
        }
        let is_reranker = !teacher.recipe["scale"].is_null();
        let answer = match (&self.probabilities, self.score) {
            (Some(probabilities), None) => {
                json!({"probabilities": probabilities, "mass": self.mass})
            }
            (None, Some(score)) if is_reranker => json!({"score": score}),
            _ => return Err("expected `probabilities`, or a reranker's `score`".to_owned()),
        };
        let (probabilities, mass) = probabilities_of(&answer, scale_of(&teacher.recipe), file)
            .map_err(|error| error.to_string())?;
        let label = Label {
            query_id: self.query_id.clone(),
            document_id: self.document_id.clone(),
            grade: expected_grade(&probabilities),
            probabilities,
            mass,
            samples: 1,
            text: String::new(),
            at: String::new(),
        };
        match label.problem(teacher.top_grade()) {
            Some(problem) => Err(problem),
            None => Ok(Ok(answer)),
        }
    }
}

/// Puts entries into the ledger; returns how many of them it had no answer to.
fn record(entries: Vec<Entry>, teacher: &Teacher, settings: &LabelSettings) -> Result<usize> {
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

//! Judgements made elsewhere, into the ledger.

use std::collections::HashMap;
use std::path::Path;
use std::sync::LazyLock;

use retort_data::Error as DataError;
use retort_data::collection::{Collection, Document, Query};
use retort_data::jsonl;
use retort_data::label_set::{Label, expected_grade, text_digest};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::apart::Kill;
use crate::job::{LabelSettings, Teacher};
use crate::ledger::{Alias, Batch, Entry, Key, Ledger, Outcome, Record, as_text, now};
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
    rationale: Option<String>,
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
/// A malformed line, an unknown id, a label outside the scale, of too little mass, of a sample that
/// the job does not ask for or about other texts than the collection has, two answers to one
/// question (file and line); nothing is imported then.
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
    let mut subjects = Vec::with_capacity(rows.len());
    for (line, row) in &rows {
        let query = collection.query(&row.query_id, file);
        let document = collection.document(&row.document_id, file);
        let in_line = |error| match error {
            DataError::File { path, problem } => refused(&path, *line, problem),
            error => Error::Data(error),
        };
        subjects.push((query.map_err(in_line)?, document.map_err(in_line)?));
    }
    let redactor = Redactor::new(settings, &Kill::default(), || {
        let both =
            |(query, document): &(Query, Document)| [query.text.clone(), document.full_text()];
        Ok(subjects.iter().flat_map(both).collect())
    })?;
    let mut entries: Vec<Entry> = Vec::with_capacity(rows.len());
    let mut answered: HashMap<_, (usize, Value)> = HashMap::new();
    for ((line, row), (query, document)) in rows.into_iter().zip(subjects) {
        let refused = |problem| refused(file, line, problem);
        let text = text_digest(&query, &document);
        if row.text.as_ref().is_some_and(|judged| *judged != text) {
            return Err(refused(
                "was made on other texts than the collection has now".to_owned(),
            ));
        }
        let ended = row.ended(&teacher, settings, file).map_err(refused)?;
        let at = row.at().map_err(refused)?;
        if let Ok(answer) = &ended {
            let question = (query.id.clone(), document.id.clone(), row.sample);
            let (first, before) = (answered.entry(question)).or_insert((line, answer.clone()));
            if before != answer {
                return Err(refused(format!(
                    "is another answer to the question of line {first}: leave one of the two out"
                )));
            }
        }
        let shown = redactor.redact(&query.text, &[document.full_text()])?;
        let documents = [&*shown.documents[0]];
        entries.push(Entry {
            key: Key::new(&teacher.recipe_digest, row.sample, &shown.query, &documents),
            query_id: row.query_id,
            document_ids: vec![row.document_id],
            sample: row.sample,
            text,
            ended,
            at,
        });
    }
    record(entries, &teacher, settings)
}

fn refused(path: &Path, line: usize, problem: String) -> Error {
    Error::Data(DataError::Row {
        path: path.to_owned(),
        line,
        problem,
    })
}

impl Imported {
    /// How the question ended; what is wrong with the answer, if anything is.
    fn ended(
        &self,
        teacher: &Teacher,
        settings: &LabelSettings,
        file: &Path,
    ) -> Result<Result<Value, (Outcome, String)>, String> {
        let samples = settings.teacher.samples;
        if self.sample >= samples {
            return Err(format!(
                "sample is {}, and [teacher] samples is {samples}: expected from 0 to {}",
                self.sample,
                samples - 1
            ));
        }
        if let Some(outcome) = self.outcome.filter(|outcome| *outcome != Outcome::Ok) {
            return Ok(Err((outcome, self.problem.clone().unwrap_or_default())));
        }
        let is_reranker = !teacher.recipe["scale"].is_null();
        let mut answer = match (&self.probabilities, self.score) {
            (Some(probabilities), None) => {
                json!({"probabilities": probabilities, "mass": self.mass})
            }
            (None, Some(score)) if is_reranker => json!({"score": score}),
            _ => return Err("expected `probabilities`, or a reranker's `score`".to_owned()),
        };
        if let Some(rationale) = &self.rationale {
            answer["rationale"] = rationale.as_str().into();
        }
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
        if let Some(problem) = label.problem(teacher.top_grade()) {
            return Err(problem);
        }
        let least = settings.teacher.least_mass;
        // Rounded log-probabilities may add up to a little more than all there is.
        if !(0.0..=1.001).contains(&mass) {
            return Err(format!("mass is {mass}, expected from 0 to 1"));
        }
        if mass < least {
            return Err(format!(
                "mass is {mass}, below the job's least_mass of {least}: the teacher was answering \
                 something else; leave the line out, or lower [teacher] least_mass"
            ));
        }
        Ok(Ok(answer))
    }

    /// When it was made, in the ledger's manner, for times are compared there as texts.
    fn at(&self) -> Result<String, String> {
        let Some(at) = &self.at else {
            return Ok(now());
        };
        let parsed: jiff::Timestamp = at.parse().map_err(|_| {
            format!("at is {at:?}, expected a time as in 2026-11-21T08:30:00Z (RFC 3339)")
        })?;
        Ok(as_text(parsed))
    }
}

/// Reads a line as of a reranker's judgements: in a word, what comes of it.
///
/// # Errors
/// An answer that is no label.
pub(crate) fn try_line(line: &str) -> Result<String, String> {
    const JOB: &str = "collection = ''\ncandidates = ''\nledger = ''\n[teacher]\nname = ''\n\
                       model = ''\ndialect = 'tei'\nendpoints = ['http://127.0.0.1/']";
    static TEACHER: LazyLock<Result<(LabelSettings, Teacher), String>> = LazyLock::new(|| {
        let settings = toml::from_str(JOB).map_err(|error| error.to_string())?;
        let teacher = Teacher::new(&settings).map_err(|error| error.to_string())?;
        Ok((settings, teacher))
    });
    let (settings, teacher) = TEACHER.as_ref().map_err(Clone::clone)?;
    let Ok(row) = serde_json::from_str::<Imported>(line) else {
        return Ok("no-row".to_owned());
    };
    let at = row.at();
    Ok(match row.ended(teacher, settings, Path::new("bytes")) {
        Err(_) => "refused".to_owned(),
        Ok(_) if at.is_err() => "no-time".to_owned(),
        Ok(Err((outcome, _))) => outcome.to_string(),
        Ok(Ok(answer)) => {
            let scale = scale_of(&teacher.recipe);
            let (probabilities, _) = probabilities_of(&answer, scale, Path::new("bytes"))
                .map_err(|error| error.to_string())?;
            let sum: f64 = probabilities.iter().sum();
            if !probabilities.iter().all(|p| (0.0..=1.0).contains(p)) || (sum - 1.0).abs() > 1e-3 {
                return Err(format!("{probabilities:?} is no label"));
            }
            "label".to_owned()
        }
    })
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

//! Judgements as text, one a line, for whatever reads JSON, CSV or TREC's qrels.
//!
//! | format | lines |
//! |---|---|
//! | `jsonl`, `csv` | every question that ended, however it did; `labels import` reads the former |
//! | `trec-qrels` | every pair with a label: its expected grade, rounded |

use std::io::Write;
use std::path::Path;
use std::str::FromStr;

use retort_data::label_set::expected_grade;
use serde::Serialize;
use serde_json::{Map, Value};

use crate::ledger::{Outcome, Reader, RecipeStatus, Sourced};
use crate::seal::{chosen, labels_of, probabilities_of, scale_of};
use crate::{Error, Result};

/// What judgements are written as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// A JSON object a line.
    Jsonl,
    /// Comma-separated values (RFC 4180) under a line of names.
    Csv,
    /// Query, 0, document, grade.
    TrecQrels,
}

impl FromStr for Format {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        match name {
            "jsonl" => Ok(Self::Jsonl),
            "csv" => Ok(Self::Csv),
            "trec-qrels" => Ok(Self::TrecQrels),
            _ => Err(format!("expected jsonl, csv or trec-qrels, not {name:?}")),
        }
    }
}

/// Writes the judgements of one recipe, in the order of queries and documents; returns how many
/// lines of them.
///
/// # Errors
/// A ledger with several recipes and none named, an id that the format can't hold, an I/O error.
pub fn export(
    ledger: &Path,
    recipe: Option<i64>,
    format: Format,
    out: &mut dyn Write,
) -> Result<usize> {
    let reader = Reader::open(ledger)?;
    let recipe = chosen(reader.recipes()?, recipe, ledger)?;
    match format {
        Format::TrecQrels => qrels(&reader, &recipe, out),
        Format::Jsonl => lines(&reader, &recipe, |line| {
            serde_json::to_writer(&mut *out, &line).map_err(std::io::Error::from)?;
            out.write_all(b"\n")
        }),
        Format::Csv => {
            writeln!(out, "{}", COLUMNS.join(","))?;
            lines(&reader, &recipe, |line| writeln!(out, "{}", as_csv(&line)?))
        }
    }
}

/// A question that ended. What it was answered is among the fields as the ledger has it.
#[derive(Serialize)]
struct Line {
    query_id: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    document_id: Option<String>,
    /// Of a question about several.
    #[serde(skip_serializing_if = "Option::is_none")]
    document_ids: Option<Vec<String>>,
    sample: u32,
    outcome: Outcome,
    /// The expected grade of one document.
    #[serde(skip_serializing_if = "Option::is_none")]
    grade: Option<f64>,
    #[serde(flatten)]
    answer: Map<String, Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    problem: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    model: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    request_id: Option<String>,
    text: String,
    at: String,
}

/// The fields of all lines.
const COLUMNS: [&str; 16] = [
    "query_id",
    "document_id",
    "document_ids",
    "sample",
    "outcome",
    "grade",
    "probabilities",
    "mass",
    "score",
    "ranking",
    "placed",
    "problem",
    "model",
    "text",
    "at",
    "rationale",
];

fn as_csv(line: &Line) -> std::io::Result<String> {
    let fields = serde_json::to_value(line)?;
    let columns = COLUMNS.map(|name| match &fields[name] {
        Value::Null => String::new(),
        Value::String(text) => quoted(text),
        value => quoted(&value.to_string()),
    });
    Ok(columns.join(","))
}

/// A field of a CSV line.
fn quoted(field: &str) -> String {
    if field.contains([',', '"', '\n', '\r']) {
        format!("\"{}\"", field.replace('"', "\"\""))
    } else {
        field.to_owned()
    }
}

/// Hands over every question of a recipe that ended, under each pair it stands for; returns how
/// many.
fn lines(
    reader: &Reader,
    recipe: &RecipeStatus,
    mut write: impl FnMut(Line) -> std::io::Result<()>,
) -> Result<usize> {
    reader.ended(recipe.id, |entries| {
        let mut count = 0;
        for entry in entries {
            write(line(entry?, recipe, reader.path())?)?;
            count += 1;
        }
        Ok(count)
    })
}

fn line(sourced: Sourced, recipe: &RecipeStatus, ledger: &Path) -> Result<Line> {
    let entry = sourced.entry;
    let outcome = entry.outcome();
    let is_one = entry.document_ids.len() == 1;
    let mut ids = entry.document_ids;
    let mut grade = None;
    if let (Ok(answer), true) = (&entry.ended, is_one) {
        let (probabilities, _) = probabilities_of(answer, scale_of(&recipe.spec), ledger)?;
        grade = Some(expected_grade(&probabilities));
    }
    let (answer, problem) = match entry.ended {
        Ok(Value::Object(answer)) => (answer, None),
        Ok(_) => (Map::new(), None),
        Err((_, problem)) => (Map::new(), Some(problem)),
    };
    Ok(Line {
        query_id: entry.query_id,
        document_id: if is_one { ids.pop() } else { None },
        document_ids: (!is_one).then_some(ids),
        sample: entry.sample,
        outcome,
        grade,
        answer,
        problem,
        model: sourced.model,
        request_id: sourced.request_id,
        text: entry.text,
        at: entry.at,
    })
}

fn qrels(reader: &Reader, recipe: &RecipeStatus, out: &mut dyn Write) -> Result<usize> {
    reader.judgements(recipe.id, |entries| {
        let mut count = 0;
        for label in labels_of(entries, &recipe.spec, reader.path()) {
            let label = label?;
            for id in [&label.query_id, &label.document_id] {
                if id.contains(char::is_whitespace) || id.is_empty() {
                    return Err(Error::File {
                        path: reader.path().to_owned(),
                        problem: format!(
                            "TREC's qrels are split at white space and can't hold the id {id:?}: \
                             export jsonl or csv"
                        ),
                    });
                }
            }
            let (query, document) = (&label.query_id, &label.document_id);
            writeln!(out, "{query} 0 {document} {:.0}", label.grade.round())?;
            count += 1;
        }
        Ok(count)
    })
}

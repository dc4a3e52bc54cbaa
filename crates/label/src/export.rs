//! Judgements as text, one a line, for whatever reads JSON, CSV or TREC's qrels.
//!
//! | format | lines |
//! |---|---|
//! | `jsonl`, `csv` | every question that ended, however it did; `labels import` reads the former |
//! | `trec-qrels` | every pair with an answer: its expected grade, rounded |
//!
//! What a request used is shared out among the questions it answered: summed over all lines, it is
//! what the answers took. Requests that brought nothing are in `labels status` alone.

use std::io::Write;
use std::path::Path;
use std::str::FromStr;

use retort_data::label_set::expected_grade;
use rusqlite::Row;
use rusqlite::types::Type;
use serde::Serialize;
use serde_json::{Map, Value};

use crate::ledger::{Reader, RecipeStatus};
use crate::seal::{Labels, chosen, read, scale_of};
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
        Format::TrecQrels => qrels(&reader, &recipe, ledger, out),
        Format::Jsonl => lines(&reader, &recipe, ledger, |line| {
            serde_json::to_writer(&mut *out, line).map_err(std::io::Error::from)?;
            out.write_all(b"\n")
        }),
        Format::Csv => {
            writeln!(out, "{}", COLUMNS.join(","))?;
            lines(&reader, &recipe, ledger, |line| {
                writeln!(out, "{}", line.as_csv())
            })
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
    outcome: String,
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
    /// Of the request that ended it, this question's share; none where it was not asked for here.
    #[serde(skip_serializing_if = "Option::is_none")]
    tokens: Option<f64>,
    /// Likewise, in units of the currency.
    #[serde(skip_serializing_if = "Option::is_none")]
    cost: Option<f64>,
    text: String,
    at: String,
}

const COLUMNS: [&str; 15] = [
    "query_id",
    "document_id",
    "sample",
    "outcome",
    "grade",
    "probabilities",
    "mass",
    "score",
    "problem",
    "model",
    "request_id",
    "tokens",
    "cost",
    "text",
    "at",
];

impl Line {
    fn as_csv(&self) -> String {
        let document = match (&self.document_id, &self.document_ids) {
            (Some(id), _) => id.clone(),
            (None, ids) => Value::from(ids.clone().unwrap_or_default()).to_string(),
        };
        let text = |text: &Option<String>| text.clone().unwrap_or_default();
        let number = |number: Option<f64>| number.map(|n| n.to_string()).unwrap_or_default();
        let of_answer = |name: &str| match self.answer.get(name) {
            None => String::new(),
            Some(Value::Array(values)) => {
                let values: Vec<String> = values.iter().map(Value::to_string).collect();
                values.join(" ")
            }
            Some(value) => value.to_string(),
        };
        let fields = [
            self.query_id.clone(),
            document,
            self.sample.to_string(),
            self.outcome.clone(),
            number(self.grade),
            of_answer("probabilities"),
            of_answer("mass"),
            of_answer("score"),
            text(&self.problem),
            text(&self.model),
            text(&self.request_id),
            number(self.tokens),
            number(self.cost),
            self.text.clone(),
            self.at.clone(),
        ];
        fields.map(quoted).join(",")
    }
}

/// A field of a CSV line.
fn quoted(field: String) -> String {
    if field.contains([',', '"', '\n', '\r']) {
        format!("\"{}\"", field.replace('"', "\"\""))
    } else {
        field
    }
}

/// Hands over every question of a recipe that ended, under each pair it stands for; returns how
/// many.
fn lines(
    reader: &Reader,
    recipe: &RecipeStatus,
    ledger: &Path,
    mut write: impl FnMut(&Line) -> std::io::Result<()>,
) -> Result<usize> {
    let sql = "SELECT j.query_id, j.document_ids, j.sample, j.outcome, j.answer, j.problem, \
               epoch.model, j.request_id, a.input_tokens + a.output_tokens, a.micros, \
               count(*) OVER (PARTITION BY j.run, j.attempt), j.text, j.at \
               FROM judgement AS j LEFT JOIN epoch ON epoch.id = j.epoch \
               LEFT JOIN attempt AS a ON a.run = j.run AND a.number = j.attempt \
               WHERE j.recipe = ?1 \
               UNION ALL \
               SELECT alias.query_id, alias.document_ids, j.sample, j.outcome, j.answer, \
               j.problem, epoch.model, j.request_id, NULL, NULL, 1, j.text, j.at \
               FROM alias JOIN judgement AS j USING (key) \
               LEFT JOIN epoch ON epoch.id = j.epoch WHERE j.recipe = ?1 \
               AND (alias.query_id <> j.query_id OR alias.document_ids <> j.document_ids) \
               ORDER BY 1, 2, 3, 13";
    let scale = scale_of(&recipe.spec);
    let failed = |error| Error::ledger(ledger, error);
    reader.with(|db| {
        let mut select = db.prepare(sql).map_err(failed)?;
        let mut rows = select.query([recipe.id]).map_err(failed)?;
        let mut count = 0;
        while let Some(row) = rows.next().map_err(failed)? {
            let mut line = line(row).map_err(failed)?;
            if line.document_id.is_some() && !line.answer.is_empty() {
                let answer = Value::Object(line.answer.clone());
                line.grade = Some(expected_grade(&read(&answer, scale, ledger)?.0));
            }
            write(&line)?;
            count += 1;
        }
        Ok(count)
    })
}

fn line(row: &Row) -> rusqlite::Result<Line> {
    let malformed = |column, error: serde_json::Error| {
        rusqlite::Error::FromSqlConversionFailure(column, Type::Text, error.into())
    };
    let ids: String = row.get(1)?;
    let ids: Vec<String> = serde_json::from_str(&ids).map_err(|error| malformed(1, error))?;
    let answer: Option<String> = row.get(4)?;
    let answer = answer.map_or(Ok(Map::new()), |answer| serde_json::from_str(&answer));
    let questions: u32 = row.get(10)?;
    let share = |total: Option<u32>| total.map(|total| f64::from(total) / f64::from(questions));
    let is_one = ids.len() == 1;
    Ok(Line {
        query_id: row.get(0)?,
        document_id: ids.first().filter(|_| is_one).cloned(),
        document_ids: (!is_one).then_some(ids),
        sample: row.get(2)?,
        outcome: row.get(3)?,
        grade: None,
        answer: answer.map_err(|error| malformed(4, error))?,
        problem: row.get(5)?,
        model: row.get(6)?,
        request_id: row.get(7)?,
        tokens: share(row.get(8)?),
        cost: share(row.get(9)?).map(|micros| micros / 1e6),
        text: row.get(11)?,
        at: row.get(12)?,
    })
}

fn qrels(
    reader: &Reader,
    recipe: &RecipeStatus,
    ledger: &Path,
    out: &mut dyn Write,
) -> Result<usize> {
    reader.judgements(recipe.id, |entries| {
        let labels = Labels {
            entries: entries.peekable(),
            scale: scale_of(&recipe.spec),
            wanted: None,
            ledger,
        };
        let mut count = 0;
        for label in labels {
            let label = label?;
            for id in [&label.query_id, &label.document_id] {
                if id.contains(char::is_whitespace) || id.is_empty() {
                    return Err(Error::File {
                        path: ledger.to_owned(),
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

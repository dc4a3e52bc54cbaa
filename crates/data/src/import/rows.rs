//! Rows with named fields out of files of several formats.

use std::io::{Cursor, Read};
use std::path::{Path, PathBuf};

use fs_err as fs;
use serde_json::{Map, Value};

use super::{csv, parquet, sgml};
use crate::lines::{Lines, Rows, counted};
use crate::{Error, Result, jsonl};

/// One row: values by the names of their columns.
pub(super) type Fields = Map<String, Value>;

/// How a file's rows are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// One JSON object a line.
    Jsonl,
    /// Comma-separated, with column names on top; fields may be quoted (RFC 4180).
    Csv {
        /// What separates the fields, mostly a comma.
        delimiter: char,
    },
    /// Tab-separated, with column names on top; quotes stand for themselves.
    Tsv,
    /// Parquet.
    Parquet,
    /// What TREC and MS MARCO use: documents or topics in SGML, JSONL, or tab-separated lines of
    /// id and text (id, title, text; id, url, title, text) without column names. Parquet, too.
    ByContent,
}

impl Format {
    /// Refuses what can't separate fields.
    pub(super) fn check(self) -> Result<()> {
        match self {
            Self::Csv {
                delimiter: delimiter @ ('"' | '\n' | '\r'),
            } => Err(Error::Setting(format!(
                "--delimiter {delimiter:?}: expected a character such as ',', ';' or '|'"
            ))),
            _ => Ok(()),
        }
    }
}

/// A file, opened.
pub(super) enum Opened {
    /// Parquet, which its first bytes tell.
    Rows(Rows<Fields>),
    /// Anything else.
    Lines(Lines),
}

pub(super) fn open(path: &Path) -> Result<Opened> {
    let mut file = fs::File::open(path)?;
    let mut magic = Vec::new();
    file.by_ref().take(4).read_to_end(&mut magic)?;
    if magic == b"PAR1" {
        return Ok(Opened::Rows(parquet::rows(path, file.into_file())?));
    }
    let lines = Lines::new(path, Cursor::new(magic).chain(file))?;
    Ok(Opened::Lines(lines))
}

/// The rows of a file.
pub(super) fn read(format: Format, path: &Path) -> Result<Rows<Fields>> {
    match open(path)? {
        Opened::Rows(rows) => Ok(rows),
        Opened::Lines(_) if format == Format::Parquet => Err(Error::File {
            path: path.to_owned(),
            problem: "is no Parquet file: import it as what it is, such as csv".to_owned(),
        }),
        Opened::Lines(lines) => Ok(rows(format, lines)),
    }
}

/// The rows of a text file.
pub(super) fn rows(format: Format, mut lines: Lines) -> Rows<Fields> {
    match format {
        Format::Jsonl => jsonl::rows(lines, "one JSON object a line"),
        Format::Csv { delimiter } => csv::rows(lines, delimiter),
        Format::Tsv => tsv(lines),
        Format::Parquet | Format::ByContent => {
            match lines.peek().map(|line| line.trim_start().as_bytes()[0]) {
                Some(b'{') => rows(Format::Jsonl, lines),
                Some(b'<') => sgml::rows(lines),
                _ => nameless(lines),
            }
        }
    }
}

/// A quote is a quote, and no field holds a tab.
fn tsv(lines: Lines) -> Rows<Fields> {
    let path = lines.path().to_owned();
    let records = lines.rows(|line| Ok(Some(line.split('\t').map(str::to_owned).collect())));
    under_names(path, records)
}

/// Records under the column names of the first. Without these there are no rows.
pub(super) fn under_names(
    path: PathBuf,
    mut records: impl Iterator<Item = Result<(usize, Vec<String>)>> + 'static,
) -> Rows<Fields> {
    let names = match records.next().transpose() {
        Ok(first) => column_names(&first.map_or_else(Vec::new, |(_, names)| names)),
        Err(Error::Row { problem, .. }) => Err(problem),
        Err(error) => return Box::new(std::iter::once(Err(error))),
    };
    let names = match names {
        Ok(names) => names,
        Err(problem) => {
            let problem = format!("has no column names on top: {problem}");
            return Box::new(std::iter::once(Err(Error::File { path, problem })));
        }
    };
    Box::new(records.map(move |record| {
        let (line, values) = record?;
        match named(&names, values) {
            Ok(row) => Ok((line, row)),
            Err(problem) => Err(Error::row(&path, line, problem)),
        }
    }))
}

/// Rows without column names, which their number tells.
fn nameless(lines: Lines) -> Rows<Fields> {
    lines.rows(|line| {
        let values: Vec<String> = line.split('\t').map(str::to_owned).collect();
        let names: &[&str] = match values.len() {
            2 => &["id", "text"],
            3 => &["id", "title", "text"],
            4 => &["id", "url", "title", "text"],
            count => {
                let count = counted(count, "column");
                return Err(format!(
                    "{count}, expected id and text (id, title, text; id, url, title, \
                     text), separated by tabs"
                ));
            }
        };
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        named(&names, values).map(Some)
    })
}

/// Column names without the white space around them.
fn column_names(names: &[String]) -> Result<Vec<String>, String> {
    let names: Vec<String> = names.iter().map(|name| name.trim().to_owned()).collect();
    match (1..names.len()).find(|at| names[..*at].contains(&names[*at])) {
        Some(at) => Err(format!("{:?} is there twice: rename one", names[at])),
        None => Ok(names),
    }
}

/// Values under the names of their columns.
fn named(names: &[String], values: Vec<String>) -> Result<Fields, String> {
    if values.len() != names.len() {
        return Err(format!(
            "{}, and there are {} column names: add the separators that are missing, or take out \
             those that are too many (in CSV a field in quotes may hold them)",
            counted(values.len(), "field"),
            names.len()
        ));
    }
    let values = values.into_iter().map(Value::String);
    Ok(names.iter().cloned().zip(values).collect())
}

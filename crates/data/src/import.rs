//! Collections out of the files that others keep theirs in: BEIR, TREC, MS MARCO, JSONL, CSV, TSV,
//! Parquet, and the training files of FlagEmbedding and Tevatron. What is written has the BEIR
//! layout that all else reads, and `runs/NAME.tsv` for [`crate::candidates`].
//!
//! ```text
//! file → rows (one error format) → documents, queries, judgements, runs → a folder
//! ```
//!
//! Rows pass through; what stays in memory are digests of ids, to find those that are given twice
//! and those that are unknown: 20 to 39 bytes for a document, a query, a judgement or a place in a
//! run.

mod columns;
mod csv;
mod examples;
mod parquet;
mod rows;
mod sgml;
mod writer;

use std::collections::BTreeMap;
use std::io::Cursor;
use std::path::{Path, PathBuf};

use fs_err as fs;
use serde::Serialize;

pub use columns::Columns;
pub use examples::Shape;
pub use rows::Format;

use crate::label_set::Manifest;
use crate::lines::Lines;
use crate::{Error, Result, candidates, collection, trec};
use columns::Texts;
use rows::Opened;
use writer::Writer;

/// What to import.
#[derive(Clone, Debug)]
pub enum Source {
    /// Files of documents, of queries, of judgements.
    Tables {
        /// How documents and queries are written; judgements and runs are so, or as in [`trec`].
        format: Format,
        /// Where they are.
        files: Files,
        /// What their columns are called.
        columns: Columns,
    },
    /// Files that have all three in each line.
    Examples {
        /// Whose.
        shape: Shape,
        /// Names of splits, and their files.
        files: Vec<(String, PathBuf)>,
    },
}

/// Files of a collection.
#[derive(Clone, Debug, Default)]
pub struct Files {
    /// Documents.
    pub corpus: Vec<PathBuf>,
    /// Queries.
    pub queries: Vec<PathBuf>,
    /// Names of splits, and their judgements.
    pub qrels: Vec<(String, PathBuf)>,
    /// Runs, named as their files.
    pub runs: Vec<PathBuf>,
    /// Triples of ids, which become runs as well.
    pub triples: Vec<PathBuf>,
}

impl Source {
    /// The files of documents, and those of queries.
    fn paths_of_texts(&self) -> (Vec<&PathBuf>, Vec<&PathBuf>) {
        match self {
            Self::Tables { files, .. } => (
                files.corpus.iter().collect(),
                files.queries.iter().collect(),
            ),
            Self::Examples { .. } => (self.paths(), self.paths()),
        }
    }

    fn paths(&self) -> Vec<&PathBuf> {
        match self {
            Self::Tables { files, .. } => {
                let qrels = files.qrels.iter().map(|(_, path)| path);
                let paths = files.corpus.iter().chain(&files.queries).chain(qrels);
                paths.chain(&files.runs).chain(&files.triples).collect()
            }
            Self::Examples { files, .. } => files.iter().map(|(_, path)| path).collect(),
        }
    }
}

impl Files {
    /// Those of a folder in BEIR layout.
    pub fn of_beir(folder: &Path) -> Self {
        let qrels = |split: String| {
            let path = folder.join(format!("qrels/{split}.tsv"));
            (split, path)
        };
        Self {
            corpus: vec![collection::file(folder, "corpus.jsonl")],
            queries: vec![collection::file(folder, "queries.jsonl")],
            qrels: collection::splits(folder).into_iter().map(qrels).collect(),
            ..Self::default()
        }
    }
}

/// What to do about a row that is wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnBadRow {
    /// Import nothing.
    Fail,
    /// Leave it out and count it.
    Skip,
}

/// What was imported.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Summary {
    /// Documents written.
    pub documents: usize,
    /// Those of them without any text.
    pub without_text: usize,
    /// Queries written.
    pub queries: usize,
    /// Judgements written, by split.
    pub gains: BTreeMap<String, usize>,
    /// Those of them with a grade below 0, which is written as 0.
    pub below_zero: usize,
    /// Places written, by run.
    pub ranked: BTreeMap<String, usize>,
    /// Rows that repeat what an earlier one said, of which one is kept.
    pub repeated: usize,
    /// Rows left out because they are wrong.
    pub bad_rows: usize,
    /// What is wrong with the first of them.
    pub first_bad: Vec<String>,
}

/// Writes a collection from other files into a new folder.
///
/// # Errors
/// A folder that exists; a file that can't be read; a bad row (file and line), unless those are
/// skipped; no document or no query. Nothing is written then.
pub fn import(source: &Source, out: &Path, on_bad_row: OnBadRow) -> Result<Summary> {
    if let Source::Tables { format, .. } = source {
        format.check()?;
    }
    // Before a long corpus is read, rather than after.
    for path in source.paths() {
        fs::metadata(path)?;
    }
    let mut summary = Summary::default();
    retort_files::write_new_directory::<Error>(out, |folder| {
        let mut writer = Writer::new(folder, on_bad_row);
        match source {
            Source::Tables {
                format,
                files,
                columns,
            } => tables(&mut writer, *format, files, &Texts::new(columns)?)?,
            Source::Examples { shape, files } => {
                for (split, _) in files {
                    writer.split(split)?;
                }
                for (split, path) in files {
                    let rows = rows::read(Format::Jsonl, path)?;
                    writer.each(path, rows, |writer, row| {
                        writer.example(split, shape.example(row)?)
                    })?;
                }
            }
        }
        summary = writer.finish()?;
        let (documents, queries) = source.paths_of_texts();
        for (what, count, paths) in [
            ("documents", summary.documents, documents),
            ("queries", summary.queries, queries),
        ] {
            if count == 0 {
                return Err(nothing(what, &paths, &summary.first_bad));
            }
        }
        Ok(())
    })?;
    Ok(summary)
}

/// That files hold nothing of what is sought in them.
fn nothing(what: &str, paths: &[&PathBuf], first_bad: &[String]) -> Error {
    let has_bare_returns = |path: &&&PathBuf| {
        let first = Lines::open(path).ok();
        let first = first.and_then(|mut lines| Some(lines.peek()?.trim_end().contains('\r')));
        first.unwrap_or_default()
    };
    let shown: Vec<String> = paths
        .iter()
        .map(|path| path.display().to_string())
        .collect();
    let nor = match &shown[..] {
        [] | [_] => String::new(),
        [_, others @ ..] => format!(", nor has {}", others.join(", ")),
    };
    let why = paths.iter().find(has_bare_returns).map(|path| {
        let path = path.display();
        format!("; the lines of {path} end in CR alone: write LF or CRLF")
    });
    let bad: Vec<String> = first_bad.iter().map(|bad| format!("\n{bad}")).collect();
    let problem = format!(
        "has no {what}{nor}{}{}",
        why.unwrap_or_default(),
        bad.concat()
    );
    Error::File {
        path: paths.first().copied().cloned().unwrap_or_default(),
        problem,
    }
}

fn tables(writer: &mut Writer, format: Format, files: &Files, texts: &Texts) -> Result<()> {
    for (split, _) in &files.qrels {
        writer.split(split)?;
    }
    for path in files.runs.iter().chain(&files.triples) {
        writer.run(&trec::name(path))?;
    }
    for path in &files.corpus {
        writer.each(path, rows::read(format, path)?, |writer, row| {
            writer.document(&texts.document(row)?)
        })?;
    }
    for path in &files.queries {
        writer.each(path, rows::read(format, path)?, |writer, row| {
            writer.query(&texts.query(&row)?)
        })?;
    }
    for (split, path) in &files.qrels {
        match judged(format, path)? {
            Opened::Lines(lines) => {
                writer.each(path, trec::judgements(lines), |writer, row| {
                    writer.judgement(split, &row)
                })?;
            }
            Opened::Rows(rows) => {
                writer.each(path, rows, |writer, row| {
                    writer.judgement(split, &columns::judgement(&row)?)
                })?;
            }
        }
    }
    for path in &files.runs {
        let (run, rows) = (trec::name(path), trec::ranked(Lines::open(path)?));
        writer.each(path, rows, |writer, row| writer.ranked(&run, &row))?;
    }
    for path in &files.triples {
        let (run, rows) = (trec::name(path), trec::triples(Lines::open(path)?));
        writer.each(path, rows, |writer, triple| writer.triple(&run, triple))?;
    }
    Ok(())
}

/// Judgements, which come as TREC has them or as rows with named columns.
fn judged(format: Format, path: &Path) -> Result<Opened> {
    let mut lines = match rows::open(path)? {
        Opened::Lines(lines) => lines,
        rows @ Opened::Rows(_) => return Ok(rows),
    };
    let first = lines.peek().unwrap_or_default();
    let names_query = |name: &str| trec::QUERY_ID.contains(&name.trim());
    let format = match format {
        _ if first.trim_start().starts_with('{') => Format::Jsonl,
        Format::Csv { delimiter } if first.contains(delimiter) => format,
        Format::Tsv if first.split('\t').any(names_query) => format,
        _ => return Ok(Opened::Lines(lines)),
    };
    Ok(Opened::Rows(rows::rows(format, lines)))
}

/// A reader of rows, for trying it on any bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reader {
    /// Rows with named fields.
    Table(Format),
    /// Training files, as rows of JSON.
    Examples(Shape),
    /// [`trec::judgements`].
    Judgements,
    /// [`trec::ranked`].
    Run,
    /// [`trec::triples`].
    Triples,
    /// [`crate::candidates`].
    Candidates,
    /// The manifest of a label set: its shards are the rows.
    Manifest,
}

/// Reads all rows of `bytes`, as of a file called `bytes`, and keeps none: how many there are, and
/// what is wrong with the first that is wrong.
pub fn count_rows(reader: Reader, bytes: &[u8]) -> (usize, Option<Error>) {
    try_rows(reader, bytes).unwrap_or_else(|error| (0, Some(error)))
}

fn try_rows(reader: Reader, bytes: &[u8]) -> Result<(usize, Option<Error>)> {
    let (path, bytes) = (Path::new("bytes"), bytes.to_vec());
    let lines = |bytes| Lines::new(path, Cursor::new(bytes));
    Ok(match reader {
        Reader::Table(Format::Parquet) => count(parquet::rows(path, bytes::Bytes::from(bytes))?),
        Reader::Manifest => match serde_json::from_slice::<Manifest>(&bytes) {
            Ok(manifest) => (manifest.shards.len(), None),
            Err(error) => {
                return Err(Error::File {
                    path: path.to_owned(),
                    problem: error.to_string(),
                });
            }
        },
        Reader::Table(format) => count(rows::rows(format, lines(bytes)?)),
        Reader::Judgements => count(trec::judgements(lines(bytes)?)),
        Reader::Run => count(trec::ranked(lines(bytes)?)),
        Reader::Triples => count(trec::triples(lines(bytes)?)),
        Reader::Candidates => count(candidates::rows(lines(bytes)?)),
        Reader::Examples(shape) => {
            let examples = rows::rows(Format::Jsonl, lines(bytes)?).map(move |row| {
                let (line, row) = row?;
                let example = shape.example(row);
                example.map_err(|problem| Error::row(path, line, problem))
            });
            count(examples)
        }
    })
}

fn count<T>(rows: impl Iterator<Item = Result<T>>) -> (usize, Option<Error>) {
    let (mut count, mut first_error) = (0, None);
    for row in rows {
        match row {
            Ok(_) => count += 1,
            Err(error) => first_error = first_error.or(Some(error)),
        }
    }
    (count, first_error)
}

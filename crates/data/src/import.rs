//! Collections out of the files that others keep theirs in: TREC, MS MARCO, JSONL, CSV, TSV,
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

use serde::Serialize;

pub use columns::Columns;
pub use examples::Shape;
pub use rows::Format;

use crate::lines::{Lines, Rows};
use crate::{Error, Result, trec};
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
                for (split, path) in files {
                    writer.split(split)?;
                    let rows = rows::read(Format::ByContent, path)?;
                    writer.each(path, rows, |writer, row| {
                        writer.example(split, shape.example(row)?)
                    })?;
                }
            }
        }
        summary = writer.finish()?;
        for (what, count) in [
            ("documents", summary.documents),
            ("queries", summary.queries),
        ] {
            if count == 0 {
                let bad: Vec<String> = summary
                    .first_bad
                    .iter()
                    .map(|bad| format!("\n{bad}"))
                    .collect();
                return Err(Error::File {
                    path: out.to_owned(),
                    problem: format!("there are no {what} to write{}", bad.concat()),
                });
            }
        }
        Ok(())
    })?;
    Ok(summary)
}

fn tables(writer: &mut Writer, format: Format, files: &Files, texts: &Texts) -> Result<()> {
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
        writer.split(split)?;
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
        writer.each(path, rows, |writer, [query, positive, negative]| {
            for document in [positive, negative] {
                let (query, score) = (query.clone(), None);
                writer.ranked(
                    &run,
                    &trec::Ranked {
                        query,
                        document,
                        score,
                    },
                )?;
            }
            Ok(())
        })?;
    }
    Ok(())
}

/// Judgements, which come as TREC has them or as rows with named columns.
fn judged(format: Format, path: &Path) -> Result<Opened> {
    let mut lines = match rows::open(path)? {
        Opened::Lines(lines) => lines,
        rows @ Opened::Rows(_) => return Ok(rows),
    };
    let first = lines.peek().unwrap_or_default().trim_start();
    let format = match format {
        _ if first.starts_with('{') => Format::Jsonl,
        Format::Csv { delimiter } if first.contains(delimiter) => format,
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
}

/// Reads all rows of `bytes`, as of a file called `bytes`, and keeps none; says how many there are.
///
/// # Errors
/// The first row that is wrong; the others are read all the same.
pub fn count_rows(reader: Reader, bytes: &[u8]) -> Result<usize> {
    let (path, bytes) = (Path::new("bytes"), bytes.to_vec());
    if reader == Reader::Table(Format::Parquet) {
        return count(parquet::rows(path, bytes::Bytes::from(bytes))?);
    }
    let lines = Lines::new(path, Cursor::new(bytes))?;
    match reader {
        Reader::Table(format) => count(rows::rows(format, lines)),
        Reader::Judgements => count(trec::judgements(lines)),
        Reader::Run => count(trec::ranked(lines)),
        Reader::Triples => count(trec::triples(lines)),
        Reader::Examples(shape) => {
            count(Box::new(rows::rows(Format::Jsonl, lines).map(move |row| {
                let (line, row) = row?;
                let example = shape.example(row);
                let example = example.map_err(|problem| Error::row(path, line, problem))?;
                Ok((line, example))
            })))
        }
    }
}

fn count<T>(rows: Rows<T>) -> Result<usize> {
    let (mut count, mut first_error) = (0, None);
    for row in rows {
        match row {
            Ok(_) => count += 1,
            Err(error) => first_error = first_error.or(Some(error)),
        }
    }
    first_error.map_or(Ok(count), Err)
}

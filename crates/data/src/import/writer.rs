//! The collection that is written, row by row.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use fs_err as fs;
use serde::Serialize;

use super::examples::{Example, Passage};
use super::{OnBadRow, Summary};
use crate::collection::{Document, Query, TOP_GRADE};
use crate::lines::{MAX_LINE_BYTES, Rows};
use crate::trec::{Judgement, Ranked, unknown};
use crate::{Error, Result};

/// Writes a collection in a folder, one row after another; keeps digests of what was written.
pub(super) struct Writer<'a> {
    folder: &'a Path,
    on_bad_row: OnBadRow,
    files: HashMap<PathBuf, BufWriter<fs::File>>,
    documents: Digests,
    queries: Digests,
    gains: Digests,
    ranked: Digests,
    /// How many documents each query of each run has.
    ranks: HashMap<u64, usize>,
    summary: Summary,
}

/// Why a row is not kept.
pub(super) enum Refused {
    /// What is wrong with it and how to mend it.
    Row(String),
    /// It could not be written.
    Io(io::Error),
}

impl From<String> for Refused {
    fn from(problem: String) -> Self {
        Self::Row(problem)
    }
}

impl From<io::Error> for Refused {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

type Kept = Result<(), Refused>;

impl<'a> Writer<'a> {
    pub(super) fn new(folder: &'a Path, on_bad_row: OnBadRow) -> Self {
        Self {
            folder,
            on_bad_row,
            files: HashMap::new(),
            documents: Digests::default(),
            queries: Digests::default(),
            gains: Digests::default(),
            ranked: Digests::default(),
            ranks: HashMap::new(),
            summary: Summary::default(),
        }
    }

    /// Passes a file's rows on, and does with a bad one what was asked for.
    pub(super) fn each<T>(
        &mut self,
        path: &Path,
        rows: Rows<T>,
        mut keep: impl FnMut(&mut Self, T) -> Kept,
    ) -> Result<()> {
        for row in rows {
            let kept = row.and_then(|(line, row)| {
                keep(self, row).map_err(|refused| match refused {
                    Refused::Row(problem) => Error::row(path, line, problem),
                    Refused::Io(error) => Error::Io(error),
                })
            });
            match kept {
                Err(error @ Error::Row { .. }) if self.on_bad_row == OnBadRow::Skip => {
                    self.summary.bad_rows += 1;
                    if self.summary.first_bad.len() < FIRST_BAD {
                        self.summary.first_bad.push(error.to_string());
                    }
                }
                kept => kept?,
            }
        }
        Ok(())
    }

    pub(super) fn document(&mut self, document: &Document) -> Kept {
        self.check_document(document)?;
        let content = content_of(document);
        if self.documents.add(&document.id, content) == Known::Same {
            self.summary.repeated += 1;
            return Ok(());
        }
        self.summary.documents += 1;
        if document.full_text().is_empty() {
            self.summary.without_text += 1;
        }
        Ok(self.write_json("corpus.jsonl", document)?)
    }

    fn check_document(&self, document: &Document) -> Result<(), String> {
        let Document { id, title, text } = document;
        check_id("document", id)?;
        check_text(&[id, title, text])?;
        match self.documents.known(id, content_of(document)) {
            Known::Other => Err(twice("document", id)),
            Known::New | Known::Same => Ok(()),
        }
    }

    pub(super) fn query(&mut self, query: &Query) -> Kept {
        self.check_query(query)?;
        if self.queries.add(&query.id, digest(&query.text)) == Known::Same {
            self.summary.repeated += 1;
            return Ok(());
        }
        self.summary.queries += 1;
        Ok(self.write_json("queries.jsonl", query)?)
    }

    fn check_query(&self, Query { id, text }: &Query) -> Result<(), String> {
        check_id("query", id)?;
        check_text(&[id, text])?;
        if text.trim().is_empty() {
            return Err(format!(
                "the query {id:?} has no text: nothing can be asked"
            ));
        }
        match self.queries.known(id, digest(text)) {
            Known::Other => Err(twice("query", id)),
            Known::New | Known::Same => Ok(()),
        }
    }

    /// Makes a split's file of gains, though it may stay empty.
    pub(super) fn split(&mut self, split: &str) -> Result<()> {
        if split.is_empty() || split.contains(|c: char| !(c.is_alphanumeric() || "-_.".contains(c)))
        {
            let problem = "the name of a split has letters, digits, `-`, `_` and `.`";
            return Err(Error::Setting(format!("--split {split:?}: {problem}")));
        }
        if !self.summary.gains.contains_key(split) {
            self.summary.gains.insert(split.to_owned(), 0);
            let header = b"query-id\tcorpus-id\tscore\n";
            self.file(&qrels(split))?.write_all(header)?;
        }
        Ok(())
    }

    pub(super) fn judgement(&mut self, split: &str, judgement: &Judgement) -> Kept {
        let Judgement {
            query,
            document,
            grade,
        } = judgement;
        self.check_known(query, document)?;
        if *grade > TOP_GRADE.into() {
            let problem = format!("the grade {grade} is above {TOP_GRADE}: use a smaller scale");
            return Err(problem.into());
        }
        match self.gains.add(&(split, query, document), digest(grade)) {
            Known::Same => self.summary.repeated += 1,
            Known::Other => {
                return Err(format!(
                    "the pair {query:?} {document:?} was given another grade before: keep one"
                )
                .into());
            }
            Known::New => {
                if *grade < 0 {
                    self.summary.below_zero += 1;
                }
                *self.summary.gains.entry(split.to_owned()).or_default() += 1;
                let grade = grade.max(&0);
                writeln!(self.file(&qrels(split))?, "{query}\t{document}\t{grade}")?;
            }
        }
        Ok(())
    }

    /// Makes the file of a run, though it may stay empty.
    pub(super) fn run(&mut self, run: &str) -> Result<()> {
        let problem = if run.is_empty() || run.contains(char::is_control) {
            "a run is called as its file, and this is no name"
        } else if self.summary.ranked.contains_key(run) {
            "two runs would have this name: rename one of the files"
        } else {
            self.summary.ranked.insert(run.to_owned(), 0);
            self.file(&runs(run))?;
            return Ok(());
        };
        Err(Error::Setting(format!(
            "--run, --triples {run:?}: {problem}"
        )))
    }

    pub(super) fn ranked(&mut self, run: &str, ranked: &Ranked) -> Kept {
        let Ranked {
            query,
            document,
            score,
        } = ranked;
        self.check_known(query, document)?;
        if self.ranked.add(&(run, query, document), 0) == Known::Same {
            self.summary.repeated += 1;
            return Ok(());
        }
        let rank = self.ranks.entry(digest((run, query))).or_default();
        *rank += 1;
        let rank = *rank;
        *self.summary.ranked.entry(run.to_owned()).or_default() += 1;
        // Without a score the file's order is the order.
        let score = score.unwrap_or(-(rank as f64));
        writeln!(
            self.file(&runs(run))?,
            "{query}\tQ0\t{document}\t{rank}\t{score}\t{run}"
        )?;
        Ok(())
    }

    /// The ids of a query, a positive and a negative, in this order at the end of a run.
    pub(super) fn triple(&mut self, run: &str, [query, positive, negative]: [String; 3]) -> Kept {
        self.check_known(&query, &positive)?;
        self.check_known(&query, &negative)?;
        for document in [positive, negative] {
            let ranked = Ranked {
                query: query.clone(),
                document,
                score: None,
            };
            self.ranked(run, &ranked)?;
        }
        Ok(())
    }

    /// A query with its passages: the positives get gain 1, and all of them are a run with the
    /// split's name, the best score first, or the positives where there are no scores.
    pub(super) fn example(&mut self, split: &str, example: Example) -> Kept {
        let Example {
            query,
            mut passages,
        } = example;
        self.check_query(&query)?;
        for passage in &passages {
            self.check_document(&passage.document)?;
        }
        // Nothing can be wrong from here on, so that a row is kept whole or not at all.
        self.query(&query)?;
        for passage in &passages {
            self.document(&passage.document)?;
            if passage.is_positive {
                let judgement = Judgement {
                    query: query.id.clone(),
                    document: passage.document.id.clone(),
                    grade: 1,
                };
                self.judgement(split, &judgement)?;
            }
        }
        let all_scored = passages.iter().all(|passage| passage.score.is_some());
        if all_scored {
            let score = |passage: &Passage| passage.score.unwrap_or_default();
            passages.sort_by(|a, b| score(b).total_cmp(&score(a)));
        }
        for passage in passages {
            let ranked = Ranked {
                query: query.id.clone(),
                document: passage.document.id,
                score: passage.score.filter(|_| all_scored),
            };
            self.ranked(split, &ranked)?;
        }
        Ok(())
    }

    /// Writes out what is buffered and says what was written.
    pub(super) fn finish(mut self) -> Result<Summary> {
        for file in self.files.values_mut() {
            file.flush()?;
        }
        Ok(self.summary)
    }

    fn check_known(&self, query: &str, document: &str) -> Result<(), String> {
        for (what, id, known) in [
            ("query", query, &self.queries),
            ("document", document, &self.documents),
        ] {
            if !known.has(id) {
                return Err(unknown(what, id));
            }
        }
        Ok(())
    }

    fn write_json(&mut self, name: &str, row: impl Serialize) -> io::Result<()> {
        let file = self.file(Path::new(name))?;
        serde_json::to_writer(&mut *file, &row)?;
        file.write_all(b"\n")
    }

    fn file(&mut self, name: &Path) -> io::Result<&mut BufWriter<fs::File>> {
        match self.files.entry(name.to_owned()) {
            Entry::Occupied(file) => Ok(file.into_mut()),
            Entry::Vacant(none) => {
                let path = self.folder.join(name);
                if let Some(parent) = path.parent() {
                    fs::create_dir_all(parent)?;
                }
                Ok(none.insert(BufWriter::new(fs::File::create(path)?)))
            }
        }
    }
}

/// How many errors are kept of the rows that were skipped.
const FIRST_BAD: usize = 5;

fn qrels(split: &str) -> PathBuf {
    PathBuf::from(format!("qrels/{split}.tsv"))
}

fn runs(run: &str) -> PathBuf {
    PathBuf::from(format!("runs/{run}.tsv"))
}

fn twice(what: &str, id: &str) -> String {
    format!("the {what} {id:?} was given before with other text: ids must be unique, rename one")
}

fn check_id(what: &str, id: &str) -> Result<(), String> {
    if id.trim().is_empty() {
        return Err(format!("the {what}'s id is empty: give it one"));
    }
    if id.contains(char::is_control) {
        return Err(format!(
            "the {what}'s id {id:?} has a tab, a line break or another control character: rename it"
        ));
    }
    Ok(())
}

/// Checks that a row's texts can be read again from one line of JSON.
fn check_text(texts: &[&str]) -> Result<(), String> {
    if texts.iter().any(|text| text.contains('\0')) {
        return Err("its text holds a NUL character: take it out".to_owned());
    }
    // A character takes up to six bytes for each of its own, and names and quotes take some.
    let bytes = |factor: usize| texts.iter().map(|text| factor * text.len()).sum::<usize>() + 64;
    if bytes(6) > MAX_LINE_BYTES {
        let written = serde_json::to_vec(texts).map_err(|error| error.to_string())?;
        if written.len() + 64 > MAX_LINE_BYTES {
            return Err("its text is longer than 8 MiB: shorten it".to_owned());
        }
    }
    Ok(())
}

/// Digests of ids and of what they stand for: 16 bytes an id, 20 to 39 as the table grows.
///
/// Two of 10 million ids share their 64 bits with a probability of 3 in a million; the import then
/// fails where it should not.
#[derive(Default)]
struct Digests(HashMap<u64, u64>);

/// What is known of an id.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Known {
    New,
    Same,
    Other,
}

impl Digests {
    fn add(&mut self, id: &(impl Hash + ?Sized), content: u64) -> Known {
        let known = self.known(id, content);
        if known == Known::New {
            self.0.insert(digest(id), content);
        }
        known
    }

    fn known(&self, id: &(impl Hash + ?Sized), content: u64) -> Known {
        match self.0.get(&digest(id)) {
            None => Known::New,
            Some(known) if *known == content => Known::Same,
            Some(_) => Known::Other,
        }
    }

    fn has(&self, id: &str) -> bool {
        self.0.contains_key(&digest(id))
    }
}

fn content_of(document: &Document) -> u64 {
    digest((&document.title, &document.text))
}

fn digest(value: impl Hash) -> u64 {
    let mut hasher = DefaultHasher::new();
    value.hash(&mut hasher);
    hasher.finish()
}

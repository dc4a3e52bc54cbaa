//! Judgements and runs as lines of columns, the way the tools of TREC write them.
//!
//! ```text
//! qrels    query 0 document grade              or, as BEIR has it:  query document score
//! run      query Q0 document rank score tag    or, as MS MARCO has it:
//!                                              query document rank
//!                                              query ⇥ document ⇥ its query's text ⇥ its text
//! triples  query positive negative
//! ```
//!
//! Columns are separated by tabs; a line that has not the right number of them is taken as
//! separated by white space, and then no id can have a space.

use std::collections::{HashMap, HashSet};
use std::ops::RangeInclusive;
use std::path::Path;

use crate::lines::{Lines, Rows, counted};
use crate::{Error, Result};

/// What a document is worth for a query.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Judgement {
    /// The query.
    pub query: String,
    /// The document.
    pub document: String,
    /// The grade; TREC has some below 0, for spam.
    pub grade: i64,
}

/// A document that a system found for a query.
#[derive(Clone, Debug, PartialEq)]
pub struct Ranked {
    /// The query.
    pub query: String,
    /// The document.
    pub document: String,
    /// Finite, higher for a better place; none where the file's order is all there is.
    pub score: Option<f64>,
}

/// Reads qrels; a line of column names at the top is skipped.
pub fn judgements(lines: Lines) -> Rows<Judgement> {
    let mut first = true;
    lines.rows(move |line| {
        let is_first = std::mem::take(&mut first);
        let columns = columns(
            line,
            &[4, 3],
            "query 0 document grade, or query document grade",
        )?;
        let [query, .., document, grade] = columns[..] else {
            return Ok(None);
        };
        if is_first && QUERY_ID.contains(&query) && whole(grade).is_err() {
            return Ok(None);
        }
        Ok(Some(Judgement {
            query: query.to_owned(),
            document: document.to_owned(),
            grade: whole(grade)?,
        }))
    })
}

/// What a column of query ids is called.
pub(crate) const QUERY_ID: [&str; 5] = ["query_id", "query-id", "qid", "topic", "query"];

/// A grade, or what is wrong with it.
pub(crate) fn whole(grade: &str) -> Result<i64, String> {
    // A table with a hole in it keeps its other numbers as 1.0.
    let digits = grade.trim();
    let digits = digits.strip_suffix(".0").unwrap_or(digits);
    digits.parse().map_err(|_| {
        format!(
            "the grade {grade:?} is not a whole number: write 0 for irrelevant, more for better"
        )
    })
}

/// Reads a run.
pub fn ranked(lines: Lines) -> Rows<Ranked> {
    lines.rows(|line| {
        let by_tabs: Vec<&str> = line.split('\t').collect();
        let columns = match by_tabs.len() {
            // MS MARCO's top 1000, whose texts have spaces.
            4 => by_tabs,
            _ => columns(line, &[6, 3], "query Q0 document rank score tag")?,
        };
        let (query, document, score) = match columns[..] {
            [query, _, document, _, score, _] => (query, document, Some(number("score", score)?)),
            [query, document, rank] => (query, document, Some(-number("rank", rank)?)),
            _ => (columns[0], columns[1], None),
        };
        Ok(Some(Ranked {
            query: query.to_owned(),
            document: document.to_owned(),
            score,
        }))
    })
}

/// Reads triples of ids: query, a relevant document, one that is not.
pub fn triples(lines: Lines) -> Rows<[String; 3]> {
    lines.rows(|line| {
        let columns = columns(line, &[3], "the ids of query, positive and negative")?;
        Ok(<[&str; 3]>::try_from(columns)
            .ok()
            .map(|ids| ids.map(str::to_owned)))
    })
}

fn columns<'a>(line: &'a str, counts: &[usize], expected: &str) -> Result<Vec<&'a str>, String> {
    let by_tabs: Vec<&str> = line.split('\t').collect();
    if counts.contains(&by_tabs.len()) {
        return Ok(by_tabs);
    }
    let by_space: Vec<&str> = line.split_whitespace().collect();
    if counts.contains(&by_space.len()) {
        return Ok(by_space);
    }
    Err(format!(
        "{}, expected {expected}; columns end at white space, so where ids have spaces separate \
         them by tabs",
        counted(by_space.len(), "column")
    ))
}

fn number(what: &str, text: &str) -> Result<f64, String> {
    let number: Option<f64> = text.trim().parse().ok();
    number
        .filter(|number| number.is_finite())
        .ok_or_else(|| format!("the {what} {text:?} is not a number: write it as 12.5"))
}

/// A run in memory: what a system found, best first.
#[derive(Clone, Debug)]
pub struct Run {
    /// The file's name without its endings.
    pub name: String,
    /// The documents of each query, best first, each once.
    pub documents: HashMap<String, Vec<String>>,
}

impl Run {
    /// Reads a run's documents for the queries that `wanted` wants. As in `trec_eval` the score
    /// decides the order, not the column of ranks; equal scores keep the order of the file.
    ///
    /// # Errors
    /// A missing file, a malformed line, a document that `known` does not know (file and line), no
    /// query that is wanted.
    pub fn read(
        path: &Path,
        wanted: impl Fn(&str) -> bool,
        known: impl Fn(&str) -> Result<bool>,
    ) -> Result<Self> {
        let mut found: HashMap<String, Vec<(f64, String)>> = HashMap::new();
        for row in ranked(Lines::open(path)?) {
            let (line, row) = row?;
            if !wanted(&row.query) {
                continue;
            }
            if !known(&row.document)? {
                return Err(Error::row(path, line, unknown("document", &row.document)));
            }
            let documents = found.entry(row.query).or_default();
            documents.push((row.score.unwrap_or_default(), row.document));
        }
        if found.is_empty() {
            return Err(Error::File {
                path: path.to_owned(),
                problem: "finds documents for none of the queries: are its ids the collection's?"
                    .to_owned(),
            });
        }
        let best_first = |mut documents: Vec<(f64, String)>| {
            documents.sort_by(|a, b| b.0.total_cmp(&a.0));
            let mut seen = HashSet::new();
            let documents = documents.into_iter().map(|(_, document)| document);
            documents
                .filter(|document| seen.insert(document.clone()))
                .collect()
        };
        Ok(Self {
            name: name(path),
            documents: (found.into_iter())
                .map(|(query, documents)| (query, best_first(documents)))
                .collect(),
        })
    }

    /// How many documents it found for a query.
    pub(crate) fn depth(&self, query: &str) -> usize {
        self.documents.get(query).map_or(0, Vec::len)
    }

    /// The documents at some ranks for a query, with the ranks; fewer where the run ends before.
    pub(crate) fn at(
        &self,
        query: &str,
        ranks: RangeInclusive<usize>,
    ) -> Vec<(String, Option<usize>)> {
        let documents = self.documents.get(query).map_or(&[][..], Vec::as_slice);
        ranks
            .filter_map(|rank| Some((documents.get(rank - 1)?.clone(), Some(rank))))
            .collect()
    }
}

/// What is wrong with an id that nothing has.
pub(crate) fn unknown(what: &str, id: &str) -> String {
    format!("names the {what} {id:?}, which the collection does not have: add it, or drop the line")
}

/// A run's name: the file's without what says how it is packed, and without its ending.
pub(crate) fn name(path: &Path) -> String {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let name = name
        .strip_suffix(".gz")
        .or(name.strip_suffix(".zst"))
        .unwrap_or(&name);
    match name.rsplit_once('.') {
        Some((stem, _)) if !stem.is_empty() => stem.to_owned(),
        _ => name.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(text: &str) -> Lines {
        Lines::new(Path::new("file"), std::io::Cursor::new(text.to_owned())).unwrap()
    }

    fn said<T>(rows: Rows<T>) -> String {
        rows.filter_map(Result::err)
            .map(|error| error.to_string())
            .collect()
    }

    #[test]
    fn qrels_have_three_or_four_columns_and_any_whole_grade() {
        let text = "query-id\tcorpus-id\tscore\nq 1\td 1\t2\nq2 0 d2 -2\nq3\t0\td 3\t1\n";
        let rows: Vec<_> = judgements(lines(text)).map(|row| row.unwrap().1).collect();
        let told = |row: &Judgement| format!("{}|{}|{}", row.query, row.document, row.grade);
        let told: Vec<_> = rows.iter().map(told).collect();
        assert_eq!(told, ["q 1|d 1|2", "q2|d2|-2", "q3|d 3|1"]);
        // A first row whose query is called as a column is a row.
        assert_eq!(judgements(lines("query 0 d 1\nq 0 d 1.0\n")).count(), 2);

        let bad = said(judgements(lines("q 0 d 1\nq 0 d 0.5\n")));
        assert!(
            bad.starts_with("file:2: the grade \"0.5\" is not a whole"),
            "{bad}"
        );
        let bad = said(judgements(lines("q 0 Geneva Durben 1\n")));
        assert!(
            bad.contains("5 columns") && bad.contains("by tabs"),
            "{bad}"
        );
    }

    #[test]
    fn runs_have_trecs_six_columns_or_ms_marcos() {
        let text = "q Q0 d1 1 12.5 bm25\nq\tQ0\td 2\t2\t-1e3\tbm25\nq\td3\t7\nq\td4\ta b?\tc d.\n";
        let rows: Vec<_> = ranked(lines(text)).map(|row| row.unwrap().1).collect();
        let told: Vec<_> = rows.iter().map(|row| (&*row.document, row.score)).collect();
        let expected = [
            ("d1", Some(12.5)),
            ("d 2", Some(-1000.0)),
            ("d3", Some(-7.0)),
            ("d4", None),
        ];
        assert_eq!(told, expected);
        for score in ["high", "NaN", "inf"] {
            let bad = said(ranked(lines(&format!("q Q0 d 1 {score} x\n"))));
            assert!(
                bad.starts_with(&format!("file:1: the score \"{score}\"")),
                "{bad}"
            );
        }
    }

    #[test]
    fn a_run_in_memory_is_ordered_by_score_and_has_a_document_once() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("dense.v2.run.gz");
        let text = "q Q0 a 1 1 x\nq Q0 b 2 3 x\nq Q0 c 3 1 x\nq Q0 a 4 2 x\nother Q0 z 1 1 x\n";
        fs_err::write(&path, text).unwrap();
        let run = Run::read(&path, |query| query == "q", |document| Ok(document != "z")).unwrap();
        assert_eq!(run.name, "dense.v2");
        assert_eq!(run.documents["q"], ["b", "a", "c"]);

        let bad = Run::read(&path, |_| true, |document| Ok(document != "z"))
            .unwrap_err()
            .to_string();
        assert!(bad.contains("run.gz:5: names the document \"z\""), "{bad}");
        let bad = Run::read(&path, |_| false, |_| Ok(true))
            .unwrap_err()
            .to_string();
        assert!(bad.contains("none of the queries"), "{bad}");
    }
}

//! Queries, documents and gold relevance in the BEIR layout:
//!
//! ```text
//! corpus.jsonl      {"_id": "p0001", "title": "…", "text": "…"}
//! queries.jsonl     {"_id": "q001", "text": "…"}
//! qrels/SPLIT.tsv   query-id ⇥ corpus-id ⇥ score      (with that header)
//! ```
//!
//! Each may be packed with gzip or zstd; corpus and queries may then have `.gz` or `.zst` after
//! their names.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use fs_err as fs;
use serde::{Deserialize, Serialize};

use crate::indexed::{Indexed, Row};
use crate::lines::Lines;
use crate::trec::Judgement;
use crate::{Error, Result, fields, trec};

/// One document; further fields of its line (such as `metadata`) are left alone.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub struct Document {
    /// Unique in the corpus.
    #[serde(rename = "_id", deserialize_with = "fields::id")]
    pub id: String,
    /// May be empty.
    #[serde(default, deserialize_with = "fields::text")]
    pub title: String,
    /// The body.
    pub text: String,
}

impl Document {
    /// What teachers, students and search engines read: the title, then the text.
    pub fn full_text(&self) -> String {
        match (self.title.trim(), self.text.trim()) {
            ("", text) => text.to_owned(),
            (title, "") => title.to_owned(),
            (title, text) => format!("{title}. {text}"),
        }
    }
}

/// One query.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub struct Query {
    /// Unique among the queries.
    #[serde(rename = "_id", deserialize_with = "fields::id")]
    pub id: String,
    /// What the user typed.
    pub text: String,
}

/// Gold gains by query, then document; a pair that is not listed has gain 0.
pub type Qrels = BTreeMap<String, BTreeMap<String, u8>>;

/// The highest grade: 2 to its power must stay well inside what an f64 counts exactly.
pub const TOP_GRADE: u8 = 30;

/// Where a collection's folder has one of its files, which may be packed: `NAME`, `NAME.gz` or
/// `NAME.zst`.
pub fn file(folder: &Path, name: &str) -> PathBuf {
    let packed = ["", ".gz", ".zst"].map(|ending| folder.join(format!("{name}{ending}")));
    let found = packed.iter().find(|path| path.exists());
    found.unwrap_or(&packed[0]).clone()
}

/// The splits that a collection's folder has gold gains for, by name.
pub fn splits(folder: &Path) -> Vec<String> {
    let Ok(entries) = fs::read_dir(folder.join("qrels")) else {
        return Vec::new();
    };
    let mut splits: Vec<String> = entries
        .filter_map(|entry| {
            let name = entry.ok()?.file_name();
            Some(name.to_str()?.strip_suffix(".tsv")?.to_owned())
        })
        .collect();
    splits.sort();
    splits
}

/// A corpus with its queries. Texts stay on disk until they are asked for: memory holds sixteen bytes
/// for each of them.
#[derive(Debug)]
pub struct Collection {
    folder: PathBuf,
    documents: Indexed<Document>,
    queries: Indexed<Query>,
}

impl Row for Document {
    const EXPECTED: &'static str = r#"{"_id", "title", "text"}"#;

    fn id(&self) -> &str {
        &self.id
    }
}

impl Row for Query {
    const EXPECTED: &'static str = r#"{"_id", "text"}"#;

    fn id(&self) -> &str {
        &self.id
    }
}

impl Collection {
    /// Reads `corpus.jsonl` and `queries.jsonl` of a folder.
    ///
    /// # Errors
    /// A missing file, a malformed line (file and line), an id given twice.
    pub fn read(folder: &Path) -> Result<Self> {
        Ok(Self {
            folder: folder.to_owned(),
            documents: Indexed::open(&file(folder, "corpus.jsonl"))?,
            queries: Indexed::open(&file(folder, "queries.jsonl"))?,
        })
    }

    /// The same queries with other documents.
    ///
    /// # Errors
    /// An id given twice, an I/O error.
    pub fn with_documents(self, documents: impl IntoIterator<Item = Document>) -> Result<Self> {
        let path = file(&self.folder, "corpus.jsonl");
        Ok(Self {
            documents: Indexed::of_rows(&path, documents)?,
            ..self
        })
    }

    /// Every document, in the order of the file.
    pub fn documents(&self) -> impl ExactSizeIterator<Item = Result<Document>> {
        self.documents.iter()
    }

    /// About how many bytes the corpus has, unpacked.
    pub fn corpus_bytes(&self) -> u64 {
        self.documents.bytes()
    }

    /// Every query, in the order of the file.
    pub fn queries(&self) -> impl ExactSizeIterator<Item = Result<Query>> {
        self.queries.iter()
    }

    /// Whether the corpus has a document of that id.
    ///
    /// # Errors
    /// A corpus that can't be read any more.
    pub fn has_document(&self, id: &str) -> Result<bool> {
        Ok(self.documents.get(id)?.is_some())
    }

    /// The document of that id.
    ///
    /// # Errors
    /// When the corpus has none; `source` is the file that names it.
    pub fn document(&self, id: &str, source: &Path) -> Result<Document> {
        self.documents
            .get(id)?
            .ok_or_else(|| self.unknown("document", id, "corpus.jsonl", source))
    }

    /// The query of that id.
    ///
    /// # Errors
    /// When the collection has none; `source` is the file that names it.
    pub fn query(&self, id: &str, source: &Path) -> Result<Query> {
        self.queries
            .get(id)?
            .ok_or_else(|| self.unknown("query", id, "queries.jsonl", source))
    }

    /// The gold gains of one split.
    ///
    /// # Errors
    /// A missing file (the splits that exist are named), a malformed row, an unknown id.
    pub fn qrels(&self, split: &str) -> Result<Qrels> {
        let path = self.qrels_path(split);
        if !path.exists() {
            let splits = match self.splits() {
                splits if splits.is_empty() => "none".to_owned(),
                splits => splits.join(", "),
            };
            return Err(Error::File {
                path,
                problem: format!("no such split; there are {splits}"),
            });
        }
        self.read_qrels(&path)
    }

    /// The documents with a gain above 0 by query, of all splits.
    ///
    /// # Errors
    /// As [`Self::qrels`].
    pub fn positives(&self) -> Result<BTreeMap<String, BTreeSet<String>>> {
        let mut positives: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
        for split in self.splits() {
            for (query, gains) in self.qrels(&split)? {
                let relevant = gains.into_iter().filter(|(_, gain)| *gain > 0);
                let documents = relevant.map(|(document, _)| document);
                positives.entry(query).or_default().extend(documents);
            }
        }
        Ok(positives)
    }

    /// Where the gold gains of a split are.
    pub fn qrels_path(&self, split: &str) -> PathBuf {
        self.folder.join("qrels").join(format!("{split}.tsv"))
    }

    /// The splits that have gold gains, by name.
    pub fn splits(&self) -> Vec<String> {
        splits(&self.folder)
    }

    fn read_qrels(&self, path: &Path) -> Result<Qrels> {
        let mut qrels = Qrels::new();
        for row in trec::judgements(Lines::open(path)?) {
            let (line, row) = row?;
            let bad = |problem: String| Error::row(path, line, problem);
            let Judgement {
                query,
                document,
                grade,
            } = row;
            let grade = u8::try_from(grade).ok().filter(|it| *it <= TOP_GRADE);
            let grade = grade.ok_or_else(|| {
                bad(format!(
                    "the grade {} is outside 0 to {TOP_GRADE}: write 0 for irrelevant",
                    row.grade
                ))
            })?;
            if self.queries.get(&query)?.is_none() {
                return Err(bad(trec::unknown("query", &query)));
            }
            if !self.has_document(&document)? {
                return Err(bad(trec::unknown("document", &document)));
            }
            let gains = qrels.entry(query.clone()).or_default();
            let before = gains.insert(document.clone(), grade);
            if before.is_some_and(|before| before != grade) {
                return Err(bad(format!(
                    "the pair {query:?} {document:?} was given another grade before: keep one"
                )));
            }
        }
        Ok(qrels)
    }

    fn unknown(&self, what: &str, id: &str, name: &str, source: &Path) -> Error {
        Error::File {
            path: source.to_owned(),
            problem: format!(
                "names the {what} {id:?}, which {} does not have",
                file(&self.folder, name).display()
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder(corpus: &str, queries: &str, qrels: &str) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("corpus.jsonl"), corpus).unwrap();
        fs::write(folder.path().join("queries.jsonl"), queries).unwrap();
        fs::create_dir(folder.path().join("qrels")).unwrap();
        fs::write(folder.path().join("qrels/test.tsv"), qrels).unwrap();
        folder
    }

    const CORPUS: &str = "{\"_id\":\"d 1\",\"title\":\"A\",\"text\":\"b\"}\n";
    const QUERIES: &str = "{\"_id\":\"q\",\"text\":\"a?\"}\r\n\n";

    #[test]
    fn reads_ids_with_spaces_crlf_and_blank_lines() {
        let folder = folder(CORPUS, QUERIES, "query-id\tcorpus-id\tscore\nq\td 1\t3\n");
        let collection = Collection::read(folder.path()).unwrap();
        assert_eq!(collection.qrels("test").unwrap()["q"]["d 1"], 3);
        assert_eq!(
            collection
                .document("d 1", Path::new(""))
                .unwrap()
                .full_text(),
            "A. b"
        );
    }

    #[test]
    fn positives_are_those_of_all_splits() {
        let folder = folder(CORPUS, QUERIES, "q\td 1\t0\n");
        let collection = Collection::read(folder.path()).unwrap();
        assert!(collection.positives().unwrap()["q"].is_empty());
        fs::write(folder.path().join("qrels/dev.tsv"), "q\td 1\t1\n").unwrap();
        fs::write(folder.path().join("qrels/notes.txt"), "no gains").unwrap();
        assert_eq!(collection.splits(), ["dev", "test"]);
        assert!(collection.positives().unwrap()["q"].contains("d 1"));
    }

    #[test]
    fn packed_files_are_found_and_read() {
        let folder = folder(CORPUS, QUERIES, "");
        let path = folder.path();
        for (name, ending) in [("corpus.jsonl", ".zst"), ("queries.jsonl", ".gz")] {
            let packed = zstd::encode_all(&*fs::read(path.join(name)).unwrap(), 3).unwrap();
            fs::write(path.join(format!("{name}{ending}")), packed).unwrap();
            fs::remove_file(path.join(name)).unwrap();
        }
        let collection = Collection::read(path).unwrap();
        assert_eq!(collection.documents().next().unwrap().unwrap().id, "d 1");
        assert_eq!(collection.queries().next().unwrap().unwrap().id, "q");
    }

    #[test]
    fn malformed_rows_name_file_and_line() {
        let bad_json = folder(&format!("{CORPUS}{{\"_id\":\n"), QUERIES, "");
        let error = Collection::read(bad_json.path()).unwrap_err().to_string();
        assert!(error.contains("corpus.jsonl:2: "), "{error}");

        let bad_qrels = folder(
            CORPUS,
            QUERIES,
            "query-id\tcorpus-id\tscore\nq\td 1\tthree\n",
        );
        let collection = Collection::read(bad_qrels.path()).unwrap();
        let error = collection.qrels("test").unwrap_err().to_string();
        assert!(
            error.contains("test.tsv:2: ") && error.contains("three"),
            "{error}"
        );
    }

    #[test]
    fn duplicate_unknown_and_missing_are_named() {
        let twice = folder(&CORPUS.repeat(2), QUERIES, "");
        let error = Collection::read(twice.path()).unwrap_err().to_string();
        assert!(
            error.contains("corpus.jsonl:2: the id \"d 1\" was given before"),
            "{error}"
        );

        let stray = folder(CORPUS, QUERIES, "q\tnowhere\t1\n");
        let collection = Collection::read(stray.path()).unwrap();
        let error = collection.qrels("test").unwrap_err().to_string();
        assert!(
            error.contains("test.tsv:1: names the document \"nowhere\""),
            "{error}"
        );
        let error = collection.qrels("dev").unwrap_err().to_string();
        assert!(error.contains("there are test"), "{error}");
    }
}

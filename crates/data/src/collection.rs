//! Queries, documents and gold relevance in the BEIR layout:
//!
//! ```text
//! corpus.jsonl      {"_id": "p0001", "title": "…", "text": "…"}
//! queries.jsonl     {"_id": "q001", "text": "…"}
//! qrels/SPLIT.tsv   query-id ⇥ corpus-id ⇥ score      (with that header)
//! ```

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use fs_err as fs;
use serde::Deserialize;

use crate::{Error, Result, jsonl};

/// One document; further fields of its line (such as `metadata`) are left alone.
#[derive(Clone, Debug, Deserialize)]
pub struct Document {
    /// Unique in the corpus.
    #[serde(rename = "_id")]
    pub id: String,
    /// May be empty.
    #[serde(default)]
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
#[derive(Clone, Debug, Deserialize)]
pub struct Query {
    /// Unique among the queries.
    #[serde(rename = "_id")]
    pub id: String,
    /// What the user typed.
    pub text: String,
}

/// Gold gains by query, then document; a pair that is not listed has gain 0.
pub type Qrels = BTreeMap<String, BTreeMap<String, u8>>;

/// A corpus with its queries, by id.
#[derive(Debug)]
pub struct Collection {
    folder: PathBuf,
    documents: BTreeMap<String, Document>,
    queries: BTreeMap<String, Query>,
}

impl Collection {
    /// Reads `corpus.jsonl` and `queries.jsonl` of a folder.
    ///
    /// # Errors
    /// A missing file, a malformed line (file and line), an id given twice.
    pub fn read(folder: &Path) -> Result<Self> {
        let corpus = folder.join("corpus.jsonl");
        let documents: Vec<Document> = jsonl::read(&corpus, r#"{"_id", "title", "text"}"#)?;
        let queries_path = folder.join("queries.jsonl");
        let queries: Vec<Query> = jsonl::read(&queries_path, r#"{"_id", "text"}"#)?;
        Ok(Self {
            folder: folder.to_owned(),
            documents: by_id(&corpus, documents, |document| &document.id)?,
            queries: by_id(&queries_path, queries, |query| &query.id)?,
        })
    }

    /// The same queries with other documents; of two with one id the later counts.
    #[must_use]
    pub fn with_documents(&self, documents: impl IntoIterator<Item = Document>) -> Self {
        let by_id = |document: Document| (document.id.clone(), document);
        Self {
            folder: self.folder.clone(),
            documents: documents.into_iter().map(by_id).collect(),
            queries: self.queries.clone(),
        }
    }

    /// Every document, ordered by id.
    pub fn documents(&self) -> impl ExactSizeIterator<Item = &Document> {
        self.documents.values()
    }

    /// The document of that id.
    ///
    /// # Errors
    /// When the corpus has none; `source` is the file that names it.
    pub fn document(&self, id: &str, source: &Path) -> Result<&Document> {
        self.documents
            .get(id)
            .ok_or_else(|| self.unknown("document", id, "corpus.jsonl", source))
    }

    /// The query of that id.
    ///
    /// # Errors
    /// When the collection has none; `source` is the file that names it.
    pub fn query(&self, id: &str, source: &Path) -> Result<&Query> {
        self.queries
            .get(id)
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
        let qrels = read_qrels(&path)?;
        for (query, gains) in &qrels {
            self.query(query, &path)?;
            for document in gains.keys() {
                self.document(document, &path)?;
            }
        }
        Ok(qrels)
    }

    /// Where the gold gains of a split are.
    pub fn qrels_path(&self, split: &str) -> PathBuf {
        self.folder.join("qrels").join(format!("{split}.tsv"))
    }

    /// The splits that have gold gains, by name.
    pub fn splits(&self) -> Vec<String> {
        let Ok(entries) = fs::read_dir(self.folder.join("qrels")) else {
            return Vec::new();
        };
        let mut splits: Vec<String> = entries
            .filter_map(|entry| entry.ok()?.path().file_stem()?.to_str().map(str::to_owned))
            .collect();
        splits.sort();
        splits
    }

    fn unknown(&self, what: &str, id: &str, file: &str, source: &Path) -> Error {
        Error::File {
            path: source.to_owned(),
            problem: format!(
                "names the {what} {id:?}, which {} does not have",
                self.folder.join(file).display()
            ),
        }
    }
}

fn by_id<T>(path: &Path, rows: Vec<T>, id: impl Fn(&T) -> &String) -> Result<BTreeMap<String, T>> {
    let mut map = BTreeMap::new();
    for row in rows {
        let key = id(&row).clone();
        if map.contains_key(&key) {
            return Err(Error::File {
                path: path.to_owned(),
                problem: format!("the id {key:?} is given twice: ids must be unique"),
            });
        }
        map.insert(key, row);
    }
    if map.is_empty() {
        return Err(Error::File {
            path: path.to_owned(),
            problem: "holds no rows".to_owned(),
        });
    }
    Ok(map)
}

fn read_qrels(path: &Path) -> Result<Qrels> {
    let text = fs::read_to_string(path)?;
    let mut qrels = Qrels::new();
    for (index, line) in text.trim_start_matches('\u{feff}').lines().enumerate() {
        let row = |problem: String| Error::Row {
            path: path.into(),
            line: index + 1,
            problem,
        };
        let is_header = index == 0 && line.starts_with("query-id");
        if is_header || line.trim().is_empty() {
            continue;
        }
        let fields: Vec<&str> = line.split('\t').collect();
        let [query, document, gain] = fields[..] else {
            return Err(row(format!(
                "{} tab-separated fields, expected 3: query-id, corpus-id, score",
                fields.len()
            )));
        };
        // 2^gain must stay well inside what an f64 counts exactly.
        let gain = gain
            .trim()
            .parse()
            .ok()
            .filter(|gain| *gain <= 30)
            .ok_or_else(|| {
                row(format!(
                    "the score {gain:?} is not a whole number from 0 to 30"
                ))
            })?;
        let previous = qrels
            .entry(query.into())
            .or_default()
            .insert(document.into(), gain);
        if previous.is_some_and(|previous| previous != gain) {
            return Err(row(format!(
                "the pair {query} {document} was given another score before"
            )));
        }
    }
    Ok(qrels)
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
        assert_eq!(collection.documents().next().unwrap().full_text(), "A. b");
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
        assert!(error.contains("\"d 1\" is given twice"), "{error}");

        let stray = folder(CORPUS, QUERIES, "q\tnowhere\t1\n");
        let collection = Collection::read(stray.path()).unwrap();
        let error = collection.qrels("test").unwrap_err().to_string();
        assert!(error.contains("nowhere"), "{error}");
        let error = collection.qrels("dev").unwrap_err().to_string();
        assert!(error.contains("there are test"), "{error}");
    }
}

//! Documents worth judging: per query the best of BM25 over words, the best of BM25 over
//! trigrams, and a few at random, each with the reason it was taken.

use std::collections::BTreeSet;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::bm25::{Bm25, Matching};
use crate::collection::{Collection, Document, Qrels};
use crate::{Error, Result, jsonl};

/// One pair to judge.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Candidate {
    /// The query.
    pub query_id: String,
    /// The document.
    pub document_id: String,
    /// Why it is here.
    pub source: Source,
}

/// Why a document is a candidate.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Source {
    /// Among the best of BM25 over words.
    Bm25,
    /// Among the best of BM25 over trigrams.
    Trigrams,
    /// Drawn at random from the rest.
    Random,
}

impl std::fmt::Display for Source {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        f.write_str(match self {
            Self::Bm25 => "bm25",
            Self::Trigrams => "trigrams",
            Self::Random => "random",
        })
    }
}

/// How many documents to take from where.
#[derive(Clone, Copy, Debug)]
pub struct Mix {
    /// From BM25 over words.
    pub bm25: usize,
    /// From BM25 over trigrams, beyond those.
    pub trigrams: usize,
    /// At random. Where a search finds fewer than its share, these fill the pool, so that every
    /// query has the same number of candidates.
    pub random: usize,
}

/// Draws candidates for every query of `qrels`. Gold gains play no part in it.
///
/// # Errors
/// When a search fails or the qrels name an unknown query.
pub fn draw(
    collection: &Collection,
    qrels: &Qrels,
    source: &Path,
    mix: Mix,
    seed: u64,
) -> Result<Vec<Candidate>> {
    let words = Bm25::index(collection.documents(), Matching::Words)?;
    let trigrams = Bm25::index(collection.documents(), Matching::Trigrams)?;
    let lots: Vec<(&str, u64)> = collection
        .documents()
        .map(|document: &Document| (&*document.id, lot(seed, &document.id)))
        .collect();
    let pool_size = (mix.bm25 + mix.trigrams + mix.random).min(lots.len());

    let mut candidates = Vec::new();
    for (number, query_id) in qrels.keys().enumerate() {
        let text = &collection.query(query_id, source)?.text;
        let mut taken = BTreeSet::new();
        let mut take = |found: Vec<String>, limit: usize, source: Source| {
            let mut left = limit;
            for document_id in found {
                if left == 0 {
                    break;
                }
                if taken.insert(document_id.clone()) {
                    left -= 1;
                    let query_id = query_id.clone();
                    candidates.push(Candidate {
                        query_id,
                        document_id,
                        source,
                    });
                }
            }
        };
        let found = |hits: Vec<(String, f32)>| hits.into_iter().map(|(id, _)| id).collect();
        take(found(words.search(text, mix.bm25)?), mix.bm25, Source::Bm25);
        let deep_enough = mix.bm25 + mix.trigrams;
        take(
            found(trigrams.search(text, deep_enough)?),
            mix.trigrams,
            Source::Trigrams,
        );

        take(
            lowest_lots(&lots, lot(seed, query_id), pool_size),
            usize::MAX,
            Source::Random,
        );
        candidates.truncate((number + 1) * pool_size);
    }
    Ok(candidates)
}

/// The `count` documents with the lowest lots for a query.
///
/// A lot depends on the seed, the query and the document alone, so that a query or a document
/// that is added later hardly changes the other candidates, whose labels are paid for.
fn lowest_lots(lots: &[(&str, u64)], of_query: u64, count: usize) -> Vec<String> {
    let mut drawn: Vec<(u64, &str)> = lots
        .iter()
        .map(|(id, of_document)| (mixed(of_query ^ of_document), *id))
        .collect();
    if count < drawn.len() {
        drawn.select_nth_unstable(count);
        drawn.truncate(count);
    }
    drawn.sort_unstable();
    drawn.into_iter().map(|(_, id)| id.to_owned()).collect()
}

/// A number that looks random and is the same for the same seed and id.
fn lot(seed: u64, id: &str) -> u64 {
    id.bytes()
        .fold(mixed(seed), |lot, byte| mixed(lot ^ u64::from(byte)))
}

/// The finaliser of `SplitMix64` (Steele, Lea and Flood, 2014): every bit depends on every bit.
fn mixed(value: u64) -> u64 {
    let value = value.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}

/// Reads a file of candidates.
///
/// # Errors
/// A missing file; a malformed line, or a pair named twice (file and line).
pub fn read(path: &Path) -> Result<Vec<Candidate>> {
    let expected = r#"{"query_id", "document_id", "source"}"#;
    let mut pairs = BTreeSet::new();
    let mut rows: Vec<Candidate> = Vec::new();
    for (line, row) in jsonl::read_numbered(path, expected)? {
        let row: Candidate = row;
        if !pairs.insert((row.query_id.clone(), row.document_id.clone())) {
            return Err(Error::Row {
                path: path.into(),
                line,
                problem: format!(
                    "names the document {} for the query {} a second time: remove the line",
                    row.document_id, row.query_id
                ),
            });
        }
        rows.push(row);
    }
    if rows.is_empty() {
        return Err(Error::File {
            path: path.into(),
            problem: "holds no candidates".to_owned(),
        });
    }
    Ok(rows)
}

/// Writes a file of candidates.
///
/// # Errors
/// An I/O error; the file is then as it was.
pub fn write(path: &Path, candidates: &[Candidate]) -> Result<()> {
    Ok(retort_files::write_atomic(
        path,
        &jsonl::to_bytes(candidates)?,
    )?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lot_hangs_on_the_query_and_the_document_alone() {
        let lots: Vec<(String, u64)> = (0..1000)
            .map(|number| format!("d{number}"))
            .map(|id| (id.clone(), lot(7, &id)))
            .collect();
        let lots: Vec<(&str, u64)> = lots.iter().map(|(id, lot)| (&**id, *lot)).collect();
        let drawn = lowest_lots(&lots, lot(7, "q1"), 10);
        assert_eq!(drawn.len(), 10);
        // Of half the documents, those of them that were drawn are drawn again.
        let half = lowest_lots(&lots[..500], lot(7, "q1"), 10);
        let kept: Vec<&String> = drawn
            .iter()
            .filter(|id| lots[..500].iter().any(|(known, _)| known == id))
            .collect();
        assert_eq!(half.iter().take(kept.len()).collect::<Vec<_>>(), kept);
        assert!(!kept.is_empty() && kept.len() < 10, "{}", kept.len());
        assert_ne!(drawn, lowest_lots(&lots, lot(7, "q2"), 10));
        assert_ne!(drawn, lowest_lots(&lots, lot(8, "q1"), 10));
    }

    #[test]
    fn a_pair_named_twice_is_refused_with_its_line() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("candidates.jsonl");
        let one = Candidate {
            query_id: "q".into(),
            document_id: "d".into(),
            source: Source::Bm25,
        };
        write(&path, &[one.clone(), one]).unwrap();
        let error = read(&path).unwrap_err().to_string();
        assert!(
            error.contains("candidates.jsonl:2: names the document d"),
            "{error}"
        );
    }
}

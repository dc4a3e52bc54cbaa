//! Documents worth judging: per query the best of BM25 over words, the best of BM25 over
//! trigrams, and a few at random, each with the reason it was taken.

use std::collections::BTreeSet;
use std::path::Path;

use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;
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
    let ids: Vec<&str> = collection
        .documents()
        .map(|document: &Document| &*document.id)
        .collect();
    let pool_size = (mix.bm25 + mix.trigrams + mix.random).min(ids.len());

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

        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        rng.set_stream(number as u64);
        let mut shuffled: Vec<String> = ids.iter().map(ToString::to_string).collect();
        shuffled.shuffle(&mut rng);
        take(shuffled, usize::MAX, Source::Random);
        candidates.truncate((number + 1) * pool_size);
    }
    Ok(candidates)
}

/// Reads a file of candidates.
///
/// # Errors
/// A missing file, or a malformed line (file and line).
pub fn read(path: &Path) -> Result<Vec<Candidate>> {
    let rows: Vec<Candidate> = jsonl::read(path, r#"{"query_id", "document_id", "source"}"#)?;
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

//! Documents worth judging: per query the best of BM25 over words, the best of BM25 over
//! trigrams, some from the runs of other systems, and a few at random, each with the reason it was
//! taken.
//!
//! # Runs
//!
//! Of what a run found, half is taken from the very top, as in TREC's pools. The other half comes
//! from strata below that end at ranks growing geometrically down to a depth, or to where the run
//! ends: an equal number from each, drawn by lot. So ranks are sampled at a rate that falls with
//! depth, as for inferred measures (Yilmaz, Kanoulas and Aslam, 2008), and a student also meets what
//! a system ranked middling. Ten of a depth of 100 are ranks 1 to 5 and one of each 6–9, 10–17,
//! 18–30, 31–55 and 56–100.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::ops::RangeInclusive;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::bm25::{Bm25, Matching};
use crate::collection::{Collection, Query};
use crate::lines::{Lines, Rows};
use crate::trec::Run;
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
    /// Its rank in the run that it is from, from 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rank: Option<usize>,
}

/// Why a document is a candidate.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Source {
    /// Among the best of BM25 over words.
    Bm25,
    /// Among the best of BM25 over trigrams.
    Trigrams,
    /// In the run of that name.
    Run(String),
    /// Drawn at random from the rest.
    Random,
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self {
            Self::Bm25 => f.write_str("bm25"),
            Self::Trigrams => f.write_str("trigrams"),
            Self::Run(name) => write!(f, "run:{name}"),
            Self::Random => f.write_str("random"),
        }
    }
}

impl From<Source> for String {
    fn from(source: Source) -> Self {
        source.to_string()
    }
}

impl TryFrom<String> for Source {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        match &*text {
            "bm25" => Ok(Self::Bm25),
            "trigrams" => Ok(Self::Trigrams),
            "random" => Ok(Self::Random),
            _ => match text.strip_prefix("run:") {
                Some(name) => Ok(Self::Run(name.to_owned())),
                None => Err(format!(
                    "unknown source {text:?}, expected bm25, trigrams, random or run:NAME"
                )),
            },
        }
    }
}

/// How many documents to take from where.
#[derive(Clone, Debug)]
pub struct Mix {
    /// From BM25 over words.
    pub bm25: usize,
    /// From BM25 over trigrams, beyond those.
    pub trigrams: usize,
    /// What other systems found.
    pub runs: Vec<Run>,
    /// From each run, beyond those before.
    pub per_run: usize,
    /// The last rank of a run that is looked at.
    pub depth: usize,
    /// At random. Where a search finds fewer than its share, these fill the pool, so that every
    /// query has the same number of candidates; but where this is 0, there are none.
    pub random: usize,
    /// Documents that are not taken, by query.
    pub excluded: BTreeMap<String, BTreeSet<String>>,
    /// The same seed draws the same documents.
    pub seed: u64,
}

/// Draws candidates for queries. Gold gains play no part in it: a candidate is a pair to be judged,
/// whatever its source, and not a negative.
///
/// # Errors
/// When a search fails.
pub fn draw(collection: &Collection, queries: &[Query], mix: &Mix) -> Result<Vec<Candidate>> {
    let words = Bm25::index(collection, Matching::Words)?;
    let trigrams = Bm25::index(collection, Matching::Trigrams)?;
    let mut lots: Vec<(Box<str>, u64)> = Vec::with_capacity(collection.documents().len());
    for document in collection.documents() {
        let id = document?.id;
        lots.push((id.as_str().into(), lot(mix.seed, &id)));
    }
    let of_runs = mix.runs.len().saturating_mul(mix.per_run);
    let shares = [mix.bm25, mix.trigrams, of_runs, mix.random];
    let pool_size = shares.into_iter().fold(0, usize::saturating_add);

    let mut candidates = Vec::new();
    for query in queries {
        let of_query = lot(mix.seed, &query.id);
        let mut pool = Pool {
            query_id: &query.id,
            taken: mix.excluded.get(&query.id).cloned().unwrap_or_default(),
            candidates: Vec::new(),
        };
        let excluded = pool.taken.len();
        let size = pool_size.min(lots.len().saturating_sub(excluded));

        let found = words.search(&query.text, mix.bm25.saturating_add(excluded))?;
        pool.take(unranked(found), mix.bm25, &Source::Bm25);
        let deep_enough = mix
            .bm25
            .saturating_add(mix.trigrams)
            .saturating_add(excluded);
        let found = trigrams.search(&query.text, deep_enough)?;
        pool.take(unranked(found), mix.trigrams, &Source::Trigrams);

        for run in &mix.runs {
            let source = Source::Run(run.name.clone());
            // What a stratum lacks is taken from the next.
            let mut owed = 0;
            let depth = mix.depth.min(run.depth(&query.id));
            for (ranks, share) in strata(mix.per_run, depth) {
                let mut found = run.at(&query.id, ranks);
                found.sort_by_key(|(id, _)| mixed(of_query ^ lot(mix.seed, id)));
                owed += share;
                owed -= pool.take(found, owed, &source);
            }
        }

        let rest = lowest_lots(&lots, of_query, size + excluded);
        let rest = rest.into_iter().map(|id| (id, None));
        let left = match mix.random {
            0 => 0,
            _ => size.saturating_sub(pool.candidates.len()),
        };
        pool.take(rest, left, &Source::Random);
        candidates.extend(pool.candidates);
    }
    Ok(candidates)
}

/// The candidates of a query.
struct Pool<'a> {
    query_id: &'a str,
    taken: BTreeSet<String>,
    candidates: Vec<Candidate>,
}

impl Pool<'_> {
    /// Takes up to `limit` documents that are new; says how many.
    fn take(
        &mut self,
        found: impl IntoIterator<Item = (String, Option<usize>)>,
        limit: usize,
        source: &Source,
    ) -> usize {
        let before = self.candidates.len();
        for (document_id, rank) in found {
            if self.candidates.len() - before == limit {
                break;
            }
            if self.taken.insert(document_id.clone()) {
                self.candidates.push(Candidate {
                    query_id: self.query_id.to_owned(),
                    document_id,
                    source: source.clone(),
                    rank,
                });
            }
        }
        self.candidates.len() - before
    }
}

fn unranked(found: Vec<(String, f32)>) -> impl Iterator<Item = (String, Option<usize>)> {
    found.into_iter().map(|(id, _)| (id, None))
}

/// The strata of a run's ranks and how many documents to take from each: see the module.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "ranks: positive, and far below 2^52"
)]
fn strata(count: usize, depth: usize) -> Vec<(RangeInclusive<usize>, usize)> {
    let top = count.div_ceil(2);
    let mut strata = vec![(1..=top.min(depth), top)];
    if depth <= top || count == top {
        return strata;
    }
    let rest = count - top;
    // No more strata than doublings of the rank: below that they would hold a document or two.
    let deeper = depth as f64 / top as f64;
    let number = rest.min(deeper.log2().ceil() as usize);
    let mut last = top;
    for index in 0..number {
        let end = top as f64 * deeper.powf((index + 1) as f64 / number as f64);
        let end = (end.round() as usize).clamp(last, depth);
        let share = rest / number + usize::from(index < rest % number);
        strata.push((last + 1..=end, share));
        last = end;
    }
    strata
}

/// The `count` documents with the lowest lots for a query.
///
/// A lot depends on the seed, the query and the document alone, so that a query or a document
/// that is added later hardly changes the other candidates, whose labels are paid for.
fn lowest_lots(lots: &[(Box<str>, u64)], of_query: u64, count: usize) -> Vec<String> {
    let mut drawn: Vec<(u64, &str)> = lots
        .iter()
        .map(|(id, of_document)| (mixed(of_query ^ of_document), &**id))
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
    read_if(path, |_| Ok(()))
}

/// [`read`], of a collection.
///
/// # Errors
/// As [`read`]; a query or a document that the collection does not have (file and line).
pub fn read_of(path: &Path, collection: &Collection) -> Result<Vec<Candidate>> {
    read_if(path, |candidate| {
        collection.query(&candidate.query_id, path)?;
        collection.document(&candidate.document_id, path)?;
        Ok(())
    })
}

fn read_if(path: &Path, check: impl Fn(&Candidate) -> Result<()>) -> Result<Vec<Candidate>> {
    let mut pairs = BTreeSet::new();
    let mut candidates: Vec<Candidate> = Vec::new();
    for row in rows(Lines::open(path)?) {
        let (line, row) = row?;
        if !pairs.insert((row.query_id.clone(), row.document_id.clone())) {
            let Candidate {
                query_id,
                document_id,
                ..
            } = row;
            let problem = format!(
                "names the document {document_id} for the query {query_id} a second time: remove \
                 the line"
            );
            return Err(Error::row(path, line, problem));
        }
        check(&row).map_err(|error| match error {
            Error::File { path, problem } => Error::row(&path, line, problem),
            error => error,
        })?;
        candidates.push(row);
    }
    if candidates.is_empty() {
        return Err(Error::File {
            path: path.into(),
            problem: "holds no candidates".to_owned(),
        });
    }
    Ok(candidates)
}

/// The rows of a file of candidates.
pub(crate) fn rows(lines: Lines) -> Rows<Candidate> {
    jsonl::rows(
        lines,
        r#"{"query_id", "document_id", "source"}, maybe "rank""#,
    )
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
        let lots: Vec<(Box<str>, u64)> = (0..1000)
            .map(|number| format!("d{number}"))
            .map(|id| (id.as_str().into(), lot(7, &id)))
            .collect();
        let drawn = lowest_lots(&lots, lot(7, "q1"), 10);
        assert_eq!(drawn.len(), 10);
        // Of half the documents, those of them that were drawn are drawn again.
        let half = lowest_lots(&lots[..500], lot(7, "q1"), 10);
        let kept: Vec<&String> = drawn
            .iter()
            .filter(|id| lots[..500].iter().any(|(known, _)| **known == **id))
            .collect();
        assert_eq!(half.iter().take(kept.len()).collect::<Vec<_>>(), kept);
        assert!(!kept.is_empty() && kept.len() < 10, "{}", kept.len());
        assert_ne!(drawn, lowest_lots(&lots, lot(7, "q2"), 10));
        assert_ne!(drawn, lowest_lots(&lots, lot(8, "q1"), 10));
    }

    #[test]
    fn strata_cover_all_ranks_once_and_the_rate_falls() {
        for (count, depth) in [
            (10, 100),
            (20, 100),
            (7, 1000),
            (2, 50),
            (1, 10),
            (10, 3),
            (9, 5),
        ] {
            let strata = strata(count, depth);
            let ranks: Vec<usize> = strata.iter().flat_map(|(ranks, _)| ranks.clone()).collect();
            let reached = if count == 1 { 1 } else { depth };
            assert_eq!(
                ranks,
                (1..=reached).collect::<Vec<_>>(),
                "{count} of {depth}"
            );
            let rates = strata
                .iter()
                .map(|(ranks, share)| *share as f64 / ranks.clone().count() as f64);
            assert!(rates.is_sorted_by(|a, b| a >= b), "{strata:?}");
            if depth >= count {
                assert_eq!(strata.iter().map(|(_, share)| share).sum::<usize>(), count);
            }
        }
        let ten: Vec<_> = strata(10, 100)
            .into_iter()
            .map(|(ranks, _)| *ranks.end())
            .collect();
        assert_eq!(ten, [5, 9, 17, 30, 55, 100]);
    }

    /// 40 documents of which a run found all, d01 first, for a query that no text matches.
    fn drawn(mix: impl FnOnce(&mut Mix)) -> Vec<Candidate> {
        let folder = tempfile::tempdir().unwrap();
        let ids: Vec<String> = (1..=40).map(|number| format!("d{number:02}")).collect();
        let line = |id: &String| format!("{{\"_id\":\"{id}\",\"text\":\"same\"}}\n");
        let corpus = ids.iter().map(line).collect::<Vec<_>>().concat();
        let queries = "{\"_id\":\"q\",\"text\":\"other\"}\n";
        fs_err::write(folder.path().join("corpus.jsonl"), corpus).unwrap();
        fs_err::write(folder.path().join("queries.jsonl"), queries).unwrap();
        let collection = Collection::read(folder.path()).unwrap();
        let mut all = Mix {
            bm25: 3,
            trigrams: 2,
            runs: vec![Run {
                name: "dense".to_owned(),
                documents: [("q".to_owned(), ids)].into(),
            }],
            per_run: 8,
            depth: 32,
            random: 4,
            excluded: BTreeMap::new(),
            seed: 1,
        };
        mix(&mut all);
        let queries: Vec<Query> = collection.queries().collect::<Result<_>>().unwrap();
        draw(&collection, &queries, &all).unwrap()
    }

    #[test]
    fn a_run_gives_its_top_and_some_of_every_stratum_and_says_the_rank() {
        let drawn = drawn(|_| {});
        // The searches find nothing, so what they lack is filled at random.
        assert_eq!(drawn.len(), 3 + 2 + 8 + 4);
        let ids: BTreeSet<&str> = drawn.iter().map(|one| &*one.document_id).collect();
        assert_eq!(ids.len(), drawn.len());
        let of_run = drawn
            .iter()
            .filter(|one| one.source.to_string() == "run:dense");
        let mut ranks: Vec<usize> = of_run
            .map(|one| {
                let rank = one.rank.unwrap();
                assert_eq!(one.document_id, format!("d{rank:02}"));
                rank
            })
            .collect();
        ranks.sort_unstable();
        assert_eq!(ranks[..4], [1, 2, 3, 4]);
        let strata = strata(8, 32);
        let counts = strata
            .iter()
            .map(|(within, _)| ranks.iter().filter(|rank| within.contains(rank)).count());
        assert!(
            counts.eq(strata.iter().map(|(_, share)| *share)),
            "{ranks:?}"
        );
        // A run that ends before the depth has strata down to its end, and gives as many.
        let deep = self::drawn(|mix| mix.depth = 1000);
        assert_eq!(deep.iter().filter(|one| one.rank.is_some()).count(), 8);
        assert!(deep.iter().any(|one| one.rank > Some(20)));
    }

    #[test]
    fn what_is_excluded_is_never_drawn_and_its_place_is_filled() {
        let excluded = BTreeMap::from([("q".to_owned(), BTreeSet::from(["d01".to_owned()]))]);
        let without = drawn(|mix| mix.excluded = excluded.clone());
        assert_eq!(without.len(), 17);
        assert!(without.iter().all(|one| one.document_id != "d01"));
        // Where none is wanted at random, none fills the places that the searches leave.
        let found = drawn(|mix| mix.random = 0);
        assert!(found.iter().all(|one| one.source != Source::Random));
        assert_eq!(found.len(), 8);
        // Of a corpus that is too small, all others.
        let all = drawn(|mix| {
            mix.excluded = excluded.clone();
            mix.random = 1000;
        });
        assert_eq!(all.len(), 39);
    }

    #[test]
    fn a_pair_named_twice_is_refused_with_its_line() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("candidates.jsonl");
        let one = Candidate {
            query_id: "q".into(),
            document_id: "d".into(),
            source: Source::Run("dense:v2".into()),
            rank: Some(3),
        };
        write(&path, std::slice::from_ref(&one)).unwrap();
        assert_eq!(read(&path).unwrap(), std::slice::from_ref(&one));
        write(&path, &[one.clone(), one]).unwrap();
        let error = read(&path).unwrap_err().to_string();
        assert!(
            error.contains("candidates.jsonl:2: names the document d"),
            "{error}"
        );
    }
}

//! A job in parts: each process asks the questions of its own queries and keeps them in a ledger
//! of its own; `labels merge` puts the ledgers together.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use retort_data::candidates::Candidate;
use retort_data::collection::Collection;
use sha2::{Digest, Sha256};

use crate::Result;
use crate::apart::Kill;
use crate::job::LabelSettings;
use crate::ledger::{Found, Key, Outcome, Reader};
use crate::redact::Redactor;

/// One of so many parts of a job, the first is 0: `3/16`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shard {
    index: u32,
    of: u32,
}

impl Shard {
    /// Whether a query's questions are this part's. The words decide, which are part of every key:
    /// so the same question under two ids falls to one part, and a query stays whole, as requests
    /// about several documents and the caches of servers like it.
    pub fn has(&self, query: &str) -> bool {
        let digest = Sha256::digest(query.as_bytes());
        // Eight bytes: the remainder is even to one part in 2^32.
        let number = digest
            .iter()
            .take(8)
            .fold(0_u64, |number, byte| number << 8 | u64::from(*byte));
        number % u64::from(self.of) == u64::from(self.index)
    }

    /// Where this part keeps its judgements: `labels.sqlite` becomes `labels-03-of-16.sqlite`.
    pub fn ledger(&self, whole: &Path) -> PathBuf {
        let stem = whole.file_stem().unwrap_or_default().to_string_lossy();
        let width = self.of.to_string().len();
        let mut name = format!("{stem}-{:0width$}-of-{}", self.index, self.of);
        if let Some(extension) = whole.extension() {
            name = format!("{name}.{}", extension.to_string_lossy());
        }
        whole.with_file_name(name)
    }
}

impl fmt::Display for Shard {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "{}/{}", self.index, self.of)
    }
}

impl FromStr for Shard {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parsed = text
            .split_once('/')
            .and_then(|(index, of)| Some((index.parse().ok()?, of.parse().ok()?)));
        match parsed {
            Some((index, of)) if index < of => Ok(Self { index, of }),
            _ => Err(format!(
                "expected i/n with i from 0 to n - 1, such as 0/16, not {text:?}"
            )),
        }
    }
}

/// The part of a job that a process does.
#[derive(Clone, Debug)]
pub struct Part {
    /// Which.
    pub shard: Shard,
    /// The ledger that the parts are merged into.
    pub whole: PathBuf,
}

impl LabelSettings {
    /// This job's settings for one of its parts, which has a ledger of its own.
    #[must_use]
    pub fn for_shard(mut self, shard: Shard) -> Self {
        let ledger = shard.ledger(&self.ledger);
        let whole = std::mem::replace(&mut self.ledger, ledger);
        self.part = Some(Part { shard, whole });
        self
    }
}

impl Part {
    /// The queries of this part. What a teacher sees of their words decides, as it does in keys.
    pub(crate) fn queries(
        &self,
        candidates: &[Candidate],
        collection: &Collection,
        settings: &LabelSettings,
        kill: &Kill,
    ) -> Result<HashSet<String>> {
        let mut queries: BTreeMap<&str, String> = BTreeMap::new();
        for Candidate { query_id, .. } in candidates {
            if !queries.contains_key(&**query_id) {
                let query = collection.query(query_id, &settings.candidates)?;
                queries.insert(query_id, query.text);
            }
        }
        let redactor = Redactor::new(settings, kill, || {
            Ok(queries.values().cloned().collect::<BTreeSet<_>>())
        })?;
        let mut ours = HashSet::new();
        for (id, text) in queries {
            if self.shard.has(&redactor.redact(&text, &[])?.query) {
                ours.insert(id.to_owned());
            }
        }
        if ours.is_empty() {
            tracing::warn!(
                "no query falls to shard {}: it has nothing to ask",
                self.shard
            );
        }
        Ok(ours)
    }
}

/// The ledger that the parts of a job are merged into, if this is a part and the ledger is there:
/// what it has an answer to or has out in batches is not asked again, in how many parts the job may
/// go on.
pub(crate) struct Whole(Option<Reader>);

impl Whole {
    pub(crate) fn of(settings: &LabelSettings) -> Result<Self> {
        match &settings.part {
            Some(part) if part.whole.exists() => Ok(Self(Some(Reader::open(&part.whole)?))),
            _ => Ok(Self(None)),
        }
    }

    /// What is known of a key, where the part's own ledger has `own`: an answer, if one of the two
    /// has it.
    pub(crate) fn or_known(&self, key: &Key, own: Option<Found>) -> Result<Option<Found>> {
        let is_answer = |found: &Found| found.outcome == Outcome::Ok;
        match &self.0 {
            Some(whole) if !own.as_ref().is_some_and(is_answer) => {
                let merged = whole.find(key)?;
                Ok(if merged.as_ref().is_some_and(is_answer) {
                    merged
                } else {
                    own.or(merged)
                })
            }
            _ => Ok(own),
        }
    }

    /// What is out in batches, where the part's own ledger has `own` out: a question is in one
    /// batch at a time, whichever of the two sent it.
    pub(crate) fn or_out(&self, mut own: HashSet<Key>) -> Result<HashSet<Key>> {
        if let Some(whole) = &self.0 {
            own.extend(whole.in_batches()?);
        }
        Ok(own)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shard_is_one_of_n_from_0() {
        let shard: Shard = "3/16".parse().unwrap();
        assert_eq!(shard.to_string(), "3/16");
        for text in ["16/16", "1", "a/b", "-1/4", "0/0", "1/2/3", ""] {
            let problem = text.parse::<Shard>().unwrap_err();
            assert!(problem.contains("from 0 to n - 1"), "{problem}");
        }
    }

    #[test]
    fn a_query_is_in_the_same_one_of_n_parts_on_every_machine() {
        // The SHA-256 of "abc" begins with ba7816bf8f01cfea.
        for of in [1, 2, 3, 7, 16, 1000] {
            let expected = 0xba78_16bf_8f01_cfea_u64 % u64::from(of);
            for index in 0..of {
                let has = Shard { index, of }.has("abc");
                assert_eq!(has, u64::from(index) == expected, "{index}/{of}");
            }
        }
    }

    #[test]
    fn each_part_has_a_ledger_of_its_own_beside_the_whole() {
        let ledger = |index, of, whole| Shard { index, of }.ledger(Path::new(whole));
        assert_eq!(
            ledger(3, 16, "data/labels.sqlite"),
            Path::new("data/labels-03-of-16.sqlite")
        );
        assert_eq!(ledger(9, 10, "labels"), Path::new("labels-09-of-10"));
    }
}

//! Many ledgers into one: the union of their judgements, with what they were asked by, what came
//! back and what it cost. Merging is idempotent: a ledger that grew is merged again, and a merge
//! that was stopped is started again.

use std::collections::BTreeSet;
use std::fs::File;
use std::path::{Path, PathBuf};

use fs_err as fs;
use rusqlite::{Connection, OptionalExtension};
use serde::Serialize;

use crate::ledger::{Spent, connect, open_batches, spent};
use crate::{Error, Result};

/// What a merge brought.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Merged {
    /// Judgements that were not there, or were failures before.
    pub judgements: u64,
    /// Requests that were not on record there.
    pub requests: u64,
    /// Questions with an answer that are out in batches there: bought twice, for what comes back is
    /// not kept.
    pub bought_twice: u64,
    /// What the ledger came to, all its runs together.
    pub spent: Spent,
}

/// Merges ledgers into one, each whole or not at all; `into` is made if it is not there. An answer
/// wins over a failure. What killed runs left in flight is booked in the sources, which otherwise
/// stay as they are.
///
/// # Errors
/// A source that is missing, no ledger, of a newer version, or being written by another process:
/// nothing is merged then. Two answers to one question: nothing is merged of the source that has
/// the second. An I/O error.
pub fn merge(sources: &[PathBuf], into: &Path) -> Result<Merged> {
    let target = fs::canonicalize(into).ok();
    let mut distinct = BTreeSet::new();
    for source in sources {
        let source = fs::canonicalize(source)?;
        if Some(&source) == target.as_ref() {
            return Err(Error::File {
                path: source,
                problem: "is the ledger to merge into, and cannot be merged into itself".to_owned(),
            });
        }
        distinct.insert(source);
    }
    // Locked until all is merged: nobody writes what is being read.
    let _locks: Vec<File> = (distinct.iter())
        .map(|source| locked(source))
        .collect::<Result<_>>()?;
    let (mut db, _lock) = connect(into)?;
    let failed = |error| Error::ledger(into, error);
    let before = spent(&db).map_err(failed)?;
    let mut judgements = 0;
    for source in &distinct {
        let taken = take_in(&mut db, source, into)?;
        tracing::info!("{}: {taken} new judgements", source.display());
        judgements += taken;
    }
    let spent = spent(&db).map_err(failed)?;
    Ok(Merged {
        judgements,
        requests: spent.requests - before.requests,
        bought_twice: answered_and_out(&db).map_err(failed)?,
        spent,
    })
}

/// Locks a ledger to be merged, unless it still waits for batches.
fn locked(source: &Path) -> Result<File> {
    let (db, lock) = connect(source)?;
    match open_batches(&db)
        .map_err(|error| Error::ledger(source, error))?
        .len()
    {
        0 => Ok(lock),
        out => Err(Error::File {
            path: source.to_owned(),
            problem: format!(
                "has {out} batches that have not come back: `retort label --batch` takes them in \
                 first"
            ),
        }),
    }
}

/// Merges one ledger in one transaction; returns how many judgements it brought.
fn take_in(db: &mut Connection, source: &Path, into: &Path) -> Result<u64> {
    let failed = |error| Error::ledger(source, error);
    let name = source.to_str().ok_or_else(|| Error::File {
        path: source.to_owned(),
        problem: "has a name that is not UTF-8: rename it".to_owned(),
    })?;
    db.execute("ATTACH ?1 AS theirs", [name]).map_err(failed)?;
    let taken = (|| {
        let transaction = db.transaction().map_err(failed)?;
        if let Some((query, documents, count)) = conflict(&transaction).map_err(failed)? {
            return Err(Error::Conflict {
                path: source.to_owned(),
                into: into.to_owned(),
                query,
                documents,
                count,
            });
        }
        (|| {
            transaction.execute_batch(include_str!("ledger/merge.sql"))?;
            let count = "SELECT count(*) FROM temp.taken";
            let taken = transaction.query_row(count, [], |row| row.get(0))?;
            transaction.commit()?;
            Ok(taken)
        })()
        .map_err(failed)
    })();
    let detached = db.execute("DETACH theirs", []).map_err(failed);
    taken.and_then(|taken| detached.map(|_| taken))
}

/// How many questions have an answer and are out in batches.
fn answered_and_out(db: &Connection) -> rusqlite::Result<u64> {
    let sql = "SELECT count(*) FROM judgement JOIN batch_question USING (key) WHERE outcome = 'ok'";
    db.query_row(sql, [], |row| row.get(0))
}

/// The first question that has another answer there than here, and how many have.
fn conflict(db: &Connection) -> rusqlite::Result<Option<(String, String, u64)>> {
    let sql = "SELECT t.query_id, t.document_ids, count(*) OVER () \
               FROM theirs.judgement AS t JOIN main.judgement AS m USING (key) \
               WHERE t.outcome = 'ok' AND m.outcome = 'ok' AND t.answer <> m.answer \
               ORDER BY t.query_id, t.document_ids LIMIT 1";
    db.query_row(sql, [], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))
        .optional()
}

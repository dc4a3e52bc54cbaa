//! Which version a ledger is of, and how it becomes the newest.

use std::fs::File;
use std::path::Path;

use fs_err as fs;
use rusqlite::Connection;

use super::lock::lock;
use super::now;
use crate::{Error, Result};

/// What each version changes. A new ledger goes through all of them, an older one through the rest.
const STEPS: [&str; 6] = [
    include_str!("schema/1.sql"),
    include_str!("schema/2.sql"),
    include_str!("schema/3.sql"),
    include_str!("schema/4.sql"),
    include_str!("schema/5.sql"),
    include_str!("schema/6.sql"),
];
/// The version that this program writes.
pub(super) const VERSION: usize = STEPS.len();
/// "Reto", so that `file` and others can tell.
pub(super) const APPLICATION: i64 = 0x5265_746f;
/// SQLite before it may corrupt a write-ahead log that is reset under a reader.
const LEAST_SQLITE: i32 = 3_053_000;

/// Locks a ledger for writing and opens it, or makes one; an older one becomes the newest version.
/// Books what killed runs left in flight. It is locked as long as the file is open.
pub(crate) fn connect(path: &Path) -> Result<(Connection, File)> {
    refuse_folder(path)?;
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent)?;
    }
    let lock = lock(path)?;
    let mut db = Connection::open(path).map_err(|error| Error::ledger(path, error))?;
    prepare(&mut db, path)?;
    book_killed_runs(&db).map_err(|error| Error::ledger(path, error))?;
    Ok((db, lock))
}

/// Says so where a ledger would be a folder: SQLite's message does not.
pub(super) fn refuse_folder(path: &Path) -> Result<()> {
    if path.is_dir() {
        return Err(Error::File {
            path: path.to_owned(),
            problem: "is a folder, and a ledger is a file: name one in it, such as labels.sqlite"
                .to_owned(),
        });
    }
    Ok(())
}

/// A ledger's version; an error where that is none this program knows.
pub(super) fn version(db: &Connection, path: &Path) -> Result<usize> {
    let pragma = |name: &str| -> Result<i64> {
        db.pragma_query_value(None, name, |row| row.get(0))
            .map_err(|error| Error::ledger(path, error))
    };
    let problem = match (pragma("application_id")?, pragma("user_version")?) {
        (APPLICATION, version) => match usize::try_from(version) {
            Ok(known @ 1..=VERSION) => return Ok(known),
            _ => format!(
                "is a ledger of version {version}, and this program reads versions up to \
                 {VERSION}: use the one that wrote it, or a newer one"
            ),
        },
        _ => "is an SQLite file, but no ledger of judgements: name another file".to_owned(),
    };
    Err(Error::File {
        path: path.to_owned(),
        problem,
    })
}

/// What a killed run may have had in flight counts as spent.
fn book_killed_runs(db: &Connection) -> rusqlite::Result<()> {
    db.execute(
        "INSERT OR IGNORE INTO attempt (run, number, at, endpoint, problem, latency_ms, \
         sent_bytes, input_tokens, cached_tokens, output_tokens, micros, estimated) \
         SELECT id, 0, ?1, '', 'the run was killed or stopped: what it had in flight, at its worst', 0, 0, \
         at_risk_tokens, 0, 0, at_risk_micros, 1 \
         FROM run WHERE ended_at IS NULL AND (at_risk_micros > 0 OR at_risk_tokens > 0)",
        [now()],
    )?;
    db.execute(
        "UPDATE run SET ended_at = ?1, at_risk_micros = 0, at_risk_tokens = 0 \
         WHERE ended_at IS NULL",
        [now()],
    )?;
    Ok(())
}

/// Sets a connection up and brings its file to the newest version.
fn prepare(db: &mut Connection, path: &Path) -> Result<()> {
    let sqlite = rusqlite::version_number();
    if sqlite < LEAST_SQLITE {
        return Err(Error::File {
            path: path.to_owned(),
            problem: format!("needs SQLite {LEAST_SQLITE} or newer, this is {sqlite}"),
        });
    }
    let broken = |error| Error::ledger(path, error);
    // Read before anything is written: a file of something else stays as it is.
    let tables: i64 = db
        .query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0))
        .map_err(broken)?;
    let version = match tables {
        0 => 0,
        _ => version(db, path)?,
    };
    (|| {
        db.pragma_update(None, "journal_mode", "wal")?;
        // A commit that was reported survives a power cut.
        db.pragma_update(None, "synchronous", "full")?;
        db.pragma_update(None, "foreign_keys", true)?;
        // Keys are random: the pages they fall on should be at hand. In KiB, negative.
        db.pragma_update(None, "cache_size", -65_536)?;
        if version < VERSION {
            let transaction = db.transaction()?;
            for step in &STEPS[version..] {
                transaction.execute_batch(step)?;
            }
            transaction.pragma_update(None, "application_id", APPLICATION)?;
            transaction.pragma_update(None, "user_version", VERSION)?;
            transaction.commit()?;
        }
        Ok(())
    })()
    .map_err(broken)
}

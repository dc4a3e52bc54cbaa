//! Looking into a ledger, also while another process writes it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use fs_err as fs;
use rusqlite::types::Type;
use rusqlite::{Connection, OpenFlags, Row};
use serde::Serialize;
use serde_json::Value;

use super::schema::{VERSION, connect, refuse_folder, version};
use super::{Entry, Found, Key, Outcome, Spent, factor, find, last_preflights, spent};
use crate::preflight::Preflight;
use crate::{Error, Result};

/// A ledger to look into; a writer may go on beside it.
pub struct Reader {
    db: Connection,
    path: PathBuf,
}

/// A recipe and what came of it.
#[derive(Clone, Debug, Serialize)]
pub struct RecipeStatus {
    /// Its number in the ledger.
    pub id: i64,
    /// The first 16 digits of its digest.
    pub digest: String,
    /// What it says.
    pub spec: Value,
    /// Entries by how they ended.
    pub outcomes: BTreeMap<Outcome, u64>,
    /// The models that answered, as they named themselves.
    pub models: Vec<String>,
    /// What preflights found at its endpoints.
    pub preflights: Vec<Preflight>,
}

impl Reader {
    /// Opens a ledger to read; an older one becomes the newest version first.
    ///
    /// # Errors
    /// A file that is missing, no ledger, or of a newer version; an I/O error.
    pub fn open(path: &Path) -> Result<Self> {
        // SQLite's own message for a missing file does not say which.
        fs::metadata(path)?;
        refuse_folder(path)?;
        let mut db = opened(path)?;
        if version(&db, path)? < VERSION {
            drop(db);
            connect(path)?;
            db = opened(path)?;
        }
        Ok(Self {
            db,
            path: path.to_owned(),
        })
    }

    /// The file.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// The recipes and how their questions ended.
    ///
    /// # Errors
    /// An I/O error.
    pub fn recipes(&self) -> Result<Vec<RecipeStatus>> {
        self.sql(|db| {
            let mut recipes = Vec::new();
            let mut select = db.prepare("SELECT id, digest, spec FROM recipe ORDER BY id")?;
            let mut rows = select.query([])?;
            while let Some(row) = rows.next()? {
                let (id, digest, spec): (i64, [u8; 32], String) =
                    (row.get(0)?, row.get(1)?, row.get(2)?);
                let mut outcomes = BTreeMap::new();
                let mut counts = db.prepare_cached(
                    "SELECT outcome, count(*) FROM judgement WHERE recipe = ?1 GROUP BY outcome",
                )?;
                let mut counted = counts.query([id])?;
                while let Some(row) = counted.next()? {
                    if let Ok(outcome) = row.get::<_, String>(0)?.parse() {
                        outcomes.insert(outcome, row.get(1)?);
                    }
                }
                let mut models = db.prepare_cached(
                    "SELECT DISTINCT model FROM epoch WHERE recipe = ?1 AND model <> '' ORDER BY id",
                )?;
                let models = models
                    .query_map([id], |row| row.get(0))?
                    .collect::<rusqlite::Result<_>>()?;
                recipes.push(RecipeStatus {
                    id,
                    digest: retort_files::hex(&digest[..8]),
                    spec: serde_json::from_str(&spec).unwrap_or(Value::Null),
                    outcomes,
                    models,
                    preflights: preflights(db, id)?,
                });
            }
            Ok(recipes)
        })
    }

    /// Hands over the judgements of a recipe that ended well, ordered by query, documents and the
    /// time they came.
    ///
    /// # Errors
    /// An I/O error, or what `consume` returns.
    pub fn judgements<T>(
        &self,
        recipe: i64,
        consume: impl FnOnce(&mut dyn Iterator<Item = Result<Entry>>) -> Result<T>,
    ) -> Result<T> {
        self.sourced(recipe, "AND outcome = 'ok'", |entries| {
            consume(&mut entries.map(|one| Ok(one?.entry)))
        })
    }

    /// As [`Self::judgements`], of all questions that ended, however they did.
    pub(crate) fn ended<T>(
        &self,
        recipe: i64,
        consume: impl FnOnce(&mut dyn Iterator<Item = Result<Sourced>>) -> Result<T>,
    ) -> Result<T> {
        self.sourced(recipe, "", consume)
    }

    fn sourced<T>(
        &self,
        recipe: i64,
        only: &str,
        consume: impl FnOnce(&mut dyn Iterator<Item = Result<Sourced>>) -> Result<T>,
    ) -> Result<T> {
        let sql = format!(
            "SELECT j.query_id, j.document_ids, j.at, j.rowid, j.key, j.sample, j.text, \
             j.outcome, j.answer, j.problem, j.request_id, epoch.model \
             FROM judgement AS j LEFT JOIN epoch ON epoch.id = j.epoch \
             WHERE j.recipe = ?1 {only} \
             UNION ALL \
             SELECT alias.query_id, alias.document_ids, j.at, j.rowid, j.key, j.sample, alias.text, \
             j.outcome, j.answer, j.problem, j.request_id, epoch.model \
             FROM alias JOIN judgement AS j USING (key) LEFT JOIN epoch ON epoch.id = j.epoch \
             WHERE j.recipe = ?1 {only} \
             AND (alias.query_id <> j.query_id OR alias.document_ids <> j.document_ids) \
             ORDER BY 1, 2, 3, 4"
        );
        let broken = |error| Error::ledger(&self.path, error);
        let mut select = self.db.prepare(&sql).map_err(broken)?;
        let rows = select.query_map([recipe], sourced).map_err(broken)?;
        consume(&mut rows.map(|row| row.map_err(broken)))
    }

    /// What the ledger has under a key, if the question was ever asked.
    ///
    /// # Errors
    /// An I/O error.
    pub fn find(&self, key: &Key) -> Result<Option<Found>> {
        find(&self.db, &self.path, key)
    }

    /// What the preflight found that a recipe's last epoch began with; nothing if it began without.
    ///
    /// # Errors
    /// An I/O error.
    pub fn last_preflights(&self, recipe: &[u8; 32]) -> Result<Vec<Preflight>> {
        self.sql(|db| last_preflights(db, recipe))
    }

    /// How much more than its worst case a request of a recipe was ever billed for; 1 if none was.
    pub(crate) fn factor(&self, recipe: &[u8; 32]) -> Result<f64> {
        self.sql(|db| factor(db, recipe))
    }

    /// What was used and spent so far, in all runs.
    ///
    /// # Errors
    /// An I/O error.
    pub fn spent(&self) -> Result<Spent> {
        self.sql(spent)
    }

    pub(super) fn sql<T>(&self, run: impl FnOnce(&Connection) -> rusqlite::Result<T>) -> Result<T> {
        run(&self.db).map_err(|error| Error::ledger(&self.path, error))
    }
}

/// A ledger, if need be without the file beside it that readers and a writer share.
fn opened(path: &Path) -> Result<Connection> {
    let broken = |error| Error::ledger(path, error);
    let db = Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_ONLY).map_err(broken)?;
    match version(&db, path) {
        Err(Error::Ledger { source, .. }) if is_unwritable(&source) && !has_log(path) => {
            open_immutable(path).map_err(broken)
        }
        // What else is wrong with it, whoever reads it is told.
        _ => Ok(db),
    }
}

/// Whether SQLite failed because it could not make the file that readers and a writer share.
fn is_unwritable(error: &rusqlite::Error) -> bool {
    use rusqlite::ErrorCode::{CannotOpen, PermissionDenied, ReadOnly};
    matches!(
        error.sqlite_error_code(),
        Some(CannotOpen | PermissionDenied | ReadOnly)
    )
}

/// Whether there may be more of a ledger in the log beside it. An attempt to read makes an empty one.
fn has_log(path: &Path) -> bool {
    let mut log = path.as_os_str().to_owned();
    log.push("-wal");
    Path::new(&log).metadata().is_ok_and(|log| log.len() > 0)
}

/// A ledger that nobody writes, on a disk that is read-only: nothing is made beside it.
fn open_immutable(path: &Path) -> rusqlite::Result<Connection> {
    let path = path.to_string_lossy();
    let path = path
        .replace('%', "%25")
        .replace('?', "%3f")
        .replace('#', "%23");
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_URI;
    Connection::open_with_flags(format!("file:{path}?immutable=1"), flags)
}

/// What all preflights of a recipe found, each thing once: what holds is carried over.
fn preflights(db: &Connection, recipe: i64) -> rusqlite::Result<Vec<Preflight>> {
    let mut select = db.prepare_cached(
        "SELECT preflight FROM epoch WHERE recipe = ?1 AND preflight IS NOT NULL ORDER BY id",
    )?;
    let mut rows = select.query([recipe])?;
    let mut found: Vec<Preflight> = Vec::new();
    while let Some(row) = rows.next()? {
        let passed: Vec<Preflight> =
            serde_json::from_str(&row.get::<_, String>(0)?).unwrap_or_default();
        for one in passed {
            if !found.contains(&one) {
                found.push(one);
            }
        }
    }
    Ok(found)
}

/// An entry, and whose word it is.
pub(crate) struct Sourced {
    pub(crate) entry: Entry,
    /// The model, as the reply named it.
    pub(crate) model: Option<String>,
    /// The server's name for the request.
    pub(crate) request_id: Option<String>,
}

fn sourced(row: &Row) -> rusqlite::Result<Sourced> {
    fn malformed(
        index: usize,
        error: impl Into<Box<dyn std::error::Error + Send + Sync>>,
    ) -> rusqlite::Error {
        rusqlite::Error::FromSqlConversionFailure(index, Type::Text, error.into())
    }
    let document_ids: String = row.get(1)?;
    let outcome: String = row.get(7)?;
    let ended = match outcome
        .parse()
        .map_err(|problem: String| malformed(7, problem))?
    {
        Outcome::Ok => {
            let answer: String = row.get(8)?;
            Ok(serde_json::from_str(&answer).map_err(|error| malformed(8, error))?)
        }
        outcome => Err((outcome, row.get(9)?)),
    };
    Ok(Sourced {
        entry: Entry {
            key: Key(row.get(4)?),
            query_id: row.get(0)?,
            document_ids: serde_json::from_str(&document_ids)
                .map_err(|error| malformed(1, error))?,
            sample: row.get(5)?,
            text: row.get(6)?,
            ended,
            at: row.get(2)?,
        },
        model: row.get(11)?,
        request_id: row.get(10)?,
    })
}

#[cfg(all(test, unix))]
mod tests {
    use super::*;
    use crate::ledger::Ledger;

    #[test]
    fn a_ledger_is_read_where_nothing_can_be_made_beside_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("100 %? a ledger#1.sqlite");
        Ledger::open(&path).unwrap().close().unwrap();
        let beside = |ending: &str| {
            let mut name = path.as_os_str().to_owned();
            name.push(ending);
            PathBuf::from(name)
        };
        // As on a read-only disk, whoever runs this.
        std::os::unix::fs::symlink("/nowhere/at/all", beside("-shm")).unwrap();
        let reader = Reader::open(&path).unwrap();
        assert_eq!(reader.spent().unwrap(), Spent::default());
        drop(reader);
        // Without its log the ledger would be an old one.
        fs::write(beside("-wal"), "more").unwrap();
        assert!(matches!(Reader::open(&path), Err(Error::Ledger { .. })));
    }
}

//! Looking into a ledger, also while another process writes it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use fs_err as fs;
use rusqlite::types::Type;
use rusqlite::{Connection, OpenFlags};
use serde::Serialize;
use serde_json::Value;

use super::{Entry, Found, Key, Outcome, Spent, check_version, find, last_preflights, spent};
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
    /// Opens a ledger to read.
    ///
    /// # Errors
    /// A file that is missing, no ledger, or of another version.
    pub fn open(path: &Path) -> Result<Self> {
        // SQLite's own message for a missing file does not say which.
        fs::metadata(path)?;
        let db = Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_ONLY)
            .map_err(|error| Error::ledger(path, error))?;
        check_version(&db, path)?;
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
        let sql = "SELECT key, query_id, document_ids, sample, text, answer, at, rowid \
                   FROM judgement WHERE recipe = ?1 AND outcome = 'ok' \
                   UNION ALL \
                   SELECT key, alias.query_id, alias.document_ids, sample, alias.text, answer, at, \
                   judgement.rowid FROM alias JOIN judgement USING (key) \
                   WHERE recipe = ?1 AND outcome = 'ok' \
                   ORDER BY 2, 3, 8";
        let broken = |error| Error::ledger(&self.path, error);
        let mut select = self.db.prepare(sql).map_err(broken)?;
        let rows = select
            .query_map([recipe], |row| {
                let json = |index| {
                    let text: String = row.get(index)?;
                    serde_json::from_str(&text).map_err(|error| {
                        rusqlite::Error::FromSqlConversionFailure(index, Type::Text, error.into())
                    })
                };
                let document_ids: Value = json(2)?;
                let ids = document_ids.as_array().into_iter().flatten();
                Ok(Entry {
                    key: Key(row.get(0)?),
                    query_id: row.get(1)?,
                    document_ids: ids.filter_map(|id| Some(id.as_str()?.to_owned())).collect(),
                    sample: row.get(3)?,
                    text: row.get(4)?,
                    ended: Ok(json(5)?),
                    at: row.get(6)?,
                })
            })
            .map_err(broken)?;
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

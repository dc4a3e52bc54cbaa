//! Batches in the ledger: what is with a teacher's batch interface, from before it is sent until
//! what came back is on record.

use std::collections::{HashMap, HashSet};

use rusqlite::types::Type;
use rusqlite::{Connection, Row, params};
use serde::Serialize;

use super::{Attempt, Key, Ledger, Reader, Record, json_array, now};
use crate::money::Amount;
use crate::{Error, Result};

/// A batch that has not ended.
#[derive(Clone, Debug, Serialize)]
pub struct OpenBatch {
    /// Its number in the ledger.
    pub id: i64,
    /// Its name, which the teacher is given too.
    pub name: String,
    /// The recipe its questions are asked by.
    pub recipe: i64,
    /// Where it was sent: an endpoint, or a folder.
    pub endpoint: String,
    /// Questions in it.
    pub questions: usize,
    /// Tokens that it can't pass.
    pub most_tokens: u64,
    /// What it can't cost more than, in millionths of the currency.
    pub most_micros: u64,
    /// What the worst cases of its questions were multiplied by.
    pub reserved_factor: f64,
    /// When it was put on record, RFC 3339.
    pub began_at: String,
    /// From when on it may have arrived.
    pub left_at: Option<String>,
    /// The teacher's name for it; none where it is not known to have arrived.
    pub remote: Option<String>,
    /// Since when the teacher has not found it, or a file of its replies.
    pub missing_at: Option<String>,
}

/// A question in a batch.
#[derive(Clone, Debug)]
pub(crate) struct Posed {
    pub(crate) key: Key,
    pub(crate) query_id: String,
    pub(crate) document_ids: Vec<String>,
    pub(crate) sample: u32,
    pub(crate) text: String,
    /// The most tokens that it can be, and the most that can be written.
    pub(crate) most_tokens: (u64, u64),
}

impl Ledger {
    /// Puts a batch on record before anything of it is sent: its questions are not asked elsewhere
    /// until it has ended, and `most`, its worst case, counts as spent: those of its questions,
    /// `factor` times. `leaves` says what leaves.
    pub(crate) fn begin_batch(
        &mut self,
        recipe: i64,
        endpoint: &str,
        most: Amount,
        factor: f64,
        questions: &[Posed],
        leaves: Option<Attempt>,
    ) -> Result<OpenBatch> {
        let leaves: Vec<Record> = leaves.into_iter().map(Record::Attempt).collect();
        let id = self.commit_with(&leaves, |transaction| {
            transaction.execute(
                "INSERT INTO batch (recipe, endpoint, most_micros, most_tokens, reserved_factor, \
                 began_at) VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
                params![recipe, endpoint, most.micros, most.tokens, factor, now()],
            )?;
            let id = transaction.last_insert_rowid();
            for posed in questions {
                let (read, written) = posed.most_tokens;
                transaction
                    .prepare_cached(
                        "INSERT INTO batch_question (key, batch, query_id, document_ids, sample, \
                         text, input_tokens, output_tokens) \
                         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)",
                    )?
                    .execute(params![
                        posed.key.0,
                        id,
                        posed.query_id,
                        json_array(&posed.document_ids),
                        posed.sample,
                        posed.text,
                        read,
                        written,
                    ])?;
            }
            Ok(id)
        })?;
        let found = self.open_batches()?.into_iter().find(|one| one.id == id);
        found.ok_or_else(|| Error::ledger(&self.path, rusqlite::Error::QueryReturnedNoRows))
    }

    /// Writes down that a batch is about to leave: it may arrive from now on.
    pub(crate) fn batch_leaves(&mut self, batch: i64) -> Result<()> {
        self.run_sql(|db| {
            let sql = "UPDATE batch SET left_at = ?2 WHERE id = ?1";
            db.execute(sql, params![batch, now()])
        })?;
        Ok(())
    }

    /// Writes down that a batch arrived, and what the teacher calls it.
    pub(crate) fn batch_arrived(&mut self, batch: i64, remote: &str) -> Result<()> {
        self.run_sql(|db| {
            let sql = "UPDATE batch SET remote = ?2 WHERE id = ?1";
            db.execute(sql, params![batch, remote])
        })?;
        Ok(())
    }

    /// Writes down since when a batch is not found, or that it was found again.
    pub(crate) fn batch_missing(&mut self, batch: i64, at: Option<&str>) -> Result<()> {
        self.run_sql(|db| {
            let sql = "UPDATE batch SET missing_at = ?2 WHERE id = ?1";
            db.execute(sql, params![batch, at])
        })?;
        Ok(())
    }

    /// Forgets a batch that never arrived: its questions are free to be asked.
    pub(crate) fn forget_batch(&mut self, batch: i64) -> Result<()> {
        self.run_sql(|db| {
            let transaction = db.transaction()?;
            transaction.execute("DELETE FROM batch_question WHERE batch = ?1", [batch])?;
            transaction.execute("DELETE FROM batch WHERE id = ?1", [batch])?;
            transaction.commit()
        })
    }

    /// Puts on record what came back with a batch, all or nothing. What it had and has no record
    /// now is free to be asked. `strays` are lines that answer nothing in it.
    pub(crate) fn end_batch(
        &mut self,
        batch: i64,
        ended_as: &str,
        records: &[Record],
        strays: &[String],
    ) -> Result<()> {
        self.commit_with(records, |transaction| {
            for line in strays {
                transaction
                    .prepare_cached("INSERT INTO batch_stray VALUES (?1, ?2)")?
                    .execute(params![batch, line])?;
            }
            transaction.execute("DELETE FROM batch_question WHERE batch = ?1", [batch])?;
            transaction.execute(
                "UPDATE batch SET ended_at = ?2, ended_as = ?3 WHERE id = ?1",
                params![batch, now(), ended_as],
            )?;
            Ok(())
        })
    }

    /// The questions in a batch, by the id that its lines bear.
    pub(crate) fn batch_questions(&self, batch: i64) -> Result<HashMap<String, Posed>> {
        self.read_sql(|db| {
            let mut select = db.prepare(
                "SELECT key, query_id, document_ids, sample, text, input_tokens, output_tokens \
                 FROM batch_question WHERE batch = ?1",
            )?;
            let questions = select.query_map([batch], |row| {
                let ids: String = row.get(2)?;
                let posed = Posed {
                    key: Key(row.get(0)?),
                    query_id: row.get(1)?,
                    document_ids: serde_json::from_str(&ids).map_err(|error| {
                        rusqlite::Error::FromSqlConversionFailure(2, Type::Text, error.into())
                    })?,
                    sample: row.get(3)?,
                    text: row.get(4)?,
                    most_tokens: (row.get(5)?, row.get(6)?),
                };
                Ok((posed.key.hex(), posed))
            })?;
            questions.collect()
        })
    }

    /// The batches that have not ended, the oldest first.
    pub(crate) fn open_batches(&self) -> Result<Vec<OpenBatch>> {
        self.read_sql(open_batches)
    }

    /// The questions that are in batches.
    pub(crate) fn in_batches(&self) -> Result<HashSet<Key>> {
        self.read_sql(in_batches)
    }

    /// What the batches that have not ended may come to.
    pub(crate) fn set_aside(&self) -> Result<Amount> {
        self.read_sql(|db| {
            let sql = "SELECT coalesce(sum(most_micros), 0), coalesce(sum(most_tokens), 0) \
                       FROM batch WHERE ended_at IS NULL";
            db.query_row(sql, [], |row: &Row| {
                Ok(Amount {
                    micros: row.get(0)?,
                    tokens: row.get(1)?,
                })
            })
        })
    }

    /// What the teacher calls all batches that were ever sent.
    pub(crate) fn remote_batches(&self) -> Result<HashSet<String>> {
        self.read_sql(|db| {
            let mut select = db.prepare("SELECT remote FROM batch WHERE remote IS NOT NULL")?;
            select.query_map([], |row| row.get(0))?.collect()
        })
    }
}

impl Reader {
    /// The batches that have not ended, the oldest first.
    ///
    /// # Errors
    /// An I/O error.
    pub fn open_batches(&self) -> Result<Vec<OpenBatch>> {
        self.sql(open_batches)
    }

    /// The questions that are in batches.
    pub(crate) fn in_batches(&self) -> Result<HashSet<Key>> {
        self.sql(in_batches)
    }
}

pub(crate) fn open_batches(db: &Connection) -> rusqlite::Result<Vec<OpenBatch>> {
    let mut select = db.prepare(
        "SELECT id, name, recipe, endpoint, most_tokens, most_micros, reserved_factor, began_at, \
         left_at, remote, missing_at, (SELECT count(*) FROM batch_question AS q WHERE q.batch = b.id) \
         FROM batch AS b WHERE ended_at IS NULL ORDER BY id",
    )?;
    let batches = select.query_map([], |row| {
        Ok(OpenBatch {
            id: row.get(0)?,
            name: row.get(1)?,
            recipe: row.get(2)?,
            endpoint: row.get(3)?,
            most_tokens: row.get(4)?,
            most_micros: row.get(5)?,
            reserved_factor: row.get(6)?,
            began_at: row.get(7)?,
            left_at: row.get(8)?,
            remote: row.get(9)?,
            missing_at: row.get(10)?,
            questions: row.get(11)?,
        })
    })?;
    batches.collect()
}

fn in_batches(db: &Connection) -> rusqlite::Result<HashSet<Key>> {
    let mut select = db.prepare("SELECT key FROM batch_question")?;
    select.query_map([], |row| Ok(Key(row.get(0)?)))?.collect()
}

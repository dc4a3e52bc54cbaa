//! The ledger: every judgement that was paid for, once, in one SQLite file.
//!
//! A judgement is on record when its transaction is on disk, and only then does it count as done.
//! Its key is the digest of all that determines it, so that the same question is never bought
//! twice, and adding a document costs that document. A question that got no judgement is on record
//! too, as what it was: refused, filtered, truncated, unparsable, failed; none of them is a label.

mod batches;
mod lock;
mod reader;
mod record;
mod schema;
mod sent;

use std::collections::HashMap;
use std::fs::File;
use std::path::{Path, PathBuf};

use rusqlite::types::Type;
use rusqlite::{Connection, OptionalExtension, params};
use serde_json::{Value, json};

use crate::money::Amount;
use crate::preflight::Preflight;
use crate::{Error, Result};

pub use batches::OpenBatch;
pub(crate) use batches::{Posed, open_batches};
pub use lock::writer_of;
pub(crate) use reader::Sourced;
pub use reader::{Reader, RecipeStatus};
pub use record::{Alias, Attempt, Batch, Entry, Found, Key, Outcome, Record, Spent};
pub(crate) use schema::connect;
pub use sent::SentTo;

/// A ledger, open for one writer.
pub struct Ledger {
    db: Connection,
    path: PathBuf,
    run: i64,
    /// The last epoch of each recipe, and the model it names.
    epochs: HashMap<i64, (i64, String)>,
    /// Held as long as the ledger is open for writing.
    _lock: File,
}

impl Ledger {
    /// Opens a ledger for writing, or makes one, and books what a killed run left in flight.
    ///
    /// # Errors
    /// [`Error::Locked`] while another process has it open for writing; a file that is not a
    /// ledger, or one of a newer version; an I/O error.
    pub fn open(path: &Path) -> Result<Self> {
        let (db, lock) = connect(path)?;
        db.execute(
            "INSERT INTO run (identity, began_at, version) VALUES (randomblob(16), ?1, ?2)",
            params![now(), env!("CARGO_PKG_VERSION")],
        )
        .map_err(|error| Error::ledger(path, error))?;
        Ok(Self {
            run: db.last_insert_rowid(),
            db,
            path: path.to_owned(),
            epochs: HashMap::new(),
            _lock: lock,
        })
    }

    /// The recipe's number; it is written down if it is new.
    ///
    /// # Errors
    /// An I/O error.
    pub fn recipe(&mut self, digest: &[u8; 32], spec: &Value) -> Result<i64> {
        self.run_sql(|db| {
            db.execute(
                "INSERT OR IGNORE INTO recipe (digest, spec) VALUES (?1, ?2)",
                params![digest, spec.to_string()],
            )?;
            db.query_row("SELECT id FROM recipe WHERE digest = ?1", [digest], |row| {
                row.get(0)
            })
        })
    }

    /// The model that a recipe's last reply named.
    ///
    /// # Errors
    /// An I/O error.
    pub fn last_model(&self, recipe: i64) -> Result<Option<String>> {
        let last = self.read_sql(|db| last_epoch(db, recipe))?;
        let model = last.map(|(_, model)| model);
        Ok(model.filter(|model| !model.is_empty()))
    }

    /// What the preflight found that a recipe's last epoch began with; nothing if it began without.
    ///
    /// # Errors
    /// An I/O error.
    pub fn last_preflights(&self, recipe: &[u8; 32]) -> Result<Vec<Preflight>> {
        self.read_sql(|db| last_preflights(db, recipe))
    }

    /// Whether a question of a recipe was ever answered.
    pub(crate) fn has_answer(&self, recipe: i64) -> Result<bool> {
        self.read_sql(|db| {
            let sql =
                "SELECT EXISTS (SELECT 1 FROM judgement WHERE recipe = ?1 AND outcome = 'ok')";
            db.query_row(sql, [recipe], |row| row.get(0))
        })
    }

    /// How much more than its worst case a request of a recipe was ever billed for; 1 if none was.
    ///
    /// # Errors
    /// An I/O error.
    pub fn factor(&self, recipe: &[u8; 32]) -> Result<f64> {
        self.read_sql(|db| factor(db, recipe))
    }

    /// What the ledger has under a key, if the question was ever asked.
    ///
    /// # Errors
    /// An I/O error.
    pub fn find(&self, key: &Key) -> Result<Option<Found>> {
        find(&self.db, &self.path, key)
    }

    /// Puts records on disk, all or none. An `ok` entry stands for ever; another gives way to a
    /// later entry of its key.
    ///
    /// # Errors
    /// An I/O error; nothing of `records` is kept then.
    pub fn commit(&mut self, records: &[Record]) -> Result<()> {
        self.commit_with(records, |_| Ok(()))
    }

    /// [`Self::commit`], with more in the same transaction.
    fn commit_with<T>(
        &mut self,
        records: &[Record],
        more: impl FnOnce(&Connection) -> rusqlite::Result<T>,
    ) -> Result<T> {
        let Self {
            db, run, epochs, ..
        } = self;
        let committed = (|| {
            let transaction = db.transaction()?;
            for record in records {
                match record {
                    Record::Attempt(attempt) => insert_attempt(&transaction, *run, attempt)?,
                    Record::Batch(batch) => {
                        let epoch = epoch_of(&transaction, epochs, batch)?;
                        insert_batch(&transaction, batch, epoch)?;
                    }
                    Record::Preflight {
                        recipe,
                        model,
                        passed,
                    } => {
                        let epoch = begin_epoch(&transaction, *recipe, model, Some(&passed[..]))?;
                        epochs.insert(*recipe, (epoch, model.clone()));
                    }
                    Record::Overbilled { recipe, factor } => {
                        let sql = "UPDATE recipe SET factor = max(factor, ?2) WHERE id = ?1";
                        transaction
                            .prepare_cached(sql)?
                            .execute(params![recipe, factor])?;
                    }
                    Record::AtRisk(amount) => put_at_risk(&transaction, *run, *amount)?,
                }
            }
            let done = more(&transaction)?;
            transaction.commit()?;
            Ok(done)
        })();
        if committed.is_err() {
            // It may name an epoch that was rolled back.
            epochs.clear();
        }
        committed.map_err(|error| Error::ledger(&self.path, error))
    }

    /// Puts on record what else has the texts of judgements. Of the very pair that was judged, the
    /// texts are those that it has now.
    ///
    /// # Errors
    /// An I/O error; none is kept then.
    pub fn add_aliases(&mut self, aliases: &[Alias]) -> Result<()> {
        self.run_sql(|db| {
            let transaction = db.transaction()?;
            for alias in aliases {
                let (query_id, text) = (&alias.query_id, &alias.text);
                let values = params![alias.key.0, query_id, json_array(&alias.document_ids), text];
                let is_judged = transaction
                    .prepare_cached(
                        "UPDATE judgement SET text = ?4 \
                         WHERE key = ?1 AND query_id = ?2 AND document_ids = ?3",
                    )?
                    .execute(values)?;
                if is_judged == 0 {
                    transaction
                        .prepare_cached("INSERT OR REPLACE INTO alias VALUES (?1, ?2, ?3, ?4)")?
                        .execute(values)?;
                }
            }
            transaction.commit()
        })
    }

    /// What was used and spent so far, in all runs.
    ///
    /// # Errors
    /// An I/O error.
    pub fn spent(&self) -> Result<Spent> {
        self.read_sql(spent)
    }

    /// Ends the run: nothing is in flight any more.
    ///
    /// # Errors
    /// An I/O error.
    pub fn close(mut self) -> Result<()> {
        let run = self.run;
        self.run_sql(|db| {
            db.execute(
                "UPDATE run SET ended_at = ?1, at_risk_micros = 0, at_risk_tokens = 0 WHERE id = ?2",
                params![now(), run],
            )
        })?;
        Ok(())
    }

    fn run_sql<T>(
        &mut self,
        run: impl FnOnce(&mut Connection) -> rusqlite::Result<T>,
    ) -> Result<T> {
        run(&mut self.db).map_err(|error| Error::ledger(&self.path, error))
    }

    fn read_sql<T>(&self, read: impl FnOnce(&Connection) -> rusqlite::Result<T>) -> Result<T> {
        read(&self.db).map_err(|error| Error::ledger(&self.path, error))
    }
}

/// The time now, RFC 3339 in UTC.
pub(crate) fn now() -> String {
    as_text(jiff::Timestamp::now())
}

/// A time as the ledger has it: texts of one form are in the order of time.
pub(crate) fn as_text(time: jiff::Timestamp) -> String {
    time.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

fn find(db: &Connection, path: &Path, key: &Key) -> Result<Option<Found>> {
    let found = (|| {
        let sql = "SELECT outcome, query_id, document_ids, text FROM judgement WHERE key = ?1";
        let mut select = db.prepare_cached(sql)?;
        select
            .query_row([key.0], |row| {
                let outcome: String = row.get(0)?;
                Ok(Found {
                    outcome: outcome.parse().map_err(|problem: String| {
                        rusqlite::Error::FromSqlConversionFailure(0, Type::Text, problem.into())
                    })?,
                    query_id: row.get(1)?,
                    document_ids: row.get(2)?,
                    text: row.get(3)?,
                })
            })
            .optional()
    })();
    found.map_err(|error| Error::ledger(path, error))
}

/// Document ids as the tables have them.
fn json_array(ids: &[String]) -> String {
    Value::from(ids).to_string()
}

pub(crate) fn spent(db: &Connection) -> rusqlite::Result<Spent> {
    db.query_row(
        "SELECT count(*), coalesce(sum(input_tokens + output_tokens), 0), \
         coalesce(sum(micros), 0) FROM attempt",
        [],
        |row| {
            Ok(Spent {
                requests: row.get(0)?,
                tokens: row.get(1)?,
                micros: row.get(2)?,
            })
        },
    )
}

fn insert_attempt(db: &Connection, run: i64, attempt: &Attempt) -> rusqlite::Result<()> {
    let usage = &attempt.usage;
    let redacted = &attempt.redacted;
    let redacted = (!redacted.is_empty()).then(|| json!(redacted).to_string());
    let mut insert = db.prepare_cached(
        "INSERT INTO attempt (run, number, at, endpoint, status, problem, latency_ms, sent_bytes, \
         redacted, input_tokens, cached_tokens, output_tokens, micros, estimated) \
         VALUES (?1, 1 + (SELECT coalesce(max(number), 0) FROM attempt WHERE run = ?1), \
         ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13)",
    )?;
    insert.execute(params![
        run,
        attempt.at,
        attempt.endpoint,
        attempt.status,
        attempt.problem,
        attempt.latency_ms,
        attempt.sent_bytes,
        redacted,
        usage.input_tokens,
        usage.cached_tokens,
        usage.output_tokens,
        usage.micros,
        usage.estimated,
    ])?;
    Ok(())
}

fn put_at_risk(db: &Connection, run: i64, amount: Amount) -> rusqlite::Result<()> {
    let sql = "UPDATE run SET at_risk_micros = ?1, at_risk_tokens = ?2 WHERE id = ?3";
    let values = params![amount.micros, amount.tokens, run];
    db.prepare_cached(sql)?.execute(values)?;
    Ok(())
}

fn begin_epoch(
    db: &Connection,
    recipe: i64,
    model: &str,
    passed: Option<&[Preflight]>,
) -> rusqlite::Result<i64> {
    let passed = passed.map(|passed| json!(passed).to_string());
    db.execute(
        "INSERT INTO epoch (recipe, model, preflight, began_at) VALUES (?1, ?2, ?3, ?4)",
        params![recipe, model, passed, now()],
    )?;
    Ok(db.last_insert_rowid())
}

fn last_epoch(db: &Connection, recipe: i64) -> rusqlite::Result<Option<(i64, String)>> {
    db.query_row(
        "SELECT id, model FROM epoch WHERE recipe = ?1 ORDER BY id DESC LIMIT 1",
        [recipe],
        |row| Ok((row.get(0)?, row.get(1)?)),
    )
    .optional()
}

fn factor(db: &Connection, recipe: &[u8; 32]) -> rusqlite::Result<f64> {
    let sql = "SELECT factor FROM recipe WHERE digest = ?1";
    let found = db.query_row(sql, [recipe], |row| row.get(0)).optional()?;
    Ok(found.unwrap_or(1.0))
}

fn last_preflights(db: &Connection, recipe: &[u8; 32]) -> rusqlite::Result<Vec<Preflight>> {
    let last = db
        .query_row(
            "SELECT preflight FROM epoch JOIN recipe ON recipe.id = epoch.recipe \
             WHERE digest = ?1 ORDER BY epoch.id DESC LIMIT 1",
            [recipe],
            |row| row.get::<_, Option<String>>(0),
        )
        .optional()?;
    // What can't be read was not found: the endpoints are tried again.
    let last = last
        .flatten()
        .and_then(|last| serde_json::from_str(&last).ok());
    Ok(last.unwrap_or_default())
}

/// The epoch that a batch's reply belongs to: the last, or a new one where it names another model.
fn epoch_of(
    db: &Connection,
    epochs: &mut HashMap<i64, (i64, String)>,
    batch: &Batch,
) -> rusqlite::Result<Option<i64>> {
    let Some(model) = &batch.model else {
        return Ok(None);
    };
    let last = match epochs.get(&batch.recipe) {
        Some(last) => Some(last.clone()),
        None => last_epoch(db, batch.recipe)?,
    };
    let epoch = match last {
        Some((id, of)) if of == *model => id,
        _ => begin_epoch(db, batch.recipe, model, None)?,
    };
    epochs.insert(batch.recipe, (epoch, model.clone()));
    Ok(Some(epoch))
}

fn insert_batch(db: &Connection, batch: &Batch, epoch: Option<i64>) -> rusqlite::Result<()> {
    let reply = match &batch.reply {
        None => None,
        Some(body) => {
            // Level 3: replies are small and much alike; higher levels gain a few per cent.
            let zstd = zstd::bulk::compress(body.as_bytes(), 3)
                .map_err(|error| rusqlite::Error::ToSqlConversionFailure(error.into()))?;
            db.prepare_cached("INSERT INTO reply (zstd) VALUES (?1)")?
                .execute([zstd])?;
            Some(db.last_insert_rowid())
        }
    };
    let mut insert = db.prepare_cached(
        "INSERT INTO judgement (key, recipe, epoch, query_id, document_ids, sample, text, outcome, \
         answer, problem, reply, request_id, at) \
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13) \
         ON CONFLICT (key) DO UPDATE SET epoch = excluded.epoch, outcome = excluded.outcome, \
         answer = excluded.answer, problem = excluded.problem, reply = excluded.reply, \
         request_id = excluded.request_id, at = excluded.at WHERE judgement.outcome <> 'ok'",
    )?;
    for entry in &batch.entries {
        let (answer, problem) = match &entry.ended {
            Ok(answer) => (Some(answer.to_string()), None),
            Err((_, problem)) => (None, Some(problem)),
        };
        insert.execute(params![
            entry.key.0,
            batch.recipe,
            epoch,
            entry.query_id,
            json_array(&entry.document_ids),
            entry.sample,
            entry.text,
            entry.outcome().name(),
            answer,
            problem,
            reply,
            batch.request_id,
            entry.at,
        ])?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use fs_err as fs;

    use super::schema::{APPLICATION, VERSION};
    use super::*;

    fn entry(document: &str, ended: Result<Value, (Outcome, String)>) -> Entry {
        Entry {
            key: Key::new(&[1; 32], 0, "q", &[document]),
            query_id: "q".into(),
            document_ids: vec![document.into()],
            sample: 0,
            text: "sha256:0".into(),
            ended,
            at: "2026-11-21T00:00:00Z".into(),
        }
    }

    fn batch(recipe: i64, entries: Vec<Entry>) -> Record {
        Record::Batch(Batch {
            recipe,
            model: Some("m".into()),
            entries,
            reply: Some("{}".into()),
            request_id: None,
        })
    }

    fn opened(folder: &tempfile::TempDir) -> (Ledger, i64) {
        let mut ledger = Ledger::open(&folder.path().join("ledger.sqlite")).unwrap();
        let recipe = ledger.recipe(&[1; 32], &json!({"kind": "graded"})).unwrap();
        (ledger, recipe)
    }

    #[test]
    fn an_answer_stands_and_a_failure_gives_way() {
        let folder = tempfile::tempdir().unwrap();
        let (mut ledger, recipe) = opened(&folder);
        let failed = || Err((Outcome::Failed, "lost".to_owned()));
        let outcome = |ledger: &Ledger| {
            let key = entry("d", failed()).key;
            ledger.find(&key).unwrap().map(|found| found.outcome)
        };
        assert_eq!(outcome(&ledger), None);
        ledger
            .commit(&[batch(recipe, vec![entry("d", failed())])])
            .unwrap();
        assert_eq!(outcome(&ledger), Some(Outcome::Failed));
        ledger
            .commit(&[batch(recipe, vec![entry("d", Ok(json!(1)))])])
            .unwrap();
        assert_eq!(outcome(&ledger), Some(Outcome::Ok));
        let later = [entry("d", failed()), entry("d", Ok(json!(2)))];
        ledger.commit(&[batch(recipe, later.to_vec())]).unwrap();
        ledger.close().unwrap();
        let reader = Reader::open(&folder.path().join("ledger.sqlite")).unwrap();
        let answers: Vec<Value> = reader
            .judgements(recipe, |entries| {
                entries.map(|entry| Ok(entry?.ended.unwrap())).collect()
            })
            .unwrap();
        assert_eq!(answers, [json!(1)]);
    }

    #[test]
    fn what_a_killed_run_had_in_flight_is_booked_by_the_next() {
        let folder = tempfile::tempdir().unwrap();
        let (mut ledger, _) = opened(&folder);
        let at_risk = Amount {
            micros: 500,
            tokens: 70,
        };
        ledger.commit(&[Record::AtRisk(at_risk)]).unwrap();
        assert_eq!(ledger.spent().unwrap(), Spent::default());
        drop(ledger); // As a kill does: the run has no end.
        let (ledger, _) = opened(&folder);
        let booked = Spent {
            requests: 1,
            tokens: 70,
            micros: 500,
        };
        assert_eq!(ledger.spent().unwrap(), booked);
        ledger.close().unwrap();
        let (ledger, _) = opened(&folder);
        assert_eq!(ledger.spent().unwrap(), booked, "booked once");
    }

    #[test]
    fn what_is_no_ledger_of_a_known_version_is_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("ledger.sqlite");
        let error_of = |text: &str| {
            let error = Ledger::open(&path).err().unwrap().to_string();
            assert!(error.contains(text), "{error}");
            let error = Reader::open(&path).err().unwrap().to_string();
            assert!(error.contains(text), "{error}");
        };
        let other = Connection::open(&path).unwrap();
        other.execute_batch("CREATE TABLE mine (x)").unwrap();
        error_of("no ledger");
        other
            .pragma_update(None, "application_id", APPLICATION)
            .unwrap();
        other
            .pragma_update(None, "user_version", VERSION + 1)
            .unwrap();
        error_of(&format!("of version {}", VERSION + 1));
        drop(other);
        fs::write(
            &path,
            "text, and long enough to be no header of SQLite's at all",
        )
        .unwrap();
        assert!(Ledger::open(&path).is_err());
        assert!(fs::read_to_string(&path).unwrap().starts_with("text"));
    }
}

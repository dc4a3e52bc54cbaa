//! The ledger: every judgement that was paid for, once, in one SQLite file.
//!
//! A judgement is on record when its transaction is on disk, and only then does it count as done.
//! Its key is the digest of all that determines it, so that the same question is never bought
//! twice, and adding a document costs that document. A question that got no judgement is on record
//! too, as what it was: refused, filtered, truncated, unparsable, failed; none of them is a label.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::fs::{File, TryLockError};
use std::path::{Path, PathBuf};
use std::str::FromStr;

use fs_err as fs;
use rusqlite::types::Type;
use rusqlite::{Connection, OpenFlags, OptionalExtension, params};
use serde::Serialize;
use serde_json::Value;
use sha2::{Digest, Sha256};

use crate::money::Usage;
use crate::prompt::NONCE_DIGITS;
use crate::{Error, Result};

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

/// What identifies a judgement: SHA-256 over its recipe, sample number and texts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Key(pub [u8; 32]);

impl Key {
    /// The key of a question about documents in an order, asked for the `sample`th time.
    pub fn new(recipe: &[u8; 32], sample: u32, query: &str, documents: &[&str]) -> Self {
        let mut hasher = Sha256::new();
        hasher.update(b"retort.judgement.v1");
        hasher.update(recipe);
        hasher.update(sample.to_le_bytes());
        for text in std::iter::once(&query).chain(documents) {
            // The lengths keep ("ab", "c") apart from ("a", "bc").
            hasher.update((text.len() as u64).to_le_bytes());
            hasher.update(text.as_bytes());
        }
        Self(hasher.finalize().into())
    }

    /// The key's first digits, for a prompt to mark the bounds of the texts with.
    pub(crate) fn nonce(&self) -> String {
        retort_files::hex(&self.0[..NONCE_DIGITS / 2])
    }

    /// A number from 0 to 1 that differs from key to key and from turn to turn.
    pub(crate) fn jitter(&self, turn: u32) -> f64 {
        f64::from(self.0[turn as usize % self.0.len()]) / 255.0
    }
}

/// How a question ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    /// With a judgement.
    Ok,
    /// The teacher declined.
    Refused,
    /// A content filter stood in the way.
    Filtered,
    /// The texts are longer than the teacher reads.
    Truncated,
    /// Replies came, but none that could be read.
    Unparsable,
    /// No reply came, however often it was asked.
    Failed,
}

impl Outcome {
    /// All of them, in the order of reports.
    pub const ALL: [Self; 6] = [
        Self::Ok,
        Self::Refused,
        Self::Filtered,
        Self::Truncated,
        Self::Unparsable,
        Self::Failed,
    ];

    /// Whether asking again might end otherwise: the network's fault, not the texts'.
    pub fn is_passing(self) -> bool {
        matches!(self, Self::Failed)
    }

    fn name(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Refused => "refused",
            Self::Filtered => "filtered",
            Self::Truncated => "truncated",
            Self::Unparsable => "unparsable",
            Self::Failed => "failed",
        }
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Outcome {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        Self::ALL
            .into_iter()
            .find(|outcome| outcome.name() == name)
            .ok_or_else(|| format!("unknown outcome {name:?}"))
    }
}

/// One row of the ledger.
#[derive(Clone, Debug, PartialEq)]
pub struct Entry {
    /// What identifies it.
    pub key: Key,
    /// The query.
    pub query_id: String,
    /// The documents, in the order they were shown.
    pub document_ids: Vec<String>,
    /// Which of several questions about the same texts.
    pub sample: u32,
    /// For each document the digest of its text and the query's as the collection has them, a space
    /// between them.
    pub text: String,
    /// How it ended: an answer, or why there is none.
    pub ended: Result<Value, (Outcome, String)>,
    /// When, RFC 3339.
    pub at: String,
}

impl Entry {
    /// How it ended, as a word.
    pub fn outcome(&self) -> Outcome {
        match &self.ended {
            Ok(_) => Outcome::Ok,
            Err((outcome, _)) => *outcome,
        }
    }
}

/// What the ledger has under a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// How the question ended.
    pub outcome: Outcome,
    query_id: String,
    /// A JSON array.
    document_ids: String,
}

impl Found {
    /// Whether it was asked about this pair, and not about another with the same texts.
    pub fn is_of(&self, query_id: &str, document_ids: &[String]) -> bool {
        self.query_id == query_id && self.document_ids == json_array(document_ids)
    }
}

/// Entries that came of one request, and its reply.
#[derive(Clone, Debug)]
pub struct Batch {
    /// The recipe they were asked by.
    pub recipe: i64,
    /// The model, as the reply names it.
    pub model: Option<String>,
    /// The entries.
    pub entries: Vec<Entry>,
    /// The reply's body, if one came.
    pub reply: Option<String>,
    /// The server's name for the request.
    pub request_id: Option<String>,
}

/// One HTTP request.
#[derive(Clone, Debug)]
pub struct Attempt {
    /// When, RFC 3339.
    pub at: String,
    /// Whom it went to: scheme, host and path.
    pub endpoint: String,
    /// The HTTP status, if a reply came.
    pub status: Option<u16>,
    /// What went wrong, if anything did.
    pub problem: Option<String>,
    /// How long it took.
    pub latency_ms: u64,
    /// What it used and cost.
    pub usage: Usage,
}

/// What the ledger's writer is told.
#[derive(Clone, Debug)]
pub enum Record {
    /// A request was sent.
    Attempt(Attempt),
    /// Questions ended.
    Batch(Batch),
}

/// What all requests used and cost, those of killed runs at their worst.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Spent {
    /// Requests sent.
    pub requests: u64,
    /// Tokens in and out.
    pub tokens: u64,
    /// Millionths of the currency.
    pub micros: u64,
}

/// The version of the schema that this program writes.
const VERSION: i64 = 1;
/// "Reto", so that `file` and others can tell.
const APPLICATION: i64 = 0x5265_746f;
/// SQLite before it may corrupt a write-ahead log that is reset under a reader.
const LEAST_SQLITE: i32 = 3_053_000;

impl Ledger {
    /// Opens a ledger for writing, or makes one, and books what a killed run left in flight.
    ///
    /// # Errors
    /// [`Error::Locked`] while another process has it open for writing; a file that is not a
    /// ledger, or one of a newer version; an I/O error.
    pub fn open(path: &Path) -> Result<Self> {
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent)?;
        }
        let lock = lock(path)?;
        let mut db = Connection::open(path).map_err(|error| Error::ledger(path, error))?;
        let prepared = prepare(&mut db, path)?;
        let now = now();
        let run = (|| {
            if prepared {
                book_killed_runs(&db)?;
            }
            db.execute(
                "INSERT INTO run (began_at, version) VALUES (?1, ?2)",
                params![now, env!("CARGO_PKG_VERSION")],
            )?;
            Ok(db.last_insert_rowid())
        })()
        .map_err(|error| Error::ledger(path, error))?;
        Ok(Self {
            db,
            path: path.to_owned(),
            run,
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
        let last =
            last_epoch(&self.db, recipe).map_err(|error| Error::ledger(&self.path, error))?;
        Ok(last.map(|(_, model)| model))
    }

    /// Writes down what a preflight found out about a recipe's teacher.
    ///
    /// # Errors
    /// An I/O error.
    pub fn record_probe(&mut self, recipe: i64, model: &str, probe: &Value) -> Result<()> {
        let epoch = self.run_sql(|db| begin_epoch(db, recipe, model, Some(probe)))?;
        self.epochs.insert(recipe, (epoch, model.to_owned()));
        Ok(())
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
                }
            }
            transaction.commit()
        })();
        if committed.is_err() {
            // It may name an epoch that was rolled back.
            epochs.clear();
        }
        committed.map_err(|error| Error::ledger(&self.path, error))
    }

    /// Puts on record that other pairs have the texts of these keys: query and documents of each.
    ///
    /// # Errors
    /// An I/O error; none is kept then.
    pub fn add_aliases(&mut self, aliases: &[(Key, String, Vec<String>)]) -> Result<()> {
        self.run_sql(|db| {
            let transaction = db.transaction()?;
            for (key, query_id, document_ids) in aliases {
                transaction
                    .prepare_cached("INSERT OR IGNORE INTO alias VALUES (?1, ?2, ?3)")?
                    .execute(params![key.0, query_id, json_array(document_ids)])?;
            }
            transaction.commit()
        })
    }

    /// Puts on record what this run may have in flight at once, before it is sent.
    ///
    /// # Errors
    /// An I/O error.
    pub fn put_at_risk(&mut self, micros: u64, tokens: u64) -> Result<()> {
        let run = self.run;
        self.run_sql(|db| {
            db.execute(
                "UPDATE run SET at_risk_micros = ?1, at_risk_tokens = ?2 WHERE id = ?3",
                params![micros, tokens, run],
            )
        })?;
        Ok(())
    }

    /// What was used and spent so far, in all runs.
    ///
    /// # Errors
    /// An I/O error.
    pub fn spent(&self) -> Result<Spent> {
        spent(&self.db).map_err(|error| Error::ledger(&self.path, error))
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
}

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
                    "SELECT DISTINCT model FROM epoch WHERE recipe = ?1 ORDER BY id",
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
                   SELECT key, alias.query_id, alias.document_ids, sample, text, answer, at, \
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

    /// What was used and spent so far, in all runs.
    ///
    /// # Errors
    /// An I/O error.
    pub fn spent(&self) -> Result<Spent> {
        self.sql(spent)
    }

    fn sql<T>(&self, run: impl FnOnce(&Connection) -> rusqlite::Result<T>) -> Result<T> {
        run(&self.db).map_err(|error| Error::ledger(&self.path, error))
    }
}

/// The time now, RFC 3339 in UTC.
pub(crate) fn now() -> String {
    jiff::Timestamp::now()
        .strftime("%Y-%m-%dT%H:%M:%SZ")
        .to_string()
}

/// One writer at a time: the second learns who is first.
fn lock(path: &Path) -> Result<File> {
    let mut name = path.as_os_str().to_owned();
    name.push(".lock");
    let path_of_lock = PathBuf::from(name);
    let file = fs::OpenOptions::new()
        .create(true)
        .truncate(false)
        .read(true)
        .write(true)
        .open(&path_of_lock)?
        .into_parts()
        .0;
    match file.try_lock() {
        Ok(()) => {
            file.set_len(0)?;
            std::io::Write::write_all(&mut &file, std::process::id().to_string().as_bytes())?;
            Ok(file)
        }
        Err(TryLockError::WouldBlock) => Err(Error::Locked {
            path: path.to_owned(),
            by: fs::read_to_string(&path_of_lock).unwrap_or_default(),
        }),
        Err(TryLockError::Error(error)) => Err(Error::Io(error)),
    }
}

/// Sets a connection up and makes the tables of a new file; whether they were there before.
fn prepare(db: &mut Connection, path: &Path) -> Result<bool> {
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
    if tables > 0 {
        check_version(db, path)?;
    }
    (|| {
        db.pragma_update(None, "journal_mode", "wal")?;
        // A commit that was reported survives a power cut.
        db.pragma_update(None, "synchronous", "full")?;
        db.pragma_update(None, "foreign_keys", true)?;
        // Keys are random: the pages they fall on should be at hand. In KiB, negative.
        db.pragma_update(None, "cache_size", -65_536)?;
        if tables == 0 {
            let transaction = db.transaction()?;
            transaction.execute_batch(include_str!("schema.sql"))?;
            transaction.pragma_update(None, "application_id", APPLICATION)?;
            transaction.pragma_update(None, "user_version", VERSION)?;
            transaction.commit()?;
        }
        Ok(tables > 0)
    })()
    .map_err(broken)
}

fn check_version(db: &Connection, path: &Path) -> Result<()> {
    let pragma = |name: &str| -> Result<i64> {
        db.pragma_query_value(None, name, |row| row.get(0))
            .map_err(|error| Error::ledger(path, error))
    };
    let problem = match (pragma("application_id")?, pragma("user_version")?) {
        (APPLICATION, VERSION) => return Ok(()),
        (APPLICATION, newer) => {
            format!("is a ledger of version {newer}, this program reads version {VERSION}")
        }
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
        "INSERT INTO attempt (run, at, endpoint, problem, latency_ms, input_tokens, cached_tokens, \
         output_tokens, micros, estimated) \
         SELECT id, ?1, '', 'the run was killed: what it had in flight, at its worst', 0, \
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

fn find(db: &Connection, path: &Path, key: &Key) -> Result<Option<Found>> {
    let found = (|| {
        let sql = "SELECT outcome, query_id, document_ids FROM judgement WHERE key = ?1";
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

fn spent(db: &Connection) -> rusqlite::Result<Spent> {
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
    let mut insert = db.prepare_cached(
        "INSERT INTO attempt (run, at, endpoint, status, problem, latency_ms, input_tokens, \
         cached_tokens, output_tokens, micros, estimated) \
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11)",
    )?;
    insert.execute(params![
        run,
        attempt.at,
        attempt.endpoint,
        attempt.status,
        attempt.problem,
        attempt.latency_ms,
        usage.input_tokens,
        usage.cached_tokens,
        usage.output_tokens,
        usage.micros,
        usage.estimated,
    ])?;
    Ok(())
}

fn begin_epoch(
    db: &Connection,
    recipe: i64,
    model: &str,
    probe: Option<&Value>,
) -> rusqlite::Result<i64> {
    db.execute(
        "INSERT INTO epoch (recipe, model, probe, began_at) VALUES (?1, ?2, ?3, ?4)",
        params![recipe, model, probe.map(Value::to_string), now()],
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
    use super::*;
    use serde_json::json;

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
        ledger.put_at_risk(500, 70).unwrap();
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
    fn what_is_no_ledger_of_this_version_is_left_alone() {
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
        error_of("version 2");
        drop(other);
        fs::write(
            &path,
            "text, and long enough to be no header of SQLite's at all",
        )
        .unwrap();
        assert!(Ledger::open(&path).is_err());
        assert!(fs::read_to_string(&path).unwrap().starts_with("text"));
    }

    #[test]
    fn a_key_keeps_its_parts_apart() {
        let key = |query: &str, documents: &[&str]| Key::new(&[1; 32], 0, query, documents);
        assert_ne!(key("ab", &["c"]), key("a", &["bc"]));
        assert_ne!(key("a", &["b", "c"]), key("a", &["c", "b"]));
        assert_ne!(key("a", &["b"]), Key::new(&[2; 32], 0, "a", &["b"]));
        assert_ne!(key("a", &["b"]), Key::new(&[1; 32], 1, "a", &["b"]));
    }
}

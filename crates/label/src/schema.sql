-- The ledger of judgements, version 1. One file a project; any SQLite reads it.

-- What determines a judgement besides the texts: model, prompt, sampling. Its digest is in every key.
CREATE TABLE recipe (
  id     INTEGER PRIMARY KEY,
  digest BLOB NOT NULL UNIQUE,   -- SHA-256 of spec
  spec   TEXT NOT NULL           -- JSON
) STRICT;

-- A teacher for as long as it answered under one model name and build.
CREATE TABLE epoch (
  id       INTEGER PRIMARY KEY,
  recipe   INTEGER NOT NULL REFERENCES recipe (id),
  model    TEXT NOT NULL,        -- as the replies name it
  probe    TEXT,                 -- JSON: what the preflight found
  began_at TEXT NOT NULL
) STRICT;

-- One run of `retort label`. What may be in flight is on record before it is sent, so that a run
-- that was killed is booked at its worst. Its identity is drawn, so that it is the same run in every
-- ledger it is merged into, and two runs of copies of one ledger are two.
CREATE TABLE run (
  id              INTEGER PRIMARY KEY,
  identity        BLOB NOT NULL UNIQUE DEFAULT (randomblob(16)),
  began_at        TEXT NOT NULL,
  ended_at        TEXT,
  version         TEXT NOT NULL,
  at_risk_micros  INTEGER NOT NULL DEFAULT 0,
  at_risk_tokens  INTEGER NOT NULL DEFAULT 0
) STRICT;

-- A reply as it came, zstd; the judgements of one request share it.
CREATE TABLE reply (
  id   INTEGER PRIMARY KEY,
  zstd BLOB NOT NULL
) STRICT;

CREATE TABLE judgement (
  key          BLOB PRIMARY KEY,      -- SHA-256 of recipe, sample and texts
  recipe       INTEGER NOT NULL REFERENCES recipe (id),
  epoch        INTEGER REFERENCES epoch (id),
  query_id     TEXT NOT NULL,
  document_ids TEXT NOT NULL,         -- JSON array: one, two of a comparison, or a window
  sample       INTEGER NOT NULL,      -- 0, 1, … where a teacher is asked several times
  text         TEXT NOT NULL,         -- digest of the texts as the collection has them
  outcome      TEXT NOT NULL CHECK (
    outcome IN ('ok', 'refused', 'filtered', 'truncated', 'unparsable', 'failed')),
  answer       TEXT CHECK ((answer IS NULL) = (outcome <> 'ok')),   -- JSON
  problem      TEXT CHECK ((problem IS NULL) = (outcome = 'ok')),
  reply        INTEGER REFERENCES reply (id),
  request_id   TEXT,
  run          INTEGER,               -- with attempt, the request that ended it; none if imported
  attempt      INTEGER,
  at           TEXT NOT NULL,
  FOREIGN KEY (run, attempt) REFERENCES attempt (run, number)
) STRICT;

-- Other pairs with the very texts of a judgement: they share it.
CREATE TABLE alias (
  key          BLOB NOT NULL,
  query_id     TEXT NOT NULL,
  document_ids TEXT NOT NULL,         -- JSON array
  PRIMARY KEY (key, query_id, document_ids)
) STRICT, WITHOUT ROWID;

-- Every request that was sent, by itself or as a line of a batch, and what it cost.
CREATE TABLE attempt (
  run           INTEGER NOT NULL REFERENCES run (id),
  number        INTEGER NOT NULL,    -- from 1; 0 is all that a killed run may have had in flight
  at            TEXT NOT NULL,
  endpoint      TEXT NOT NULL,
  status        INTEGER,             -- none where no reply came
  problem       TEXT,
  latency_ms    INTEGER NOT NULL,
  input_tokens  INTEGER NOT NULL,
  cached_tokens INTEGER NOT NULL,
  output_tokens INTEGER NOT NULL,
  micros        INTEGER NOT NULL,    -- millionths of the currency
  estimated     INTEGER NOT NULL,    -- 1: the reply did not say, or was lost
  PRIMARY KEY (run, number)
) STRICT, WITHOUT ROWID;

-- A batch for a teacher's batch interface: on record before it is sent, under a name that the
-- teacher is given too, so that after a crash it can be found there and is not sent again.
CREATE TABLE batch (
  id           INTEGER PRIMARY KEY,
  identity     BLOB NOT NULL UNIQUE DEFAULT (randomblob(16)),
  recipe       INTEGER NOT NULL REFERENCES recipe (id),
  endpoint     TEXT NOT NULL,        -- or the folder of its files
  input_sha256 TEXT NOT NULL,
  remote       TEXT,                 -- the teacher's name for it; none: it may not have arrived
  most_micros  INTEGER NOT NULL,     -- the worst case, set aside until it has ended
  most_tokens  INTEGER NOT NULL,
  factor       REAL NOT NULL DEFAULT 1,  -- how much more than its worst case a line was billed for
  began_at     TEXT NOT NULL,
  ended_at     TEXT,
  ended_as     TEXT                  -- completed, expired, …
) STRICT;

-- What is in the batches that have not ended. No question is in two.
CREATE TABLE batch_question (
  key           BLOB PRIMARY KEY,
  batch         INTEGER NOT NULL REFERENCES batch (id),
  query_id      TEXT NOT NULL,
  document_ids  TEXT NOT NULL,       -- JSON array
  sample        INTEGER NOT NULL,
  text          TEXT NOT NULL,
  input_tokens  INTEGER NOT NULL,    -- at most
  output_tokens INTEGER NOT NULL     -- at most
) STRICT, WITHOUT ROWID;
CREATE INDEX batch_question_of ON batch_question (batch);

-- Lines that came back with a batch and answer nothing that was in it.
CREATE TABLE batch_stray (
  batch INTEGER NOT NULL REFERENCES batch (id),
  place INTEGER NOT NULL,
  line  TEXT NOT NULL,
  PRIMARY KEY (batch, place)
) STRICT, WITHOUT ROWID;

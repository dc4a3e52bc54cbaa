-- The ledger of judgements, version 1. One file a project; any SQLite reads it. Further versions are
-- the files beside this one, each what it changes; a ledger goes through all of them.

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
-- that was killed is booked at its worst.
CREATE TABLE run (
  id              INTEGER PRIMARY KEY,
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
  text         TEXT NOT NULL,         -- digests of the query's and each document's text
  outcome      TEXT NOT NULL CHECK (
    outcome IN ('ok', 'refused', 'filtered', 'truncated', 'unparsable', 'failed')),
  answer       TEXT CHECK ((answer IS NULL) = (outcome <> 'ok')),   -- JSON
  problem      TEXT CHECK ((problem IS NULL) = (outcome = 'ok')),
  reply        INTEGER REFERENCES reply (id),
  request_id   TEXT,
  at           TEXT NOT NULL
) STRICT;

-- Other pairs with the very texts of a judgement: they share it.
CREATE TABLE alias (
  key          BLOB NOT NULL,
  query_id     TEXT NOT NULL,
  document_ids TEXT NOT NULL,         -- JSON array
  PRIMARY KEY (key, query_id, document_ids)
) STRICT, WITHOUT ROWID;

-- Every HTTP request that was sent, and what it cost.
CREATE TABLE attempt (
  id            INTEGER PRIMARY KEY,
  run           INTEGER NOT NULL REFERENCES run (id),
  at            TEXT NOT NULL,
  endpoint      TEXT NOT NULL,
  status        INTEGER,             -- none where no reply came
  problem       TEXT,
  latency_ms    INTEGER NOT NULL,
  input_tokens  INTEGER NOT NULL,
  cached_tokens INTEGER NOT NULL,
  output_tokens INTEGER NOT NULL,
  micros        INTEGER NOT NULL,    -- millionths of the currency
  estimated     INTEGER NOT NULL     -- 1: the reply did not say, or was lost
) STRICT;

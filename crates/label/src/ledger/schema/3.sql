-- Version 3: ledgers can be merged.

-- A run's identity is drawn, so that it is the same run in every ledger it is merged into, and two
-- runs of copies of one ledger are two.
ALTER TABLE run ADD COLUMN identity BLOB NOT NULL DEFAULT x'';
UPDATE run SET identity = randomblob(16);
CREATE UNIQUE INDEX run_identity ON run (identity);

-- Requests are numbered within their run: the two name them wherever they are merged into.
CREATE TABLE attempt_3 (
  run           INTEGER NOT NULL REFERENCES run (id),
  number        INTEGER NOT NULL,    -- from 1; 0 is all that a killed run may have had in flight
  at            TEXT NOT NULL,
  endpoint      TEXT NOT NULL,
  status        INTEGER,             -- none where no reply came
  problem       TEXT,
  latency_ms    INTEGER NOT NULL,
  sent_bytes    INTEGER NOT NULL,    -- of the body; 0 where there was no connection
  redacted      TEXT,                -- JSON: what was replaced in its texts, by kind; none: nothing
  input_tokens  INTEGER NOT NULL,
  cached_tokens INTEGER NOT NULL,
  output_tokens INTEGER NOT NULL,
  micros        INTEGER NOT NULL,    -- millionths of the currency
  estimated     INTEGER NOT NULL,    -- 1: the reply did not say, or was lost
  PRIMARY KEY (run, number)
) STRICT, WITHOUT ROWID;
INSERT INTO attempt_3
  SELECT run, row_number() OVER (PARTITION BY run ORDER BY id), at, endpoint, status, problem,
    latency_ms, sent_bytes, redacted, input_tokens, cached_tokens, output_tokens, micros, estimated
  FROM attempt;
DROP TABLE attempt;
ALTER TABLE attempt_3 RENAME TO attempt;

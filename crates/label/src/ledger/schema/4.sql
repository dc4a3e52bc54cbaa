-- Version 4: batches.

-- A batch for a teacher's batch interface: on record before it is sent, under a name that the
-- teacher is given too, so that after a crash it can be found there and is not sent again.
CREATE TABLE batch (
  id          INTEGER PRIMARY KEY,
  name        TEXT NOT NULL UNIQUE DEFAULT (lower(hex(randomblob(16)))),
  recipe      INTEGER NOT NULL REFERENCES recipe (id),
  endpoint    TEXT NOT NULL,         -- or the folder of its files
  most_micros INTEGER NOT NULL,      -- the worst case, set aside until it has ended
  most_tokens INTEGER NOT NULL,
  factor      REAL NOT NULL DEFAULT 1,  -- how much more than its worst case a line was billed for
  began_at    TEXT NOT NULL,
  left_at     TEXT,                  -- from then on it may have arrived
  remote      TEXT,                  -- the teacher's name for it: it has arrived
  ended_at    TEXT,
  ended_as    TEXT                   -- completed, expired, …
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
  line  TEXT NOT NULL
) STRICT;

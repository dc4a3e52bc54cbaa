-- Version 2: preflights, redaction, and what left the machine.

-- JSON array: what the preflight found at each endpoint, if one was made. The model is empty where
-- replies name none.
ALTER TABLE epoch RENAME COLUMN probe TO preflight;
UPDATE epoch SET preflight = NULL;

-- Digests of a pair's own texts: redaction may hide a difference.
ALTER TABLE alias ADD COLUMN text TEXT NOT NULL DEFAULT '';
UPDATE alias SET text = coalesce((SELECT text FROM judgement WHERE key = alias.key), '');

ALTER TABLE attempt ADD COLUMN sent_bytes INTEGER NOT NULL DEFAULT 0;
ALTER TABLE attempt ADD COLUMN redacted TEXT;

-- Takes the ledger attached as `theirs` into `main`. Numbers of rows differ from ledger to ledger:
-- rows are the same by what identifies them, and the tables named _of say which number theirs has
-- here. What is here already stays, but for texts, so that taking in a ledger again changes nothing.
-- `taken` is left behind: what it brought.

DROP TABLE IF EXISTS temp.recipe_of;
DROP TABLE IF EXISTS temp.epoch_of;
DROP TABLE IF EXISTS temp.run_of;
DROP TABLE IF EXISTS temp.taken;
DROP TABLE IF EXISTS temp.reply_of;

INSERT INTO main.recipe (digest, spec, factor)
  SELECT digest, spec, factor FROM theirs.recipe WHERE true ORDER BY id
  ON CONFLICT (digest) DO UPDATE SET factor = max(factor, excluded.factor);
CREATE TEMP TABLE recipe_of AS
  SELECT t.id AS theirs, m.id AS mine FROM theirs.recipe AS t JOIN main.recipe AS m USING (digest);

-- An epoch has no name of its own: its recipe, model and beginning make it.
INSERT INTO main.epoch (recipe, model, preflight, began_at)
  SELECT r.mine, t.model, t.preflight, t.began_at
  FROM theirs.epoch AS t JOIN recipe_of AS r ON r.theirs = t.recipe
  WHERE NOT EXISTS (
    SELECT 1 FROM main.epoch AS m WHERE m.recipe = r.mine AND m.model = t.model
    AND m.began_at = t.began_at AND m.preflight IS t.preflight)
  ORDER BY t.id;
CREATE TEMP TABLE epoch_of AS
  SELECT t.id AS theirs, min(m.id) AS mine
  FROM theirs.epoch AS t JOIN recipe_of AS r ON r.theirs = t.recipe
  JOIN main.epoch AS m ON m.recipe = r.mine AND m.model = t.model
    AND m.began_at = t.began_at AND m.preflight IS t.preflight
  GROUP BY t.id;

INSERT OR IGNORE INTO main.run (identity, began_at, ended_at, version)
  SELECT identity, began_at, ended_at, version FROM theirs.run ORDER BY id;
CREATE TEMP TABLE run_of AS
  SELECT t.id AS theirs, m.id AS mine FROM theirs.run AS t JOIN main.run AS m USING (identity);

-- Where a ledger was copied while a run was at it, the two may differ in what it had in flight when
-- it was killed: the most of it counts.
INSERT INTO main.attempt (run, number, at, endpoint, status, problem, latency_ms, sent_bytes,
    redacted, input_tokens, cached_tokens, output_tokens, micros, estimated)
  SELECT r.mine, number, at, endpoint, status, problem, latency_ms, sent_bytes,
    redacted, input_tokens, cached_tokens, output_tokens, micros, estimated
  FROM theirs.attempt AS t JOIN run_of AS r ON r.theirs = t.run WHERE true
  ON CONFLICT (run, number) DO UPDATE SET
    input_tokens = max(input_tokens, excluded.input_tokens), micros = max(micros, excluded.micros)
  WHERE number = 0;

-- An answer stands; of two failures, the later does.
CREATE TEMP TABLE taken AS
  SELECT t.key, t.reply FROM theirs.judgement AS t LEFT JOIN main.judgement AS m USING (key)
  WHERE m.key IS NULL OR (m.outcome <> 'ok' AND (t.outcome = 'ok' OR t.at > m.at));

CREATE TEMP TABLE reply_of AS
  SELECT reply AS theirs,
    row_number() OVER (ORDER BY reply) + (SELECT coalesce(max(id), 0) FROM main.reply) AS mine
  FROM (SELECT DISTINCT reply FROM taken WHERE reply IS NOT NULL);
INSERT INTO main.reply (id, zstd)
  SELECT r.mine, t.zstd FROM reply_of AS r JOIN theirs.reply AS t ON t.id = r.theirs;

INSERT INTO main.judgement (key, recipe, epoch, query_id, document_ids, sample, text, outcome,
    answer, problem, reply, request_id, at)
  SELECT t.key, r.mine, e.mine, t.query_id, t.document_ids, t.sample, t.text, t.outcome,
    t.answer, t.problem, b.mine, t.request_id, t.at
  FROM taken JOIN theirs.judgement AS t ON t.key = taken.key
  JOIN recipe_of AS r ON r.theirs = t.recipe
  LEFT JOIN epoch_of AS e ON e.theirs = t.epoch
  LEFT JOIN reply_of AS b ON b.theirs = t.reply
  WHERE true ORDER BY t.rowid
  ON CONFLICT (key) DO UPDATE SET epoch = excluded.epoch, outcome = excluded.outcome,
    answer = excluded.answer, problem = excluded.problem, reply = excluded.reply,
    request_id = excluded.request_id, at = excluded.at;

-- Their pairs with texts that are judged here. Where an edit of what redaction hides left a pair's
-- key as it was, its text is theirs: the parts of a job are labelled again, and then merged again.
-- Of a pair that they have both as judged and as an alias, a reader takes the judgement.
UPDATE main.judgement AS m SET text = t.text FROM theirs.alias AS t
  WHERE m.key = t.key AND m.query_id = t.query_id AND m.document_ids = t.document_ids
  AND m.text <> t.text;
UPDATE main.judgement AS m SET text = t.text FROM theirs.judgement AS t
  WHERE m.key = t.key AND m.query_id = t.query_id AND m.document_ids = t.document_ids
  AND m.text <> t.text;
INSERT INTO main.alias (key, query_id, document_ids, text)
  SELECT t.key, t.query_id, t.document_ids, t.text
  FROM (
    SELECT key, query_id, document_ids, text, 0 AS is_judged FROM theirs.alias
    UNION ALL SELECT key, query_id, document_ids, text, 1 FROM theirs.judgement) AS t
  LEFT JOIN main.judgement AS m USING (key)
  WHERE m.query_id IS NOT t.query_id OR m.document_ids IS NOT t.document_ids
  ORDER BY t.is_judged
  ON CONFLICT DO UPDATE SET text = excluded.text WHERE text <> excluded.text;

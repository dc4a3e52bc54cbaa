-- Version 6: what a teacher bills beyond the worst case outlives the run that found it out.

-- How much more than its worst case a request was ever billed for.
ALTER TABLE recipe ADD COLUMN factor REAL NOT NULL DEFAULT 1;
UPDATE recipe SET factor =
  max(factor, (SELECT coalesce(max(factor), 1) FROM batch WHERE batch.recipe = recipe.id));

-- What the worst cases of a batch's questions were multiplied by when they were set aside.
ALTER TABLE batch RENAME COLUMN factor TO reserved_factor;
UPDATE batch SET reserved_factor = (SELECT factor FROM recipe WHERE id = batch.recipe)
  WHERE ended_at IS NULL;

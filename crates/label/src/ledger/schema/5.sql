-- Version 5: batches that are not found.

-- Since when the teacher has not found a batch that is out, or a file of its replies.
ALTER TABLE batch ADD COLUMN missing_at TEXT;

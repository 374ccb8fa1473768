-- Functional overlap on the first prompts of a split.

-- Counts in the hash of a row only where it is not null, so that the hashes kept before stay right.
ALTER TABLE functional ADD COLUMN prompts INTEGER;

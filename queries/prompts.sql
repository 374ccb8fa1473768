-- The prompts a circuit was found and evaluated on.
--
-- Parameters
--   circuit  circuit  Which circuit
--   split  split = null  train, validation, test or shift; all by default
--   n  integer = 20  How many prompts
-- Columns
--   ordinal  Place in the prompt set
--   split  train, validation, test or shift
--   template  Template
--   clean  Clean text
--   corrupted  Corrupted text
--   correct_ids  Token ids of the correct answers
--   incorrect_ids  Token ids of the incorrect answers
SELECT p.ordinal, p.split, p.template, p.clean, p.corrupted, p.correct_ids, p.incorrect_ids
FROM circuits c
JOIN prompts p ON p.prompt_set = c.prompt_set
WHERE c.circuit_id = $circuit AND ($split IS NULL OR p.split = $split)
ORDER BY p.ordinal
LIMIT $n;

-- The keep-or-remove decisions that led to a circuit, in the order taken.
--
-- Parameters
--   circuit  circuit  Which circuit
--   kept  boolean = null  Only those kept, or only those removed; all by default
-- Columns
--   ordinal  Place in the order
--   phase  Part of the search
--   item  Component or edge
--   before  Quantity decided on, before the candidate removal
--   after  The same after it
--   change  after - before
--   kept  Whether the item stayed
SELECT d.ordinal, d.phase, d.item, d.before, d.after, d.change, d.kept
FROM decisions d
JOIN circuits c ON c.run_id = d.run_id
WHERE c.circuit_id = $circuit AND ($kept IS NULL OR d.kept = $kept)
ORDER BY d.ordinal;

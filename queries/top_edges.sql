-- The most important edges of a circuit, by |score|.
--
-- Parameters
--   circuit  circuit  Which circuit
--   n  integer = 20  How many edges
-- Columns
--   src  Writer
--   dst  Reader
--   port  q, k or v at a head
--   score  m(ablated) - m(clean), unit of the metric, mean over prompts
--   contribution  The same seen from the task: positive supports it
--   score_se  Standard error over prompts
SELECT src, dst, port, score, contribution, score_se
FROM edges
WHERE circuit_id = $circuit AND in_circuit
ORDER BY abs(score) DESC NULLS LAST, src, dst, port
LIMIT $n;

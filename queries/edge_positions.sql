-- Where in the prompt a circuit's edges matter: each edge's score by position role.
--
-- Only runs of 'discover --positions' (eap and its kin) have them: discover the circuit anew with
-- it. The parts of an edge add up to its score.
--
-- Parameters
--   circuit  circuit  Which circuit
--   n  integer = 20  How many parts
-- Columns
--   src  Writer
--   dst  Reader
--   port  q, k or v at a head
--   role  Role of the positions; several at one position are joined, as in END+S2
--   score  The part of the score from these positions, unit of the metric, mean over prompts
--   edge_score  m(ablated) - m(clean) of the whole edge, unit of the metric, mean over prompts
SELECT e.src, e.dst, e.port, substr(f.quantity, 7) AS role, f.value AS score, e.score AS edge_score
FROM edges e
JOIN circuits c ON c.circuit_id = e.circuit_id
JOIN edge_effects f
    ON f.run_id = c.run_id AND f.src = e.src AND f.dst = e.dst AND f.port IS NOT DISTINCT FROM e.port
WHERE e.circuit_id = $circuit AND e.in_circuit AND starts_with(f.quantity, 'score@')
ORDER BY abs(f.value) DESC, e.src, e.dst, e.port, f.quantity
LIMIT $n;

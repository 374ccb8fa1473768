-- Edges that one circuit has and another has not.
--
-- Parameters
--   a  circuit  The circuit that has them
--   b  circuit  The circuit that has them not
-- Columns
--   src  Writer
--   dst  Reader
--   port  q, k or v at a head
--   score  Score in the first circuit's run
--   score_other  Score in the second's; null where not measured
SELECT a.src, a.dst, a.port, a.score, b.score AS score_other
FROM (SELECT * FROM edges WHERE circuit_id = $a AND in_circuit) a
LEFT JOIN (SELECT * FROM edges WHERE circuit_id = $b) b
    ON b.src = a.src AND b.dst = a.dst AND b.port IS NOT DISTINCT FROM a.port
WHERE NOT coalesce(b.in_circuit, false)
ORDER BY abs(a.score) DESC NULLS LAST, a.src, a.dst, a.port;

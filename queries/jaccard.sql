-- The overlap of two circuits edge by edge, written in plain SQL over the edges view.
--
-- Alone it says little: circuitdb overlap puts it on a scale.
--
-- Parameters
--   a  circuit  First circuit
--   b  circuit  Second circuit
-- Columns
--   n_a  Edges of the first
--   n_b  Edges of the second
--   shared  Edges in both
--   jaccard  shared / union
WITH a AS (SELECT src, dst, port FROM edges WHERE circuit_id = $a AND in_circuit),
b AS (SELECT src, dst, port FROM edges WHERE circuit_id = $b AND in_circuit),
counts AS (
    SELECT (SELECT count(*) FROM a) AS n_a, (SELECT count(*) FROM b) AS n_b,
        (SELECT count(*) FROM (FROM a INTERSECT FROM b)) AS shared
)
SELECT n_a, n_b, shared, shared / nullif(n_a + n_b - shared, 0) AS jaccard
FROM counts;

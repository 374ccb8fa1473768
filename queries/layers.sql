-- From which layer to which the edges of a circuit run.
--
-- Parameters
--   circuit  circuit  Which circuit
-- Columns
--   src_layer  Layer of the writer; null for input
--   dst_layer  Layer of the reader; null for logits
--   n_edges  Number of edges
--   strength  Sum of |score|, unit of the metric; null where none was measured
WITH named AS (
    SELECT regexp_extract(src, '^[am](\d+)', 1) AS src_layer,
        regexp_extract(dst, '^[am](\d+)', 1) AS dst_layer, score
    FROM edges
    WHERE circuit_id = $circuit AND in_circuit
)
SELECT CAST(nullif(src_layer, '') AS INTEGER) AS src_layer,
    CAST(nullif(dst_layer, '') AS INTEGER) AS dst_layer, count(*) AS n_edges,
    sum(abs(score)) AS strength
FROM named
GROUP BY ALL
ORDER BY src_layer NULLS FIRST, dst_layer NULLS LAST;

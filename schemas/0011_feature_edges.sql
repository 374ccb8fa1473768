-- Graphs of features: a node circuit of theirs shows its edges with the scores its run measured, as an
-- edge circuit does. Of heads and MLPs it goes on to show every edge among its nodes without scores.

CREATE OR REPLACE VIEW edges AS
SELECT c.circuit_id, d.src, d.dst, d.port, s.score, -s.score * r.better AS contribution,
    s.score_abs, s.score_se, m.edge_id IS NOT NULL AS in_circuit
FROM circuit c
JOIN (
    SELECT run_key, space_key,
        CAST(coalesce(CAST(task_params ->> '$.metric.better' AS INTEGER),
            CASE WHEN metric = 'kl' THEN -1 ELSE 1 END) AS FLOAT) AS better
    FROM run
) r ON r.run_key = c.run_key
JOIN space g ON g.space_key = r.space_key
JOIN score s ON s.run_key = c.run_key
JOIN edge_dim d ON d.space_key = r.space_key AND d.edge_id = s.edge_id
LEFT JOIN member m ON m.circuit_key = c.circuit_key AND m.edge_id = s.edge_id
WHERE c.granularity = 'edge' OR g.grows
UNION ALL
SELECT c.circuit_id, d.src, d.dst, d.port, NULL, NULL, NULL, NULL, true
FROM circuit c
JOIN run r ON r.run_key = c.run_key
JOIN member m ON m.circuit_key = c.circuit_key
JOIN edge_dim d ON d.space_key = r.space_key AND d.edge_id = m.edge_id
WHERE NOT m.scored;

COMMENT ON VIEW edges IS 'The edges of each circuit, and those its run measured although they are not in it. A node circuit has every edge among its nodes, input and logits, without scores; one of features those that its run measured, with their scores.';
COMMENT ON COLUMN edges.circuit_id IS 'The circuit';
COMMENT ON COLUMN edges.src IS 'Writer: component name';
COMMENT ON COLUMN edges.dst IS 'Reader: component name, or a key/value head such as a5.kv1';
COMMENT ON COLUMN edges.port IS 'q, k or v at a head; null elsewhere';
COMMENT ON COLUMN edges.score IS 'm(ablated) - m(clean), unit of the metric, mean over prompts; null where not measured. Of features: by ablating the sender as far as this reader carries it';
COMMENT ON COLUMN edges.contribution IS '-score x better, unit of the metric: positive supports the task';
COMMENT ON COLUMN edges.score_abs IS 'Mean over prompts of |score|, unit of the metric';
COMMENT ON COLUMN edges.score_se IS 'Standard error of the score over prompts, unit of the metric';
COMMENT ON COLUMN edges.in_circuit IS 'Whether the edge belongs to the circuit';

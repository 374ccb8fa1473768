-- What circuits are put through beside faithfulness: knockouts of single components.

CREATE TABLE knockout (
    circuit_key INTEGER NOT NULL,
    split TEXT NOT NULL,
    metric TEXT NOT NULL,
    ablation TEXT NOT NULL,
    ordinal INTEGER NOT NULL,
    n_prompts INTEGER NOT NULL,
    m_full DOUBLE NOT NULL,
    m_circuit DOUBLE NOT NULL,
    node TEXT NOT NULL,
    effect_full DOUBLE NOT NULL,
    se_full DOUBLE,
    percent_full DOUBLE,
    effect_circuit DOUBLE,
    se_circuit DOUBLE,
    percent_circuit DOUBLE
);
COMMENT ON TABLE knockout IS 'What removing each head and MLP alone does, from the full model and from a circuit; in forward order within a circuit, split, metric and ablation.';

CREATE VIEW knockouts AS
SELECT c.circuit_id, k.split, k.metric, k.ablation, k.n_prompts, k.m_full, k.m_circuit, k.node,
    d.kind, d.layer, d.idx, k.effect_full, k.se_full, k.percent_full, k.effect_circuit,
    k.se_circuit, k.percent_circuit
FROM knockout k
JOIN circuit c ON c.circuit_key = k.circuit_key
JOIN run r ON r.run_key = c.run_key
JOIN component d ON d.space_key = r.space_key AND d.name = k.node;

COMMENT ON VIEW knockouts IS 'What removing each head and MLP alone does. The effect in the full model and that in the circuit are two figures of two models: compare them, never mix them.';
COMMENT ON COLUMN knockouts.circuit_id IS 'The circuit';
COMMENT ON COLUMN knockouts.split IS 'train, validation, test or shift';
COMMENT ON COLUMN knockouts.metric IS 'Metric of the m_, effect_ and se_ columns';
COMMENT ON COLUMN knockouts.ablation IS 'What removed components carry';
COMMENT ON COLUMN knockouts.n_prompts IS 'Number of prompts';
COMMENT ON COLUMN knockouts.m_full IS 'Metric of the full model, mean over prompts';
COMMENT ON COLUMN knockouts.m_circuit IS 'Metric of the circuit, mean over prompts';
COMMENT ON COLUMN knockouts.node IS 'The component removed, such as a5.h3 or m4';
COMMENT ON COLUMN knockouts.kind IS 'head or mlp';
COMMENT ON COLUMN knockouts.layer IS 'Layer, from 0';
COMMENT ON COLUMN knockouts.idx IS 'Head; null for an MLP';
COMMENT ON COLUMN knockouts.effect_full IS 'm(M without it) - m(M), M the full model: unit of the metric, mean over prompts';
COMMENT ON COLUMN knockouts.se_full IS 'Standard error of effect_full over prompts';
COMMENT ON COLUMN knockouts.percent_full IS '100 x effect_full / m_full; null where m_full is within noise of zero';
COMMENT ON COLUMN knockouts.effect_circuit IS 'm(C without it) - m(C), C the circuit: unit of the metric, mean over prompts; null where the circuit does not have it';
COMMENT ON COLUMN knockouts.se_circuit IS 'Standard error of effect_circuit over prompts';
COMMENT ON COLUMN knockouts.percent_circuit IS '100 x effect_circuit / m_full, on the scale of percent_full; null where m_full is within noise of zero';

-- A metric of a user's own says which way is better in its run; of the others only kl is better
-- when smaller. It is worked out once a run, not once an edge.
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
JOIN score s ON s.run_key = c.run_key
JOIN edge_dim d ON d.space_key = r.space_key AND d.edge_id = s.edge_id
LEFT JOIN member m ON m.circuit_key = c.circuit_key AND m.edge_id = s.edge_id
WHERE c.granularity = 'edge'
UNION ALL
SELECT c.circuit_id, d.src, d.dst, d.port, NULL, NULL, NULL, NULL, true
FROM circuit c
JOIN run r ON r.run_key = c.run_key
JOIN member m ON m.circuit_key = c.circuit_key
JOIN edge_dim d ON d.space_key = r.space_key AND d.edge_id = m.edge_id
WHERE NOT m.scored;

COMMENT ON VIEW edges IS 'The edges of each circuit, and those its run measured although they are not in it. A node circuit has every edge among its nodes, input and logits, without scores.';
COMMENT ON COLUMN edges.circuit_id IS 'The circuit';
COMMENT ON COLUMN edges.src IS 'Writer: component name';
COMMENT ON COLUMN edges.dst IS 'Reader: component name, or a key/value head such as a5.kv1';
COMMENT ON COLUMN edges.port IS 'q, k or v at a head; null elsewhere';
COMMENT ON COLUMN edges.score IS 'm(ablated) - m(clean), unit of the metric, mean over prompts; null where not measured';
COMMENT ON COLUMN edges.contribution IS '-score x better, unit of the metric: positive supports the task';
COMMENT ON COLUMN edges.score_abs IS 'Mean over prompts of |score|, unit of the metric';
COMMENT ON COLUMN edges.score_se IS 'Standard error of the score over prompts, unit of the metric';
COMMENT ON COLUMN edges.in_circuit IS 'Whether the edge belongs to the circuit';

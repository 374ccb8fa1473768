-- What circuits are put through beside faithfulness: knockouts of single components, completeness
-- and minimality. F is faithfulness, C the circuit, M the full model.

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

CREATE TABLE circuit_test (
    circuit_key INTEGER NOT NULL,
    test INTEGER NOT NULL,
    split TEXT NOT NULL,
    metric TEXT NOT NULL,
    ablation TEXT NOT NULL,
    level TEXT NOT NULL,
    samples INTEGER NOT NULL,
    greedy INTEGER NOT NULL,
    draws INTEGER NOT NULL,
    n_prompts INTEGER NOT NULL,
    m_full DOUBLE NOT NULL,
    m_empty DOUBLE NOT NULL,
    m_circuit DOUBLE NOT NULL,
    faithfulness DOUBLE NOT NULL,
    complement_faithfulness DOUBLE NOT NULL
);
COMMENT ON TABLE circuit_test IS 'Tests of circuits, numbered from 0 within a circuit; what they tried is in removal and member_change.';

CREATE TABLE removal (
    circuit_key INTEGER NOT NULL,
    test INTEGER NOT NULL,
    ordinal INTEGER NOT NULL,
    how TEXT NOT NULL,
    nodes TEXT NOT NULL,
    f_circuit DOUBLE NOT NULL,
    f_full DOUBLE NOT NULL
);
COMMENT ON TABLE removal IS 'Sets K of components that tests of completeness removed; nodes is a JSON list of names.';

CREATE TABLE member_change (
    circuit_key INTEGER NOT NULL,
    test INTEGER NOT NULL,
    ordinal INTEGER NOT NULL,
    is_random BOOLEAN NOT NULL,
    item TEXT NOT NULL,
    change DOUBLE NOT NULL,
    p_value DOUBLE,
    q_value DOUBLE
);
COMMENT ON TABLE member_change IS 'What tests of minimality removed: members of the circuit, and after them random components or edges.';

CREATE VIEW circuit_tests AS
SELECT c.circuit_id, t.test, t.split, t.metric, t.ablation, t.level, t.samples, t.greedy, t.draws,
    t.n_prompts, t.m_full, t.m_empty, t.m_circuit, t.faithfulness, t.complement_faithfulness,
    k.incompleteness, m.n_members, m.n_like_random
FROM circuit_test t
JOIN circuit c ON c.circuit_key = t.circuit_key
JOIN (
    SELECT circuit_key, test, max(abs(f_circuit - f_full)) AS incompleteness
    FROM removal GROUP BY ALL
) k ON k.circuit_key = t.circuit_key AND k.test = t.test
LEFT JOIN (
    SELECT circuit_key, test, count(*) AS n_members,
        count(*) FILTER (q_value > 0.05) AS n_like_random
    FROM member_change WHERE NOT is_random GROUP BY ALL
) m ON m.circuit_key = t.circuit_key AND m.test = t.test;

COMMENT ON VIEW circuit_tests IS 'Completeness and minimality of circuits, one row a test. F is faithfulness, C the circuit, M the full model.';
COMMENT ON COLUMN circuit_tests.circuit_id IS 'The circuit';
COMMENT ON COLUMN circuit_tests.test IS 'Number of the test of this circuit, from 0';
COMMENT ON COLUMN circuit_tests.split IS 'train, validation, test or shift';
COMMENT ON COLUMN circuit_tests.metric IS 'Metric of the m_ columns and of F';
COMMENT ON COLUMN circuit_tests.ablation IS 'What removed components and edges carry';
COMMENT ON COLUMN circuit_tests.level IS 'Whether nodes or edges are tested for minimality';
COMMENT ON COLUMN circuit_tests.samples IS 'Random sets K asked for';
COMMENT ON COLUMN circuit_tests.greedy IS 'Most components in the greedy K';
COMMENT ON COLUMN circuit_tests.draws IS 'Random components or edges asked for';
COMMENT ON COLUMN circuit_tests.n_prompts IS 'Number of prompts';
COMMENT ON COLUMN circuit_tests.m_full IS 'Metric of the full model, mean over prompts';
COMMENT ON COLUMN circuit_tests.m_empty IS 'Metric without any edge, mean over prompts';
COMMENT ON COLUMN circuit_tests.m_circuit IS 'Metric of the circuit, mean over prompts';
COMMENT ON COLUMN circuit_tests.faithfulness IS 'F(C) = (m_circuit - m_empty) / (m_full - m_empty)';
COMMENT ON COLUMN circuit_tests.complement_faithfulness IS 'F of all edges that are not in the circuit';
COMMENT ON COLUMN circuit_tests.incompleteness IS 'Largest |F(C without K) - F(M without K)| over the K tried; 0 for a complete circuit';
COMMENT ON COLUMN circuit_tests.n_members IS 'Members tested for minimality';
COMMENT ON COLUMN circuit_tests.n_like_random IS 'Of these, members whose q-value is above 0.05: no better than random ones';

CREATE VIEW completeness AS
SELECT c.circuit_id, k.test, k.ordinal, k.how, CAST(k.nodes AS JSON) AS nodes,
    CAST(json_array_length(k.nodes) AS INTEGER) AS n_nodes, k.f_circuit, k.f_full,
    abs(k.f_circuit - k.f_full) AS gap
FROM removal k
JOIN circuit c ON c.circuit_key = k.circuit_key;

COMMENT ON VIEW completeness IS 'The sets K of components that tests of completeness removed from a circuit C and from the full model M.';
COMMENT ON COLUMN completeness.circuit_id IS 'The circuit';
COMMENT ON COLUMN completeness.test IS 'Number of the test, as in circuit_tests';
COMMENT ON COLUMN completeness.ordinal IS 'Place in the test, from 0: the greedy K as they grew, from the empty one, then the random ones';
COMMENT ON COLUMN completeness.how IS 'greedy or random';
COMMENT ON COLUMN completeness.nodes IS 'The components of K, JSON list';
COMMENT ON COLUMN completeness.n_nodes IS 'How many they are';
COMMENT ON COLUMN completeness.f_circuit IS 'Faithfulness of the circuit without K';
COMMENT ON COLUMN completeness.f_full IS 'Faithfulness of the full model without K';
COMMENT ON COLUMN completeness.gap IS '|f_circuit - f_full|';

CREATE VIEW minimality AS
SELECT c.circuit_id, m.test, m.ordinal, m.is_random, m.item, m.change, m.p_value, m.q_value,
    m.q_value > 0.05 AS like_random
FROM member_change m
JOIN circuit c ON c.circuit_key = m.circuit_key;

COMMENT ON VIEW minimality IS 'What the removal of each member changes of the faithfulness of a circuit C, and the same of random components or edges from the circuit with a random path added.';
COMMENT ON COLUMN minimality.circuit_id IS 'The circuit';
COMMENT ON COLUMN minimality.test IS 'Number of the test, as in circuit_tests';
COMMENT ON COLUMN minimality.ordinal IS 'Place in the test, from 0: members in forward order, then random ones as drawn';
COMMENT ON COLUMN minimality.is_random IS 'Whether it is one of the random ones that make the null';
COMMENT ON COLUMN minimality.item IS 'Component or edge removed';
COMMENT ON COLUMN minimality.change IS 'Faithfulness without it - faithfulness with it';
COMMENT ON COLUMN minimality.p_value IS '(r + 1) / (n + 1), r of n random ones having |change| as large or larger; null for random ones';
COMMENT ON COLUMN minimality.q_value IS 'p_value after Benjamini and Hochberg over the members of the test';
COMMENT ON COLUMN minimality.like_random IS 'Whether q_value is above 0.05: no better than a random one';

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
COMMENT ON COLUMN edges.score IS 'm(ablated) - m(clean), unit of the metric, mean over prompts; of engine gates -better x P(gate more than half open); null where not measured';
COMMENT ON COLUMN edges.contribution IS '-score x better, unit of the metric, of engine gates a probability: positive supports the task';
COMMENT ON COLUMN runs.score_context IS 'Scored in the full model, in a circuit, one after the other (sequential), or by learned gates';
COMMENT ON COLUMN edges.score_abs IS 'Mean over prompts of |score|, unit of the metric';
COMMENT ON COLUMN edges.score_se IS 'Standard error of the score over prompts, unit of the metric';
COMMENT ON COLUMN edges.in_circuit IS 'Whether the edge belongs to the circuit';

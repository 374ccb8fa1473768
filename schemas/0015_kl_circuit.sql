-- How far a circuit of a curve is from the circuit of all that was scored, beside the full model.

ALTER TABLE curve_point ADD COLUMN kl_circuit DOUBLE;

CREATE OR REPLACE VIEW curve_points AS
SELECT v.curve_id, p.ordinal, p.proportion, p.n_items, p.n_nodes, p.n_edges, p.m_circuit,
    p.faithfulness, p.faithfulness_sd, p.ratio, p.accuracy, p.agreement, p.kl,
    p.complement_faithfulness, p.random_low, p.random_high, p.random_mean, p.random_n,
    p.beside_n_edges, p.beside_faithfulness, p.note, p.kl_circuit
FROM curve_point p
JOIN curve v ON v.run_key = p.run_key AND v.ordinal = p.curve;

COMMENT ON VIEW curve_points IS 'The sizes of faithfulness curves, smallest first.';
COMMENT ON COLUMN curve_points.curve_id IS 'The curve';
COMMENT ON COLUMN curve_points.ordinal IS 'Place in the curve, from 0';
COMMENT ON COLUMN curve_points.proportion IS 'Nominal proportion p of curves.n_scored, n_items = int(p n_scored); null for a size outside the ten';
COMMENT ON COLUMN curve_points.n_items IS 'Edges or nodes taken from the top of the ranking';
COMMENT ON COLUMN curve_points.n_nodes IS 'Components of the circuit';
COMMENT ON COLUMN curve_points.n_edges IS 'Edges of the circuit, dead ends removed';
COMMENT ON COLUMN curve_points.m_circuit IS 'Metric of the circuit, mean over prompts';
COMMENT ON COLUMN curve_points.faithfulness IS '(m_circuit - m_empty) / (m_full - m_empty); null where the denominator is within noise of zero';
COMMENT ON COLUMN curve_points.faithfulness_sd IS 'Standard deviation over prompts of (m_circuit - m_empty) / (mean m_full - mean m_empty)';
COMMENT ON COLUMN curve_points.ratio IS 'm_circuit / m_full; null where m_full is within noise of zero';
COMMENT ON COLUMN curve_points.accuracy IS 'Share of prompts on which the circuit puts the correct answer above the incorrect';
COMMENT ON COLUMN curve_points.agreement IS 'Share of prompts on which circuit and full model have the same top-1 token';
COMMENT ON COLUMN curve_points.kl IS 'KL(full model || circuit) at the answer position, nats, mean over prompts';
COMMENT ON COLUMN curve_points.complement_faithfulness IS 'Faithfulness of all edges that are not in the circuit';
COMMENT ON COLUMN curve_points.random_low IS '5th percentile of the faithfulness of matched random circuits; null where there is no other circuit to draw';
COMMENT ON COLUMN curve_points.random_high IS '95th percentile of the same';
COMMENT ON COLUMN curve_points.random_mean IS 'Mean of the same';
COMMENT ON COLUMN curve_points.random_n IS 'Number of matched random circuits';
COMMENT ON COLUMN curve_points.beside_n_edges IS 'Edges of the other task''s circuit';
COMMENT ON COLUMN curve_points.beside_faithfulness IS 'Faithfulness of the other task''s circuit of the same size, on these prompts';
COMMENT ON COLUMN curve_points.note IS 'Remark of the point';
COMMENT ON COLUMN curve_points.kl_circuit IS 'KL(circuit of all scored edges or nodes || circuit) at the answer position, nats, mean over prompts; null in curves measured before it was';

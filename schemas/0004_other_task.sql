-- Another task's circuit of the same size beside each evaluation.

-- Added columns come last and count in the hash of a row only where they are not null, so that
-- the hashes kept before stay right.
ALTER TABLE evaluation ADD COLUMN other_task TEXT;
ALTER TABLE evaluation ADD COLUMN other_run TEXT;
ALTER TABLE evaluation ADD COLUMN other_n_nodes INTEGER;
ALTER TABLE evaluation ADD COLUMN other_n_edges INTEGER;
ALTER TABLE evaluation ADD COLUMN other_faithfulness DOUBLE;
ALTER TABLE evaluation ADD COLUMN other_n_tasks INTEGER;

CREATE OR REPLACE VIEW evaluations AS
SELECT
    c.circuit_id,
    e.ordinal,
    e.is_primary,
    e.split,
    coalesce(e.task, r.task) AS task,
    CASE WHEN e.task IS NULL THEN coalesce(e.corruption, r.task_params ->> 'corruption')
        ELSE e.corruption END AS corruption,
    e.metric,
    e.ablation,
    e.n_prompts,
    e.m_full,
    e.m_empty,
    e.m_circuit,
    e.faithfulness,
    e.ratio,
    e.faithfulness_sd,
    e.accuracy,
    e.accuracy_full,
    e.agreement,
    e.kl,
    e.random_low,
    e.random_high,
    e.random_mean,
    e.random_n,
    e.note,
    e.complement_faithfulness,
    e.other_task,
    e.other_run,
    e.other_n_nodes,
    e.other_n_edges,
    e.other_faithfulness,
    e.other_n_tasks,
    e.added_at
FROM evaluation e
JOIN circuit c ON c.circuit_key = e.circuit_key
JOIN run r ON r.run_key = c.run_key;

COMMENT ON VIEW evaluations IS 'What circuits do on prompts, beside the full model and the empty circuit.';
COMMENT ON COLUMN evaluations.circuit_id IS 'The circuit';
COMMENT ON COLUMN evaluations.ordinal IS 'Number of the evaluation of this circuit, from 0';
COMMENT ON COLUMN evaluations.is_primary IS 'Whether it stands in the circuits view';
COMMENT ON COLUMN evaluations.split IS 'train, validation, test or shift';
COMMENT ON COLUMN evaluations.task IS 'Task evaluated on';
COMMENT ON COLUMN evaluations.corruption IS 'How the corrupted prompts were made; null for the default of another task than the run''s';
COMMENT ON COLUMN evaluations.metric IS 'Metric of the m_ columns';
COMMENT ON COLUMN evaluations.ablation IS 'What ablated edges carry';
COMMENT ON COLUMN evaluations.n_prompts IS 'Number of prompts';
COMMENT ON COLUMN evaluations.m_full IS 'Metric of the full model, mean over prompts';
COMMENT ON COLUMN evaluations.m_empty IS 'Metric without any edge, mean over prompts';
COMMENT ON COLUMN evaluations.m_circuit IS 'Metric of the circuit, mean over prompts';
COMMENT ON COLUMN evaluations.faithfulness IS '(m_circuit - m_empty) / (m_full - m_empty); null where the denominator is within noise of zero';
COMMENT ON COLUMN evaluations.ratio IS 'm_circuit / m_full; null where m_full is within noise of zero';
COMMENT ON COLUMN evaluations.faithfulness_sd IS 'Standard deviation over prompts of (m_circuit - m_empty) / (mean m_full - mean m_empty)';
COMMENT ON COLUMN evaluations.accuracy IS 'Share of prompts on which the circuit puts the correct answer above the incorrect';
COMMENT ON COLUMN evaluations.accuracy_full IS 'The same of the full model';
COMMENT ON COLUMN evaluations.agreement IS 'Share of prompts on which circuit and full model have the same top-1 token';
COMMENT ON COLUMN evaluations.kl IS 'KL(full model || circuit) at the answer position, nats, mean over prompts';
COMMENT ON COLUMN evaluations.random_low IS '5th percentile of the faithfulness of matched random circuits';
COMMENT ON COLUMN evaluations.random_high IS '95th percentile of the same';
COMMENT ON COLUMN evaluations.random_mean IS 'Mean of the same';
COMMENT ON COLUMN evaluations.random_n IS 'Number of matched random circuits';
COMMENT ON COLUMN evaluations.note IS 'Remark of the evaluation, such as a denominator within noise of zero';
COMMENT ON COLUMN evaluations.complement_faithfulness IS 'Faithfulness of the complement: of all edges that are not in the circuit';
COMMENT ON COLUMN evaluations.other_task IS 'Another task, of up to four the one whose circuit of the same size does best on these prompts; null where none was measured';
COMMENT ON COLUMN evaluations.other_run IS 'The run that found that circuit';
COMMENT ON COLUMN evaluations.other_n_nodes IS 'Components of that circuit';
COMMENT ON COLUMN evaluations.other_n_edges IS 'Edges of that circuit';
COMMENT ON COLUMN evaluations.other_faithfulness IS 'Faithfulness of that circuit on these prompts';
COMMENT ON COLUMN evaluations.other_n_tasks IS 'Number of other tasks whose circuit was measured';
COMMENT ON COLUMN evaluations.added_at IS 'When it came into this database, UTC';

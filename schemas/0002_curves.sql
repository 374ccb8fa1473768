-- Faithfulness curves of runs over the size of the circuit, figures by template, and the
-- faithfulness of the complement.

-- Added columns come last and count in the hash of a row only where they are not null, so that
-- the hashes kept before stay right.
ALTER TABLE evaluation ADD COLUMN complement_faithfulness DOUBLE;

CREATE TABLE template_evaluation (
    circuit_key INTEGER NOT NULL,
    evaluation INTEGER NOT NULL,
    template TEXT NOT NULL,
    n_prompts INTEGER NOT NULL,
    m_full DOUBLE NOT NULL,
    m_empty DOUBLE NOT NULL,
    m_circuit DOUBLE NOT NULL,
    faithfulness DOUBLE,
    accuracy DOUBLE
);
COMMENT ON TABLE template_evaluation IS 'Evaluations of circuits on the prompts of each template; evaluation is the ordinal of the whole one.';

CREATE TABLE curve (
    run_key INTEGER NOT NULL,
    ordinal INTEGER NOT NULL,
    curve_id TEXT NOT NULL,
    granularity TEXT NOT NULL,
    ranking TEXT NOT NULL,
    n_scored INTEGER NOT NULL,
    sizes INTEGER[] NOT NULL,
    split TEXT NOT NULL,
    metric TEXT NOT NULL,
    ablation TEXT NOT NULL,
    n_prompts INTEGER NOT NULL,
    m_full DOUBLE NOT NULL,
    m_empty DOUBLE NOT NULL,
    accuracy_full DOUBLE,
    cpr DOUBLE,
    cmd DOUBLE,
    band INTEGER NOT NULL,
    beside_run TEXT,
    beside TEXT,
    note TEXT,
    added_at TIMESTAMP NOT NULL
);
COMMENT ON TABLE curve IS 'Faithfulness curves: the scores of a run ranked one way, nested circuits of growing size. ordinal counts the curves of a run from 0.';

CREATE TABLE curve_point (
    run_key INTEGER NOT NULL,
    curve INTEGER NOT NULL,
    ordinal INTEGER NOT NULL,
    proportion DOUBLE,
    n_items INTEGER NOT NULL,
    n_nodes INTEGER NOT NULL,
    n_edges INTEGER NOT NULL,
    m_circuit DOUBLE NOT NULL,
    faithfulness DOUBLE,
    faithfulness_sd DOUBLE,
    ratio DOUBLE,
    accuracy DOUBLE,
    agreement DOUBLE,
    kl DOUBLE,
    complement_faithfulness DOUBLE,
    random_low DOUBLE,
    random_high DOUBLE,
    random_mean DOUBLE,
    random_n INTEGER,
    beside_n_edges INTEGER,
    beside_faithfulness DOUBLE,
    note TEXT
);
COMMENT ON TABLE curve_point IS 'The sizes of a curve, smallest first; curve is the ordinal of the curve in its run.';

CREATE TABLE curve_template (
    run_key INTEGER NOT NULL,
    curve INTEGER NOT NULL,
    point INTEGER NOT NULL,
    template TEXT NOT NULL,
    n_prompts INTEGER NOT NULL,
    m_full DOUBLE NOT NULL,
    m_empty DOUBLE NOT NULL,
    m_circuit DOUBLE NOT NULL,
    faithfulness DOUBLE,
    accuracy DOUBLE
);
COMMENT ON TABLE curve_template IS 'The points of curves on the prompts of each template; point is the ordinal of the point in its curve.';

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
COMMENT ON COLUMN evaluations.added_at IS 'When it came into this database, UTC';

CREATE VIEW template_evaluations AS
SELECT c.circuit_id, t.evaluation, t.template, t.n_prompts, t.m_full, t.m_empty, t.m_circuit,
    t.faithfulness, t.accuracy
FROM template_evaluation t
JOIN circuit c ON c.circuit_key = t.circuit_key;

COMMENT ON VIEW template_evaluations IS 'What circuits do on the prompts of each template.';
COMMENT ON COLUMN template_evaluations.circuit_id IS 'The circuit';
COMMENT ON COLUMN template_evaluations.evaluation IS 'The whole evaluation: evaluations.ordinal';
COMMENT ON COLUMN template_evaluations.template IS 'Template of the prompts';
COMMENT ON COLUMN template_evaluations.n_prompts IS 'Number of its prompts';
COMMENT ON COLUMN template_evaluations.m_full IS 'Metric of the full model, mean over its prompts';
COMMENT ON COLUMN template_evaluations.m_empty IS 'Metric without any edge, mean over its prompts';
COMMENT ON COLUMN template_evaluations.m_circuit IS 'Metric of the circuit, mean over its prompts';
COMMENT ON COLUMN template_evaluations.faithfulness IS '(m_circuit - m_empty) / (m_full - m_empty) over its prompts; null where the denominator is within noise of zero';
COMMENT ON COLUMN template_evaluations.accuracy IS 'Share of its prompts on which the circuit puts the correct answer above the incorrect';

CREATE VIEW curves AS
SELECT v.curve_id, r.run_id, r.task, r.model, r.checkpoint, r.seed, r.engine, v.granularity,
    v.ranking, v.n_scored, v.split, v.metric, v.ablation, v.n_prompts, v.m_full, v.m_empty,
    v.accuracy_full, v.cpr, v.cmd, v.band, v.beside_run, v.beside, v.note, v.added_at
FROM curve v
JOIN run r ON r.run_key = v.run_key;

COMMENT ON VIEW curves IS 'Faithfulness over circuit size: one row a run and ranking. docs/evaluation.md defines the figures.';
COMMENT ON COLUMN curves.curve_id IS 'Public id: SHA-256 of the run and of what was asked';
COMMENT ON COLUMN curves.run_id IS 'The run whose scores are ranked';
COMMENT ON COLUMN curves.task IS 'Task name';
COMMENT ON COLUMN curves.model IS 'Model name';
COMMENT ON COLUMN curves.checkpoint IS 'Training step of the weights, where there are several';
COMMENT ON COLUMN curves.seed IS 'Training seed of the model, where there are several';
COMMENT ON COLUMN curves.engine IS 'Engine that scored';
COMMENT ON COLUMN curves.granularity IS 'node or edge: what is ranked';
COMMENT ON COLUMN curves.ranking IS 'abs_mean (absolute: |mean score|) or contribution (signed: -score x better)';
COMMENT ON COLUMN curves.n_scored IS 'Number of scored edges or nodes, of which proportions are taken';
COMMENT ON COLUMN curves.split IS 'Split measured on';
COMMENT ON COLUMN curves.metric IS 'Metric of the m_ columns';
COMMENT ON COLUMN curves.ablation IS 'What ablated edges carry';
COMMENT ON COLUMN curves.n_prompts IS 'Number of prompts';
COMMENT ON COLUMN curves.m_full IS 'Metric of the full model, mean over prompts';
COMMENT ON COLUMN curves.m_empty IS 'Metric without any edge, mean over prompts';
COMMENT ON COLUMN curves.accuracy_full IS 'Share of prompts on which the full model puts the correct answer above the incorrect';
COMMENT ON COLUMN curves.cpr IS 'Circuit performance ratio: area under faithfulness over the ten nominal proportions, .001 to 1; null where faithfulness is undefined';
COMMENT ON COLUMN curves.cmd IS 'Circuit-model distance: area of |1 - faithfulness| over the same; smaller is better';
COMMENT ON COLUMN curves.band IS 'Matched random circuits asked for at each size';
COMMENT ON COLUMN curves.beside_run IS 'Another run, as a rule of another task, whose circuits of the same sizes were measured on the same prompts';
COMMENT ON COLUMN curves.beside IS 'What that run is called: its task, and what else tells it apart';
COMMENT ON COLUMN curves.note IS 'Remark, such as why the areas are null';
COMMENT ON COLUMN curves.added_at IS 'When it came into this database, UTC';

CREATE VIEW curve_points AS
SELECT v.curve_id, p.ordinal, p.proportion, p.n_items, p.n_nodes, p.n_edges, p.m_circuit,
    p.faithfulness, p.faithfulness_sd, p.ratio, p.accuracy, p.agreement, p.kl,
    p.complement_faithfulness, p.random_low, p.random_high, p.random_mean, p.random_n,
    p.beside_n_edges, p.beside_faithfulness, p.note
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

CREATE VIEW curve_templates AS
SELECT v.curve_id, t.point, t.template, t.n_prompts, t.m_full, t.m_empty, t.m_circuit,
    t.faithfulness, t.accuracy
FROM curve_template t
JOIN curve v ON v.run_key = t.run_key AND v.ordinal = t.curve;

COMMENT ON VIEW curve_templates IS 'The points of faithfulness curves on the prompts of each template.';
COMMENT ON COLUMN curve_templates.curve_id IS 'The curve';
COMMENT ON COLUMN curve_templates.point IS 'The point: curve_points.ordinal';
COMMENT ON COLUMN curve_templates.template IS 'Template of the prompts';
COMMENT ON COLUMN curve_templates.n_prompts IS 'Number of its prompts';
COMMENT ON COLUMN curve_templates.m_full IS 'Metric of the full model, mean over its prompts';
COMMENT ON COLUMN curve_templates.m_empty IS 'Metric without any edge, mean over its prompts';
COMMENT ON COLUMN curve_templates.m_circuit IS 'Metric of the circuit, mean over its prompts';
COMMENT ON COLUMN curve_templates.faithfulness IS '(m_circuit - m_empty) / (m_full - m_empty) over its prompts; null where the denominator is within noise of zero';
COMMENT ON COLUMN curve_templates.accuracy IS 'Share of its prompts on which the circuit puts the correct answer above the incorrect';

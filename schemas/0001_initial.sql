-- The first schema: graph spaces, runs with their scores, circuits with their members, and the
-- views people query. Keys ending in _key count up inside one database and mean nothing outside
-- it; 64-digit hexadecimal ids are the same everywhere. Times are UTC. No secondary indexes:
-- rows arrive in key order, so DuckDB's zone maps find a run or a circuit without one.

CREATE TABLE migration (
    number INTEGER NOT NULL,
    name TEXT NOT NULL,
    sha256 TEXT NOT NULL,
    circuitdb TEXT NOT NULL,
    applied_at TIMESTAMP NOT NULL
);
COMMENT ON TABLE migration IS 'The schema files that made this database, in order.';

CREATE TABLE store (
    store_id TEXT NOT NULL,
    created_at TIMESTAMP NOT NULL,
    commits BIGINT NOT NULL
);
COMMENT ON TABLE store IS 'The database itself: one row. commits counts the transactions that wrote, so that a lost one is noticed.';

CREATE TABLE content (
    table_name TEXT NOT NULL,
    owner_key INTEGER NOT NULL,
    n_rows BIGINT NOT NULL,
    sha256 TEXT NOT NULL
);
COMMENT ON TABLE content IS 'For every table and owning run, circuit, space or prompt set: number of rows and SHA-256 of their content. verify compares them.';

CREATE TABLE space (
    space_key INTEGER NOT NULL,
    space_id TEXT NOT NULL,
    spec JSON NOT NULL,
    grows BOOLEAN NOT NULL
);
COMMENT ON TABLE space IS 'Graph spaces: which components and edges an architecture has. grows: components and edges are added as they are seen (feature dictionaries), not enumerated.';

CREATE TABLE component (
    space_key INTEGER NOT NULL,
    component_id INTEGER NOT NULL,
    name TEXT NOT NULL,
    kind TEXT NOT NULL,
    layer INTEGER,
    idx INTEGER,
    site TEXT,
    position TEXT,
    dictionary TEXT
);
COMMENT ON TABLE component IS 'The components of a space: writers in forward order, then logits.';

CREATE TABLE receiver (
    space_key INTEGER NOT NULL,
    dst TEXT NOT NULL,
    component_id INTEGER NOT NULL
);
COMMENT ON TABLE receiver IS 'Which components stand behind each edge target of a space: itself, or the query heads that share a key/value head.';

CREATE TABLE edge_dim (
    space_key INTEGER NOT NULL,
    edge_id INTEGER NOT NULL,
    src TEXT NOT NULL,
    dst TEXT NOT NULL,
    port TEXT
);
COMMENT ON TABLE edge_dim IS 'The edges of a space by number and by name.';

CREATE TABLE dictionary (
    dictionary_key INTEGER NOT NULL,
    dictionary_id TEXT NOT NULL,
    name TEXT NOT NULL,
    model TEXT NOT NULL,
    weights TEXT NOT NULL,
    hook_in TEXT NOT NULL,
    hook_out TEXT NOT NULL,
    architecture TEXT NOT NULL,
    d_in INTEGER NOT NULL,
    d_dict INTEGER NOT NULL,
    k INTEGER,
    flags JSON,
    corpus TEXT,
    health JSON
);
COMMENT ON TABLE dictionary IS 'Feature dictionaries (SAEs, transcoders, identity): dictionary_id is the hash of the weights; component.dictionary holds the name.';

CREATE TABLE prompt_set (
    prompt_set_key INTEGER NOT NULL,
    prompt_set TEXT NOT NULL,
    task TEXT NOT NULL,
    params JSON NOT NULL,
    tokenizer TEXT NOT NULL,
    bos BOOLEAN NOT NULL,
    dropped JSON NOT NULL
);
COMMENT ON TABLE prompt_set IS 'Prompt sets by content hash; dropped: reason to words or templates left out.';

CREATE TABLE prompt (
    prompt_set_key INTEGER NOT NULL,
    ordinal INTEGER NOT NULL,
    split TEXT NOT NULL,
    template TEXT NOT NULL,
    clean TEXT NOT NULL,
    corrupted TEXT NOT NULL,
    clean_ids INTEGER[] NOT NULL,
    corrupted_ids INTEGER[] NOT NULL,
    correct_ids INTEGER[] NOT NULL,
    incorrect_ids INTEGER[] NOT NULL,
    roles JSON NOT NULL
);
COMMENT ON TABLE prompt IS 'The prompts of a prompt set, in order; roles: role to token position.';

CREATE TABLE provenance (
    provenance_key INTEGER NOT NULL,
    created_at TIMESTAMP NOT NULL,
    circuitdb TEXT NOT NULL,
    versions JSON NOT NULL,
    device TEXT,
    threads INTEGER,
    wall_seconds DOUBLE,
    command TEXT
);
COMMENT ON TABLE provenance IS 'How runs and circuits came to be; no part of any id.';

CREATE TABLE run (
    run_key INTEGER NOT NULL,
    run_id TEXT NOT NULL,
    space_key INTEGER NOT NULL,
    provenance_key INTEGER NOT NULL,
    task TEXT NOT NULL,
    task_params JSON NOT NULL,
    prompt_set TEXT NOT NULL,
    model TEXT NOT NULL,
    checkpoint BIGINT,
    seed BIGINT,
    weights TEXT NOT NULL,
    engine TEXT NOT NULL,
    engine_version INTEGER NOT NULL,
    settings JSON NOT NULL,
    metric TEXT NOT NULL,
    ablation TEXT NOT NULL,
    ablation_source TEXT,
    data_seed BIGINT NOT NULL,
    dtype TEXT NOT NULL,
    score_context TEXT NOT NULL,
    inert JSON
);
COMMENT ON TABLE run IS 'Runs: what was done, completely. A run owns the scores.';

CREATE TABLE score (
    run_key INTEGER NOT NULL,
    edge_id INTEGER NOT NULL,
    score FLOAT,
    score_abs FLOAT,
    score_se FLOAT
);
COMMENT ON TABLE score IS 'Edge scores of a run, measured edges only, in edge order.';

CREATE TABLE node_score (
    run_key INTEGER NOT NULL,
    component_id INTEGER NOT NULL,
    score FLOAT,
    score_abs FLOAT,
    score_se FLOAT
);
COMMENT ON TABLE node_score IS 'Component scores of a run, measured components only.';

CREATE TABLE edge_effect (
    run_key INTEGER NOT NULL,
    quantity TEXT NOT NULL,
    edge_id INTEGER NOT NULL,
    value FLOAT NOT NULL
);
COMMENT ON TABLE edge_effect IS 'Further quantities a run measured per edge.';

CREATE TABLE decision (
    run_key INTEGER NOT NULL,
    ordinal INTEGER NOT NULL,
    item TEXT NOT NULL,
    phase TEXT NOT NULL,
    before DOUBLE,
    after DOUBLE,
    kept BOOLEAN NOT NULL
);
COMMENT ON TABLE decision IS 'Keep-or-remove decisions of a run, in the order taken.';

CREATE TABLE circuit (
    circuit_key INTEGER NOT NULL,
    circuit_id TEXT NOT NULL,
    run_key INTEGER NOT NULL,
    provenance_key INTEGER NOT NULL,
    granularity TEXT NOT NULL,
    rule TEXT NOT NULL,
    value DOUBLE,
    unit TEXT,
    ranking TEXT NOT NULL,
    reached BOOLEAN,
    members TEXT,
    n_nodes INTEGER NOT NULL,
    n_edges INTEGER NOT NULL,
    added_at TIMESTAMP NOT NULL
);
COMMENT ON TABLE circuit IS 'Circuits: a run plus a selection rule (rule, value, unit, ranking, members). This row is written last.';

CREATE TABLE member (
    circuit_key INTEGER NOT NULL,
    edge_id INTEGER NOT NULL,
    scored BOOLEAN NOT NULL
);
COMMENT ON TABLE member IS 'The edges of circuits, in edge order; of a node circuit every edge among its nodes, input and logits, never scored. scored: the score table has this edge.';

CREATE TABLE node_member (
    circuit_key INTEGER NOT NULL,
    component_id INTEGER NOT NULL,
    scored BOOLEAN NOT NULL
);
COMMENT ON TABLE node_member IS 'The components of node circuits, and those that edge circuits touch. scored: the node_score table has this component.';

CREATE TABLE evaluation (
    circuit_key INTEGER NOT NULL,
    ordinal INTEGER NOT NULL,
    is_primary BOOLEAN NOT NULL,
    split TEXT NOT NULL,
    task TEXT,
    corruption TEXT,
    metric TEXT NOT NULL,
    ablation TEXT NOT NULL,
    n_prompts INTEGER NOT NULL,
    m_full DOUBLE NOT NULL,
    m_empty DOUBLE NOT NULL,
    m_circuit DOUBLE NOT NULL,
    faithfulness DOUBLE,
    ratio DOUBLE,
    faithfulness_sd DOUBLE,
    accuracy DOUBLE,
    accuracy_full DOUBLE,
    agreement DOUBLE,
    kl DOUBLE,
    random_low DOUBLE,
    random_high DOUBLE,
    random_mean DOUBLE,
    random_n INTEGER,
    note TEXT,
    added_at TIMESTAMP NOT NULL
);
COMMENT ON TABLE evaluation IS 'What circuits do on prompts. One row per circuit is primary and stands in the circuits view; task and corruption are null for the run''s own.';

CREATE TABLE alias (
    circuit_key INTEGER NOT NULL,
    alias TEXT NOT NULL
);
COMMENT ON TABLE alias IS 'Names people gave to circuits, at most one each.';

CREATE TABLE note (
    circuit_key INTEGER NOT NULL,
    note TEXT NOT NULL
);
COMMENT ON TABLE note IS 'Notes people wrote about circuits, at most one each.';

CREATE TABLE checkpoint_metric (
    model TEXT NOT NULL,
    checkpoint BIGINT,
    seed BIGINT,
    weights TEXT NOT NULL,
    task TEXT NOT NULL,
    prompt_set TEXT NOT NULL,
    split TEXT NOT NULL,
    metric TEXT NOT NULL,
    value DOUBLE,
    sd DOUBLE,
    n_prompts INTEGER NOT NULL,
    added_at TIMESTAMP NOT NULL
);
COMMENT ON TABLE checkpoint_metric IS 'What full models do on tasks, checkpoint by checkpoint.';

CREATE VIEW runs AS
SELECT
    r.run_id,
    r.task,
    r.task_params,
    coalesce(r.task_params ->> 'answers', 'task') AS answers,
    coalesce(CAST(r.task_params ->> 'replicate' AS INTEGER), 0) AS replicate,
    r.prompt_set,
    r.model,
    r.checkpoint,
    r.seed,
    r.weights,
    r.engine,
    r.engine_version,
    r.settings,
    r.metric,
    r.ablation,
    r.ablation_source,
    r.data_seed,
    r.dtype,
    r.score_context,
    r.inert,
    p.created_at,
    p.circuitdb,
    p.versions,
    p.device,
    p.threads,
    p.wall_seconds,
    p.command
FROM run r
JOIN provenance p ON p.provenance_key = r.provenance_key;

COMMENT ON VIEW runs IS 'One row per run: a task with its prompts, a model and an engine with all settings.';
COMMENT ON COLUMN runs.run_id IS 'SHA-256 of all that decides the result, 64 hex digits';
COMMENT ON COLUMN runs.task IS 'Task name';
COMMENT ON COLUMN runs.task_params IS 'Task parameters, JSON object';
COMMENT ON COLUMN runs.answers IS 'task, or random: the control with random answer words';
COMMENT ON COLUMN runs.replicate IS 'Number of the disjoint prompt sample; 0 is the first';
COMMENT ON COLUMN runs.prompt_set IS 'Hash of the prompts';
COMMENT ON COLUMN runs.model IS 'Model name';
COMMENT ON COLUMN runs.checkpoint IS 'Training step of the weights; null where the model has one set only';
COMMENT ON COLUMN runs.seed IS 'Training seed of the model; null where it has one only';
COMMENT ON COLUMN runs.weights IS 'SHA-256 of the weights';
COMMENT ON COLUMN runs.engine IS 'Discovery engine';
COMMENT ON COLUMN runs.engine_version IS 'Raised when the results of the engine change';
COMMENT ON COLUMN runs.settings IS 'Engine settings with defaults filled in, JSON object';
COMMENT ON COLUMN runs.metric IS 'Metric of the scores';
COMMENT ON COLUMN runs.ablation IS 'What an ablated component or edge carries: resample, mean, mean_global or zero';
COMMENT ON COLUMN runs.ablation_source IS 'Hash of the prompt set the means were taken over; null for resample and zero';
COMMENT ON COLUMN runs.data_seed IS 'Seed of the prompts';
COMMENT ON COLUMN runs.dtype IS 'Floating-point type of the computation';
COMMENT ON COLUMN runs.score_context IS 'Scored in the full model, in a circuit, or one after the other (sequential)';
COMMENT ON COLUMN runs.inert IS 'Components whose output is the same, bit for bit, in the clean and the ablation run on every train prompt: JSON list, null where not known. No edge from them can be found, so they are no part of the universe of an overlap';
COMMENT ON COLUMN runs.created_at IS 'When the run ended, UTC';
COMMENT ON COLUMN runs.circuitdb IS 'Version of circuitdb';
COMMENT ON COLUMN runs.versions IS 'Versions of the libraries used, JSON object';
COMMENT ON COLUMN runs.device IS 'Device of the computation';
COMMENT ON COLUMN runs.threads IS 'Threads of the computation';
COMMENT ON COLUMN runs.wall_seconds IS 'Duration in seconds';
COMMENT ON COLUMN runs.command IS 'Command line that repeats the run';

CREATE VIEW circuits AS
SELECT
    c.circuit_id,
    r.run_id,
    a.alias,
    r.task,
    coalesce(r.task_params ->> 'answers', 'task') AS answers,
    coalesce(CAST(r.task_params ->> 'replicate' AS INTEGER), 0) AS replicate,
    r.model,
    r.checkpoint,
    r.seed,
    r.engine,
    c.granularity,
    r.metric,
    r.ablation,
    r.task_params ->> 'corruption' AS corruption,
    CAST(r.task_params ->> '$.sizes.train' AS INTEGER) AS examples,
    r.data_seed,
    r.dtype,
    c.rule,
    c.value,
    c.unit,
    c.ranking,
    c.reached,
    c.n_nodes,
    c.n_edges,
    e.faithfulness,
    e.ratio,
    e.m_full,
    e.m_empty,
    e.m_circuit,
    e.accuracy,
    r.prompt_set,
    r.weights,
    p.wall_seconds,
    p.command,
    n.note,
    p.created_at,
    c.added_at
FROM circuit c
JOIN run r ON r.run_key = c.run_key
JOIN provenance p ON p.provenance_key = c.provenance_key
LEFT JOIN alias a ON a.circuit_key = c.circuit_key
LEFT JOIN note n ON n.circuit_key = c.circuit_key
LEFT JOIN (SELECT * FROM evaluation WHERE is_primary) e ON e.circuit_key = c.circuit_key;

COMMENT ON VIEW circuits IS 'One row per circuit, with its run, its size and its primary evaluation (test split, the metric and ablation of the run).';
COMMENT ON COLUMN circuits.circuit_id IS 'SHA-256 of run and selection rule, 64 hex digits';
COMMENT ON COLUMN circuits.run_id IS 'The run the circuit was selected from';
COMMENT ON COLUMN circuits.alias IS 'Name a person gave it, written @alias in references';
COMMENT ON COLUMN circuits.task IS 'Task name';
COMMENT ON COLUMN circuits.answers IS 'task, or random: the control with random answer words';
COMMENT ON COLUMN circuits.replicate IS 'Number of the disjoint prompt sample; 0 is the first';
COMMENT ON COLUMN circuits.model IS 'Model name';
COMMENT ON COLUMN circuits.checkpoint IS 'Training step of the weights; null where the model has one set only';
COMMENT ON COLUMN circuits.seed IS 'Training seed of the model; null where it has one only';
COMMENT ON COLUMN circuits.engine IS 'Discovery engine';
COMMENT ON COLUMN circuits.granularity IS 'edge, or node: stands for every edge among its nodes, input and logits';
COMMENT ON COLUMN circuits.metric IS 'Metric of scores and figures';
COMMENT ON COLUMN circuits.ablation IS 'What an ablated component or edge carries: resample, mean, mean_global or zero';
COMMENT ON COLUMN circuits.corruption IS 'How the corrupted prompts were made';
COMMENT ON COLUMN circuits.examples IS 'Train prompts asked for; null where a run does not say';
COMMENT ON COLUMN circuits.data_seed IS 'Seed of the prompts';
COMMENT ON COLUMN circuits.dtype IS 'Floating-point type of the computation';
COMMENT ON COLUMN circuits.rule IS 'Selection rule: engine, threshold, edges, nodes, faithfulness or given';
COMMENT ON COLUMN circuits.value IS 'Value of the rule: threshold in the unit, number of edges or nodes, or target faithfulness';
COMMENT ON COLUMN circuits.unit IS 'Unit of the value, where the rule has one';
COMMENT ON COLUMN circuits.ranking IS 'Ranked by abs_mean (|mean score|), mean_abs (mean of |score| over prompts), contribution, or none';
COMMENT ON COLUMN circuits.reached IS 'Whether the target faithfulness was reached on the validation split';
COMMENT ON COLUMN circuits.n_nodes IS 'Components in the circuit, as stored with it';
COMMENT ON COLUMN circuits.n_edges IS 'Edges in the circuit; of a node circuit the derived ones';
COMMENT ON COLUMN circuits.faithfulness IS '(m_circuit - m_empty) / (m_full - m_empty) on the test split; null where the denominator is within noise of zero';
COMMENT ON COLUMN circuits.ratio IS 'm_circuit / m_full; null where m_full is within noise of zero';
COMMENT ON COLUMN circuits.m_full IS 'Metric of the full model, mean over prompts';
COMMENT ON COLUMN circuits.m_empty IS 'Metric without any edge, mean over prompts';
COMMENT ON COLUMN circuits.m_circuit IS 'Metric of the circuit, mean over prompts';
COMMENT ON COLUMN circuits.accuracy IS 'Share of prompts on which the circuit puts the correct answer above the incorrect';
COMMENT ON COLUMN circuits.prompt_set IS 'Hash of the prompts';
COMMENT ON COLUMN circuits.weights IS 'SHA-256 of the weights';
COMMENT ON COLUMN circuits.wall_seconds IS 'Duration of the discovery in seconds';
COMMENT ON COLUMN circuits.command IS 'Command line that repeats it';
COMMENT ON COLUMN circuits.note IS 'Note a person wrote';
COMMENT ON COLUMN circuits.created_at IS 'When the discovery ended, UTC';
COMMENT ON COLUMN circuits.added_at IS 'When it came into this database, UTC';

-- Two branches, and no join around them: a filter on circuit_id then reaches the tables.
CREATE VIEW nodes AS
SELECT c.circuit_id, d.name AS node, d.kind, d.layer, d.idx, d.position, d.dictionary,
    s.score, s.score_abs, s.score_se, m.component_id IS NOT NULL AS in_circuit
FROM circuit c
JOIN run r ON r.run_key = c.run_key
JOIN node_score s ON s.run_key = c.run_key
JOIN component d ON d.space_key = r.space_key AND d.component_id = s.component_id
LEFT JOIN node_member m
    ON m.circuit_key = c.circuit_key AND m.component_id = s.component_id AND m.scored
UNION ALL
SELECT c.circuit_id, d.name, d.kind, d.layer, d.idx, d.position, d.dictionary,
    NULL, NULL, NULL, true
FROM circuit c
JOIN run r ON r.run_key = c.run_key
JOIN node_member m ON m.circuit_key = c.circuit_key
JOIN component d ON d.space_key = r.space_key AND d.component_id = m.component_id
WHERE NOT m.scored;

COMMENT ON VIEW nodes IS 'The components of each circuit, and those its run measured although they are not in it.';
COMMENT ON COLUMN nodes.circuit_id IS 'The circuit';
COMMENT ON COLUMN nodes.node IS 'Component name, such as a5.h3, m4, input or logits';
COMMENT ON COLUMN nodes.kind IS 'input, head, mlp, neuron, feature, error, direction, logit or logits';
COMMENT ON COLUMN nodes.layer IS 'Layer, from 0; null for input and logits';
COMMENT ON COLUMN nodes.idx IS 'Head, neuron, feature or token id, by kind';
COMMENT ON COLUMN nodes.position IS 'Token position or role, where components are split by position';
COMMENT ON COLUMN nodes.dictionary IS 'Feature dictionary, for features and their error nodes';
COMMENT ON COLUMN nodes.score IS 'm(ablated) - m(clean), unit of the metric, mean over prompts; null where not measured';
COMMENT ON COLUMN nodes.score_abs IS 'Mean over prompts of |score|, unit of the metric';
COMMENT ON COLUMN nodes.score_se IS 'Standard error of the score over prompts, unit of the metric';
COMMENT ON COLUMN nodes.in_circuit IS 'Whether the component belongs to the circuit';

CREATE VIEW edges AS
SELECT c.circuit_id, d.src, d.dst, d.port, s.score,
    -- Of the metrics only kl is better when smaller.
    CASE WHEN r.metric = 'kl' THEN s.score ELSE -s.score END AS contribution,
    s.score_abs, s.score_se, m.edge_id IS NOT NULL AS in_circuit
FROM circuit c
JOIN run r ON r.run_key = c.run_key
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

CREATE VIEW receivers AS
SELECT c.circuit_id, v.dst, d.name AS node
FROM circuit c
JOIN run r ON r.run_key = c.run_key
JOIN node_member m ON m.circuit_key = c.circuit_key
JOIN receiver v ON v.space_key = r.space_key AND v.component_id = m.component_id
JOIN component d ON d.space_key = r.space_key AND d.component_id = m.component_id;

COMMENT ON VIEW receivers IS 'Which components of a circuit read through an edge target: itself, or the query heads that share a key/value head. Paths are walked through it.';
COMMENT ON COLUMN receivers.circuit_id IS 'The circuit';
COMMENT ON COLUMN receivers.dst IS 'Edge target, as in edges.dst';
COMMENT ON COLUMN receivers.node IS 'Component of the circuit that reads through it';

CREATE VIEW edge_effects AS
SELECT r.run_id, d.src, d.dst, d.port, f.quantity, f.value
FROM edge_effect f
JOIN run r ON r.run_key = f.run_key
JOIN edge_dim d ON d.space_key = r.space_key AND d.edge_id = f.edge_id;

COMMENT ON VIEW edge_effects IS 'Further quantities that runs measured per edge.';
COMMENT ON COLUMN edge_effects.run_id IS 'The run';
COMMENT ON COLUMN edge_effects.src IS 'Writer: component name';
COMMENT ON COLUMN edge_effects.dst IS 'Reader: component name, or a key/value head such as a5.kv1';
COMMENT ON COLUMN edge_effects.port IS 'q, k or v at a head; null elsewhere';
COMMENT ON COLUMN edge_effects.quantity IS 'Name of the quantity';
COMMENT ON COLUMN edge_effects.value IS 'Its value, in the unit that the engine names';

CREATE VIEW decisions AS
SELECT r.run_id, d.ordinal, d.item, d.phase, d.before, d.after, d.after - d.before AS change, d.kept
FROM decision d
JOIN run r ON r.run_key = d.run_key;

COMMENT ON VIEW decisions IS 'Keep-or-remove decisions of searches, in the order taken.';
COMMENT ON COLUMN decisions.run_id IS 'The run';
COMMENT ON COLUMN decisions.ordinal IS 'Place in the order, from 0';
COMMENT ON COLUMN decisions.item IS 'Component or edge name';
COMMENT ON COLUMN decisions.phase IS 'Part of the search, such as sweep 1 backward';
COMMENT ON COLUMN decisions.before IS 'Quantity decided on, before the candidate removal, in its own unit';
COMMENT ON COLUMN decisions.after IS 'The same after it';
COMMENT ON COLUMN decisions.change IS 'after - before';
COMMENT ON COLUMN decisions.kept IS 'Whether the item stayed';

CREATE VIEW evaluations AS
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
COMMENT ON COLUMN evaluations.added_at IS 'When it came into this database, UTC';

-- Pairs and shared edges are counted in one pass: pairs that share nothing come from the first
-- branch, and a filter on a or b reaches the tables through both.
CREATE VIEW main.overlaps AS
SELECT
    a,
    b,
    any_value(size_a) AS n_a,
    any_value(size_b) AS n_b,
    CAST(sum(hit) AS BIGINT) AS shared,
    any_value(size_a) + any_value(size_b) - CAST(sum(hit) AS BIGINT) AS n_union,
    sum(hit) / nullif(any_value(size_a) + any_value(size_b) - sum(hit), 0) AS jaccard,
    sum(hit) / nullif(any_value(size_a), 0) AS containment_a,
    sum(hit) / nullif(any_value(size_b), 0) AS containment_b
FROM (
    SELECT ca.circuit_id AS a, cb.circuit_id AS b, ca.n_edges AS size_a, cb.n_edges AS size_b,
        0 AS hit
    FROM circuit ca
    JOIN run ra ON ra.run_key = ca.run_key
    JOIN run rb ON rb.space_key = ra.space_key
    JOIN circuit cb ON cb.run_key = rb.run_key AND cb.circuit_key <> ca.circuit_key
    UNION ALL
    SELECT ca.circuit_id, cb.circuit_id, NULL, NULL, 1
    FROM circuit ca
    JOIN run ra ON ra.run_key = ca.run_key
    JOIN member ma ON ma.circuit_key = ca.circuit_key
    JOIN member mb ON mb.edge_id = ma.edge_id
    JOIN circuit cb ON cb.circuit_key = mb.circuit_key AND cb.circuit_key <> ca.circuit_key
    JOIN run rb ON rb.run_key = cb.run_key AND rb.space_key = ra.space_key
)
GROUP BY a, b;

COMMENT ON VIEW main.overlaps IS 'Edge overlap of every ordered pair of circuits over one graph space; SQL keeps the bare word for itself, write main.overlaps. A Jaccard index alone says little: circuitdb overlap puts it on a scale.';
COMMENT ON COLUMN main.overlaps.a IS 'First circuit';
COMMENT ON COLUMN main.overlaps.b IS 'Second circuit';
COMMENT ON COLUMN main.overlaps.n_a IS 'Edges of the first';
COMMENT ON COLUMN main.overlaps.n_b IS 'Edges of the second';
COMMENT ON COLUMN main.overlaps.shared IS 'Edges in both';
COMMENT ON COLUMN main.overlaps.n_union IS 'Edges in either';
COMMENT ON COLUMN main.overlaps.jaccard IS 'shared / n_union; null where both are empty';
COMMENT ON COLUMN main.overlaps.containment_a IS 'shared / n_a; null where the first is empty';
COMMENT ON COLUMN main.overlaps.containment_b IS 'shared / n_b; null where the second is empty';

CREATE VIEW checkpoint_metrics AS
SELECT model, checkpoint, seed, weights, task, prompt_set, split, metric, value, sd, n_prompts,
    added_at
FROM checkpoint_metric;

COMMENT ON VIEW checkpoint_metrics IS 'What full models do on tasks, checkpoint by checkpoint.';
COMMENT ON COLUMN checkpoint_metrics.model IS 'Model name';
COMMENT ON COLUMN checkpoint_metrics.checkpoint IS 'Training step of the weights';
COMMENT ON COLUMN checkpoint_metrics.seed IS 'Training seed of the model';
COMMENT ON COLUMN checkpoint_metrics.weights IS 'SHA-256 of the weights';
COMMENT ON COLUMN checkpoint_metrics.task IS 'Task name';
COMMENT ON COLUMN checkpoint_metrics.prompt_set IS 'Hash of the prompts';
COMMENT ON COLUMN checkpoint_metrics.split IS 'train, validation, test or shift';
COMMENT ON COLUMN checkpoint_metrics.metric IS 'Name of the metric';
COMMENT ON COLUMN checkpoint_metrics.value IS 'Mean over prompts, in the unit of the metric';
COMMENT ON COLUMN checkpoint_metrics.sd IS 'Standard deviation over prompts, in the unit of the metric';
COMMENT ON COLUMN checkpoint_metrics.n_prompts IS 'Number of prompts';
COMMENT ON COLUMN checkpoint_metrics.added_at IS 'When it came into this database, UTC';

CREATE VIEW prompts AS
SELECT s.prompt_set, s.task, p.ordinal, p.split, p.template, p.clean, p.corrupted, p.clean_ids,
    p.corrupted_ids, p.correct_ids, p.incorrect_ids, p.roles
FROM prompt p
JOIN prompt_set s ON s.prompt_set_key = p.prompt_set_key;

COMMENT ON VIEW prompts IS 'Stored prompts: clean and corrupted, of equal token length.';
COMMENT ON COLUMN prompts.prompt_set IS 'Hash of the prompt set, as in circuits.prompt_set';
COMMENT ON COLUMN prompts.task IS 'Task name';
COMMENT ON COLUMN prompts.ordinal IS 'Place in the prompt set, from 0';
COMMENT ON COLUMN prompts.split IS 'train, validation, test or shift';
COMMENT ON COLUMN prompts.template IS 'Template the prompt was made from';
COMMENT ON COLUMN prompts.clean IS 'Clean text';
COMMENT ON COLUMN prompts.corrupted IS 'Corrupted text';
COMMENT ON COLUMN prompts.clean_ids IS 'Token ids of the clean text, as the model gets them';
COMMENT ON COLUMN prompts.corrupted_ids IS 'Token ids of the corrupted text';
COMMENT ON COLUMN prompts.correct_ids IS 'Token ids of the correct answers';
COMMENT ON COLUMN prompts.incorrect_ids IS 'Token ids of the incorrect answers';
COMMENT ON COLUMN prompts.roles IS 'Role to token position, JSON object';

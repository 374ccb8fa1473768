-- Directions of models, and what patching them does. They belong to weights, not to circuits.

CREATE TABLE direction (
    direction_key INTEGER NOT NULL,
    direction_id TEXT NOT NULL,
    fit_id TEXT NOT NULL,
    name TEXT NOT NULL,
    component TEXT NOT NULL,
    model TEXT NOT NULL,
    checkpoint INTEGER,
    model_seed INTEGER,
    weights TEXT NOT NULL,
    kind TEXT NOT NULL,
    layer INTEGER NOT NULL,
    head INTEGER,
    position TEXT NOT NULL,
    method TEXT NOT NULL,
    dims INTEGER NOT NULL,
    task TEXT NOT NULL,
    prompt_set TEXT NOT NULL,
    split TEXT NOT NULL,
    seed INTEGER NOT NULL,
    settings TEXT NOT NULL,
    figures TEXT NOT NULL,
    seen TEXT[] NOT NULL,
    chosen_on TEXT[] NOT NULL,
    added_at TIMESTAMP NOT NULL
);
COMMENT ON TABLE direction IS 'Directions and subspaces at sites of models; settings and figures are JSON, seen and chosen_on digests of training and validation texts.';

CREATE TABLE direction_vector (
    direction_key INTEGER NOT NULL,
    ordinal INTEGER NOT NULL,
    vector FLOAT[] NOT NULL
);
COMMENT ON TABLE direction_vector IS 'The orthonormal vectors of a direction.';

CREATE TABLE direction_patch (
    direction_key INTEGER NOT NULL,
    patch_id TEXT NOT NULL,
    task TEXT NOT NULL,
    prompt_set TEXT NOT NULL,
    split TEXT NOT NULL,
    scope TEXT NOT NULL,
    position TEXT NOT NULL,
    metric TEXT NOT NULL,
    value DOUBLE,
    sd DOUBLE,
    low DOUBLE,
    high DOUBLE,
    n INTEGER NOT NULL,
    m_clean DOUBLE NOT NULL,
    m_corrupted DOUBLE NOT NULL,
    m_patched DOUBLE NOT NULL,
    added_at TIMESTAMP NOT NULL
);
COMMENT ON TABLE direction_patch IS 'What patching or ablating directions does; patch_id is the hash of the question.';

CREATE VIEW directions AS
SELECT direction_id, name, component, model, checkpoint, model_seed, weights, kind, layer, head,
    position, method, dims, task, prompt_set, split, seed, CAST(settings AS JSON) AS settings,
    CAST(figures AS JSON) AS figures, added_at
FROM direction;

COMMENT ON VIEW directions IS 'Directions and subspaces at sites of models. They point from the negative to the positive class.';
COMMENT ON COLUMN directions.direction_id IS 'SHA-256 of what was fitted on what, and of the vectors';
COMMENT ON COLUMN directions.name IS 'Its name, such as sentiment.das2d.ADJ';
COMMENT ON COLUMN directions.component IS 'The node it is, such as d/1.resid_post/sentiment.pca.END';
COMMENT ON COLUMN directions.model IS 'The model it belongs to';
COMMENT ON COLUMN directions.checkpoint IS 'Training step of that model; null where it has none';
COMMENT ON COLUMN directions.model_seed IS 'Training seed of that model; null where it has none';
COMMENT ON COLUMN directions.weights IS 'SHA-256 of the weights of that model';
COMMENT ON COLUMN directions.kind IS 'Kind of its site, such as resid_post, or result of a head';
COMMENT ON COLUMN directions.layer IS 'Layer of its site, from 0';
COMMENT ON COLUMN directions.head IS 'Head of its site; null where it is not of a single head';
COMMENT ON COLUMN directions.position IS 'Where it was fitted: a role, token:TEXT, or all';
COMMENT ON COLUMN directions.method IS 'kmeans, pca, svd, mean_diff, logistic_regression, das, random or import';
COMMENT ON COLUMN directions.dims IS 'Number of orthonormal vectors';
COMMENT ON COLUMN directions.task IS 'Task it was fitted on; of an import what its file says';
COMMENT ON COLUMN directions.prompt_set IS 'Hash of the prompts fitted on; of an import that of its file';
COMMENT ON COLUMN directions.split IS 'Split of them that was fitted on';
COMMENT ON COLUMN directions.seed IS 'Seed of the fit';
COMMENT ON COLUMN directions.settings IS 'Settings of the method, as JSON';
COMMENT ON COLUMN directions.figures IS 'Figures of the fit, as JSON; docs/directions.md defines each';
COMMENT ON COLUMN directions.added_at IS 'When it came into this database, UTC';

CREATE VIEW direction_patches AS
SELECT p.patch_id, d.direction_id, d.component, d.model, d.method, d.dims, d.layer,
    d.position AS fitted_at, d.task AS fitted_on, p.task, p.prompt_set, p.split, p.scope, p.position,
    p.metric, p.value, p.sd, p.low, p.high, p.n, p.m_clean, p.m_corrupted, p.m_patched, p.added_at
FROM direction_patch p
JOIN direction d ON d.direction_key = p.direction_key;

COMMENT ON VIEW direction_patches IS 'What patching or ablating directions does: 0 as the corrupted run, 1 as the clean one. docs/directions.md defines the metrics.';
COMMENT ON COLUMN direction_patches.patch_id IS 'Hash of the question';
COMMENT ON COLUMN direction_patches.direction_id IS 'The direction';
COMMENT ON COLUMN direction_patches.component IS 'The node it is';
COMMENT ON COLUMN direction_patches.model IS 'Its model';
COMMENT ON COLUMN direction_patches.method IS 'How it was fitted';
COMMENT ON COLUMN direction_patches.dims IS 'Number of its vectors';
COMMENT ON COLUMN direction_patches.layer IS 'Layer of its site';
COMMENT ON COLUMN direction_patches.fitted_at IS 'Position it was fitted at';
COMMENT ON COLUMN direction_patches.fitted_on IS 'Task it was fitted on';
COMMENT ON COLUMN direction_patches.task IS 'Task it is measured on';
COMMENT ON COLUMN direction_patches.prompt_set IS 'Hash of the prompts of that';
COMMENT ON COLUMN direction_patches.split IS 'train, validation, test or shift';
COMMENT ON COLUMN direction_patches.scope IS 'resid: its own site; layers: its kind of site in every layer; heads:… outputs of these heads';
COMMENT ON COLUMN direction_patches.position IS 'Positions patched: a role, token:TEXT, or all';
COMMENT ON COLUMN direction_patches.metric IS 'logit_diff_denoising, logit_diff_noising, logit_flip or prob_diff_denoising; ablation_zero, ablation_mean or ablation_resample';
COMMENT ON COLUMN direction_patches.value IS '0 as corrupted, 1 as clean; null where clean and corrupted are within noise of each other';
COMMENT ON COLUMN direction_patches.sd IS 'Standard deviation over prompts, unit of value';
COMMENT ON COLUMN direction_patches.low IS 'Lower end of the 95 % interval over prompts';
COMMENT ON COLUMN direction_patches.high IS 'Upper end of it';
COMMENT ON COLUMN direction_patches.n IS 'Prompts counted: of logit_flip those that the corruption flips';
COMMENT ON COLUMN direction_patches.m_clean IS 'Logit or probability difference of the clean run, mean over prompts';
COMMENT ON COLUMN direction_patches.m_corrupted IS 'The same of the corrupted run';
COMMENT ON COLUMN direction_patches.m_patched IS 'The same of the patched or ablated run';
COMMENT ON COLUMN direction_patches.added_at IS 'When it came into this database, UTC';

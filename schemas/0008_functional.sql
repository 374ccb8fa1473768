-- Functional overlap: what parts of circuits do on tasks, alone or removed from the full model.

CREATE TABLE functional (
    run_key INTEGER NOT NULL,
    cell_id TEXT NOT NULL,
    split TEXT NOT NULL,
    part TEXT NOT NULL,
    circuits TEXT[] NOT NULL,
    how TEXT NOT NULL,
    level TEXT NOT NULL,
    members TEXT NOT NULL,
    n_members INTEGER NOT NULL,
    draws INTEGER NOT NULL,
    weighed_by TEXT[] NOT NULL,
    rivals TEXT[] NOT NULL,
    hub_run TEXT,
    ranking TEXT NOT NULL,
    n_prompts INTEGER NOT NULL,
    m_full DOUBLE NOT NULL,
    m_empty DOUBLE NOT NULL,
    m_part DOUBLE NOT NULL,
    value DOUBLE,
    random_low DOUBLE,
    random_high DOUBLE,
    random_mean DOUBLE,
    random_n INTEGER,
    p_value DOUBLE,
    own_n INTEGER,
    own_value DOUBLE,
    rival TEXT,
    rival_n INTEGER,
    rival_value DOUBLE,
    rival_median DOUBLE,
    hub_n INTEGER,
    hub_value DOUBLE,
    note TEXT,
    added_at TIMESTAMP NOT NULL
);
COMMENT ON TABLE functional IS 'What parts of circuits do on the prompts of a run; cell_id is the hash of the question.';

CREATE VIEW functional_cells AS
SELECT f.cell_id, r.run_id, r.task, f.split, r.metric, r.ablation, f.part, f.circuits, f.how, f.level,
    f.n_members, f.n_prompts, f.m_full, f.m_empty, f.m_part, f.value, f.random_low, f.random_high,
    f.random_mean, f.random_n, f.p_value, f.weighed_by, f.own_n, f.own_value, f.rival, f.rival_n,
    f.rival_value, f.rival_median, f.hub_n, f.hub_value, f.note, f.added_at
FROM functional f
JOIN run r ON r.run_key = f.run_key;

COMMENT ON VIEW functional_cells IS 'Functional overlap: what a part of circuits does on the task of a run, alone or removed from the full model, beside other sets of its size. 0 is nothing, 1 the full effect m(M) - m(empty).';
COMMENT ON COLUMN functional_cells.cell_id IS 'Hash of the question';
COMMENT ON COLUMN functional_cells.run_id IS 'The run whose prompts, metric and ablation it is measured with';
COMMENT ON COLUMN functional_cells.task IS 'Task of that run';
COMMENT ON COLUMN functional_cells.split IS 'train, validation, test or shift';
COMMENT ON COLUMN functional_cells.metric IS 'Metric of the m_ columns';
COMMENT ON COLUMN functional_cells.ablation IS 'What ablated edges carry';
COMMENT ON COLUMN functional_cells.part IS 'circuit: one circuit; shared: what all of several have; control: what of it their random-answer controls all have too; beyond_control: the shared but that; rest: what the first of two has and the second has not';
COMMENT ON COLUMN functional_cells.circuits IS 'circuit_ids the part is made of';
COMMENT ON COLUMN functional_cells.how IS 'alone: nothing else is kept; removed: all else is';
COMMENT ON COLUMN functional_cells.level IS 'Whether members are edges or nodes';
COMMENT ON COLUMN functional_cells.n_members IS 'Members of the part';
COMMENT ON COLUMN functional_cells.n_prompts IS 'Number of prompts';
COMMENT ON COLUMN functional_cells.m_full IS 'Metric of the full model, mean over prompts';
COMMENT ON COLUMN functional_cells.m_empty IS 'Metric without any edge, mean over prompts';
COMMENT ON COLUMN functional_cells.m_part IS 'Metric of the part alone, or of the full model without it, mean over prompts';
COMMENT ON COLUMN functional_cells.value IS 'alone: (m_part - m_empty) / (m_full - m_empty); removed: (m_full - m_part) / (m_full - m_empty); null for an empty part or a denominator within noise of zero';
COMMENT ON COLUMN functional_cells.random_low IS '5th percentile of the same of random sets of equal size, layers and general importance';
COMMENT ON COLUMN functional_cells.random_high IS '95th percentile of the same';
COMMENT ON COLUMN functional_cells.random_mean IS 'Mean of the same';
COMMENT ON COLUMN functional_cells.random_n IS 'Number of random sets';
COMMENT ON COLUMN functional_cells.p_value IS '(1 + r) / (1 + n): r of the n random sets reach the value or more';
COMMENT ON COLUMN functional_cells.weighed_by IS 'run_ids of what is important in general; empty where random sets are matched in layers alone';
COMMENT ON COLUMN functional_cells.own_n IS 'Members of the own circuit of the task, of at most as many';
COMMENT ON COLUMN functional_cells.own_value IS 'What it does';
COMMENT ON COLUMN functional_cells.rival IS 'Of up to four third tasks the one whose circuit of at most as many members does best here';
COMMENT ON COLUMN functional_cells.rival_n IS 'Members of that circuit';
COMMENT ON COLUMN functional_cells.rival_value IS 'What it does';
COMMENT ON COLUMN functional_cells.rival_median IS 'Median over the third tasks';
COMMENT ON COLUMN functional_cells.hub_n IS 'Members of the circuit of the same prompts with random answers, of at most as many';
COMMENT ON COLUMN functional_cells.hub_value IS 'What it does';
COMMENT ON COLUMN functional_cells.note IS 'Remark, such as a denominator within noise of zero';
COMMENT ON COLUMN functional_cells.added_at IS 'When it came into this database, UTC';

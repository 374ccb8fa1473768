-- Roles of heads: what each head has of each role, and whether it holds it. They belong to weights.

CREATE TABLE role_set (
    role_set_key INTEGER NOT NULL,
    weights TEXT NOT NULL,
    recipe_id TEXT NOT NULL,
    recipe TEXT NOT NULL,
    model TEXT NOT NULL,
    checkpoint INTEGER,
    seed INTEGER,
    added_at TIMESTAMP NOT NULL
);
COMMENT ON TABLE role_set IS 'Roles of the heads of a model by one recipe (JSON): on neutral text and the weights, or on the prompts of a task.';

CREATE TABLE component_role (
    role_set_key INTEGER NOT NULL,
    ordinal INTEGER NOT NULL,
    component TEXT NOT NULL,
    role TEXT NOT NULL,
    score DOUBLE,
    chance DOUBLE,
    level DOUBLE NOT NULL,
    holds BOOLEAN NOT NULL,
    n INTEGER NOT NULL
);
COMMENT ON TABLE component_role IS 'What heads have of roles.';

CREATE VIEW component_roles AS
SELECT s.model, s.checkpoint, s.seed, s.weights, r.component,
    CAST(regexp_extract(r.component, 'a(\d+)', 1) AS INTEGER) AS layer,
    CAST(regexp_extract(r.component, 'h(\d+)', 1) AS INTEGER) AS idx,
    r.role, r.score, r.chance, r.level, r.holds, r.n,
    CAST(s.recipe AS JSON) ->> '$.task' AS task,
    CAST(s.recipe AS JSON) ->> '$.prompt_set' AS prompt_set, s.recipe_id, s.added_at
FROM component_role r
JOIN role_set s USING (role_set_key);

COMMENT ON VIEW component_roles IS 'What each head has of each role, as circuitdb roles measured it; docs/roles.md defines the scores. What the source of an imported circuit calls its components is in roles.';
COMMENT ON COLUMN component_roles.model IS 'The model';
COMMENT ON COLUMN component_roles.checkpoint IS 'Training step; null where it has none';
COMMENT ON COLUMN component_roles.seed IS 'Training seed; null where it has none';
COMMENT ON COLUMN component_roles.weights IS 'SHA-256 of the weights';
COMMENT ON COLUMN component_roles.component IS 'The head, such as a2.h1';
COMMENT ON COLUMN component_roles.layer IS 'Layer, from 0';
COMMENT ON COLUMN component_roles.idx IS 'Head in the layer, from 0';
COMMENT ON COLUMN component_roles.role IS 'Such as induction, or attends:S2 of a position role';
COMMENT ON COLUMN component_roles.score IS 'Attention, share, or correlation, 0 to 1 or −1 to 1; null where it cannot be told';
COMMENT ON COLUMN component_roles.chance IS 'Largest score of any head where the relation is taken away; null where nothing is compared';
COMMENT ON COLUMN component_roles.level IS 'What a score must reach: the larger of the role''s cut and of chance';
COMMENT ON COLUMN component_roles.holds IS 'Whether the score reaches the level and the role''s further conditions are met';
COMMENT ON COLUMN component_roles.n IS 'Texts, words or prompts that the score is taken over';
COMMENT ON COLUMN component_roles.task IS 'Task whose prompts it is measured on; null for neutral text and the weights';
COMMENT ON COLUMN component_roles.prompt_set IS 'Hash of those prompts';
COMMENT ON COLUMN component_roles.recipe_id IS 'Hash of how it was measured';
COMMENT ON COLUMN component_roles.added_at IS 'When it came into this database, UTC';

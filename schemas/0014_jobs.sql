-- Jobs of sweeps: what became of every discovery that a recipe states.

CREATE TABLE job (
    job_key INTEGER NOT NULL,
    job_id TEXT NOT NULL,
    recipe TEXT NOT NULL,
    recipe_hash TEXT NOT NULL,
    task TEXT NOT NULL,
    model TEXT NOT NULL,
    checkpoint INTEGER,
    seed INTEGER,
    engine TEXT NOT NULL,
    plan TEXT NOT NULL,
    state TEXT NOT NULL,
    run_id TEXT,
    circuits TEXT[] NOT NULL,
    error_kind TEXT,
    error TEXT,
    traceback TEXT,
    attempts INTEGER NOT NULL,
    seconds DOUBLE,
    host TEXT,
    added_at TIMESTAMP NOT NULL
);
COMMENT ON TABLE job IS 'What became of the jobs of sweeps, each once; plan is JSON. A job goes with any of its circuits, so that it is done again.';

CREATE VIEW jobs AS
SELECT job_id, recipe, recipe_hash, task, model, checkpoint, seed, engine, CAST(plan AS JSON) AS plan,
    state, run_id, circuits, error_kind, error, traceback, attempts, seconds, host, added_at
FROM job;

COMMENT ON VIEW jobs IS 'What became of the jobs of sweeps (circuitdb ingest), each once.';
COMMENT ON COLUMN jobs.job_id IS 'SHA-256 of the plan, of what its weights and files are, and of the versions of engine and circuitdb';
COMMENT ON COLUMN jobs.recipe IS 'Name of the recipe that it was last run for';
COMMENT ON COLUMN jobs.recipe_hash IS 'SHA-256 of what that recipe says';
COMMENT ON COLUMN jobs.task IS 'Its task, or the path of a task file';
COMMENT ON COLUMN jobs.model IS 'Its model';
COMMENT ON COLUMN jobs.checkpoint IS 'Training step of the model; null where it has none';
COMMENT ON COLUMN jobs.seed IS 'Training seed of the model; null where it has none';
COMMENT ON COLUMN jobs.engine IS 'Its engine';
COMMENT ON COLUMN jobs.plan IS 'The whole plan as JSON, with everything that decides the discovery';
COMMENT ON COLUMN jobs.state IS 'done, not_done (the model does not do the task) or failed';
COMMENT ON COLUMN jobs.run_id IS 'The run it stored; null where it stored none';
COMMENT ON COLUMN jobs.circuits IS 'Ids of the circuits it stored';
COMMENT ON COLUMN jobs.error_kind IS 'Name of the error where it is not done';
COMMENT ON COLUMN jobs.error IS 'What the error says, in one line';
COMMENT ON COLUMN jobs.traceback IS 'Where it came from, of a failed job';
COMMENT ON COLUMN jobs.attempts IS 'How often it was tried';
COMMENT ON COLUMN jobs.seconds IS 'Seconds that the last attempt took, the loading of its model included; null where its process died';
COMMENT ON COLUMN jobs.host IS 'Machine of the last attempt';
COMMENT ON COLUMN jobs.added_at IS 'When it came into this database, UTC';

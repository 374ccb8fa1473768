-- Which heads hold a role at which checkpoint, as circuitdb roles measured it.
--
-- Parameters
--   role  role = null  Role such as induction or attends:S2; all by default
--   task  role_task = null  Task whose prompts it was measured on; by default those of text and weights too
--   model  role_model = null  Model name; all by default
--   seed  integer = null  Training seed; all by default
-- Columns
--   model  Model name
--   seed  Training seed
--   task  Task; null for neutral text and the weights
--   role  The role
--   component  The head
--   n_checkpoints  Checkpoints at which it holds the role
--   n_measured  Checkpoints at which it was measured
--   first_checkpoint  The first at which it holds the role
--   last_checkpoint  The last one
--   best_score  Highest score at any checkpoint
--   last_score  Score at the last checkpoint measured
SELECT model, seed, task, role, component,
    count(*) FILTER (WHERE holds) AS n_checkpoints, count(*) AS n_measured,
    min(checkpoint) FILTER (WHERE holds) AS first_checkpoint,
    max(checkpoint) FILTER (WHERE holds) AS last_checkpoint,
    max(score) AS best_score, arg_max(score, checkpoint) AS last_score
FROM component_roles
WHERE ($role IS NULL OR role = $role)
    AND ($task IS NULL OR task = $task)
    AND ($model IS NULL OR model = $model)
    AND ($seed IS NULL OR seed = $seed)
GROUP BY model, seed, task, role, component
HAVING bool_or(holds)
ORDER BY model, seed, task NULLS FIRST, role, first_checkpoint, component;

-- Components that the circuits of several tasks have in common.
--
-- Control and random circuits do not count.
--
-- Parameters
--   tasks  tasks = null  Task names separated by commas; all stored ones by default
--   share  share = 0.5  Least share of a task's circuits that must hold the component, from 0 to 1
--   model  model = null  Model name; all by default
-- Columns
--   node  Component
--   kind  head, mlp, neuron, input or logits
--   layer  Layer
--   n_tasks  Tasks whose circuits share it
--   least_share  Share of circuits that hold it, in the task where it is least
WITH asked AS (
    SELECT DISTINCT trim(name) AS task FROM (SELECT unnest(string_split($tasks, ',')) AS name)
),
chosen AS (
    SELECT circuit_id, task
    FROM circuits
    WHERE answers = 'task' AND replicate = 0 AND engine <> 'random'
        AND ($tasks IS NULL OR task IN (FROM asked))
        AND ($model IS NULL OR model = $model)
),
sizes AS (SELECT task, count(*) AS n FROM chosen GROUP BY task),
held AS (
    SELECT c.task, n.node, any_value(n.kind) AS kind, any_value(n.layer) AS layer,
        count(*) / any_value(s.n) AS share
    FROM chosen c
    JOIN sizes s ON s.task = c.task
    JOIN nodes n ON n.circuit_id = c.circuit_id AND n.in_circuit
    GROUP BY c.task, n.node
)
SELECT node, any_value(kind) AS kind, any_value(layer) AS layer, count(*) AS n_tasks,
    min(share) AS least_share
FROM held
WHERE share >= $share
GROUP BY node
HAVING count(*) = (SELECT count(*) FROM (SELECT task FROM asked UNION SELECT task FROM sizes))
ORDER BY least_share DESC, layer NULLS FIRST, node;

-- Components that are in at least a given share of the circuits.
--
-- Control and random circuits do not count.
--
-- Parameters
--   share  share = 0.5  Least share of the circuits, from 0 to 1
--   task  task = null  Task name; all by default
--   model  model = null  Model name; all by default
-- Columns
--   node  Component
--   kind  head, mlp, neuron, input or logits
--   layer  Layer
--   n_circuits  Circuits that hold it
--   share  The same as a share of all circuits
WITH chosen AS (
    SELECT circuit_id
    FROM circuits
    WHERE answers = 'task' AND replicate = 0 AND engine <> 'random'
        AND ($task IS NULL OR task = $task)
        AND ($model IS NULL OR model = $model)
)
SELECT n.node, any_value(n.kind) AS kind, any_value(n.layer) AS layer, count(*) AS n_circuits,
    count(*) / (SELECT count(*) FROM chosen) AS share
FROM chosen c
JOIN nodes n ON n.circuit_id = c.circuit_id AND n.in_circuit
GROUP BY n.node
HAVING count(*) >= $share * (SELECT count(*) FROM chosen)
ORDER BY n_circuits DESC, layer NULLS FIRST, n.node;

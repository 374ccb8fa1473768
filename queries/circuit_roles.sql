-- Which roles the heads of a task's circuits hold, step by step: heads may swap while roles stay.
--
-- A head with several roles counts in each. Roles are those measured on the circuit's weights (circuitdb roles),
-- on neutral text or on the same task. Where a target faithfulness was not reached, the circuit is the
-- whole graph.
--
-- Parameters
--   task  task  Task name
--   model  model = null  Model name; all by default
--   engine  engine = null  Engine; all by default
-- Columns
--   model  Model name
--   seed  Training seed
--   engine  Engine
--   rule  How members were selected
--   value  The rule's number
--   checkpoint  Training step
--   circuit_id  The circuit
--   role  The role; null for heads that hold none, or whose roles were not measured
--   n_heads  Heads of the circuit that hold it
--   heads  Their names
SELECT c.model, c.seed, c.engine, c.rule, c.value, c.checkpoint, c.circuit_id, r.role,
    count(DISTINCT n.node) AS n_heads,
    string_agg(DISTINCT n.node, ' ' ORDER BY n.node) AS heads
FROM circuits c
JOIN nodes n ON n.circuit_id = c.circuit_id AND n.in_circuit AND n.kind = 'head'
LEFT JOIN component_roles r ON r.weights = c.weights AND r.component = n.node AND r.holds
    AND (r.task IS NULL OR r.task = c.task)
WHERE c.task = $task AND c.answers = 'task' AND c.replicate = 0 AND c.engine <> 'random'
    AND ($model IS NULL OR c.model = $model)
    AND ($engine IS NULL OR c.engine = $engine)
GROUP BY ALL
ORDER BY c.model, c.seed, c.engine, c.rule, c.value, c.checkpoint, c.circuit_id, r.role NULLS LAST;

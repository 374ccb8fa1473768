-- At which training steps a component is in a task's circuits.
--
-- Control and random circuits are not listed. Where a target faithfulness was not reached, the circuit is
-- the whole graph and holds every component.
--
-- Parameters
--   task  task  Task name
--   node  component  Component name, such as a5.h3 or m4
--   model  model = null  Model name; all by default
--   engine  engine = null  Engine; all by default
-- Columns
--   model  Model name
--   seed  Training seed
--   engine  Engine
--   granularity  node or edge
--   rule  How members were selected
--   value  The rule's number
--   checkpoint  Training step
--   circuit_id  The circuit
--   reached  Whether a target faithfulness was reached
--   in_circuit  Whether the component is in it
--   n_edges  Edges of the circuit that leave it
SELECT c.model, c.seed, c.engine, c.granularity, c.rule, c.value, c.checkpoint, c.circuit_id,
    c.reached, count(n.node) > 0 AS in_circuit,
    (
        SELECT count(*) FROM edges e
        WHERE e.circuit_id = c.circuit_id AND e.src = $node AND e.in_circuit
    ) AS n_edges
FROM circuits c
LEFT JOIN nodes n ON n.circuit_id = c.circuit_id AND n.node = $node AND n.in_circuit
WHERE c.task = $task AND c.answers = 'task' AND c.replicate = 0 AND c.engine <> 'random'
    AND ($model IS NULL OR c.model = $model)
    AND ($engine IS NULL OR c.engine = $engine)
GROUP BY ALL
ORDER BY c.model, c.seed, c.engine, c.granularity, c.rule, c.value, c.checkpoint, c.circuit_id;

-- Which circuits hold a component.
--
-- Control and random circuits are not listed.
--
-- Parameters
--   node  component  Component name, such as a5.h3 or m4
-- Columns
--   circuit_id  The circuit
--   task  Task name
--   model  Model name
--   checkpoint  Training step
--   engine  Engine
--   score  Score of the component itself, where it was measured
--   faithfulness  Of the circuit
SELECT c.circuit_id, c.task, c.model, c.checkpoint, c.engine, n.score, c.faithfulness
FROM nodes n
JOIN circuits c ON c.circuit_id = n.circuit_id
WHERE n.node = $node AND n.in_circuit
    AND c.answers = 'task' AND c.replicate = 0 AND c.engine <> 'random'
ORDER BY c.created_at DESC, c.circuit_id;

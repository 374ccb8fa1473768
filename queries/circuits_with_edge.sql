-- Which circuits hold an edge.
--
-- Control and random circuits are not listed.
--
-- Parameters
--   src  component  Writer, such as a0.h1
--   dst  component  Reader, such as a5.h3 or a5.kv1
--   port  port = null  q, k or v; any by default
-- Columns
--   circuit_id  The circuit
--   task  Task name
--   model  Model name
--   checkpoint  Training step
--   engine  Engine
--   port  q, k or v at a head
--   score  m(ablated) - m(clean), unit of the metric
SELECT c.circuit_id, c.task, c.model, c.checkpoint, c.engine, e.port, e.score
FROM edges e
JOIN circuits c ON c.circuit_id = e.circuit_id
WHERE e.src = $src AND e.dst = $dst AND ($port IS NULL OR e.port = $port) AND e.in_circuit
    AND c.answers = 'task' AND c.replicate = 0 AND c.engine <> 'random'
ORDER BY c.created_at DESC, c.circuit_id, e.port;

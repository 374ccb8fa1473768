-- Attention heads ranked by their part in the circuits of all tasks.
--
-- A head's part in a circuit is the sum of |score| over its outgoing edges there, divided by the
-- sum over all edges of the circuit; parts are averaged over the circuits of a task, then over
-- tasks. Edge circuits only; control and random circuits do not count.
--
-- Parameters
--   model  model = null  Model name; all by default
-- Columns
--   node  Head
--   layer  Layer
--   idx  Head number
--   n_tasks  Tasks in whose circuits it writes an edge
--   part  Mean over all tasks of its part, from 0 to 1
--   best_task  Task in which its part is largest
WITH chosen AS (
    SELECT circuit_id, task
    FROM circuits
    WHERE answers = 'task' AND replicate = 0 AND engine <> 'random' AND granularity = 'edge'
        AND ($model IS NULL OR model = $model)
),
written AS (
    SELECT c.task, c.circuit_id, e.src, sum(abs(e.score)) AS strength
    FROM chosen c
    JOIN edges e ON e.circuit_id = c.circuit_id AND e.in_circuit AND e.score IS NOT NULL
    GROUP BY c.task, c.circuit_id, e.src
),
totals AS (SELECT circuit_id, sum(strength) AS total FROM written GROUP BY circuit_id),
tasks AS (SELECT task, count(*) AS n FROM chosen GROUP BY task),
parts AS (
    SELECT w.task, w.src, sum(w.strength / nullif(t.total, 0)) / any_value(k.n) AS part
    FROM written w
    JOIN totals t ON t.circuit_id = w.circuit_id
    JOIN tasks k ON k.task = w.task
    GROUP BY w.task, w.src
),
heads AS (SELECT DISTINCT node, layer, idx FROM nodes WHERE kind = 'head')
SELECT h.node, h.layer, h.idx, count(*) AS n_tasks,
    sum(p.part) / (SELECT count(*) FROM tasks) AS part, arg_max(p.task, p.part) AS best_task
FROM parts p
JOIN heads h ON h.node = p.src
GROUP BY h.node, h.layer, h.idx
ORDER BY part DESC NULLS LAST, h.layer, h.idx;

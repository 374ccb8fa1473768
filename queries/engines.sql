-- Sizes, faithfulness and time of circuits, engine by engine.
--
-- Parameters
--   task  task = null  Task name; all by default
--   model  model = null  Model name; all by default
-- Columns
--   task  Task name
--   engine  Engine
--   granularity  node or edge
--   n_circuits  Number of circuits
--   median_edges  Median number of edges
--   mean_faithfulness  Mean over the circuits that have one
--   median_seconds  Median duration of the discovery, seconds
SELECT task, engine, granularity, count(*) AS n_circuits, median(n_edges) AS median_edges,
    avg(faithfulness) AS mean_faithfulness, median(wall_seconds) AS median_seconds
FROM circuits
WHERE answers = 'task' AND replicate = 0
    AND ($task IS NULL OR task = $task)
    AND ($model IS NULL OR model = $model)
GROUP BY task, engine, granularity
ORDER BY task, mean_faithfulness DESC NULLS LAST, engine, granularity;

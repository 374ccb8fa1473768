-- Size and faithfulness of a task's circuits over training, checkpoint by checkpoint.
--
-- Parameters
--   task  task  Task name
--   model  model = null  Model name; all by default
--   engine  engine = null  Engine; all by default
-- Columns
--   model  Model name
--   seed  Training seed
--   engine  Engine
--   checkpoint  Training step
--   n_circuits  Circuits at this step
--   mean_edges  Mean number of edges
--   mean_faithfulness  Mean over those that have one
--   m_full  Metric of the full model, mean over the circuits' evaluations
SELECT model, seed, engine, checkpoint, count(*) AS n_circuits, avg(n_edges) AS mean_edges,
    avg(faithfulness) AS mean_faithfulness, avg(m_full) AS m_full
FROM circuits
WHERE task = $task AND answers = 'task' AND replicate = 0
    AND ($model IS NULL OR model = $model)
    AND ($engine IS NULL OR engine = $engine)
GROUP BY model, seed, engine, checkpoint
ORDER BY model, seed, engine, checkpoint;

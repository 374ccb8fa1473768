-- A task's circuit over training: at every step what came and went since the step before.
--
-- Of each search and selection the newest circuit of a step counts. Where a target faithfulness was
-- not reached, the circuit is the whole graph. The command lineage sets chance beside it.
--
-- Parameters
--   task  task  Task name
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
--   n_edges  Edges of the circuit
--   faithfulness  Of the circuit; null where its denominator is within noise of zero
--   m_full  Metric of the full model
--   previous  The step before that is stored
--   born  Edges that it has not
--   died  Edges that it alone has
--   jaccard  Edges of both over those of either
WITH newest AS (
    SELECT * FROM circuits
    WHERE task = $task AND answers = 'task' AND replicate = 0
        AND ($model IS NULL OR model = $model)
        AND ($engine IS NULL OR engine = $engine)
    QUALIFY row_number() OVER (
        PARTITION BY model, seed, engine, granularity, metric, ablation, corruption, examples,
            data_seed, dtype, rule, value, ranking, checkpoint
        ORDER BY created_at DESC, added_at DESC, circuit_id
    ) = 1
), steps AS (
    SELECT *,
        lag(circuit_id) OVER training AS before,
        lag(checkpoint) OVER training AS previous,
        lag(n_edges) OVER training AS n_before
    FROM newest
    WINDOW training AS (
        PARTITION BY model, seed, engine, granularity, metric, ablation, corruption, examples,
            data_seed, dtype, rule, value, ranking
        ORDER BY checkpoint
    )
), held AS (
    SELECT circuit_id, src, dst, port FROM edges
    WHERE in_circuit AND circuit_id IN (SELECT circuit_id FROM steps)
), common AS (
    SELECT s.circuit_id, count(b.circuit_id) AS shared
    FROM steps s
    LEFT JOIN held a ON a.circuit_id = s.circuit_id
    LEFT JOIN held b ON b.circuit_id = s.before
        AND b.src = a.src AND b.dst = a.dst AND b.port IS NOT DISTINCT FROM a.port
    WHERE s.before IS NOT NULL
    GROUP BY s.circuit_id
)
SELECT s.model, s.seed, s.engine, s.granularity, s.rule, s.value, s.checkpoint, s.circuit_id,
    s.reached, s.n_edges, s.faithfulness, s.m_full, s.previous,
    s.n_edges - c.shared AS born, s.n_before - c.shared AS died,
    c.shared / nullif(s.n_edges + s.n_before - c.shared, 0) AS jaccard
FROM steps s
LEFT JOIN common c ON c.circuit_id = s.circuit_id
ORDER BY s.model, s.seed, s.engine, s.granularity, s.metric, s.ablation, s.rule, s.value, s.ranking,
    s.corruption, s.examples, s.data_seed, s.dtype, s.checkpoint;

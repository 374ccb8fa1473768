-- What a circuit does on every task, split, metric and ablation it was evaluated with.
--
-- Parameters
--   circuit  circuit  Which circuit
-- Columns
--   task  Task evaluated on
--   split  Split
--   metric  Metric
--   ablation  Ablation
--   faithfulness  (m_circuit - m_empty) / (m_full - m_empty)
--   m_full  Metric of the full model
--   m_empty  Metric of the empty circuit
--   m_circuit  Metric of the circuit
--   n_prompts  Number of prompts
--   note  Remark
SELECT task, split, metric, ablation, faithfulness, m_full, m_empty, m_circuit, n_prompts, note
FROM evaluations
WHERE circuit_id = $circuit
ORDER BY ordinal;

-- Where a circuit comes from: the command that repeats it, versions, device and time.
--
-- Parameters
--   circuit  circuit  Which circuit
-- Columns
--   circuit_id  The circuit
--   run_id  Its run
--   command  Command line that repeats it
--   engine  Engine
--   engine_version  Version of the engine
--   settings  Engine settings, JSON
--   task_params  Task parameters, JSON
--   weights  SHA-256 of the model's weights
--   prompt_set  Hash of the prompts
--   versions  Versions of the libraries, JSON
--   device  Device
--   wall_seconds  Duration, seconds
--   created_at  End of the discovery, UTC
SELECT c.circuit_id, c.run_id, c.command, r.engine, r.engine_version, r.settings, r.task_params,
    c.weights, c.prompt_set, r.versions, r.device, c.wall_seconds, c.created_at
FROM circuits c
JOIN runs r ON r.run_id = c.run_id
WHERE c.circuit_id = $circuit;

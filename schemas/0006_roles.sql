-- What the source of an imported circuit calls the part of each component. Roles stand in the
-- settings of the run, because they are part of what was imported.

CREATE VIEW roles AS
SELECT c.circuit_id, d.name AS node, d.kind, d.layer, d.idx, e.value ->> '$' AS role
FROM circuit c
JOIN run r ON r.run_key = c.run_key,
    json_each(r.settings, '$.roles') e
JOIN component d ON d.space_key = r.space_key AND d.name = e.key;

COMMENT ON VIEW roles IS 'Roles of components, as the source of an imported circuit names them: one row per circuit and component that has one.';
COMMENT ON COLUMN roles.circuit_id IS 'The circuit';
COMMENT ON COLUMN roles.node IS 'Component name, such as a9.h9';
COMMENT ON COLUMN roles.kind IS 'head or mlp';
COMMENT ON COLUMN roles.layer IS 'Layer, from 0';
COMMENT ON COLUMN roles.idx IS 'Head; null for an MLP';
COMMENT ON COLUMN roles.role IS 'What the source calls it, such as name mover';

-- Paths of a circuit from input to logits, all or those through one component.
--
-- Walks forward edge by edge; a key/value head leads on to the query heads behind it that are in
-- the circuit. Shortest paths come first.
--
-- Parameters
--   circuit  circuit  Which circuit
--   through  component = null  Component every path must visit; any by default
--   longest  integer = 6  Most edges a path may have; large circuits have very many long paths
--   n  integer = 50  How many paths
-- Columns
--   path  Components and ports from input to logits
--   length  Number of edges
--   weakest  Least |score| of its edges; null where one was not measured
WITH RECURSIVE step AS (
    SELECT e.src, r.node AS dst, e.port, abs(e.score) AS strength
    FROM edges e
    JOIN receivers r ON r.circuit_id = e.circuit_id AND r.dst = e.dst
    WHERE e.circuit_id = $circuit AND e.in_circuit
),
walk AS (
    SELECT 'input' AS here, 'input' AS path, 0 AS length, ['input'] AS visited,
        CAST('infinity' AS FLOAT) AS weakest
    UNION ALL
    SELECT s.dst, w.path || '->' || s.dst || coalesce('<' || s.port || '>', ''), w.length + 1,
        list_append(w.visited, s.dst),
        CASE WHEN s.strength IS NULL OR w.weakest IS NULL THEN NULL
            ELSE least(w.weakest, s.strength) END
    FROM walk w
    JOIN step s ON s.src = w.here
    WHERE w.here <> 'logits' AND w.length < $longest
)
SELECT path, length, weakest
FROM walk
WHERE here = 'logits' AND ($through IS NULL OR list_contains(visited, $through))
ORDER BY length, weakest DESC NULLS LAST, path
LIMIT $n;

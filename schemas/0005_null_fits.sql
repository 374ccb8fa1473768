-- Solved nulls of circuits, so that an overlap with its p-value costs no solving.

CREATE TABLE null_fit (
    circuit_key INTEGER NOT NULL,
    universe TEXT NOT NULL,
    reader_block SMALLINT[] NOT NULL,
    writer_block SMALLINT[] NOT NULL,
    reader_weight DOUBLE[] NOT NULL,
    writer_weight DOUBLE[] NOT NULL
);
COMMENT ON TABLE null_fit IS 'The degree-preserving null of a circuit in a universe (a hash of its edges): edge u to v has probability x y / (1 + x y) where writer and reader are of one block, log x and log y in the weights; outside blocks (-1) it is as in the circuit.';

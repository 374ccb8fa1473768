-- Feature dictionaries: which there are, where their files lie, and how they do. The table of 0001
-- was never written to.

DROP TABLE dictionary;

CREATE TABLE dictionary (
    dictionary_key INTEGER NOT NULL,
    dictionary_id TEXT NOT NULL,
    name TEXT NOT NULL,
    model TEXT NOT NULL,
    checkpoint INTEGER,
    seed INTEGER,
    weights TEXT NOT NULL,
    hook_in TEXT NOT NULL,
    hook_out TEXT NOT NULL,
    architecture TEXT NOT NULL,
    d_in INTEGER NOT NULL,
    d_dict INTEGER NOT NULL,
    d_out INTEGER NOT NULL,
    k INTEGER,
    flags JSON NOT NULL,
    corpus TEXT,
    training JSON,
    health JSON,
    folder TEXT,
    added_at TIMESTAMPTZ NOT NULL
);
COMMENT ON TABLE dictionary IS 'Feature dictionaries (SAEs, transcoders) at their places in models; component.dictionary holds the name of their set.';

CREATE VIEW dictionaries AS
SELECT dictionary_id, name, model, checkpoint, seed, weights, hook_in, hook_out, architecture, d_in,
    d_dict, d_out, k, flags, corpus, training, health, folder, added_at
FROM dictionary;

COMMENT ON VIEW dictionaries IS 'Feature dictionaries (SAEs, transcoders) at their places in models; those of one set share a name.';
COMMENT ON COLUMN dictionaries.dictionary_id IS 'SHA-256 of what it computes, its places and the weights of the model';
COMMENT ON COLUMN dictionaries.name IS 'Name of the set: the DICT of feature names such as f/3.resid_post/DICT/17';
COMMENT ON COLUMN dictionaries.model IS 'The model it belongs to';
COMMENT ON COLUMN dictionaries.checkpoint IS 'Training step of that model; null where it has none';
COMMENT ON COLUMN dictionaries.seed IS 'Training seed of that model; null where it has none';
COMMENT ON COLUMN dictionaries.weights IS 'SHA-256 of the weights of that model';
COMMENT ON COLUMN dictionaries.hook_in IS 'What it reads, as TransformerLens calls it';
COMMENT ON COLUMN dictionaries.hook_out IS 'What it writes: another place than hook_in for transcoders';
COMMENT ON COLUMN dictionaries.architecture IS 'standard, gated, jumprelu, topk, or staircase_topk, whose sites share one folder';
COMMENT ON COLUMN dictionaries.d_in IS 'Width of what it reads';
COMMENT ON COLUMN dictionaries.d_dict IS 'Number of features; of a staircase, of this site';
COMMENT ON COLUMN dictionaries.d_out IS 'Width of what it writes';
COMMENT ON COLUMN dictionaries.k IS 'Features active at a time, at most; null for other forms than top-k';
COMMENT ON COLUMN dictionaries.flags IS 'JSON: transcoder, skip, apply_b_dec_to_input, rescale_acts_by_decoder_norm, normalize_activations, and stair, the number of the site in a staircase';
COMMENT ON COLUMN dictionaries.corpus IS 'Hash of the tokens it was trained on; null where not known';
COMMENT ON COLUMN dictionaries.training IS 'How it was trained, as JSON; null where not known';
COMMENT ON COLUMN dictionaries.health IS 'What it does on held-out text, as JSON; docs/dictionaries.md defines each figure';
COMMENT ON COLUMN dictionaries.folder IS 'Where its files lie; null for those in the package';
COMMENT ON COLUMN dictionaries.added_at IS 'When it came into this database';

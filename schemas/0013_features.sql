-- What features do on a text, what people call them, and which correspond in two dictionaries.

CREATE TABLE feature_profile (
    feature_profile_key INTEGER NOT NULL,
    dictionary_id TEXT NOT NULL,
    name TEXT NOT NULL,
    layer INTEGER NOT NULL,
    kind TEXT NOT NULL,
    model TEXT NOT NULL,
    checkpoint INTEGER,
    seed INTEGER,
    weights TEXT NOT NULL,
    corpus_id TEXT NOT NULL,
    corpus TEXT NOT NULL,
    n_rows INTEGER NOT NULL,
    n_positions BIGINT NOT NULL,
    settings TEXT NOT NULL,
    added_at TIMESTAMPTZ NOT NULL
);
COMMENT ON TABLE feature_profile IS 'Profiles of dictionaries on a text, one a dictionary; settings are JSON. name, layer and kind of site are those of feature names.';

CREATE TABLE feature (
    feature_profile_key INTEGER NOT NULL,
    feature INTEGER NOT NULL,
    n_active BIGINT NOT NULL,
    mean DOUBLE,
    sd DOUBLE,
    max DOUBLE,
    bin_width DOUBLE,
    histogram BIGINT[] NOT NULL
);
COMMENT ON TABLE feature IS 'Figures of every feature of a profile, over active positions.';

CREATE TABLE feature_context (
    feature_profile_key INTEGER NOT NULL,
    feature INTEGER NOT NULL,
    rank INTEGER NOT NULL,
    activation DOUBLE NOT NULL,
    corpus_row INTEGER NOT NULL,
    position INTEGER NOT NULL,
    place INTEGER NOT NULL,
    tokens INTEGER[] NOT NULL,
    texts TEXT[] NOT NULL,
    activations DOUBLE[] NOT NULL
);
COMMENT ON TABLE feature_context IS 'Top contexts of features; place is that of the largest activation among the tokens, from 0.';

CREATE TABLE feature_token (
    feature_profile_key INTEGER NOT NULL,
    feature INTEGER NOT NULL,
    estimator TEXT NOT NULL,
    direction TEXT NOT NULL,
    rank INTEGER NOT NULL,
    token_id INTEGER NOT NULL,
    token TEXT NOT NULL,
    value DOUBLE NOT NULL,
    n INTEGER
);
COMMENT ON TABLE feature_token IS 'Next tokens that features favour most (up) and least (down).';

CREATE TABLE feature_label (
    dictionary_id TEXT NOT NULL,
    feature INTEGER NOT NULL,
    label TEXT NOT NULL,
    author TEXT,
    source TEXT NOT NULL,
    labelled_at TIMESTAMPTZ NOT NULL
);
COMMENT ON TABLE feature_label IS 'What people call features: the users'' own, which no profile changes. One by author and source.';

CREATE TABLE feature_match (
    feature_match_key INTEGER NOT NULL,
    match_id TEXT NOT NULL,
    dictionary_a TEXT NOT NULL,
    dictionary_b TEXT NOT NULL,
    places TEXT NOT NULL,
    similarity TEXT NOT NULL,
    corpus_id TEXT NOT NULL,
    corpus TEXT NOT NULL,
    n_rows INTEGER NOT NULL,
    n_positions BIGINT NOT NULL,
    settings TEXT NOT NULL,
    figures TEXT NOT NULL,
    added_at TIMESTAMPTZ NOT NULL
);
COMMENT ON TABLE feature_match IS 'Correspondences of two dictionaries'' features; places, settings and figures are JSON.';

CREATE TABLE feature_pair (
    feature_match_key INTEGER NOT NULL,
    ordinal INTEGER NOT NULL,
    feature_a INTEGER NOT NULL,
    feature_b INTEGER NOT NULL,
    similarity DOUBLE NOT NULL,
    assigned BOOLEAN NOT NULL,
    mutual BOOLEAN NOT NULL,
    mass_a DOUBLE NOT NULL,
    mass_b DOUBLE NOT NULL
);
COMMENT ON TABLE feature_pair IS 'Features that correspond: of the optimal assignment, mutual nearest neighbours, or both.';

CREATE VIEW features AS
SELECT 'f/' || p.layer || '.' || p.kind || '/' || p.name || '/' || f.feature AS feature_name,
    p.dictionary_id, p.model, p.checkpoint, p.seed, p.layer, p.kind, p.name AS dictionary, f.feature,
    f.n_active / p.n_positions AS density, f.n_active, f.mean, f.sd, f.max, f.bin_width, f.histogram,
    (SELECT arg_max(l.label, (l.source = 'hand', l.labelled_at)) FROM feature_label l
        WHERE l.dictionary_id = p.dictionary_id AND l.feature = f.feature) AS label,
    p.corpus, p.corpus_id, p.n_positions
FROM feature f
JOIN feature_profile p USING (feature_profile_key);

COMMENT ON VIEW features IS 'What each feature of the profiled dictionaries does on a text, with its label. docs/feature_pages.md defines the figures.';
COMMENT ON COLUMN features.feature_name IS 'Such as f/3.resid_post/DICT/17; DICT as it is, not percent-encoded';
COMMENT ON COLUMN features.dictionary_id IS 'SHA-256 of what the dictionary computes, its places and the weights of the model';
COMMENT ON COLUMN features.model IS 'The model it belongs to';
COMMENT ON COLUMN features.checkpoint IS 'Training step of that model; null where it has none';
COMMENT ON COLUMN features.seed IS 'Training seed of that model; null where it has none';
COMMENT ON COLUMN features.layer IS 'Layer of the site it reads';
COMMENT ON COLUMN features.kind IS 'Kind of that site, such as resid_post';
COMMENT ON COLUMN features.dictionary IS 'Name of the set';
COMMENT ON COLUMN features.feature IS 'Number of the feature, from 0';
COMMENT ON COLUMN features.density IS 'Share of positions where its activation is above 0';
COMMENT ON COLUMN features.n_active IS 'Number of such positions';
COMMENT ON COLUMN features.mean IS 'Mean activation over active positions; null where there are none';
COMMENT ON COLUMN features.sd IS 'Standard deviation over active positions';
COMMENT ON COLUMN features.max IS 'Largest activation';
COMMENT ON COLUMN features.bin_width IS 'Width of a bin of the histogram, unit of the activation';
COMMENT ON COLUMN features.histogram IS 'Active positions by activation: bin i, from 0, holds those from i to i + 1 times bin_width';
COMMENT ON COLUMN features.label IS 'The newest label by hand, else the newest imported one';
COMMENT ON COLUMN features.corpus IS 'What the text is called';
COMMENT ON COLUMN features.corpus_id IS 'Hash of its tokens';
COMMENT ON COLUMN features.n_positions IS 'Positions of the text that count';

CREATE VIEW feature_contexts AS
SELECT p.dictionary_id, c.feature, c.rank, c.activation, c.corpus_row, c.position, c.place, c.tokens,
    c.texts, c.activations
FROM feature_context c
JOIN feature_profile p USING (feature_profile_key);

COMMENT ON VIEW feature_contexts IS 'Where features are most active, each in another row of the text.';
COMMENT ON COLUMN feature_contexts.dictionary_id IS 'The dictionary; see features';
COMMENT ON COLUMN feature_contexts.feature IS 'Number of the feature';
COMMENT ON COLUMN feature_contexts.rank IS 'From 0, the most active first';
COMMENT ON COLUMN feature_contexts.activation IS 'Largest activation in the row';
COMMENT ON COLUMN feature_contexts.corpus_row IS 'Row of the text, from 0';
COMMENT ON COLUMN feature_contexts.position IS 'Position in the row, from 0';
COMMENT ON COLUMN feature_contexts.place IS 'Place of that position among the tokens, from 0';
COMMENT ON COLUMN feature_contexts.tokens IS 'Token ids around it';
COMMENT ON COLUMN feature_contexts.texts IS 'Their texts';
COMMENT ON COLUMN feature_contexts.activations IS 'Activation of the feature at each, 0 where it is not active';

CREATE VIEW feature_tokens AS
SELECT p.dictionary_id, t.feature, t.estimator, t.direction, t.rank, t.token_id, t.token, t.value, t.n
FROM feature_token t
JOIN feature_profile p USING (feature_profile_key);

COMMENT ON VIEW feature_tokens IS 'Next tokens that features favour most and least.';
COMMENT ON COLUMN feature_tokens.dictionary_id IS 'The dictionary; see features';
COMMENT ON COLUMN feature_tokens.feature IS 'Number of the feature';
COMMENT ON COLUMN feature_tokens.estimator IS 'linear: decoder row through final norm and unembedding, logits per unit of activation; measured: logits with the feature minus logits without it, mean over its favourite positions';
COMMENT ON COLUMN feature_tokens.direction IS 'up: the most favoured; down: the least';
COMMENT ON COLUMN feature_tokens.rank IS 'From 0, the most extreme first';
COMMENT ON COLUMN feature_tokens.token_id IS 'Id of the token';
COMMENT ON COLUMN feature_tokens.token IS 'Its text';
COMMENT ON COLUMN feature_tokens.value IS 'Logits from the mean over the vocabulary; positive: favoured';
COMMENT ON COLUMN feature_tokens.n IS 'Favourite positions of the mean; null for linear';

CREATE VIEW feature_labels AS
SELECT dictionary_id, feature, label, author, source, labelled_at FROM feature_label;

COMMENT ON VIEW feature_labels IS 'What people call features. They belong to the user: no profile changes them.';
COMMENT ON COLUMN feature_labels.dictionary_id IS 'The dictionary; see features';
COMMENT ON COLUMN feature_labels.feature IS 'Number of the feature';
COMMENT ON COLUMN feature_labels.label IS 'The text';
COMMENT ON COLUMN feature_labels.author IS 'Who says so; null where not known';
COMMENT ON COLUMN feature_labels.source IS 'hand, or the file it was imported from';
COMMENT ON COLUMN feature_labels.labelled_at IS 'When';

CREATE VIEW feature_matches AS
SELECT match_id, dictionary_a, dictionary_b, similarity, corpus, corpus_id, n_positions,
    CAST(settings->>'threshold' AS DOUBLE) AS threshold, CAST(settings->>'draws' AS INTEGER) AS draws,
    CAST(figures->>'coverage_a' AS DOUBLE) AS coverage_a,
    CAST(figures->>'coverage_b' AS DOUBLE) AS coverage_b,
    CAST(figures->>'mass_a' AS DOUBLE) AS mass_a, CAST(figures->>'mass_b' AS DOUBLE) AS mass_b,
    CAST(figures->>'mutual' AS DOUBLE) AS mutual, CAST(figures->>'mean' AS DOUBLE) AS mean,
    CAST(figures->>'null_mass_a' AS DOUBLE) AS null_mass_a,
    CAST(figures->>'null_mass_b' AS DOUBLE) AS null_mass_b,
    CAST(figures->>'null_mean' AS DOUBLE) AS null_mean,
    CAST(figures->>'p_value' AS DOUBLE) AS p_value, added_at
FROM feature_match;

COMMENT ON VIEW feature_matches IS 'How far the features of two dictionaries correspond. docs/matching.md defines the figures.';
COMMENT ON COLUMN feature_matches.match_id IS 'Hash of the question';
COMMENT ON COLUMN feature_matches.dictionary_a IS 'One dictionary; see features';
COMMENT ON COLUMN feature_matches.dictionary_b IS 'The other';
COMMENT ON COLUMN feature_matches.similarity IS 'cosine of decoder rows, or correlation of activations over the same tokens';
COMMENT ON COLUMN feature_matches.corpus IS 'What the text is called';
COMMENT ON COLUMN feature_matches.corpus_id IS 'Hash of its tokens';
COMMENT ON COLUMN feature_matches.n_positions IS 'Positions of the text that count';
COMMENT ON COLUMN feature_matches.threshold IS 'Similarity from which on an assigned pair is a match';
COMMENT ON COLUMN feature_matches.draws IS 'Random matches beside it';
COMMENT ON COLUMN feature_matches.coverage_a IS 'Share of the features of A that are ever active and have a match';
COMMENT ON COLUMN feature_matches.coverage_b IS 'The same of B';
COMMENT ON COLUMN feature_matches.mass_a IS 'Share of the activation mass of A on features with a match';
COMMENT ON COLUMN feature_matches.mass_b IS 'The same of B';
COMMENT ON COLUMN feature_matches.mutual IS 'Mutual nearest neighbours, as a share of the smaller dictionary';
COMMENT ON COLUMN feature_matches.mean IS 'Mean similarity of assigned pairs';
COMMENT ON COLUMN feature_matches.null_mass_a IS 'mass_a of random matches, mean';
COMMENT ON COLUMN feature_matches.null_mass_b IS 'mass_b of random matches, mean';
COMMENT ON COLUMN feature_matches.null_mean IS 'mean of random matches, mean';
COMMENT ON COLUMN feature_matches.p_value IS '(1 + r) / (1 + n): r of the n random matches have mass_a or more';
COMMENT ON COLUMN feature_matches.added_at IS 'When it came into this database';

CREATE VIEW feature_pairs AS
SELECT m.match_id, m.dictionary_a, m.dictionary_b, p.feature_a, p.feature_b, p.similarity, p.assigned,
    p.mutual, p.mass_a, p.mass_b
FROM feature_pair p
JOIN feature_match m USING (feature_match_key);

COMMENT ON VIEW feature_pairs IS 'Which features of two dictionaries correspond.';
COMMENT ON COLUMN feature_pairs.match_id IS 'The match; see feature_matches';
COMMENT ON COLUMN feature_pairs.dictionary_a IS 'One dictionary';
COMMENT ON COLUMN feature_pairs.dictionary_b IS 'The other';
COMMENT ON COLUMN feature_pairs.feature_a IS 'Number of the feature of A';
COMMENT ON COLUMN feature_pairs.feature_b IS 'Number of the feature of B';
COMMENT ON COLUMN feature_pairs.similarity IS 'Cosine or correlation';
COMMENT ON COLUMN feature_pairs.assigned IS 'Whether the optimal assignment has them';
COMMENT ON COLUMN feature_pairs.mutual IS 'Whether each is the other''s most similar one';
COMMENT ON COLUMN feature_pairs.mass_a IS 'Share of the mass of A that its feature has';
COMMENT ON COLUMN feature_pairs.mass_b IS 'The same of B';

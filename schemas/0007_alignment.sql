-- What corresponds between models: signatures of components and the partners found by them. They
-- belong to weights, not to circuits.

CREATE TABLE signature (
    signature_key INTEGER NOT NULL,
    weights TEXT NOT NULL,
    recipe_id TEXT NOT NULL,
    recipe TEXT NOT NULL,
    model TEXT NOT NULL,
    spec TEXT NOT NULL,
    added_at TIMESTAMPTZ NOT NULL
);
COMMENT ON TABLE signature IS 'Signatures of the heads and MLPs of weights, by recipe; recipe and spec (of the graph space) are JSON.';

CREATE TABLE signature_value (
    signature_key INTEGER NOT NULL,
    sample INTEGER NOT NULL,
    ordinal INTEGER NOT NULL,
    node TEXT NOT NULL,
    feature TEXT NOT NULL,
    value DOUBLE
);
COMMENT ON TABLE signature_value IS 'Every figure of a signature, on every sample of texts; null where a component has no such feature. ordinal numbers components and features in order.';

CREATE TABLE alignment (
    alignment_key INTEGER NOT NULL,
    alignment_id TEXT NOT NULL,
    weights_a TEXT NOT NULL,
    weights_b TEXT NOT NULL,
    recipe_id TEXT NOT NULL,
    settings TEXT NOT NULL,
    limits TEXT NOT NULL,
    added_at TIMESTAMPTZ NOT NULL
);
COMMENT ON TABLE alignment IS 'Alignments of two models by their signatures; settings and limits (the cost beyond which a kind of components stays alone) are JSON.';

CREATE TABLE partner (
    alignment_key INTEGER NOT NULL,
    ordinal INTEGER NOT NULL,
    node_a TEXT NOT NULL,
    node_b TEXT NOT NULL,
    cost DOUBLE NOT NULL,
    joined BOOLEAN NOT NULL,
    stability_texts DOUBLE NOT NULL,
    stability_features DOUBLE NOT NULL,
    marks TEXT NOT NULL
);
COMMENT ON TABLE partner IS 'Components that correspond; marks is a JSON list of features and how far both stand out in them.';

CREATE VIEW signatures AS
SELECT s.model, s.weights, s.recipe_id, v.node, v.feature, avg(v.value) AS value,
    stddev_samp(v.value) AS sd, count(v.value) AS n_samples
FROM signature s
JOIN signature_value v ON v.signature_key = s.signature_key
WHERE v.value IS NOT NULL
GROUP BY ALL;

COMMENT ON VIEW signatures IS 'What each head and MLP of a model does, by feature: mean over samples of texts. docs/alignment.md defines the features.';
COMMENT ON COLUMN signatures.model IS 'The model, with its training seed';
COMMENT ON COLUMN signatures.weights IS 'SHA-256 of the weights';
COMMENT ON COLUMN signatures.recipe_id IS 'Hash of how it was measured: models compare by signatures of one recipe';
COMMENT ON COLUMN signatures.node IS 'The component, such as a5.h3 or m4';
COMMENT ON COLUMN signatures.feature IS 'Name of the feature, such as induction, or task:NAME of a held-out task';
COMMENT ON COLUMN signatures.value IS 'Mean over samples of texts, unit of the feature';
COMMENT ON COLUMN signatures.sd IS 'Standard deviation over samples';
COMMENT ON COLUMN signatures.n_samples IS 'Number of samples';

CREATE VIEW alignments AS
SELECT a.alignment_id, a.weights_a, a.weights_b, a.recipe_id, p.node_a, p.node_b, p.cost, p.joined,
    p.stability_texts, p.stability_features, CAST(p.marks AS JSON) AS marks
FROM alignment a
JOIN partner p ON p.alignment_key = a.alignment_key;

COMMENT ON VIEW alignments IS 'Which components of two models correspond; those without a partner do not stand here.';
COMMENT ON COLUMN alignments.alignment_id IS 'Hash of both weights, recipe and settings';
COMMENT ON COLUMN alignments.weights_a IS 'SHA-256 of the weights of model A';
COMMENT ON COLUMN alignments.weights_b IS 'SHA-256 of the weights of model B';
COMMENT ON COLUMN alignments.recipe_id IS 'Of the signatures';
COMMENT ON COLUMN alignments.node_a IS 'Component of A';
COMMENT ON COLUMN alignments.node_b IS 'Component of B';
COMMENT ON COLUMN alignments.cost IS 'Root mean square difference of their features plus the cost of depth, standard units';
COMMENT ON COLUMN alignments.joined IS 'Whether it was added to the one-to-one assignment (one-to-many)';
COMMENT ON COLUMN alignments.stability_texts IS 'Share of resamples of the texts in which they are partners again';
COMMENT ON COLUMN alignments.stability_features IS 'Share of resamples of the features in which they are partners again';
COMMENT ON COLUMN alignments.marks IS 'Features in which both stand out most, and how far in standard units: JSON list';

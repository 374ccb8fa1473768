"""Layer-slice graphs: asked for by options or a YAML file, measured, and stored as runs.

One rule for reruns: a graph of the same model, text and amounts takes over the start features of the
newest stored one as far as they lie in its slice, and the effects of every feature measured before.
"""

from __future__ import annotations

import shlex
import time
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from pydantic import ValidationError

from circuitdb import ingest
from circuitdb.api import dictionaries
from circuitdb.api.access import Access, Report
from circuitdb.api.featured import JOIN, shipped_set
from circuitdb.api.features import Features, set_of
from circuitdb.api.sae import Which
from circuitdb.circuit import Run
from circuitdb.dictionaries.feature import PageSettings
from circuitdb.errors import OptionError, did_you_mean
from circuitdb.features.settings import ENGINE, TASK, VERSION, SliceSettings
from circuitdb.models.sites import forward_order
from circuitdb.names import parse_component
from circuitdb.sweep.expand import Where

# What needs torch is imported where it is used: a file that cannot be read is told of at once.
if TYPE_CHECKING:
    from circuitdb.circuit import Discovery, Draft, Provenance
    from circuitdb.dictionaries.corpus import Corpus
    from circuitdb.dictionaries.located import Located
    from circuitdb.feature_space import FeatureSpace
    from circuitdb.features.slices import Feature, Graph, Values
    from circuitdb.models.model import LoadedModel
    from circuitdb.results import StoredCircuit
    from circuitdb.space import SpaceSpec
    from circuitdb.store import Store

KEYS: Final = {
    "ACTS_LAYERS_SLICE": "layers", "DIMS_PINNED": "pins", "INIT_THINNING_FACTOR": "thin",
    "BRANCHING_FACTOR": "branching", "NUM_SEQUENCES_INTERPED": "sequences",
    "SEQ_PER_DIM_CAP": "per_feature", "MAX_SEQ_INTERPED_LEN": "max_length", "SEED": "data_seed",
    "THRESHOLD_EXP": "threshold_exp", "TOP_K": "top_k", "VIEW": "view",
    "LOGIT_TOKENS": "logit_tokens", "MODEL_DIR": "model",
}  # fmt: skip
"""Keys of sparse_circuit_discovery's configuration, and what they are here."""
WITHOUT_MEANING: Final = (
    "ACCUMULATE_GRAD_BATCHES", "ACTS_DATA_FILE", "BIASES_FILE", "COEFFICIENT", "DECODER_FILE",
    "DEC_BIASES_FILE", "DIMS_IN_BATCH", "ENCODER_FILE", "ENC_BIASES_FILE", "EPOCHS", "GRAPH_DOT_FILE",
    "GRAPH_FILE", "LAMBDA_L1", "LEARNING_RATE", "LOG_EVERY_N_STEPS", "MAX_NEW_TOKENS", "MAX_SEQ_LEN",
    "NUM_QUESTIONS_EVALED", "NUM_QUESTIONS_INTERPED", "NUM_RETURN_SEQUENCES", "NUM_SEQUENCES_EVALED",
    "NUM_SHOT", "NUM_WORKERS", "PROJECTION_FACTOR", "PROMPT", "PROMPT_IDS_FILE", "SYNC_DIST_LOGGING",
    "TOP_K_INFO_FILE", "TRAINING_BATCH_SIZE", "WANDB_ENTITY", "WANDB_MODE", "WANDB_PROJECT",
)  # fmt: skip
"""Keys that such a file may have and that say nothing here: training, files, prompts, logging."""


class Asked(NamedTuple):
    """What a file and options ask for together."""

    settings: SliceSettings
    model: str | None
    ignored: tuple[str, ...]
    """Keys of the file that say nothing here."""


def asked(config: Path | None, options: Mapping[str, Any]) -> Asked:
    """The settings of a YAML file, options before it; those that are null are not given.

    Raises:
        OptionError: the file cannot be read, a key is unknown or a value wrong; file and line are named.
    """
    lines = dict[Where, int]()
    found: dict[str, Any] = {}
    ignored: tuple[str, ...] = ()
    if config is not None:
        content = ingest.mapping(config)
        lines = ingest.lines_of(config)
        _require_known(config, content, lines)
        ignored = tuple(key for key in content if key in WITHOUT_MEANING)
        found = {
            KEYS[key]: value for key, value in content.items()
            if key in KEYS and value not in (None, "None")
        }  # fmt: skip
        if "pins" in found:
            found["pins"] = _pins(found["pins"])
    given = {name: value for name, value in options.items() if value is not None}
    model = given.pop("model", None) or found.pop("model", None)
    found.pop("model", None)
    if not {"layers"} & {*found, *given}:
        raise OptionError("say which layers: --layers 1:3, or ACTS_LAYERS_SLICE in the file")
    try:
        settings = SliceSettings.model_validate(found | given)
    except ValidationError as error:
        raise OptionError(_wrong(error, config, lines, given)) from error
    return Asked(settings, model, ignored)


def _require_known(config: Path, content: Mapping[str, Any], lines: Mapping[Where, int]) -> None:
    known = [*KEYS, *WITHOUT_MEANING]
    for key in content:
        if key not in known:
            near = did_you_mean(str(key), known) or f"; known: {', '.join(KEYS)}"
            raise OptionError(f"{config}:{lines[(str(key),)]}: unknown key {key!r}{near}")
    if content.get("COEFFICIENT") not in (None, 0, "None"):
        raise OptionError(
            f"{config}:{lines[('COEFFICIENT',)]}: COEFFICIENT {content['COEFFICIENT']} steers features; "
            "here they are ablated: write 0.0 or leave it out"
        )


def _pins(given: Any) -> Any:
    """Pins of one feature or a list of them, by layer."""
    if not isinstance(given, Mapping):
        return given
    return {k: v if isinstance(v, list) else [v] for k, v in given.items() if v is not None}


def _wrong(
    error: ValidationError,
    config: Path | None,
    lines: Mapping[Where, int],
    given: Mapping[str, Any],
) -> str:
    """The first fault, with where it stands."""
    first = error.errors()[0]
    name = str(first["loc"][0])
    where = f"--{name.replace('_', '-')}"
    if name not in given:
        key = next(k for k, option in KEYS.items() if option == name)
        where = f"{config}:{lines[(key,)]}: {key}"
    hint = ""
    if name == "layers" and not isinstance(first["input"], str):
        hint = '; put the slice in quotes, as in "1:3"'
    return f"{where}: {first['msg']} (found {first['input']!r}){hint}"


def make(
    access: Access,
    wanted: Asked,
    sets: str | None,
    which: Which,
    report: Report,
    *,
    alone: bool = False,
) -> StoredCircuit:
    """Measure a layer-slice graph and store it; the circuit of its strong effects.

    Args:
        access: the database.
        wanted: what is asked for.
        sets: names of dictionaries, several joined by ``+``; where null, those shipped for the model.
        which: the model, and the text it reads.
        report: progress.
        alone: leave out start features of stored graphs.

    Raises:
        InputError: one of its kinds says what cannot be done as asked.
    """
    from circuitdb.discovery import made_by
    from circuitdb.features import slices
    from circuitdb.results import StoredCircuit

    started, settings = time.perf_counter(), wanted.settings
    with access.writing(create=True):
        pass  # A database that cannot be written is better known now than after the search.
    model = which.load(report)
    names = [name.strip() for name in (sets or shipped_set(model)).split(JOIN)]
    located = dictionaries.located(access, names, model)
    chain = slices.chain_of(located, model.spec.n_layers, settings)
    ones, corpus = list(chain.values()), which.corpus(model)
    text = slices.SliceText(model, ones, corpus, settings, report)
    starts = slices.starts_of(text, list(chain), settings)
    for start in starts:
        slices.require_effect(text, start)
    with access.reading() as store:
        earlier = _Earlier.of(store, model, corpus, settings)
        taken = [] if alone else earlier.starts(ones)
        known = earlier.effects(ones)
    taken = [feature for feature in taken if feature not in starts]
    starts = sorted([*starts, *taken])
    graph = slices.grow(text, starts, settings.branching, known, report)
    spec = _spec(model, located)
    run = _run(model, corpus, chain, starts, settings, spec)
    with access.writing() as store:
        space = store.feature_space(spec)
        seconds = time.perf_counter() - started
        again = settings if not taken else _pinned(settings, list(chain), starts)
        came = made_by(model, _command(again, JOIN.join(names), which), seconds)
        found = _discovery(run, space, graph, settings, came)
        before = found.circuit_ids[0] in store.run_circuits(run.run_id)
        store.add(found)
        circuit = store.get(found.circuit_ids[0])
    _profile(access, ones, model, which, settings, report)
    notices = _notices(wanted, text.told, len(text.tokens), len(taken), graph, found.circuits[0])
    return StoredCircuit.of(circuit, stored_before=before, notices=notices)


def _notices(
    wanted: Asked, told: str, n_rows: int, n_taken: int, graph: Graph, draft: Draft
) -> tuple[str, ...]:
    new = len(graph.effects) - graph.n_known
    made = [
        f"measured on {told}; {new} feature{'' if new == 1 else 's'} measured, {graph.n_known} known before"
    ]
    if n_rows < wanted.settings.sequences:
        made.append(f"the text has {n_rows} rows, not {wanted.settings.sequences}")
    if n_taken:
        made.append(
            f"with {n_taken} start feature{'' if n_taken == 1 else 's'} more of the graph stored before; "
            "--alone leaves them out"
        )
    if wanted.ignored:
        made.append(f"keys that say nothing here: {', '.join(wanted.ignored)}")
    if not len(draft.edges):
        largest = max(float(abs(values).max()) for values in graph.effects.values())
        made.append(
            f"no effect is above {wanted.settings.threshold:g}: the largest is {largest:.3g}; give a lower "
            "--threshold-exp"
        )
    return tuple(made)


def _profile(
    access: Access,
    ones: Sequence[Located],
    model: LoadedModel,
    which: Which,
    settings: SliceSettings,
    report: Report,
) -> None:
    """Profile those dictionaries that have no profile: drawings show contexts and tokens."""
    from circuitdb.dictionaries.profile import place_of

    features = Features(access)
    have = {place.dictionary_id for place in features.profiled()}
    names = [set_of(place_of(one, model)) for one in ones if one.located_id not in have]
    if names:
        corpus = which.corpus(model)
        positions = int(corpus.taken[: settings.sequences].sum())
        sizes = PageSettings(settings.top_k, settings.view, settings.logit_tokens)
        features.profile(*names, which=which, positions=positions, settings=sizes, report=report)


def _spec(model: LoadedModel, located: Sequence[Located]) -> SpaceSpec:
    """The graph of all dictionaries named, so that slices of a set share names with one another."""
    from circuitdb.features.bench import space_of

    return space_of(model.spec, sorted(located, key=lambda one: forward_order(one.written))).spec


class _Stored(NamedTuple):
    """A stored run of the same model, text and amounts."""

    run: Run
    space: FeatureSpace
    run_id: str


class _Earlier:
    """What earlier runs of the same model, text and amounts measured.

    Args:
        store: where they are; open as long as this is asked.
        runs: the newest first.
    """

    def __init__(self, store: Store, runs: Sequence[_Stored]) -> None:
        self._store, self._runs = store, runs

    @classmethod
    def of(
        cls, store: Store, model: LoadedModel, corpus: Corpus, settings: SliceSettings
    ) -> _Earlier:
        rows = store.find(
            engine=ENGINE,
            weights=model.weights_hash,
            prompt_set=corpus.corpus_id,
            dtype=model.dtype,
        )
        ids = list(dict.fromkeys(row.run_id for row in rows))
        stored = store.runs(ids)
        same = settings.measured_by
        alike = [
            i for i in ids
            if stored[i].engine_version == VERSION
            and {k: stored[i].settings.get(k) for k in same} == same
        ]  # fmt: skip
        return cls(store, [_Stored(stored[i], _features(store, i), i) for i in alike])

    def starts(self, ones: Sequence[Located]) -> list[Feature]:
        """The start features of the newest run that lie in a slice before its last layer."""
        places = {one.located_id: at for at, one in enumerate(ones[:-1])}
        for one in self._runs[:1]:
            sites = {(s.layer, s.site, s.name): s.located_id for s in one.space.spec.features}
            parsed = [parse_component(name) for name in one.run.settings["starts"]]
            ids = [sites[c.layer or 0, c.site or "", c.space or ""] for c in parsed]
            return [
                (places[i], c.index)
                for i, c in zip(ids, parsed, strict=True)
                if i in places and c.index is not None
            ]
        return []

    def effects(self, ones: Sequence[Located]) -> dict[Feature, Values]:
        """The effects of every feature that a run measured from one dictionary to the same next one."""
        found: dict[Feature, Values] = {}
        steps = {
            (one.located_id, after.located_id): at for at, (one, after) in enumerate(pairwise(ones))
        }
        for one in self._runs:
            for step in pairwise(one.run.settings["chain"]):
                if step in steps:
                    for index, values in _stored_effects(self._store, one, step).items():
                        found.setdefault((steps[step], index), values)
        return found


def _features(store: Store, run_id: str) -> FeatureSpace:
    from circuitdb.feature_space import FeatureSpace

    space = store.space(run_id)
    assert isinstance(space, FeatureSpace), "runs of slices are of features"
    return space


def _stored_effects(store: Store, one: _Stored, step: tuple[str, str]) -> dict[int, Values]:
    """Effects of the features of a dictionary on another one's that a run measured."""
    import numpy as np

    nodes, edges = store.node_scores(one.run_id), store.edge_scores(one.run_id)
    if nodes is None:
        return {}
    here, after = (one.space.place_of_dictionary(i) for i in step)
    own = nodes.mean[here.first : here.first + here.width]
    found = {int(i): np.zeros(after.width, np.float32) for i in np.flatnonzero(~np.isnan(own))}
    if edges is None:
        return found
    src, dst = one.space.edge_src - here.first, one.space.edge_dst - after.first
    inside = (src >= 0) & (src < here.width) & (dst >= 0) & (dst < after.width)
    for e in np.flatnonzero(inside & ~np.isnan(edges.mean)).tolist():
        found[int(src[e])][dst[e]] = edges.mean[e]
    return found


def _run(
    model: LoadedModel,
    corpus: Corpus,
    chain: Mapping[int, Located],
    starts: Sequence[Feature],
    settings: SliceSettings,
    spec: SpaceSpec,
) -> Run:
    ones = list(chain.values())
    return Run(
        task=TASK, prompt_set=corpus.corpus_id, model=model.name,
        checkpoint=model.checkpoint, seed=model.seed, weights=model.weights_hash, engine=ENGINE,
        engine_version=VERSION,
        settings={
            **settings.measured_by,
            "branching": settings.branching,
            "layers": list(chain),
            "starts": [str(ones[place].feature(index)) for place, index in starts],
            "chain": [one.located_id for one in ones],
            "located": [site.located_id for site in spec.features],
        },
        metric="activation", ablation="zero", data_seed=settings.data_seed, dtype=model.dtype,
    )  # fmt: skip


def _discovery(
    run: Run, space: FeatureSpace, graph: Graph, settings: SliceSettings, came: Provenance
) -> Discovery:
    """A measured graph as a run with one circuit.

    An edge is scored where its effect is not 0, a component where it was measured: by the sum of its
    effects.
    """
    import numpy as np

    from circuitdb.circuit import Discovery, Draft, Scores, Selection
    from circuitdb.features.slices import strongest

    src, dst, values, followed = [], [], [], []
    places = [space.place_of_dictionary(i) for i in run.settings["chain"]]
    nodes = np.full(space.n_nodes, np.nan, np.float32)
    for (place, index), effects in sorted(graph.effects.items()):
        ids = np.flatnonzero(effects)
        src.append(np.full(len(ids), places[place].first + index, np.int32))
        dst.append((places[place + 1].first + ids).astype(np.int32))
        values.append(effects[ids])
        followed.append(np.isin(ids, strongest(effects, settings.branching)))
        nodes[places[place].first + index] = effects.sum(dtype=np.float64)
    edges = space.grow(np.concatenate(src), np.concatenate(dst))
    scores = np.full(space.n_edges, np.nan, np.float32)
    scores[edges] = np.concatenate(values)
    if settings.threshold is None:
        selection, chosen = Selection(rule="engine", ranking="none"), np.concatenate(followed)
    else:
        selection = Selection(rule="threshold", value=settings.threshold, unit="activation")
        chosen = np.abs(np.concatenate(values)) > settings.threshold
    members = np.sort(edges[chosen]).astype(np.int32)
    touched = np.unique(np.concatenate([space.edge_src[members], space.edge_dst[members]]))
    draft = Draft("edge", selection, members, touched.astype(np.int32))
    return Discovery(run, space, came, (draft,), Scores(scores), Scores(nodes))


def _pinned(
    settings: SliceSettings, layers: Sequence[int], starts: Sequence[Feature]
) -> SliceSettings:
    """The same with every start feature pinned."""
    pins: dict[int, tuple[int, ...]] = {}
    for place, index in starts:
        pins[layers[place]] = (*pins.get(layers[place], ()), index)
    return settings.model_copy(update={"pins": pins, "thin": None})


def _command(settings: SliceSettings, sets: str, which: Which) -> str:
    """The command line that gives the same, whatever is stored."""
    words = ["circuitdb", "slice", "--dictionaries", sets]
    for name in ("model", "checkpoint", "seed", "text", "context"):
        value = getattr(which, name)
        words += [] if value is None else [f"--{name}", str(value)]
    if which.leave_out is not None:
        words += ["--leave-out", ",".join(which.leave_out) or "none"]
    for name, value in settings.model_dump(exclude_defaults=True, exclude={"pins"}).items():
        told = f"{value:g}" if isinstance(value, float) else str(value)
        # A negative number is none of the options.
        words.append(f"--{name.replace('_', '-')}={told}")
    for layer, features in sorted(settings.pins.items()):
        words += [f"--pin={layer}:{index}" for index in features]
    return shlex.join([*words, "--alone"])

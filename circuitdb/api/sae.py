"""Training, measuring and taking in feature dictionaries: the library behind ``circuitdb sae``.

Files come first and the database's rows last: a set is written beside its folder and renamed, so that
the folder is whole or not there. Where the rows could not be written any more, the folder says all
that is needed to import it.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from circuitdb.api import dictionaries
from circuitdb.api.access import Access, Report
from circuitdb.circuit import Json
from circuitdb.dictionaries import shelf
from circuitdb.dictionaries.record import Record, require_name
from circuitdb.errors import DictionaryError, OptionError, UnknownNameError
from circuitdb.models import catalogue, sites, toy
from circuitdb.models.sites import Site
from circuitdb.space import SpaceSpec

# What needs torch is imported where it is used: sets are listed and forgotten without it.
if TYPE_CHECKING:
    from circuitdb.dictionaries.corpus import Corpus
    from circuitdb.dictionaries.forms import Dictionary, Form
    from circuitdb.dictionaries.health import Health
    from circuitdb.dictionaries.located import Located
    from circuitdb.dictionaries.together import Place
    from circuitdb.dictionaries.training import Settings
    from circuitdb.models.model import LoadedModel

FORMS: Final = ("topk", "standard", "gated", "jumprelu", "staircase_topk")
EXPANSION: Final = 8
"""Features a dimension, by default."""
NORMALIZATION: Final = "expected_average_only_in"
DEAD_AFTER: Final = 1000
LOWEST_L0, HIGHEST_L0 = 0.5, 1.1
"""Shares of its declared k between which the L0 of a dictionary that fits its place lies."""


@dataclass(frozen=True, slots=True)
class Which:
    """A model, and the text it reads."""

    model: str | None = None
    """``toy-4l`` where null, or the one a file names."""
    checkpoint: int | None = None
    seed: int | None = None
    text: Path | None = None
    """A text file; where null, of toy models their own training texts, of others the standard
    library's topics."""
    context: int | None = None
    """Tokens a row of a text; 128 where null."""
    leave_out: tuple[str, ...] | None = None
    """Positions that nothing is read or replaced at; where null, of toy models none, of others the
    first of each row."""
    eval_positions: int = 8192
    """Positions that health is measured on."""
    device: str = "cpu"
    threads: int | None = None

    def load(self, report: Report) -> LoadedModel:
        """The model."""
        name = self.model or "toy-4l"
        report(f"loading {name}", 0, 0)
        return catalogue.load(
            name, checkpoint=self.checkpoint, seed=self.seed, device=self.device,
            threads=self.threads,
        )  # fmt: skip

    def corpus(self, model: LoadedModel) -> Corpus:
        """The text."""
        from circuitdb.dictionaries import corpus

        is_toy = model.name in {entry.name for entry in toy.entries()}
        left_out = self.leave_out if self.leave_out is not None else () if is_toy else ("first",)
        if is_toy and self.text is None and self.context is None:
            return corpus.own(model, leave_out=left_out)
        return corpus.read(model, self.text, context=self.context or 128, leave_out=left_out)


@dataclass(frozen=True, slots=True)
class Training:
    """What is trained, and how."""

    sites: str = "all"
    """Names of sites, separated by commas; ``all``: every place of the residual stream; ``mlp``; or a
    kind of site, in every layer."""
    form: str = "topk"
    features: int | None = None
    k: int = 10
    transcoder: bool = False
    skip: bool = False
    share: bool = True
    """Whether the sites of a staircase share their weights."""
    detach: bool = False
    end_to_end: bool = False
    downstream: float = 0.0
    positions: int = 1_000_000
    batch: int = 1024
    learning_rate: float | None = None
    sparsity: float = 1.0
    dead_after: int | None = None
    """Steps without activity after which a feature is dead; a tenth of all, 1,000 at most, where null."""
    init_seed: int = 0
    half: bool = False

    @property
    def steps(self) -> int:
        """Updates of each dictionary."""
        return self.positions // self.batch

    def check(self) -> None:
        """Refuse what does not go together.

        Raises:
            UnknownNameError: no such form.
            OptionError: anything else.
        """
        if self.form not in FORMS:
            raise UnknownNameError("form", self.form, FORMS)
        stairs = self.form == "staircase_topk"
        for problem, wrong in {
            f"--batch is {self.batch}; give 1 or more": self.batch < 1,
            f"--positions {self.positions} fill no batch of {self.batch}": self.positions
            < self.batch,
            "--downstream belongs to --end-to-end": self.downstream and not self.end_to_end,
            f"--downstream is {self.downstream}; give 0 or more": self.downstream < 0,
            "--skip belongs to --transcoder": self.skip and not self.transcoder,
            "--no-share and --detach belong to --form staircase_topk": not stairs
            and (self.detach or not self.share),
            "--detach needs shared weights": self.detach and not self.share,
            "a staircase of transcoders is not trained: give --form topk": stairs
            and self.transcoder,
        }.items():
            if wrong:
                raise OptionError(problem)

    def places(self, spec: SpaceSpec) -> list[tuple[Site, Site]]:
        """The sites read and written, in forward order.

        Raises:
            OptionError: the model has no such site, or a transcoder reads elsewhere than an MLP does.
            UnknownNameError: it is no site.
        """
        found = sorted(set(self._read(spec)), key=sites.forward_order)
        for site in found:
            sites.require(site, spec)
            if site.head is not None:
                raise OptionError(
                    f"{str(site)!r} is one head, whose features have no names: train on all side by side"
                )
            if self.transcoder and site.kind != "mlp_in":
                raise OptionError(
                    f"a transcoder goes from mlp_in to mlp_out: {str(site)!r} is neither; give --sites "
                    "mlp, or such as 3_mlpin"
                )
        return [(s, Site("mlp_out", s.layer) if self.transcoder else s) for s in found]

    def _read(self, spec: SpaceSpec) -> list[Site]:
        n, text = spec.n_layers, self.sites.strip()
        if text == "mlp" or (text == "all" and self.transcoder):
            text = "mlp_in" if self.transcoder else "mlp_out"
        if text == "all":
            return [*(Site("resid_pre", layer) for layer in range(n)), Site("resid_post", n - 1)]
        if text in sites.HOOKS:
            return [Site(text, layer) for layer in range(n)]
        return [sites.parse(name.strip(), spec) for name in text.split(",")]


class Trained(NamedTuple):
    """A set that was trained."""

    records: tuple[Record, ...]
    health: Health
    folder: Path
    seconds: float


class Measured(NamedTuple):
    """What was measured of a set."""

    located: list[Located]
    health: Health


def train(
    access: Access, name: str, out: Path, which: Which, training: Training, report: Report
) -> Trained:
    """Train a set, measure it on held-out text, write it and store what is known of it.

    Raises:
        OptionError: options out of range, or that do not go together.
        DictionaryError: the folder or the name is taken.
        NumericalError: a loss is not finite.
    """
    from circuitdb.dictionaries import corpus, health

    training.check()
    _require_free(name, out)
    model = which.load(report)
    wanted = training.places(model.spec)
    _require_new(access, name, model, wanted)
    places = _places(model, training, wanted)
    report("reading the text", 0, 0)
    text = which.corpus(model)
    learned, held_out = corpus.parts(text)
    seconds = _learn(model, learned, places, training, report)
    made = [_made(place, name, model, training.half) for place in places]
    found = health.measure(
        model, [one for each in made for one in each.located], held_out,
        n_positions=which.eval_positions, report=report,
    )  # fmt: skip
    told = _told(training, places[0].trainer.settings, text, seconds)
    described = [
        (each.dictionary, _records_of(each, model, text, told, found, out)) for each in made
    ]
    _write(out, described, training.half)
    records = tuple(record for _, each in described for record in each)
    with access.writing(create=True) as store:
        store.add_dictionary(*records)
    return Trained(records, found, out, seconds)


class _Made(NamedTuple):
    dictionary: Dictionary
    located: list[Located]
    """One, or of a staircase one a site."""


def _made(place: Place, name: str, model: LoadedModel, half: bool) -> _Made:
    dictionary = place.made(half=half)
    return _Made(dictionary, place.located(dictionary, name, model.weights_hash))


def _learn(
    model: LoadedModel, text: Corpus, places: Sequence[Place], training: Training, report: Report
) -> float:
    """Train; the seconds it took."""
    from circuitdb.dictionaries import together

    began = time.monotonic()
    common: Json = {"steps": training.steps, "batch": training.batch, "seed": training.init_seed}
    if training.end_to_end:
        together.end_to_end(
            model, text, places, **common, downstream=training.downstream, report=report
        )
    else:
        together.over_stream(model, text, places, **common, report=report)
    return time.monotonic() - began


def _records_of(
    made: _Made, model: LoadedModel, text: Corpus, told: Json, health: Health, out: Path
) -> list[Record]:
    """The records of what one folder holds, which is named after the first site."""
    folder, stairs = out / str(made.located[0].site), made.dictionary.form.stairs
    return [
        shelf.record_of(
            one,
            model,
            stair=i if stairs else None,
            corpus=text.corpus_id,
            training=told,
            health=health.of(one.site),
            folder=folder,
        )
        for i, one in enumerate(made.located)
    ]


def _require_free(name: str, out: Path) -> None:
    _require_name(name)
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise DictionaryError(
            f"{str(out)!r} is there already: name another folder; circuitdb sae import takes in what "
            "lies there"
        )


def _require_name(name: str) -> None:
    require_name(name)
    if dictionaries.reserved(name):
        raise OptionError(
            f"{name!r} means a set of the package or activations themselves: choose another name"
        )


def _require_new(
    access: Access, name: str, model: LoadedModel, wanted: Sequence[tuple[Site, Site]]
) -> None:
    hooks = {str(read) for read, _ in wanted}
    for record in dictionaries.known(access):
        if (record.name, record.weights) == (name, model.weights_hash) and record.hook_in in hooks:
            raise DictionaryError(
                f"a dictionary {record.label} is stored: choose another name, or forget it with "
                f"circuitdb sae rm {name}"
            )


def _places(
    model: LoadedModel, training: Training, wanted: Sequence[tuple[Site, Site]]
) -> list[Place]:
    """A trainer for each site; for a staircase with shared weights one for all."""
    from circuitdb.dictionaries.forms import Stair
    from circuitdb.dictionaries.together import Place
    from circuitdb.dictionaries.training import Trainer

    settings = _settings(training)
    width = {site: sites.width(model, site) for pair in wanted for site in pair}
    if training.form != "staircase_topk":
        forms = [_form(training, training.form, width[r], width[w]) for r, w in wanted]
    else:
        widths = {width[read] for read, _ in wanted}
        if len(widths) > 1:
            raise OptionError("the sites of a staircase have one width: name such as 0_act,1_act")
        whole = _form(training, "topk", *widths, *widths)
        n = len(wanted)
        rises = [-(-whole.d_dict * (i + 1) // n) for i in range(n)]
        if not training.share:
            forms = [replace(whole, d_dict=each) for each in rises]
        else:
            stairs = tuple(Stair(each, training.k) for each in rises)
            shared = replace(whole, architecture="staircase_topk", k=None, stairs=stairs)
            read, written = zip(*wanted, strict=True)
            return [Place(Trainer(shared, settings, model.forward.device), read, written)]
    return [
        Place(Trainer(form, settings, model.forward.device), (read,), (written,))
        for form, (read, written) in zip(forms, wanted, strict=True)
    ]


def _form(training: Training, architecture: str, d_in: int, d_out: int) -> Form:
    from circuitdb.dictionaries.forms import Form

    topk = architecture == "topk"
    return Form(
        architecture,
        d_in,
        training.features or EXPANSION * d_in,
        d_out,
        k=training.k if topk else None,
        transcoder=training.transcoder,
        skip=training.skip,
        apply_b_dec_to_input=not training.transcoder,
        rescale_acts_by_decoder_norm=topk,
        normalize_activations=NORMALIZATION,
    )


def _settings(training: Training) -> Settings:
    from circuitdb.dictionaries.training import Settings

    if training.learning_rate is not None and training.learning_rate <= 0:
        raise OptionError(f"--lr is {training.learning_rate}; give more than 0")
    if training.sparsity < 0:
        raise OptionError(f"--l1 is {training.sparsity}; give 0 or more")
    return Settings(
        steps=training.steps,
        learning_rate=training.learning_rate,
        sparsity=training.sparsity,
        detach=training.detach,
        seed=training.init_seed,
        dead_after=training.dead_after or max(1, min(DEAD_AFTER, training.steps // 10)),
        warm_up=min(100, training.steps // 10),
    )


def _told(training: Training, settings: Settings, text: Corpus, seconds: float) -> Json:
    """The ``training`` of a record."""
    from circuitdb import __version__

    return {
        **{k: v for k, v in asdict(training).items() if k != "positions"},
        "positions": training.steps * training.batch,
        "settings": settings.model_dump(mode="json"),
        "text": text.name,
        "context": text.tokens.shape[1],
        "held_out": "every tenth row",
        "seconds": round(seconds, 1),
        "circuitdb": __version__,
    }


def _write(out: Path, made: Sequence[tuple[Dictionary, Sequence[Record]]], half: bool) -> None:
    """A folder for each, all or none."""
    partial = out.with_name(out.name + ".partial")
    try:
        if partial.exists():
            shutil.rmtree(partial)
        for dictionary, records in made:
            shelf.write(dictionary, records, partial / records[0].hook_in, half=half)
        if out.exists():
            out.rmdir()
        partial.rename(out)
    except OSError as error:
        raise DictionaryError(f"cannot write {str(out)!r}: {error.strerror}") from error


def evaluate(access: Access, names: Sequence[str], which: Which, report: Report) -> Measured:
    """Measure what names stand for on held-out text; what a database can keep of it, it keeps.

    Raises:
        UnknownNameError: no such set belongs to the model.
        DictionaryError: files are gone, or do not fit.
    """
    from circuitdb.dictionaries import health

    model = which.load(report)
    located = dictionaries.located(access, names, model)
    records = {(r.dictionary_id, r.name): r for r in dictionaries.known(access)}
    known = [records[key] for one in located if (key := (one.located_id, one.name)) in records]
    text = _unseen(which, model, known)
    found = health.measure(model, located, text, n_positions=which.eval_positions, report=report)
    if known:
        with access.writing(create=True) as store:
            store.add_dictionary(*(record for record in known if record.folder is None))
            for record in known:
                store.set_health(record.dictionary_id, found.of(sites.of_hook(record.hook_in)))
    return Measured(located, found)


def _unseen(which: Which, model: LoadedModel, records: Sequence[Record]) -> Corpus:
    """The text, without the rows that a dictionary has learned from."""
    from circuitdb.dictionaries import corpus

    text = which.corpus(model)
    seen = any(record.corpus == text.corpus_id for record in records)
    return corpus.parts(text).held_out if seen else text


def take_in(
    access: Access,
    folder: Path,
    which: Which,
    report: Report,
    *,
    name: str | None = None,
    site: str | None = None,
    force: bool = False,
) -> tuple[Record, ...]:
    """Store what is known of the dictionaries in a folder of sae-lens's layout, or in those inside it.

    What another program wrote is measured first.

    Args:
        access: the database.
        folder: where they lie, and stay.
        which: the model, where the files do not name it; and the text.
        report: progress.
        name: of the set; what we wrote has one.
        site: what is read, where the file does not say it or says it wrong.
        force: take it although it names another model, or has another L0 than it declares.

    Raises:
        DictionaryError: nothing to read there, a pickle, or it does not fit the model, its place or
            its declared k.
        OptionError: a name or a site is needed, or the name is taken.
    """
    if name is not None:
        _require_name(name)
    found = [
        record
        for one in _folders(folder)
        for record in _records(one.absolute(), which, report, name, site, force)
    ]
    found.sort(key=lambda record: sites.forward_order(sites.of_hook(record.hook_in)))
    with access.writing(create=True) as store:
        store.add_dictionary(*found)
    return tuple(found)


def _folders(folder: Path) -> list[Path]:
    """The folder, or those in it that hold dictionaries."""
    inner = sorted(path.parent for path in folder.glob(f"*/{shelf.CONFIG}"))
    return inner if inner and not (folder / shelf.CONFIG).exists() else [folder]


def _records(
    folder: Path, which: Which, report: Report, name: str | None, site: str | None, force: bool
) -> list[Record]:
    own = shelf.records_in(folder) if (folder / shelf.CONFIG).is_file() else ()
    if not own:
        return [_foreign(folder, which, report, name, site, force)]
    records = [replace(record, name=name or record.name) for record in own]
    located = [shelf.load(record) for record in records]
    _require_name(records[0].name)
    if which.model is not None:
        from circuitdb.dictionaries.located import require

        require(located, which.load(report))
    return records


def _foreign(
    folder: Path, which: Which, report: Report, name: str | None, site: str | None, force: bool
) -> Record:
    """The record of a dictionary that another program wrote, measured."""
    from circuitdb.dictionaries import health, sae_lens

    stored = sae_lens.read(folder)
    if name is None:
        raise OptionError(f"{str(folder)!r} has no name of ours: give --name")
    named = stored.metadata.get("model_name")
    chosen = which.model or named
    if chosen is None:
        raise OptionError(f"{str(folder)!r} names no model: give --model")
    if named is not None and not force and not _same_model(str(named), chosen):
        raise DictionaryError(
            f"{str(folder)!r} is of model {named!r}, not of {chosen!r}; --force takes it for that one"
        )
    model = replace(which, model=chosen).load(report)
    one = _placed(stored, folder, name, site, model)
    found = health.measure(
        model, [one], which.corpus(model), n_positions=which.eval_positions, report=report
    )
    if not force:
        _require_l0(one, stored.metadata.get("k"), found)
    return shelf.record_of(one, model, health=found.of(one.site), folder=folder)


def _same_model(named: str, chosen: str) -> bool:
    """Whether two names mean one model: by catalogue, or but for the owner on the hub."""
    return catalogue.known_as(named) == catalogue.known_as(chosen) or (
        named.rpartition("/")[2] == chosen.rstrip("/").rpartition("/")[2]
    )


def _placed(stored: Any, folder: Path, name: str, site: str | None, model: LoadedModel) -> Located:
    """A dictionary at the place that an option or its file names."""
    from circuitdb.dictionaries.located import Located, require

    told = stored.metadata
    if stored.dictionary.form.stairs:
        raise DictionaryError(f"{str(folder)!r} does not say at which sites its staircase stands")
    hook = site or told.get("hook_name")
    if hook is None:
        raise OptionError(f"{str(folder)!r} names no hook: give --site")
    read = written = sites.parse(str(hook), model.spec)
    if told.get("hook_head_index") is not None:
        read = written = read._replace(head=int(told["hook_head_index"]))
    if stored.dictionary.form.transcoder:
        out = told.get("hook_name_out") if site is None else None
        written = sites.parse(str(out), model.spec) if out else Site("mlp_out", read.layer)
    made = Located(name, read, stored.dictionary, written, model.weights_hash)
    require([made], model)
    return made


def _require_l0(one: Located, told: Any, found: Health) -> None:
    """Refuse a dictionary that is not as sparse as it says."""
    declared = one.dictionary.form.k or (told if isinstance(told, int) else None)
    l0 = found.sparsity[one.site].l0
    if declared and not LOWEST_L0 * declared <= l0 <= HIGHEST_L0 * declared:
        raise DictionaryError(
            f"dictionary {one.label} declares k = {declared} and has L0 {l0:.1f} on {found.text}: it "
            "belongs to another hook or model, or its file lost a setting; --force takes it as it is"
        )


def forget(access: Access, name: str) -> tuple[Record, ...]:
    """Forget the stored dictionaries of a set; their files stay.

    Profiles and matches of those that no other set has go too, with a notice; labels stay.

    Raises:
        UnknownNameError: none is stored under that name.
    """
    with access.reading() as store:
        stored = store.dictionaries()
    records = tuple(r for r in stored if r.name == name)
    if not records:
        raise UnknownNameError("set", name, {r.name for r in stored})
    left = {r.dictionary_id for r in (*shelf.shipped(), *stored) if r not in records}
    unnamed = [r.dictionary_id for r in records if r.dictionary_id not in left]
    with access.writing() as store:
        n_profiles, n_matches = store.remove_dictionaries(records, unnamed)
    if n_profiles or n_matches:
        access.notice(
            f"profiles ({n_profiles}) and matches ({n_matches}) of its features are forgotten too; "
            "labels stay"
        )
    return records

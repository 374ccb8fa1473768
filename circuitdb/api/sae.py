"""Feature dictionaries measured, taken in and forgotten, and what a training of them is asked for.

With ``dictionary_training`` the library behind ``circuitdb sae``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from circuitdb.api import dictionaries
from circuitdb.api.access import Access, Report
from circuitdb.dictionaries import shelf
from circuitdb.dictionaries.record import Record, require_name
from circuitdb.errors import DictionaryError, OptionError, UnknownNameError
from circuitdb.models import catalogue, sites, toy
from circuitdb.models.sites import Site
from circuitdb.space import SpaceSpec

# What needs torch is imported where it is used: sets are listed and forgotten without it.
if TYPE_CHECKING:
    from circuitdb.dictionaries.corpus import Corpus
    from circuitdb.dictionaries.health import Health
    from circuitdb.dictionaries.located import Located
    from circuitdb.models.model import LoadedModel

FORMS: Final = ("topk", "standard", "gated", "jumprelu", "staircase_topk")
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


class Measured(NamedTuple):
    """What was measured of a set."""

    located: list[Located]
    health: Health


def require_own_name(name: str) -> None:
    """Refuse a name that a set cannot have, or that means another.

    Raises:
        OptionError: it is one.
    """
    require_name(name)
    if dictionaries.reserved(name):
        raise OptionError(
            f"{name!r} means a set of the package or activations themselves: choose another name"
        )


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
        require_own_name(name)
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
    require_own_name(records[0].name)
    if (which.model, which.checkpoint, which.seed) != (None, None, None):
        from circuitdb.dictionaries.located import require

        require(located, replace(which, model=which.model or records[0].model).load(report))
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

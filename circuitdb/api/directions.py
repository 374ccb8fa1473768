"""Directions of a database: fitted, patched, swept over layers, compared, brought in and written out.

What is stored is not done again, so that whatever was interrupted goes on where it was.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from circuitdb.api.access import Access, Report, silent
from circuitdb.api.options import check_names
from circuitdb.errors import (
    CircuitReferenceError,
    MissingStoreError,
    ModelError,
    OptionError,
    UnknownNameError,
)
from circuitdb.names import parse_component

# What needs torch is imported where it is used: stored directions are listed and compared without it.
if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from circuitdb.circuit import Json
    from circuitdb.directions.direction import Direction
    from circuitdb.directions.material import Material
    from circuitdb.directions.measured import Patch
    from circuitdb.models.model import LoadedModel

KEYS: Final = (
    "task", "method", "layer", "site", "head", "position", "dims", "seed", "name", "model",
)  # fmt: skip
"""What a selection of directions is told by."""
LOADING: Final = ("device", "dtype", "forward", "threads", "force")
_ID: Final = re.compile(r"[0-9a-f]{6,64}")
_DEFAULT_MODEL: Final = "toy-4l"
DEFAULT_METRIC: Final = "logit_diff_denoising"
Rows = list[tuple[str, dict[tuple[str, str], float | None]]]
"""A row a direction: its label, and values by task and position."""


class Fitted(NamedTuple):
    """Directions that were asked for."""

    directions: tuple[Direction, ...]
    stored_before: frozenset[str]
    """Ids of those that were found in the database."""
    disjoint: str
    """What was proved of the splits."""


class Cell(NamedTuple):
    """A direction and what patching it did."""

    direction: Direction
    patch: Patch


class Patched(NamedTuple):
    """What patching directions did on tasks."""

    cells: tuple[Cell, ...]
    stored_before: int
    """How many were found in the database."""
    disjoint: str
    """What was proved of the prompts."""

    def rows(self, metric: str) -> Rows:
        """A row a direction, with its value by (dataset, position)."""
        made: dict[str, tuple[Direction, dict[tuple[str, str], float | None]]] = {}
        for direction, patch in self.cells:
            question = patch.question
            if question.metric == metric:
                cells = made.setdefault(direction.direction_id, (direction, {}))[1]
                cells[question.task, question.position] = patch.value
        labels = labelled([direction for direction, _ in made.values()])
        return list(zip(labels, (cells for _, cells in made.values()), strict=True))

    @property
    def metrics(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(patch.question.metric for _, patch in self.cells))

    def save_csv(self, folder: str | Path) -> list[Path]:
        """A table a metric, ``direction_patching_{metric}_{resid|attn_result}_{scaffold}.csv``.

        The scaffold is that of Treebank tasks, else ``none``. Files that are there are written anew.

        Raises:
            OptionError: there is no such folder.
        """
        from circuitdb.directions.files import save_csv

        if not Path(folder).is_dir():
            raise OptionError(f"{str(folder)!r} is no folder to write tables into")
        first = self.cells[0].patch.question
        where = "attn_result" if first.at.startswith("heads:") else first.at
        scaffolds = {
            s
            for s in ("continuation", "classification")
            for c in self.cells
            if s in c.patch.question.task
        }
        scaffold = "_".join(sorted(scaffolds)) or "none"
        return [
            save_csv(
                self.rows(metric),
                Path(folder) / f"direction_patching_{metric}_{where}_{scaffold}.csv",
            )
            for metric in self.metrics
        ]


class Swept(NamedTuple):
    """A method at a position over layers: chosen on validation prompts, reported on test prompts."""

    method: str
    position: str
    validation: tuple[Cell, ...]
    """By layer."""
    chosen: int
    """Number of the layer in `validation` with the largest value."""
    test: Cell
    """The chosen layer's direction on test prompts."""


class Sweep(NamedTuple):
    """Methods and positions over layers."""

    task: str
    on: str
    metric: str
    lines: tuple[Swept, ...]
    disjoint: str


class Crossed(NamedTuple):
    """Directions of a method, each fitted on one task and tested on all."""

    method: str
    position: str
    cells: tuple[tuple[Cell, ...], ...]
    """``[fitted on, tested on]``; the layer of a row was chosen on validation prompts of its own task."""


class Likeness(NamedTuple):
    """How alike directions are."""

    directions: tuple[Direction, ...]
    labels: tuple[str, ...]
    cosines: NDArray[np.float64]
    """``[direction, direction]``."""


def labelled(directions: Sequence[Direction]) -> tuple[str, ...]:
    """Names that tell directions apart: the component, and the id where that is not enough."""
    names = [str(direction.component) for direction in directions]
    return tuple(
        name if names.count(name) == 1 else f"{name} {direction.direction_id[:6]}"
        for name, direction in zip(names, directions, strict=True)
    )


class Directions:
    """The directions of a database (``Database.directions``)."""

    def __init__(self, access: Access) -> None:
        self._access = access

    def list(self, *selections: str) -> tuple[Direction, ...]:
        """Stored directions, in the order they came; without a selection all.

        Args:
            selections: ``key=value,…`` of the keys task, method, layer, site, head, position, dims, seed,
                name, model; an id or its beginning; or a component such as ``d/1.resid_post/NAME``.

        Raises:
            CircuitReferenceError: nothing answers to a selection.
            UnknownNameError: a key that is none.
        """
        try:
            with self._access.reading() as store:
                known = store.directions()
        except MissingStoreError:
            if not selections:
                return ()
            raise
        if not selections:
            return known
        found: dict[str, Direction] = {}
        for text in selections:
            matching = [d for d in known if _matcher(text)(d)]
            if not matching:
                raise CircuitReferenceError(
                    f"no stored direction answers to {text!r}; 'circuitdb directions ls' lists them"
                )
            found |= {d.direction_id: d for d in matching}
        return tuple(found.values())

    def fit(
        self,
        task: str,
        *,
        methods: Sequence[str] = ("all",),
        layers: Sequence[int] | None = None,
        site: str = "resid_post",
        positions: Sequence[str] = ("END",),
        dims: int = 1,
        model: str = _DEFAULT_MODEL,
        checkpoint: int | None = None,
        model_seed: int | None = None,
        seed: int = 0,
        data_seed: int = 0,
        examples: int | None = None,
        settings: Mapping[str, Any] | None = None,
        positive: str | None = None,
        name: str | None = None,
        report: Report = silent,
        **model_options: Any,
    ) -> Fitted:
        """Fit directions on a task's training prompts, and store them.

        Args:
            task: a task's name or file.
            methods: of :data:`circuitdb.directions.fitting.METHODS`; ``all`` is every one of them that
                gives so many dimensions.
            layers: of the site; all by default.
            site: a kind of site, of a single head with it: ``resid_post``, ``z.h2``.
            positions: roles of the task, ``token:TEXT``, ``all``.
            dims: vectors of a subspace.
            model: the model's name.
            checkpoint: its training step.
            model_seed: its training seed.
            seed: of the fits.
            data_seed: which prompts are drawn.
            examples: training prompts.
            settings: by ``METHOD.NAME``, such as ``das.epochs``.
            positive: an answer of the positive class, where that is not known.
            name: in place of the made one; of one direction only.
            report: progress.
            model_options: device, dtype, forward, threads, force.

        Raises:
            InputError: one of its kinds says what cannot be done as asked.
            NumericalError: NaN or infinite activations or losses.
        """
        from circuitdb.directions import fitting, material

        loaded = _load(model, checkpoint, model_seed, model_options, report)
        sizes = None if examples is None else {"train": examples}
        made = material.make(task, loaded, data_seed=data_seed, sizes=sizes)
        sites = sites_of(loaded, site, layers)
        asked = fitting.Request(
            _methods(methods, dims), sites, positions, dims, seed, dict(settings or {}), positive
        )
        wanted = fitting.sources(loaded, made, asked)
        if name is not None and len(wanted) > 1:
            raise OptionError(
                f"one name for {len(wanted)} directions: leave --name out, or fit one"
            )
        for text in made.notes:
            self._access.notice(text)
        with self._access.writing(create=True) as store:
            known = {fit_id: direction_id for direction_id, fit_id in store.fitted().items()}
        for direction in fitting.fit(loaded, made, wanted, known=known, report=report):
            named = direction if name is None else _renamed(direction, name)
            with self._access.writing() as store:
                store.add_directions([named])
        with self._access.reading() as store:
            stored = {d.source.fit_id: d for d in store.directions()}
        found = tuple(stored[source.fit_id] for source in wanted)
        before = frozenset(known[d.source.fit_id] for d in found if d.source.fit_id in known)
        return Fitted(found, before, _proved(made))

    def patch(
        self,
        selections: Sequence[str],
        tasks: Sequence[str],
        *,
        metrics: Sequence[str] = (DEFAULT_METRIC,),
        at: str = "resid",
        positions: Sequence[str] | None = None,
        split: str = "test",
        data_seed: int = 0,
        report: Report = silent,
        **model_options: Any,
    ) -> Patched:
        """Patch or ablate directions on tasks, and store what that does.

        Args:
            selections: as for :meth:`list`; all of one model.
            tasks: names or files.
            metrics: of :data:`circuitdb.directions.measured.METRICS`, or ``ablation_zero``,
                ``ablation_mean`` and ``ablation_resample``.
            at: ``resid`` (its own site), ``layers`` (its kind of site in every layer), or
                ``heads:a2.h1,…``.
            positions: that are patched; by default where a direction was fitted.
            split: test, validation or shift.
            data_seed: which prompts are drawn.
            report: progress.
            model_options: device, dtype, forward, threads, force.

        Raises:
            InputError: one of its kinds says what cannot be done as asked: a direction that was fitted on
                one of the prompts, of another model, or without such a position.
            NumericalError: the model gives NaN or infinite logits.
        """
        from circuitdb.directions import material

        directions = self.list(*selections)
        if not directions:
            raise CircuitReferenceError(
                "no directions are stored: 'circuitdb directions fit' makes some"
            )
        check_metrics(metrics)
        loaded = _model_of(directions, model_options, report)
        made = [material.make(task, loaded, data_seed=data_seed) for task in tasks]
        if split not in ("test", "validation", "shift"):
            raise OptionError(
                f"directions are measured on test, validation or shift, not {split!r}"
            )
        return self._measured(loaded, directions, made, split, metrics, at, positions, report)

    def _measured(
        self,
        model: LoadedModel,
        directions: Sequence[Direction],
        tasks: Sequence[Material],
        split: str,
        metrics: Sequence[str],
        at: str,
        positions: Sequence[str] | None,
        report: Report,
    ) -> Patched:
        from circuitdb.directions import disjoint
        from circuitdb.directions.measured import PatchQuestion, Scope
        from circuitdb.directions.patching import sites_of as sites_at

        scope = Scope.of(at)
        asked: list[tuple[Direction, Material, PatchQuestion]] = []
        for direction in directions:
            sites_at(direction, scope, model)
            for task in tasks:
                disjoint.require(direction, task.splits[split], task.task)
                asked += [
                    (direction, task, PatchQuestion(
                        direction.direction_id, task.task, task.prompts.hash, split, str(scope),
                        position, metric,
                    ))
                    for position in positions or (direction.source.position,)
                    for metric in metrics
                ]  # fmt: skip
        with self._access.reading() as store:
            known = store.patches([question.patch_id for *_, question in asked])
        before = len(known)
        cells: list[Cell] = []
        for done, (direction, task, question) in enumerate(asked):
            report("patching directions", done, len(asked))
            if question.patch_id not in known:
                known[question.patch_id] = _patch(model, direction, task, question, scope)
                with self._access.writing() as store:
                    store.add_patches([known[question.patch_id]])
            cells.append(Cell(direction, known[question.patch_id]))
        held = ", ".join(f"{task.splits[split].n} of {task.task}" for task in tasks)
        said = (
            f"disjoint: no {split} prompt ({held}) shares a text or held-apart word with training"
        )
        return Patched(tuple(cells), before, said)

    def sweep(
        self,
        task: str,
        *,
        on: str | None = None,
        metric: str = DEFAULT_METRIC,
        at: str = "resid",
        patched: str | None = None,
        report: Report = silent,
        **options: Any,
    ) -> Sweep:
        """Fit over layers, choose the layer on validation prompts, report it on test prompts.

        Args:
            task: fitted on.
            on: measured on; by default the same task.
            metric: of patching.
            at: as for :meth:`patch`.
            patched: position patched; by default where a direction was fitted.
            report: progress.
            options: those of :meth:`fit`.

        Raises:
            InputError: as :meth:`fit` and :meth:`patch`; or no layer has a value.
        """
        check_metrics([metric])
        fitted = self.fit(task, report=report, **options)
        loading = {k: v for k, v in options.items() if k in LOADING}
        data_seed = options.get("data_seed", 0)
        ids = [d.direction_id for d in fitted.directions]

        def measured(ids: Sequence[str], split: str) -> Patched:
            return self.patch(
                ids, [on or task], metrics=[metric], at=at, split=split, data_seed=data_seed,
                positions=None if patched is None else [patched], report=report, **loading,
            )  # fmt: skip

        groups: dict[tuple[str, str], list[Cell]] = {}
        for cell in measured(ids, "validation").cells:
            source = cell.direction.source
            groups.setdefault((source.method, source.position), []).append(cell)
        chosen = {key: _best(cells) for key, cells in groups.items()}
        best = [groups[key][at_].direction.direction_id for key, at_ in chosen.items()]
        tested = measured(best, "test")
        by_id = {cell.direction.direction_id: cell for cell in tested.cells}
        lines = tuple(
            Swept(*key, tuple(cells), chosen[key], by_id[cells[chosen[key]].direction.direction_id])
            for key, cells in groups.items()
        )
        return Sweep(task, on or task, metric, lines, tested.disjoint)

    def cross(
        self,
        tasks: Sequence[str],
        *,
        metric: str = DEFAULT_METRIC,
        at: str = "resid",
        patched: str | None = None,
        report: Report = silent,
        **options: Any,
    ) -> tuple[Crossed, ...]:
        """Fit on each of some tasks and test on all of them, method by method.

        Args:
            tasks: two or more.
            metric: of patching.
            at: as for :meth:`patch`.
            patched: position patched; by default where a direction was fitted.
            report: progress.
            options: those of :meth:`fit`.

        Raises:
            InputError: as :meth:`sweep`.
        """
        if len(tasks) < 2:
            raise OptionError("crossing takes two tasks or more")
        loading = {k: v for k, v in options.items() if k in LOADING}
        rows: dict[tuple[str, str], list[tuple[Cell, ...]]] = {}
        for task in tasks:
            swept = self.sweep(
                task, metric=metric, at=at, patched=patched, report=report, **options
            )
            for line in swept.lines:
                found = self.patch(
                    [line.test.direction.direction_id], tasks, metrics=[metric], at=at,
                    positions=None if patched is None else [patched],
                    data_seed=options.get("data_seed", 0), report=report, **loading,
                )  # fmt: skip
                rows.setdefault((line.method, line.position), []).append(found.cells)
        return tuple(Crossed(*key, tuple(cells)) for key, cells in rows.items())

    def compare(self, *selections: str) -> Likeness:
        """Cosines of directions of one model and width (:func:`circuitdb.directions.direction.cosines`).

        Raises:
            CircuitReferenceError: nothing answers to a selection, or only one direction.
            OptionError: they belong to different weights or widths.
        """
        from circuitdb.directions.direction import cosines

        found = self.list(*selections)
        if len(found) < 2:
            raise CircuitReferenceError(f"{len(found)} directions: comparing takes two or more")
        return Likeness(found, labelled(found), cosines([*found]))

    def import_file(
        self,
        path: str | Path,
        *,
        site: str | None = None,
        layer: int | None = None,
        position: str = "END",
        name: str | None = None,
        model: str = _DEFAULT_MODEL,
        checkpoint: int | None = None,
        model_seed: int | None = None,
        report: Report = silent,
        **model_options: Any,
    ) -> Direction:
        """Store the direction of a file: our JSON as it is, the vectors of ``.npy`` or plain JSON made
        orthonormal.

        Args:
            path: the file.
            site: kind of site (``resid_post``, ``z.h2``) of a file with vectors alone.
            layer: its layer.
            position: where it was fitted, as far as is known.
            name: by default the file's without its suffix.
            model: the model it belongs to.
            checkpoint: its training step.
            model_seed: its training seed.
            report: progress.
            model_options: device, dtype, forward, threads, force.

        Raises:
            OptionError: the file holds no direction (a pickle is not loaded), or one of another width.
            ModelError: our JSON is of other weights than the model's.
        """
        from circuitdb.directions import files, patching
        from circuitdb.directions.measured import Scope

        content = files.Content(Path(path))
        document = files.is_ours(content)
        if document is None and (site is None or layer is None):
            files.vectors_of(content)
            raise OptionError(
                f"{str(path)!r} has vectors alone: say where they stand (--site and --layer)"
            )
        if document is not None:
            direction = files.of_json(document, str(path))
            source = direction.source
            loaded = _load(
                source.model, source.checkpoint, source.model_seed, model_options, report
            )
            _require_weights([direction], loaded)
            patching.sites_of(direction, Scope(), loaded)
            direction = direction if name is None else _renamed(direction, name)
        else:
            loaded = _load(model, checkpoint, model_seed, model_options, report)
            (where,) = sites_of(loaded, str(site), [int(layer or 0)])
            direction = files.of_vectors(content, loaded, where, position, name)
        with self._access.writing(create=True) as store:
            store.add_directions([direction])
        return direction

    def export(self, selection: str, path: str | Path) -> Direction:
        """Write a direction to a new file, ``.json`` (everything) or ``.npy`` (its vectors).

        Raises:
            CircuitReferenceError: none or several answer to the selection.
            OptionError: the file exists, or has another suffix.
        """
        from circuitdb.directions import files

        files.check_target(Path(path))
        found = self.list(selection)
        if len(found) > 1:
            raise CircuitReferenceError(
                f"{len(found)} directions answer to {selection!r}, such as {labelled(found)[0]} and "
                f"{labelled(found)[1]}: name one"
            )
        files.save(found[0], Path(path))
        return found[0]

    def remove(self, *selections: str) -> tuple[Direction, ...]:
        """Remove directions with all that was measured of them.

        Raises:
            CircuitReferenceError: nothing answers to a selection, or there is none.
        """
        if not selections:
            raise CircuitReferenceError("say which directions to remove")
        found = self.list(*selections)
        with self._access.writing() as store:
            store.remove_directions([d.direction_id for d in found])
        return found


def check_metrics(metrics: Sequence[str]) -> None:
    """Refuse a metric of patching or ablation that there is not.

    Raises:
        UnknownNameError: there is none of that name.
        OptionError: none is given.
    """
    from circuitdb.directions.measured import ABLATIONS, METRICS

    known = [*METRICS, *(f"ablation_{kind}" for kind in ABLATIONS)]
    if not metrics:
        raise OptionError("name a metric")
    for name in metrics:
        if name not in known:
            raise UnknownNameError("metric of patching", name, known)


def sites_of(model: LoadedModel, site: str, layers: Iterable[int] | None) -> Any:
    """The sites of a kind (``resid_post``, ``z.h2``) in layers; in all by default."""
    from circuitdb.models.sites import parse

    numbers = range(model.spec.n_layers) if layers is None else layers
    return [parse(f"{layer}.{site}", model.spec) for layer in numbers]


def _methods(given: Sequence[str], dims: int) -> list[str]:
    from circuitdb.directions.fitting import METHODS
    from circuitdb.directions.linear import ONE_VECTOR

    possible = [name for name in METHODS if dims == 1 or name not in ONE_VECTOR]
    named = [m for method in given for m in (possible if method == "all" else [method])]
    return list(dict.fromkeys(named))


def _renamed(direction: Direction, name: str) -> Direction:
    import dataclasses

    return dataclasses.replace(direction, name=name)


def _proved(made: Material) -> str:
    counts = ", ".join(f"{made.splits[s].n} {s}" for s in ("train", "validation", "test"))
    from circuitdb.directions.disjoint import WORDS_APART

    roles = WORDS_APART.get(made.task, ())
    words = "".join(f" and no word at {role}" for role in roles)
    return f"disjoint: the splits ({counts} prompts of {made.task}) share no text{words}"


def _load(
    model: str,
    checkpoint: int | None,
    seed: int | None,
    options: Mapping[str, Any],
    report: Report,
) -> LoadedModel:
    from circuitdb.models import catalogue

    check_names("option", options, LOADING, of="directions")
    report(f"loading {model}", 0, 0)
    return catalogue.load(model, checkpoint=checkpoint, seed=seed, **options)


def _model_of(
    directions: Sequence[Direction], options: Mapping[str, Any], report: Report
) -> LoadedModel:
    """The model that directions belong to.

    Raises:
        OptionError: they belong to several.
        ModelError: it has other weights today.
    """
    source = directions[0].source
    other = next((d for d in directions if d.source.weights != source.weights), None)
    if other is not None:
        raise OptionError(
            f"{directions[0].component} belongs to {source.model} and {other.component} to other "
            f"weights, of {other.source.model}: select those of one (model=NAME)"
        )
    model = _load(source.model, source.checkpoint, source.model_seed, options, report)
    _require_weights(directions, model)
    return model


def _require_weights(directions: Sequence[Direction], model: LoadedModel) -> None:
    for direction in directions:
        weights = direction.source.weights
        if weights != model.weights_hash:
            raise ModelError(
                f"{direction.component} belongs to other weights ({weights[:12]}) than those of "
                f"{model.name} today ({model.weights_hash[:12]})"
            )


def _patch(
    model: LoadedModel, direction: Direction, task: Material, question: Any, scope: Any
) -> Patch:
    from circuitdb.directions.measured import Patch
    from circuitdb.directions.patching import ablate, patch

    prompts = task.splits[question.split]
    if question.metric.startswith("ablation_"):
        kind = question.metric.removeprefix("ablation_")
        found = ablate(
            model, direction, prompts, task.splits["train"], task.task, kind=kind, at=scope,
            position=question.position,
        )  # fmt: skip
    else:
        found = patch(
            model, direction, prompts, task.task, metric=question.metric, at=scope,
            position=question.position,
        )  # fmt: skip
    return Patch(question, *found)


def _best(cells: Sequence[Cell]) -> int:
    values = [-float("inf") if c.patch.value is None else c.patch.value for c in cells]
    if max(values) == -float("inf"):
        raise OptionError(
            "no layer has a value: clean and corrupted validation prompts are within noise of each other"
        )
    return values.index(max(values))


def _matcher(text: str) -> Callable[[Direction], bool]:
    """Whether a direction answers to a selection.

    Raises:
        UnknownNameError: a key that is none.
        CircuitReferenceError: it is no selection.
    """
    if text.startswith("d/"):
        component = parse_component(text)
        return lambda d: d.component == component
    if "=" not in text:
        if _ID.fullmatch(text):
            return lambda d: d.direction_id.startswith(text)
        return lambda d: d.name == text
    wanted: dict[str, str] = {}
    for part in text.split(","):
        key, equals, value = part.partition("=")
        if not equals:
            raise CircuitReferenceError(f"{text!r}: {part!r} is no key=value")
        if key.strip() not in KEYS:
            raise UnknownNameError("key", key.strip(), KEYS, of="a direction")
        wanted[key.strip()] = value.strip()
    return lambda d: all(value in ("*", _told(d)[key]) for key, value in wanted.items())


def _told(direction: Direction) -> Json:
    """What a selection can tell a direction by, as text."""
    source, site = direction.source, direction.site
    head = "" if site.head is None else str(site.head)
    return {
        "task": source.task, "method": source.method, "layer": str(site.layer), "site": site.kind,
        "head": head, "position": source.position, "dims": str(source.dims),
        "seed": str(source.seed), "name": direction.name, "model": source.model,
    }  # fmt: skip

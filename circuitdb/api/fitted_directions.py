"""Directions that come into a database: fitted on a task, or brought in from a file."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from circuitdb.api.access import Report, silent
from circuitdb.api.direction_models import load, require_weights
from circuitdb.api.kept_directions import KeptDirections
from circuitdb.errors import OptionError

# What needs torch is imported where it is used: stored directions are listed and compared without it.
if TYPE_CHECKING:
    from circuitdb.directions.direction import Direction
    from circuitdb.directions.material import Material
    from circuitdb.models.model import LoadedModel

_DEFAULT_MODEL: Final = "toy-4l"


class Fitted(NamedTuple):
    """Directions that were asked for."""

    directions: tuple[Direction, ...]
    stored_before: frozenset[str]
    """Ids of those that were found in the database."""
    disjoint: str
    """What was proved of the splits."""


class FittedDirections(KeptDirections):
    """The directions of a database, and those that are fitted or brought in."""

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

        loaded = load(model, checkpoint, model_seed, model_options, report)
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
            loaded = load(source.model, source.checkpoint, source.model_seed, model_options, report)
            require_weights([direction], loaded)
            patching.sites_of(direction, Scope(), loaded)
            direction = direction if name is None else _renamed(direction, name)
        else:
            loaded = load(model, checkpoint, model_seed, model_options, report)
            (where,) = sites_of(loaded, str(site), [int(layer or 0)])
            direction = files.of_vectors(content, loaded, where, position, name)
        with self._access.writing(create=True) as store:
            store.add_directions([direction])
        return direction


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

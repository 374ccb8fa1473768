"""Aligning the components of two models, and comparing circuits across models by it.

Signatures and alignments are stored: what was measured once is not measured again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from circuitdb.api.access import Access, Report
from circuitdb.circuit import Run
from circuitdb.compare.align import Alignment, AlignSettings, align, restore
from circuitdb.errors import CircuitReferenceError, ModelError, StoreError, UnknownNameError
from circuitdb.models import catalogue, hub
from circuitdb.signature import Recipe, Signature, held_out
from circuitdb.store import Store
from circuitdb.store.reference import parse
from circuitdb.tasks import registry

# What needs torch is imported where it is used: stored signatures are aligned without it.


class AlignOptions(NamedTuple):
    """How models are aligned, as it is asked for."""

    held_out: Sequence[str] = ()
    texts: int = Recipe().texts
    length: int = Recipe().length
    quantile: float = AlignSettings().quantile
    depth: float = AlignSettings().depth
    device: str = "cpu"

    def recipe(self, compared: Sequence[str]) -> Recipe:
        """The recipe of the signatures.

        Raises:
            ComparisonError: a compared task is to be a feature.
            UnknownNameError: there is no such task.
        """
        for name in self.held_out:
            if name not in registry.names():
                raise UnknownNameError("task", name, registry.names())
        tasks = held_out(self.held_out, compared)
        return Recipe(texts=self.texts, length=self.length, tasks=tasks)

    @property
    def settings(self) -> AlignSettings:
        """How components are matched."""
        return AlignSettings(depth=self.depth, quantile=self.quantile)


class Which(NamedTuple):
    """One model."""

    model: str
    checkpoint: int | None
    seed: int | None
    weights: str | None
    """Their hash, where a stored circuit says it."""
    task: str | None = None
    """Of that circuit."""

    @classmethod
    def of(cls, run: Run) -> Which:
        """The model of a run."""
        return cls(run.model, run.checkpoint, run.seed, run.weights, run.task)


def align_models(
    access: Access, a: str, b: str, options: AlignOptions, report: Report
) -> Alignment:
    """Align two models, each named by itself or by a stored circuit."""
    first, second = which(access, a), which(access, b)
    recipe = options.recipe([side.task for side in (first, second) if side.task is not None])
    return alignment_of(access, first, second, recipe, options, report)


def which(access: Access, text: str) -> Which:
    """The model that ``MODEL[,seed=N][,step=N]`` or a reference names.

    Raises:
        CircuitReferenceError: it names neither.
    """
    name = text.partition(",")[0].strip()
    if name in catalogue.by_name() or hub.looks_local(name) or "/" in name:
        stated = parse(text).stated
        other = sorted(set(stated) - {"seed", "step"})
        if other:
            raise CircuitReferenceError(
                f"{text!r}: a model is told by seed and step, not {other[0]!r}"
            )
        return Which(name, stated.get("step"), stated.get("seed"), None)
    try:
        with access.reading() as store:
            row = access.resolve(store, text)[0]
            return Which.of(store.runs([row.run_id])[row.run_id])
    except (CircuitReferenceError, FileNotFoundError) as error:
        raise CircuitReferenceError(
            f"{text!r} is no model ('circuitdb models' lists them), and no stored circuit: {error}"
        ) from error


def alignment_of(
    access: Access, a: Which, b: Which, recipe: Recipe, options: AlignOptions, report: Report
) -> Alignment:
    """The alignment of two models: the stored one, else a new one, which is stored where that can be."""
    settings = options.settings
    if not access.in_use().exists():
        with access.writing(create=True):
            pass
    first, second = (_signature(access, side, recipe, options.device, report) for side in (a, b))
    question = (first.weights_hash, second.weights_hash, recipe.recipe_id, settings.to_json())
    with access.reading() as store:
        known = store.alignment(*question)
    if known is not None:
        return restore(first, second, settings, known)
    report("matching components", 0, 0)
    made = align(first, second, settings)
    _keep(access, "partners", lambda store: store.add_alignment(made.assignment))
    return made


def _keep(access: Access, what: str, add: Callable[[Store], None]) -> None:
    """Store what was found; where the database cannot be written now, say so."""
    try:
        with access.writing() as store:
            add(store)
    except StoreError as error:
        access.notice(f"{what} could not be stored and will be found anew next time: {error}")


def _signature(
    access: Access, side: Which, recipe: Recipe, device: str, report: Report
) -> Signature:
    found = _stored(access, side.weights, recipe)
    if found is not None:
        return found
    report(f"loading {side.model}", 0, 0)
    model = catalogue.load(side.model, checkpoint=side.checkpoint, seed=side.seed, device=device)
    if side.weights not in (None, model.weights_hash):
        raise ModelError(
            f"the weights of {side.model} are not those its stored circuit was found in "
            f"({model.weights_hash[:12]}, not {str(side.weights)[:12]})"
        )
    found = _stored(access, model.weights_hash, recipe)
    if found is None:
        from circuitdb.models.signatures import measure

        found = made = measure(model, recipe, report)
        _keep(access, f"signatures of {side.model}", lambda store: store.add_signature(made))
    return found


def _stored(access: Access, weights: str | None, recipe: Recipe) -> Signature | None:
    if weights is None:
        return None
    with access.reading() as store:
        return store.signature(weights, recipe.recipe_id)

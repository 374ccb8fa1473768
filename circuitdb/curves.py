"""What the Python face hands out for faithfulness curves, and what of them a database knows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from circuitdb import controls
from circuitdb.alike import of_other_tasks, ranked
from circuitdb.circuit import Json, Run, Selection
from circuitdb.curve import RANKINGS, Curve, Ranking, further_sizes
from circuitdb.errors import ComparisonError, OptionError
from circuitdb.select import Ranked

if TYPE_CHECKING:
    import pandas

    from circuitdb.circuit import Granularity
    from circuitdb.store import CircuitRow, Store


@dataclass(frozen=True, slots=True)
class StoredCurves:
    """The faithfulness curves of one run, one a ranking. In a notebook they draw themselves."""

    circuit_id: str
    """The circuit that named the run."""
    run: Run
    curves: tuple[Curve, ...]
    stored_before: bool = True
    """Whether all of them were there already."""

    @property
    def rows(self) -> tuple[Json, ...]:
        """One row a ranking and size: the fields of :class:`~circuitdb.curve.CurvePoint`."""
        return tuple(
            {"ranking": curve.ranking, **point.model_dump(exclude={"templates"})}
            for curve in self.curves
            for point in curve.points
        )

    def to_frame(self) -> pandas.DataFrame:
        """The rows as a pandas frame."""
        import pandas as pd

        return pd.DataFrame(list(self.rows))

    def plot(self, path: str | Path) -> Path:
        """Draw the curves to a file, ``.svg``, ``.png`` or ``.pdf``.

        Raises:
            RenderError: the suffix is another, the file cannot be written, or matplotlib is not
                installed.
        """
        from circuitdb.render.curve import save

        return save(self.curves, self.run, path)

    def _repr_svg_(self) -> str:
        from circuitdb.render.curve import to_svg

        return to_svg(self.curves, self.run)

    def to_json(self) -> Json:
        """The document of ``circuitdb curve --json``."""
        run = self.run
        named = ("task", "model", "checkpoint", "seed", "engine")
        return {
            "circuit_id": self.circuit_id,
            "run_id": run.run_id,
            **{name: getattr(run, name) for name in named},
            "stored_before": self.stored_before,
            "curves": [{"curve_id": c.curve_id, **c.model_dump(mode="json")} for c in self.curves],
        }

    def __repr__(self) -> str:
        said = [
            f"{name} ranking CPR {_area(c.cpr)}, CMD {_area(c.cmd)}" for name, c in self._named()
        ]
        return f"<curves of {self.run.task} on {self.run.model} by {self.run.engine}: {'; '.join(said)}>"

    def _named(self) -> list[tuple[str, Curve]]:
        names = {ranking: name for name, ranking in RANKINGS.items()}
        return [(names[curve.ranking], curve) for curve in self.curves]


def _area(value: float | None) -> str:
    return "undefined" if value is None else f"{value:.2f}"


@dataclass(frozen=True, slots=True)
class Asked:
    """What is asked of a run, against what is stored of it."""

    own: Ranked
    beside: str | None
    """The run to stand beside it."""
    sizes: tuple[int, ...]
    known: dict[Ranking, Curve]
    """The curves that are stored already."""


def ask(
    store: Store,
    row: CircuitRow,
    beside: CircuitRow | None,
    *,
    rankings: Sequence[Ranking],
    sizes: Sequence[int] | None,
    points: int | None,
    band: int,
) -> Asked:
    """Find what is asked of the run of a circuit, and which curves are there already.

    Where no circuit is given to stand beside it, its run is that of a stored curve, else the newest
    of another task that is alike in weights, engine, settings, metric and ablation.

    Raises:
        OptionError: a run has no scores to rank, or the sizes are out of range.
        ComparisonError: the run beside it is of other weights, or the same run.
    """
    own = _ranked(store, row.run_id, _granularity(row), row.task)
    further = further_sizes(own.n_scored, sizes, points)
    wanted = (row.granularity, further, band)
    alike = [c for c in store.curves(row.run_id) if (c.granularity, c.sizes, c.band) == wanted]
    if beside is not None:
        _check_beside(row, beside)
        other: str | None = beside.run_id
    else:
        other = _stored_beside(store, alike, rankings) or _of_another_task(store, row)
    known = {c.ranking: c for c in alike if c.beside_run == other and c.ranking in rankings}
    return Asked(own, other, further, known)


def beside(store: Store, own: Ranked, run_id: str) -> Ranked:
    """The scores of the run to stand beside another, called by what tells them apart.

    Raises:
        OptionError: it has none of that kind.
    """
    same = Selection(rule="given", ranking="none")
    both = (own.run_id, run_id)
    label = controls.labels([controls.Named.of(store.run(i), same, i) for i in both])[1]
    return _ranked(store, run_id, own.granularity, label)


def _ranked(store: Store, run_id: str, granularity: Granularity, label: str) -> Ranked:
    found = ranked(store, run_id, granularity, label)
    if found is None:
        raise OptionError(
            f"the run {run_id[:12]} of {store.run(run_id).engine!r} has no {granularity} scores to "
            "rank: a curve needs a run that scores, such as of eap-ig-inputs"
        )
    return found


def _check_beside(row: CircuitRow, beside: CircuitRow) -> None:
    if beside.run_id == row.run_id:
        raise ComparisonError(
            f"--beside names the run itself ({row.run_id[:12]}); name a circuit of another run"
        )
    if beside.weights != row.weights:
        raise ComparisonError(
            f"--beside {beside.circuit_id[:12]} is of other weights ({beside.model}, "
            f"{beside.weights[:12]}): its edges do not mean the same; name one of {row.model}"
        )


def _stored_beside(store: Store, alike: Sequence[Curve], rankings: Sequence[Ranking]) -> str | None:
    """The run beside the newest stored curve, if it is there or nothing is left to measure."""
    for run_id in dict.fromkeys(c.beside_run for c in reversed(alike)):
        done = {c.ranking for c in alike if c.beside_run == run_id}
        if run_id is not None and (done.issuperset(rankings) or store.has_run(run_id)):
            return run_id
    return None


def _of_another_task(store: Store, row: CircuitRow) -> str | None:
    """The newest run of another task by the same work that has scores."""
    run, granularity = store.run(row.run_id), _granularity(row)
    for other in of_other_tasks(store, run, granularity):
        if ranked(store, other.run_id, granularity, other.task) is not None:
            return other.run_id
    return None


def _granularity(row: CircuitRow) -> Granularity:
    return "edge" if row.granularity == "edge" else "node"

"""The open store: one object whose methods are what one can do with a database."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import duckdb

from circuitdb.errors import CircuitReferenceError, StoreError
from circuitdb.store import groups, read, reference
from circuitdb.store.connection import (
    LOCK_SECONDS,
    Acknowledged,
    connect,
    copy_database,
    default_path,
    explain,
    in_our_words,
    one,
)
from circuitdb.store.read import CircuitRow

# Numpy, pydantic and the writing half are loaded where they are used: listing needs none.
if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from circuitdb.circuit import (
        Circuit,
        Decision,
        Discovery,
        Figures,
        Floats,
        PromptRows,
        Provenance,
        Run,
        Scores,
    )
    from circuitdb.curve import Curve
    from circuitdb.dictionaries.feature import Label, Place, Profile, Tokens
    from circuitdb.dictionaries.match import Match
    from circuitdb.dictionaries.record import Record
    from circuitdb.directions.direction import Direction
    from circuitdb.directions.measured import Patch
    from circuitdb.feature_space import FeatureSpace
    from circuitdb.functional import Cell
    from circuitdb.outcomes import CircuitTest, FitKey, Knockouts, NullFit
    from circuitdb.roles import RoleScores
    from circuitdb.signature import Assignment, Signature
    from circuitdb.space import EdgeIds, Space, SpaceSpec
    from circuitdb.store import care, write
    from circuitdb.store.edit import CheckpointMetric
    from circuitdb.store.merge import Merged
    from circuitdb.store.read import NodeIds
    from circuitdb.sweep.job import JobRow


class Store:
    """An open database. Use it as a context manager and keep it open briefly when writing.

    Reading methods raise :class:`~circuitdb.errors.CircuitReferenceError` for ids that are not
    stored, all methods :class:`~circuitdb.errors.StoreError` where the file fails them.
    """

    def __init__(self, con: Any, path: Path, read_only: bool) -> None:
        self.path, self.read_only = path, read_only
        self._con = con
        self._acknowledged = Acknowledged(path)
        self._commits = 0
        self._keys: write.Keys | None = None

    @classmethod
    def open(
        cls,
        path: str | Path | None = None,
        read_only: bool = False,
        create: bool = True,
        lock_seconds: float = LOCK_SECONDS,
    ) -> Store:
        """Open a database, made or migrated where needed; no path means the default one.

        Raises:
            LockedError: another process holds it; it is tried again for `lock_seconds`.
            CorruptError: it is no database, damaged, or lacks acknowledged transactions.
            NewerSchemaError: a newer circuitdb wrote it.
            StoreError: it is missing or may not be written.
        """
        where = default_path() if path is None else Path(path)
        con = connect(where, read_only=read_only, create=create, lock_seconds=lock_seconds)
        return cls(con, where, read_only)

    def close(self) -> None:
        """Close the database; what was acknowledged is in its file."""
        self._con.close()
        if not self.read_only:
            self._acknowledged.close()

    def __enter__(self) -> Store:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    @contextlib.contextmanager
    def _writing(self) -> Iterator[Any]:
        """One transaction: all of it, or nothing."""
        if self.read_only:
            raise StoreError(f"{str(self.path)!r} is open for reading only")
        con = self._con
        try:
            con.begin()
            # First, so that a second writer of this process fails before it has done anything.
            store_id, self._commits = one(
                con, "UPDATE store SET commits = commits + 1 RETURNING store_id, commits"
            )
            yield con
            con.commit()
        except BaseException as error:
            self._keys = None
            with contextlib.suppress(duckdb.Error):
                con.rollback()
            if isinstance(error, duckdb.Error):
                raise explain(error, self.path) from error
            raise
        self._acknowledged.note(store_id, self._commits)

    @contextlib.contextmanager
    def _reading(self) -> Iterator[Any]:
        with in_our_words(self.path):
            yield self._con

    def add(self, discovery: Discovery) -> tuple[str, ...]:
        """Store a discovery whole or not at all; the ids of its circuits.

        What is stored already stays as it is: an equal run keeps its scores, and only circuits
        that are new are added.

        Raises:
            OptionError: arrays that do not fit the space, or two circuits of one id.
            NumericalError: an infinite score.
            StoreError: it cannot be written; nothing was changed.
        """
        from circuitdb.store import write

        with self._reading() as con:
            known = write.look_up(con, discovery)
        if known.covers(discovery):
            return discovery.circuit_ids
        with self._writing() as con:
            if self._keys is None or self._keys.commits != self._commits - 1:
                # Somebody else of this process wrote in between.
                self._keys, known = write.Keys(con), write.look_up(con, discovery)
            self._keys.commits = self._commits
            return write.add(con, self._keys, discovery, known)

    def add_evaluation(self, circuit_id: str, figures: Figures) -> None:
        """Store one more evaluation of a circuit, on whatever task and metric it names."""
        from circuitdb.store import edit

        with self._writing() as con:
            edit.add_evaluation(con, read.circuit_keys(con, [circuit_id])[0], figures)

    def add_curve(self, curve: Curve) -> None:
        """Store a faithfulness curve of a run; one that is stored already stays as it is."""
        from circuitdb.store import curves

        with self._writing() as con:
            curves.add(con, read.run_key(con, curve.run_id), curve)

    def add_functional(self, cell: Cell) -> None:
        """Store what a part of circuits does on a task; an equal question is stored once."""
        from circuitdb.store import functional

        with self._writing() as con:
            functional.add(con, cell)

    def add_knockouts(self, circuit_id: str, knockouts: Knockouts) -> None:
        """Store knockouts of a circuit; those of one split, metric and ablation are stored once."""
        from circuitdb.store import edit

        with self._writing() as con:
            edit.add_knockouts(con, read.circuit_keys(con, [circuit_id])[0], knockouts)

    def add_test(self, circuit_id: str, test: CircuitTest) -> None:
        """Store a test of a circuit; that of one question is stored once."""
        from circuitdb.store import edit

        with self._writing() as con:
            edit.add_test(con, read.circuit_keys(con, [circuit_id])[0], test)

    def fits(self, circuit_ids: Sequence[str]) -> dict[FitKey, NullFit]:
        """The solved nulls of some circuits, by circuit and universe."""
        with self._reading() as con:
            return read.fits(con, circuit_ids)

    def add_fits(self, fits: Mapping[FitKey, NullFit]) -> None:
        """Keep solved nulls; one of a circuit that is stored no longer is let go."""
        from circuitdb.store import edit

        with self._writing() as con:
            edit.add_fits(con, fits)

    def add_signature(self, signature: Signature) -> None:
        """Store a model's signatures; those of equal weights and recipe are stored once."""
        from circuitdb.store import signatures

        with self._writing() as con:
            signatures.add(con, signature)

    def add_alignment(self, found: Assignment) -> None:
        """Store what corresponds between two models; one question is stored once."""
        from circuitdb.store import signatures

        with self._writing() as con:
            signatures.add_alignment(con, found)

    def add_roles(self, found: RoleScores) -> None:
        """Store the roles of a model's heads; those of equal weights and recipe are stored once."""
        from circuitdb.store import roles

        with self._writing() as con:
            roles.add(con, found)

    def add_dictionary(self, *records: Record) -> None:
        """Store what is known of dictionaries, all or none; what is stored gets what is given anew.

        Raises:
            DictionaryError: another one of that name stands at the same place of the same weights.
        """
        from circuitdb.store import dictionaries

        with self._writing() as con:
            dictionaries.add(con, records)

    def set_health(self, dictionary_id: str, health: Mapping[str, Any]) -> None:
        """Write down what a dictionary does on held-out text, in place of what was known.

        Raises:
            DictionaryError: it is not stored.
        """
        from circuitdb.store import dictionaries

        with self._writing() as con:
            dictionaries.set_health(con, dictionary_id, health)

    def remove_dictionaries(
        self, records: Sequence[Record], unnamed: Sequence[str]
    ) -> tuple[int, int]:
        """Forget dictionaries; their files stay where they lie.

        Args:
            records: what is forgotten.
            unnamed: ids of those that no set has any more: their profiles and matches go too.

        Returns:
            How many profiles and how many matches went.
        """
        from circuitdb.store import dictionaries, features

        with self._writing() as con:
            dictionaries.remove(con, records)
            return features.remove_profiles(con, unnamed), features.remove_matches(con, unnamed)

    def add_directions(self, directions: Sequence[Direction]) -> None:
        """Store directions, all or none; those of one id are stored once."""
        from circuitdb.store import directions as stored

        with self._writing() as con:
            stored.add(con, directions)

    def add_patches(self, patches: Sequence[Patch]) -> None:
        """Store what patching stored directions does; one question is stored once."""
        from circuitdb.store import directions as stored

        with self._writing() as con:
            stored.add_patches(con, patches)

    def remove_directions(self, direction_ids: Sequence[str]) -> None:
        """Remove directions with all that was measured of them."""
        from circuitdb.store import directions as stored

        with self._writing() as con:
            stored.remove(con, direction_ids)

    def add_profile(self, profile: Profile) -> None:
        """Store what a dictionary's features do, in place of an earlier profile of it."""
        from circuitdb.store import features

        with self._writing() as con:
            features.add_profile(con, profile)

    def add_measured(self, dictionary_id: str, feature: int, found: Tokens) -> None:
        """Store the measured tokens of a feature beside its dictionary's profile.

        Raises:
            OptionError: there is none.
        """
        from circuitdb.store import features

        with self._writing() as con:
            features.add_measured(con, dictionary_id, feature, found)

    def remove_features(self, dictionary_ids: Sequence[str]) -> None:
        """Forget profiles and matches of dictionaries; labels stay."""
        from circuitdb.store import features

        with self._writing() as con:
            features.remove_profiles(con, dictionary_ids)
            features.remove_matches(con, dictionary_ids)

    def set_labels(self, labels: Sequence[Label]) -> None:
        """Write labels of features, each in place of the one of the same author and source.

        Raises:
            OptionError: one is blank, or holds control characters.
        """
        from circuitdb.store import features

        with self._writing() as con:
            features.set_labels(con, labels)

    def remove_label(self, label: Label) -> bool:
        """Take away a label; whether there was one of its feature, author and source."""
        from circuitdb.store import features

        with self._writing() as con:
            return features.remove_label(con, label)

    def add_match(self, match: Match) -> None:
        """Store what of two dictionaries corresponds; one question is stored once."""
        from circuitdb.store import features

        with self._writing() as con:
            features.add_match(con, match)

    def add_checkpoint_metrics(self, rows: Sequence[CheckpointMetric]) -> None:
        """Store what full models do on tasks; an earlier value of the same question goes."""
        from circuitdb.store import edit

        with self._writing() as con:
            edit.add_checkpoint_metrics(con, rows)

    def add_jobs(self, rows: Sequence[JobRow]) -> None:
        """Write down what became of jobs of sweeps, each in place of what was known of it."""
        from circuitdb.store import jobs

        with self._writing() as con:
            jobs.add(con, rows)

    def remove(self, circuit_ids: Sequence[str]) -> None:
        """Remove circuits; a run and its scores go with its last circuit."""
        from circuitdb.store import edit

        with self._writing() as con:
            edit.remove(con, read.circuit_keys(con, circuit_ids))

    def set_alias(self, circuit_id: str, alias: str) -> None:
        """Name a circuit, so that ``@alias`` finds it; an earlier name of it goes."""
        from circuitdb.store import edit

        with self._writing() as con:
            edit.set_alias(con, read.circuit_keys(con, [circuit_id])[0], alias)

    def remove_alias(self, circuit_id: str) -> None:
        """Take a circuit's name away."""
        from circuitdb.store import edit

        with self._writing() as con:
            edit.remove_alias(con, read.circuit_keys(con, [circuit_id])[0])

    def set_note(self, circuit_id: str, note: str | None) -> None:
        """Write a note on a circuit in place of an earlier one; None removes it."""
        from circuitdb.store import edit

        with self._writing() as con:
            edit.set_note(con, read.circuit_keys(con, [circuit_id])[0], note)

    def merge(self, other: str | Path) -> Merged:
        """Add what another database has and this one lacks; nothing in it runs."""
        from circuitdb.store.merge import merge

        return merge(self, Path(other))

    def backup(self, target: str | Path) -> Path:
        """Copy the database to a new file, compacted; an existing file is never overwritten."""
        if str(target).endswith(os.sep):
            raise StoreError(f"{str(target)!r} names a directory; name a file")
        with self._reading() as con:
            copy_database(con, Path(target))
        return Path(target)

    def verify(self) -> care.Report:
        """Read every column and compare it with the counts and hashes kept."""
        from circuitdb.store import care

        return care.verify(self._con, self.path)

    def has_run(self, run_id: str) -> bool:
        """Whether a run is stored, so that its work need not be done again."""
        from circuitdb.store import write

        with self._reading() as con:
            return write.key_of(con, "run", "run_id", run_id) is not None

    def has_prompt_set(self, prompt_set_hash: str) -> bool:
        """Whether the prompts of a hash are stored."""
        from circuitdb.store import write

        with self._reading() as con:
            return write.key_of(con, "prompt_set", "prompt_set", prompt_set_hash) is not None

    def run_circuits(self, run_id: str) -> tuple[str, ...]:
        """Ids of the circuits of a run, in the order they came; none if it is not stored."""
        with self._reading() as con:
            found = con.execute(
                "SELECT circuit_id FROM circuit JOIN run USING (run_key) WHERE run_id = ? "
                "ORDER BY circuit_key",
                [run_id],
            ).fetchall()
        return tuple(row[0] for row in found)

    def find(self, *, limit: int | None = None, **filters: Any) -> list[CircuitRow]:
        """Circuits whose columns equal the filters, newest first.

        A filter is a column of the `circuits` view; its value a plain value, None for null, or a
        list of which one must hold: ``store.find(task=["ioi", "months"], checkpoint=None)``.

        Raises:
            UnknownNameError: a filter is no column.
        """
        with self._reading() as con:
            return read.find(con, filters, limit)

    def resolve(
        self,
        refs: Sequence[str],
        notice: Callable[[str], None] | None = None,
        force: bool = False,
    ) -> list[CircuitRow]:
        """The circuits that references stand for, resolved together.

        `notice` is told of references that other selections of the same run answer to as well. With
        `force` references that cannot agree stand each for its newest circuit.

        Raises:
            CircuitReferenceError: one names none or several, or none agree; choices are listed.
        """
        with self._reading() as con:
            return reference.resolve(con, refs, notice, force)

    def named(self, ref: str) -> CircuitRow | None:
        """The circuit of an id or an alias; None for a task with keys.

        Raises:
            CircuitReferenceError: no circuit has the alias, or the id's beginning is that of several.
        """
        with self._reading() as con:
            return reference.named(con, ref.strip())

    def resolve_only(self, ref: str) -> CircuitRow:
        """The one circuit that a reference stands for, where the newest of several will not do.

        Raises:
            CircuitReferenceError: it names none or several; choices are listed.
        """
        with self._reading() as con:
            found = reference.wanted(con, ref.strip())
        if len(found) > 1:
            choices = reference.listed([reference.describe(row) for row in found], "; ")
            raise CircuitReferenceError(
                f"{ref!r} stands for {len(found)} circuits; name one by its id: {choices}"
            )
        return found[0]

    def get(self, circuit_id: str, measured: bool = False) -> Circuit:
        """One circuit by name; with `measured` also what its run measured beside it."""
        with self._reading() as con:
            return read.get(con, circuit_id, measured)

    def record(self, circuit_id: str) -> read.Record:
        """One circuit by ids: what comparison reads, without the cost of names."""
        return self.records([circuit_id])[0]

    def records(self, circuit_ids: Sequence[str]) -> list[read.Record]:
        """Many circuits by ids, in the order asked for."""
        with self._reading() as con:
            return read.records(con, circuit_ids)

    def member_ids(self, circuit_id: str) -> EdgeIds:
        """Edge ids of a circuit, int32, ascending; of a node circuit those among its nodes."""
        return self.members([circuit_id])[circuit_id]

    def node_ids(self, circuit_id: str) -> NodeIds:
        """Component ids of a circuit, int32, ascending."""
        return self.node_members([circuit_id])[circuit_id]

    def members(self, circuit_ids: Sequence[str]) -> dict[str, EdgeIds]:
        """Edge ids of many circuits in one scan, by circuit id."""
        with self._reading() as con:
            keys = read.circuit_keys(con, circuit_ids)
            found = read.ids_by_circuit(con, "member", "edge_id", keys)
        return dict(zip(circuit_ids, found, strict=True))

    def node_members(self, circuit_ids: Sequence[str]) -> dict[str, NodeIds]:
        """Component ids of many circuits in one scan, by circuit id."""
        with self._reading() as con:
            keys = read.circuit_keys(con, circuit_ids)
            found = read.ids_by_circuit(con, "node_member", "component_id", keys)
        return dict(zip(circuit_ids, found, strict=True))

    def select(self, texts: Sequence[str]) -> list[list[groups.Outline]]:
        """The circuits of each selection (:mod:`circuitdb.store.groups`), oldest first.

        Raises:
            CircuitReferenceError: a selection is malformed, or nothing stored matches it.
        """
        with self._reading() as con:
            return groups.select(con, texts)

    def membership(
        self, keys: Sequence[int], nodes: bool
    ) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
        """Members of many circuits by surrogate key, in one scan: component ids, or edge ids.

        Starts ``[circuit + 1]`` and ids, those of circuit i from its start to the next, ascending.
        """
        table = ("node_member", "component_id") if nodes else ("member", "edge_id")
        with self._reading() as con:
            return read.members(con, *table, keys)

    def shared_edges(self, key: int) -> NDArray[np.int32]:
        """How many edges every edge circuit shares with one, by surrogate key from 0."""
        with self._reading() as con:
            return groups.shared_edges(con, key)

    def run(self, run_id: str) -> Run:
        """A run with all its settings."""
        with self._reading() as con:
            return read.run(con, read.run_key(con, run_id))

    def has_controls(self, tasks: Sequence[str]) -> bool:
        """Whether any run of some tasks has random answers, or is of a model before training."""
        with self._reading() as con:
            return read.has_controls(con, tasks)

    def distinct(self, column: str, view: str = "circuits") -> list[str]:
        """The values that a column of a view has, ascending, nulls left out."""
        with self._reading() as con:
            return read.distinct(con, column, view)

    def runs(self, run_ids: Sequence[str]) -> dict[str, Run]:
        """Many runs by their ids, those that are stored."""
        with self._reading() as con:
            return read.runs(con, run_ids)

    def provenance(self, run_id: str) -> Provenance:
        """How a run came to be."""
        with self._reading() as con:
            key = read.run_key(con, run_id)
            made_by = one(con, "SELECT provenance_key FROM run WHERE run_key = ?", [key])
            return read.provenance(con, made_by[0])

    def space(self, run_id: str) -> Space:
        """The graph space that the edge and component ids of a run index."""
        with self._reading() as con:
            return read.space(con, run_id)

    def feature_space(self, spec: SpaceSpec) -> FeatureSpace:
        """The graph of some dictionaries with the edges stored; none where it is new here."""
        with self._reading() as con:
            return read.feature_space(con, spec)

    def edge_scores(self, run_id: str) -> Scores | None:
        """Scores of a run, float32 ``[edge]``, NaN where not measured; None if it has none."""
        with self._reading() as con:
            sizes = read.sizes(con, run_id)
            return read.scores(con, "score", "edge_id", sizes.run_key, sizes.n_edges)

    def node_scores(self, run_id: str) -> Scores | None:
        """Scores of a run, float32 ``[component]``, NaN where not measured; None if none."""
        with self._reading() as con:
            sizes = read.sizes(con, run_id)
            return read.scores(con, "node_score", "component_id", sizes.run_key, sizes.n_nodes)

    def effects(self, run_id: str) -> dict[str, Floats]:
        """Further quantities of a run by name, float32 ``[edge]``, NaN where not measured."""
        with self._reading() as con:
            sizes = read.sizes(con, run_id)
            return read.effects(con, sizes.run_key, sizes.n_edges)

    def decisions(self, run_id: str) -> tuple[Decision, ...]:
        """The decisions of a run in the order taken."""
        with self._reading() as con:
            return read.decisions(con, read.run_key(con, run_id))

    def curves(self, run_id: str) -> tuple[Curve, ...]:
        """The faithfulness curves of a run, in the order they came."""
        from circuitdb.store import curves

        with self._reading() as con:
            return curves.of_run(con, read.run_key(con, run_id), run_id)

    def functional(self, cell_ids: Sequence[str]) -> dict[str, Cell]:
        """What parts of circuits do on tasks, by the hash of the question; those that are stored."""
        from circuitdb.store import functional

        with self._reading() as con:
            return functional.of_questions(con, cell_ids)

    def evaluations(self, circuit_id: str) -> tuple[Figures, ...]:
        """The evaluations of a circuit, the one shown first."""
        with self._reading() as con:
            return read.evaluations(con, read.circuit_keys(con, [circuit_id])[0])

    def knockouts(self, circuit_id: str) -> tuple[Knockouts, ...]:
        """The knockouts of a circuit: those of each split, metric and ablation."""
        with self._reading() as con:
            return read.knockouts(con, read.circuit_keys(con, [circuit_id])[0])

    def tests(self, circuit_id: str) -> tuple[CircuitTest, ...]:
        """The tests of a circuit, in the order they were stored."""
        with self._reading() as con:
            return read.tests(con, read.circuit_keys(con, [circuit_id])[0])

    def signature(self, weights: str, recipe_id: str) -> Signature | None:
        """The signatures of some weights by a recipe, where they are stored."""
        from circuitdb.store import signatures

        with self._reading() as con:
            return signatures.find(con, weights, recipe_id)

    def alignment(
        self, weights_a: str, weights_b: str, recipe_id: str, settings: dict[str, Any]
    ) -> Assignment | None:
        """What corresponds between two models under some settings, where that is stored."""
        from circuitdb.store import signatures

        with self._reading() as con:
            return signatures.find_alignment(con, weights_a, weights_b, recipe_id, settings)

    def checkpoint_metrics(self, weights: str, prompt_set: str) -> tuple[CheckpointMetric, ...]:
        """What the full model of some weights does on a prompt set, as far as it is stored."""
        from circuitdb.store import edit

        with self._reading() as con:
            return edit.checkpoint_metrics(con, weights, prompt_set)

    def dictionaries(
        self, name: str | None = None, weights: str | None = None
    ) -> tuple[Record, ...]:
        """Feature dictionaries by name of their set and by weights, in the order they came."""
        from circuitdb.store import dictionaries

        with self._reading() as con:
            return dictionaries.of(con, name, weights)

    def roles(self, weights: str, recipe_id: str) -> RoleScores | None:
        """The roles of the heads of some weights by a recipe, where they are stored."""
        from circuitdb.store import roles

        with self._reading() as con:
            return roles.find(con, weights, recipe_id)

    def directions(self) -> tuple[Direction, ...]:
        """All directions, in the order they came."""
        from circuitdb.store import directions as stored

        with self._reading() as con:
            return stored.every(con)

    def fitted(self) -> dict[str, str]:
        """The hash of the question of every stored direction, by direction_id."""
        from circuitdb.store import directions as stored

        with self._reading() as con:
            return stored.fits(con)

    def patches(self, patch_ids: Sequence[str]) -> dict[str, Patch]:
        """What patching directions does, by the hash of the question; those that are stored."""
        from circuitdb.store import directions as stored

        with self._reading() as con:
            return stored.patches(con, patch_ids)

    def profile(self, dictionary_id: str) -> Profile | None:
        """What the features of a dictionary do, where that is stored."""
        from circuitdb.store import features

        with self._reading() as con:
            return features.find_profile(con, dictionary_id)

    def profiled(self) -> list[Place]:
        """The dictionaries that have a profile."""
        from circuitdb.store import features

        with self._reading() as con:
            return features.places(con)

    def labels(self, dictionary_id: str) -> list[Label]:
        """Labels of a dictionary's features: by feature, by hand first, then the newest."""
        from circuitdb.store import features

        with self._reading() as con:
            return features.labels(con, dictionary_id)

    def match(self, match_id: str) -> Match | None:
        """What of two dictionaries corresponds by one question, where it is stored."""
        from circuitdb.store import features

        with self._reading() as con:
            return features.find_match(con, match_id)

    def matches(
        self, dictionary_a: str | None = None, dictionary_b: str | None = None
    ) -> list[Match]:
        """Matches, the newest first; of one dictionary A, one B, or both where they are given."""
        from circuitdb.store import features

        with self._reading() as con:
            return features.matches(con, dictionary_a, dictionary_b)

    def jobs(self, job_ids: Sequence[str] | None = None) -> dict[str, JobRow]:
        """What became of jobs of sweeps, by job_id, in the order they came; of all by default."""
        from circuitdb.store import jobs

        with self._reading() as con:
            return jobs.of(con, job_ids)

    def prompt_set(self, prompt_set_hash: str) -> PromptRows:
        """A stored prompt set.

        Raises:
            StoreError: it is not stored.
        """
        with self._reading() as con:
            return read.prompt_set(con, prompt_set_hash)

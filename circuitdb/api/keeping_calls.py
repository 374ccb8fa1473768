"""The calls of a database that keep circuits and the file: names, notes, drawings, copies."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from circuitdb.api.access import Access

if TYPE_CHECKING:
    from circuitdb.store import Merged
    from circuitdb.store import Report as Verified


class Renamed(NamedTuple):
    """What an alias was changed to."""

    circuit_id: str
    alias: str | None
    was: str | None
    """The alias it had before, which finds it no more."""


class KeepingCalls:
    """Circuits named, noted, drawn, written out, removed; the file merged, verified, copied."""

    _access: Access

    def alias(self, ref: str, name: str | None) -> Renamed:
        """Give a circuit an alias (``@name``) in place of an earlier one, or take it away with None."""
        with self._access.writing() as store:
            row = self._access.resolve(store, ref)[0]
            if name is None:
                store.remove_alias(row.circuit_id)
            else:
                store.set_alias(row.circuit_id, name)
            return Renamed(row.circuit_id, name, row.alias)

    def note(self, ref: str, text: str | None) -> str:
        """Write a note on a circuit in place of an earlier one, or take it away with None."""
        with self._access.writing() as store:
            circuit_id = self._access.resolve(store, ref)[0].circuit_id
            store.set_note(circuit_id, text)
            return circuit_id

    def remove(self, *refs: str) -> list[str]:
        """Remove circuits; runs and prompts nobody needs any more go with them.

        Raises:
            CircuitReferenceError: a reference names none, or several; nothing is removed.
        """
        with self._access.writing() as store:
            ids = list(dict.fromkeys(store.resolve_only(ref).circuit_id for ref in refs))
            store.remove(ids)
            return ids

    def render(self, *refs: str, path: str | Path, most: int | None = None) -> Path:
        """Draw one circuit, or two or three in one diagram coloured by who has what.

        Args:
            refs: one to three.
            path: the file; its suffix says what is written.
            most: of one circuit, edges to draw at most; by default all, of features 100.

        Raises:
            CircuitReferenceError: a reference names no circuit, or several.
            RenderError: the suffix is unknown or the file cannot be written.
        """
        from circuitdb.api import drawing

        return drawing.render(self._access, refs, path, most)

    def export(
        self, refs: str | Sequence[str], path: str | Path, *, format: str | None = None
    ) -> Path:
        """Write circuits to a new file, with all scores that its format can hold.

        Args:
            refs: a reference, or several where the format holds several.
            path: the file; it is not overwritten, and appears whole or not at all.
            format: ``circuitdb``, ``csv``, ``eap-ig``, ``acdc``, ``auto-circuit``, ``seqcont``,
                ``graphml`` or ``node-link`` (docs/formats.md); by default the one whose ending the path
                has.

        Raises:
            CircuitReferenceError: a reference names no circuit, or several.
            UnknownNameError: no such format.
            OptionError: the format cannot hold the circuits, or the file exists or cannot be written.
        """
        from circuitdb.api import exporting

        named = [refs] if isinstance(refs, str) else refs
        return exporting.export(self._access, named, path, format)

    def merge(self, other: str | Path) -> Merged:
        """Add what another database has and this one lacks.

        That is circuits, and for circuits stored in both evaluations, curves, knockouts,
        tests, functional overlap, aliases and notes; what is here stays as it is. The file is made where there is none.

        Raises:
            StoreError: the other database is missing, damaged, or none of circuitdb's.
        """
        from circuitdb.store import examine_other

        examine_other(Path(other))  # Before a file is made for nothing.
        with self._access.writing(create=True) as store:
            return store.merge(other)

    def verify(self) -> Verified:
        """Read every column and compare it with the counts and hashes kept with it."""
        with self._access.reading() as store:
            return store.verify()

    def backup(self, target: str | Path) -> Path:
        """Copy the database to a new file, compacted.

        Raises:
            StoreError: the file exists already, or cannot be written.
        """
        with self._access.reading() as store:
            return store.backup(target)

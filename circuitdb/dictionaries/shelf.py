"""Dictionaries from where they lie: a database's record, or the package, and their folders.

Every site has a folder of its own, in sae-lens's layout and named after the hook that is read; a
staircase has one folder for all its sites. What we write says in its ``cfg.json`` what it is
(:class:`circuitdb.dictionaries.record.Record`), so that a set can be taken into any database.
Sets that ship with the package lie in ``sets/`` beside this module.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from circuitdb.circuit import Json
from circuitdb.dictionaries.record import CIRCUITDB, Record, restored
from circuitdb.errors import DictionaryError, OptionError

# Listing reads JSON alone: torch is loaded with the first dictionary.
if TYPE_CHECKING:
    from circuitdb.dictionaries.forms import Dictionary
    from circuitdb.dictionaries.located import Located
    from circuitdb.models.model import LoadedModel

FOLDER: Final = Path(__file__).resolve().parent / "sets"
"""Where the sets of the package lie: a folder each, with one for every site."""
CONFIG: Final = "cfg.json"
METADATA: Final = "metadata"


class _Shipped(NamedTuple):
    record: Record
    folder: Path


def shipped(model: str | None = None) -> tuple[Record, ...]:
    """The dictionaries of a model, or of all, that are in the package, in forward order."""
    return tuple(s.record for s in _shipped() if model in (None, s.record.model))


@functools.cache
def _shipped() -> tuple[_Shipped, ...]:
    found = [
        _Shipped(replace(record, folder=None), path.parent)
        for path in sorted(FOLDER.glob(f"*/*/{CONFIG}"))
        for record in records_in(path.parent)
    ]
    return tuple(sorted(found, key=lambda s: _order(s.record)))


def _order(record: Record) -> tuple[Any, ...]:
    """By model, set, seed and place."""
    from circuitdb.models.sites import forward_order, of_hook

    return record.model, record.name, record.seed or 0, forward_order(of_hook(record.hook_in))


def records_in(folder: Path) -> tuple[Record, ...]:
    """What a folder says of the dictionaries in it, of a staircase one a site; none where another
    program wrote it.

    Raises:
        DictionaryError: it says it in no way that can be read.
    """
    try:
        config = json.loads((folder / CONFIG).read_text("utf-8"))
        told = config.get(METADATA) or {}
        return tuple(restored(one | {"folder": str(folder)}) for one in told.get(CIRCUITDB, ()))
    except (OSError, ValueError, TypeError, AttributeError, OptionError) as error:
        raise DictionaryError(
            f"{str(folder / CONFIG)!r} does not say what is in the folder ({error}): copy it again"
        ) from error


def load(record: Record) -> Located:
    """The dictionary of a record, from its folder.

    Raises:
        DictionaryError: the folder is gone, damaged, or holds another dictionary now.
    """
    from circuitdb.dictionaries import sae_lens

    folder = _folder(record)
    if not folder.is_dir():
        raise DictionaryError(
            f"the files of dictionary {record.label} are gone from {str(folder)!r}: put them back, or "
            "say where they are with circuitdb sae import"
        )
    found = sae_lens.read(folder).dictionary
    if record.stair is not None:
        found = found.at(record.stair)
    made = _placed(record, found)
    if made.located_id != record.dictionary_id:
        raise DictionaryError(
            f"{str(folder)!r} holds another dictionary now ({made.located_id[:12]}) than "
            f"{record.label} ({record.dictionary_id[:12]}): put the former files back, or import these "
            "under another name"
        )
    return made


def _folder(record: Record) -> Path:
    if record.folder is not None:
        return Path(record.folder)
    for one in _shipped():
        if one.record.dictionary_id == record.dictionary_id:
            return one.folder
    raise DictionaryError(
        f"dictionary {record.label} ({record.dictionary_id[:12]}) is not in this circuitdb's package: "
        "install the version that had it, or name another set"
    )


def _placed(record: Record, dictionary: Dictionary) -> Located:
    from circuitdb.dictionaries.located import Located
    from circuitdb.models.sites import of_hook

    read, written = of_hook(record.hook_in), of_hook(record.hook_out)
    return Located(record.name, read, dictionary, written, record.weights)


def record_of(
    located: Located,
    model: LoadedModel,
    *,
    stair: int | None = None,
    corpus: str | None = None,
    training: Json | None = None,
    health: Json | None = None,
    folder: Path | None = None,
) -> Record:
    """The record of a dictionary.

    Args:
        located: it; of a staircase the one site's.
        model: what it belongs to.
        stair: which site of a staircase it is.
        corpus: the id of the text it was trained on.
        training: how it was trained.
        health: what it does on held-out text.
        folder: where it lies.
    """
    form = located.dictionary.form
    flags = ("transcoder", "skip", "apply_b_dec_to_input", "rescale_acts_by_decoder_norm",
             "normalize_activations")  # fmt: skip
    return Record(
        dictionary_id=located.located_id,
        name=located.name,
        model=model.name,
        checkpoint=model.checkpoint,
        seed=model.seed,
        weights=located.weights,
        hook_in=str(located.site),
        hook_out=str(located.written),
        architecture=form.architecture if stair is None else "staircase_topk",
        d_in=form.d_in,
        d_dict=form.d_dict,
        d_out=form.d_out,
        k=form.k,
        flags={name: getattr(form, name) for name in flags} | {"stair": stair},
        corpus=corpus,
        training=training,
        health=health,
        folder=None if folder is None else str(folder.absolute()),
    )


def write(dictionary: Dictionary, records: Sequence[Record], folder: Path, *, half: bool) -> None:
    """Write a dictionary and what is known of it, of a staircase of each of its sites.

    Args:
        dictionary: what is written.
        records: of it.
        folder: where to.
        half: as float16; its weights must be such numbers already, or its id would change.

    Raises:
        DictionaryError: the folder cannot be written.
    """
    from circuitdb.dictionaries import sae_lens

    metadata: dict[str, Any] = {
        "model_name": records[0].model,
        "hook_name": records[0].hook_in,
        CIRCUITDB: [_portable(record) for record in records],
    }
    if records[0].flags["transcoder"]:
        metadata["hook_name_out"] = records[0].hook_out
    sae_lens.write(dictionary, folder, metadata, half=half)


def _portable(record: Record) -> Json:
    """A record without the folder, which may be moved."""
    return {name: value for name, value in record.to_json().items() if name != "folder"}

"""Training feature dictionaries: the library behind ``circuitdb sae train``.

Files come first and the database's rows last: a set is written beside its folder and renamed, so that
the folder is whole or not there. Where the rows could not be written any more, the folder says all
that is needed to import it.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

from circuitdb.api import dictionaries
from circuitdb.api.access import Access, Report
from circuitdb.api.sae import Training, Which, require_own_name
from circuitdb.circuit import Json
from circuitdb.dictionaries import shelf
from circuitdb.dictionaries.record import Record
from circuitdb.errors import DictionaryError, OptionError
from circuitdb.models import sites
from circuitdb.models.sites import Site

# What needs torch is imported where it is used: options are refused without it.
if TYPE_CHECKING:
    from circuitdb.dictionaries.corpus import Corpus
    from circuitdb.dictionaries.forms import Dictionary, Form
    from circuitdb.dictionaries.health import Health
    from circuitdb.dictionaries.located import Located
    from circuitdb.dictionaries.together import Place
    from circuitdb.dictionaries.training import Settings
    from circuitdb.models.model import LoadedModel

EXPANSION: Final = 8
"""Features a dimension, by default."""
NORMALIZATION: Final = "expected_average_only_in"
DEAD_AFTER: Final = 1000


class Trained(NamedTuple):
    """A set that was trained."""

    records: tuple[Record, ...]
    health: Health
    folder: Path
    seconds: float


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
    require_own_name(name)
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise DictionaryError(
            f"{str(out)!r} is there already: name another folder; circuitdb sae import takes in what "
            "lies there"
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

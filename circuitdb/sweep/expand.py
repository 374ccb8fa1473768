"""The jobs a sweep recipe stands for.

1. Every model gives its weights: its seeds, and of each seed the checkpoints asked for.
2. Every engine gives the fields of a plan: the recipe's defaults, and its own before them.
3. Their product with tasks, answers and replicates is left to what `include` and `exclude` leave.

Nothing here loads a model, or needs torch.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple, TypeVar

from pydantic import ValidationError

from circuitdb import engines, schedules, tasks
from circuitdb.errors import InputError, ModelError, OptionError, UnknownNameError, did_you_mean
from circuitdb.models import catalogue, hub
from circuitdb.models.entry import ModelEntry
from circuitdb.plan import Plan
from circuitdb.sweep.job import Job, Loading, identity
from circuitdb.sweep.recipe import Answers, Condition, Engines, Models, SweepRecipe

Where = tuple[str | int, ...]
Wrong = Callable[[Where, str], OptionError]
"""Makes the error for a place in a recipe: keys and numbers of list items from 0."""

T = TypeVar("T")

AXES: Final = ("task", "model", "checkpoint", "seed", "engine", "answers", "replicate")
"""Fields of a plan that the recipe's own keys give."""
_NEED_STORE: Final = {"within": "acdc", "like": "random"}
"""Settings that name a stored circuit, which a job's worker does not see."""
_DICTIONARIES: Final = ("features", "feature-search")


class _Weights(NamedTuple):
    model: str
    seed: int | None
    checkpoint: int | None
    identity: str
    loading: Loading


def expand(recipe: SweepRecipe, wrong: Wrong) -> list[Job]:
    """The jobs of a recipe, each once, by weights.

    Raises:
        OptionError: something it names is not there, or it stands for no job; made by `wrong`.
    """
    for i, name in enumerate(recipe.tasks):
        _told(wrong, ("tasks", i), tasks.get, name)
    weights = [w for i, m in enumerate(recipe.models) for w in _weights(m, ("models", i), wrong)]
    plans = [_fields(recipe, i, engine, wrong) for i, engine in enumerate(recipe.engines)]
    made = [
        _job(task, of, i, fields, sample)
        for of, task, (i, fields), sample in itertools.product(
            weights, recipe.tasks, enumerate(plans),
            itertools.product(recipe.answers, range(recipe.replicates)),
        )
    ]  # fmt: skip
    include, exclude = (_conditions(recipe, part, made, wrong) for part in ("include", "exclude"))
    kept = {
        job.job_id: job
        for job in made
        if (not include or _meets(job, include)) and not _meets(job, exclude)
    }
    if not kept:
        raise wrong(
            ("exclude",) if recipe.exclude else ("include",),
            f"none of {len(made)} jobs is left by include and exclude",
        )
    return list(kept.values())


def check_options(recipe: SweepRecipe, jobs: Sequence[Job], wrong: Wrong) -> None:
    """Look at the plans of jobs that are to be run; this needs their engines, and so torch.

    Raises:
        OptionError: an engine has no such setting, or a value is out of range; made by `wrong`.
    """
    from circuitdb.plan import check

    for i, engine in enumerate(recipe.engines):
        own = [job for job in jobs if job.engine == i]
        if not own:
            continue
        public = engines.get(engine.name).settings.public()
        for key in engine.options:
            if key not in public and key not in Plan.model_fields:
                known = [*public, *_plan_fields()]
                near = did_you_mean(key, known) or f"; it has: {', '.join(public) or 'none'}"
                raise wrong(
                    ("engines", i, key),
                    f"engine {engine.name!r} has no setting {key!r}, nor has a plan{near}",
                )
        for job in {job.plan.task: job for job in own}.values():
            _told(wrong, ("engines", i), check, job.plan)


def _plan_fields() -> list[str]:
    return [name for name in Plan.model_fields if name not in (*AXES, "settings")]


def _told(wrong: Wrong, where: Where, do: Callable[..., T], *arguments: Any) -> T:
    """What `do` gives; its complaint is told with the place."""
    try:
        return do(*arguments)
    except InputError as error:
        raise wrong(where, str(error)) from error


def _weights(model: Models, where: Where, wrong: Wrong) -> Iterator[_Weights]:
    entry = _told(wrong, (*where, "name"), _entry, model.name)
    loading = Loading(
        model.device, model.dtype, model.forward, model.batch_size, model.delete, model.cache
    )
    for seed in _told(wrong, (*where, "seeds"), catalogue.seeds_chosen, model.name, model.seeds):
        there = _told(wrong, (*where, "name"), _steps, model.name, entry, seed)
        name = model.name if seed is None else f"{model.name}, seed {seed}"
        for step in _told(wrong, (*where, "checkpoints"), _chosen, model, there, name) or (None,):
            known = _told(wrong, (*where, "name"), identity, entry, model.name, seed, step)
            yield _Weights(catalogue.known_as(model.name), seed, step, known, loading)


def _entry(name: str) -> ModelEntry | None:
    """The line of a model in the catalogue; None for a directory, or a name on the hub."""
    known = catalogue.by_name()
    if name not in known and not hub.looks_local(name) and "/" not in name:
        hint = "A Hugging Face directory or a hub name with a slash works too"
        raise UnknownNameError("model", name, [n for n in known if "/" not in n], hint)
    return known.get(name)


def _steps(name: str, entry: ModelEntry | None, seed: int | None) -> tuple[int, ...]:
    if entry is None and hub.looks_local(name) and not Path(name).expanduser().is_dir():
        raise ModelError(f"no directory {name!r}; expected a Hugging Face model directory")
    return catalogue.steps_of(name, seed)


def _chosen(model: Models, there: tuple[int, ...], name: str) -> tuple[int, ...]:
    """The checkpoints asked for; none stands for the weights that a model has without a number."""
    asked = model.checkpoints
    wanted = (asked,) if isinstance(asked, int) else asked
    on_hub = "/" in model.name and not hub.looks_local(model.name)
    if on_hub and not there and wanted not in ("all", "last"):
        # What the hub has is only known by asking it; a step that it lacks fails its job.
        return _unlisted(wanted)
    return schedules.chosen(wanted, there, name)


def _unlisted(wanted: schedules.Wanted) -> tuple[int, ...]:
    if not isinstance(wanted, str):
        return tuple(sorted({*wanted}))
    return schedules.named(wanted) if schedules.is_named(wanted) else schedules.listed(wanted)


def _fields(recipe: SweepRecipe, i: int, engine: Engines, wrong: Wrong) -> dict[str, Any]:
    """The fields of a plan that the recipe's defaults and an engine give."""
    name = _told(wrong, ("engines", i, "name"), engines.canonical, engine.name)
    if name in _DICTIONARIES:
        raise wrong(
            ("engines", i, "name"),
            f"engine {name!r} reads dictionaries of the database, which the workers of a sweep do "
            f"not see; use 'circuitdb discover --engine {name}'",
        )
    known = _plan_fields()
    for key in recipe.defaults:
        if key not in known:
            raise wrong(("defaults", key), _unknown(key, known))
    fields, settings = dict(recipe.defaults), dict[str, Any]()
    for key, value in engine.options.items():
        where = ("engines", i, key)
        if key in (*AXES, "settings"):
            raise wrong(where, _unknown(key, known))
        if key in _NEED_STORE:
            raise wrong(
                where,
                f"setting {key!r} names a stored circuit, which the workers of a sweep do not see; "
                f"use 'circuitdb discover --engine {name}'",
            )
        (fields if key in known else settings)[key] = value
    _require_valid(fields, set(engine.options), i, wrong)
    return {**fields, "engine": name, "settings": settings}


def _require_valid(fields: Mapping[str, Any], own: set[str], i: int, wrong: Wrong) -> None:
    """Refuse values of the wrong kind, where they stand."""
    try:
        Plan(task="ioi", **fields)
    except ValidationError as error:
        first = error.errors()[0]
        key = str(first["loc"][0])
        where: Where = ("engines", i, key) if key in own else ("defaults", key)
        raise wrong(where, f"{key!r}: {first['msg']} (found {first['input']!r})") from error


def _unknown(key: str, known: Sequence[str]) -> str:
    if key in AXES:
        keys = {"engine": "engines", "checkpoint": "models", "seed": "models"}
        place = keys.get(key, {"answers": "answers"}.get(key, f"{key}s"))
        return f"{key!r} is given by the recipe's own key {place!r}"
    if key == "settings":
        return "settings stand beside the engine's name"
    return f"unknown key {key!r}" + (did_you_mean(key, known) or f"; known: {', '.join(known)}")


def _job(
    task: str, of: _Weights, engine: int, fields: Mapping[str, Any], sample: tuple[Answers, int]
) -> Job:
    answers, replicate = sample
    plan = Plan(
        task=task, model=of.model, seed=of.seed, checkpoint=of.checkpoint,
        answers=answers, replicate=replicate, **fields,
    )  # fmt: skip
    return Job(plan, of.loading, of.identity, engine)


_Stated = dict[str, tuple[Any, ...]]


def _conditions(recipe: SweepRecipe, part: str, jobs: Sequence[Job], wrong: Wrong) -> list[_Stated]:
    """The conditions of a part of the recipe, with names as plans have them.

    A condition on what no job has is refused: a slip would leave out nothing, or everything.
    """
    there = {key: {getattr(job.plan, key) for job in jobs} for key in Condition.model_fields}
    found: list[_Stated] = []
    for i, condition in enumerate(getattr(recipe, part)):
        found.append({})
        for key, values in condition.stated.items():
            known = found[-1][key] = _canonical(key, values)
            for value in set(known) - there[key]:
                shown = [str(v) for v in sorted(there[key] - {None})]
                near = did_you_mean(value, shown) if isinstance(value, str) else ""
                near = near or f"; there are {', '.join(shown) or 'none'}"
                raise wrong((part, i, key), f"no job has {key} {value!r}{near}")
    return found


def _canonical(key: str, values: tuple[Any, ...]) -> tuple[Any, ...]:
    name = {"model": catalogue.known_as, "engine": engines.unaliased}.get(key)
    return values if name is None else tuple(name(value) for value in values)


def _meets(job: Job, conditions: Sequence[_Stated]) -> bool:
    """Whether a job meets one of some conditions, in every key of that."""
    return any(
        all(getattr(job.plan, key) in values for key, values in stated.items())
        for stated in conditions
    )

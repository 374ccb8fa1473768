"""Roles of heads over training: measured at every checkpoint, stored, and not measured twice."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

from circuitdb import schedules
from circuitdb.api.access import Access, Report
from circuitdb.errors import ModelError, OptionError, PromptError, StoreError
from circuitdb.models import catalogue
from circuitdb.names import Component
from circuitdb.roles import (
    RoleRecipe,
    RoleScore,
    RoleScores,
    RolesOverTraining,
    role_of,
)
from circuitdb.tasks import registry

# What needs torch is imported where it is used.
if TYPE_CHECKING:
    from circuitdb.circuit import Circuit
    from circuitdb.models.model import LoadedModel
    from circuitdb.tasks.prompts import PromptSet


class RoleOptions(NamedTuple):
    """What is asked for."""

    task: str | None = None
    model: str = "toy-4l"
    seed: int | None = None
    checkpoints: schedules.Wanted = "last"
    roles: Sequence[str] = ()
    """Those that are told; all by default."""
    prompts: int = 64
    data_seed: int = 0
    circuit: bool = False
    """Tell of heads of the task's stored circuit alone."""
    device: str = "cpu"
    force: bool = False


def roles_of(access: Access, options: RoleOptions, report: Report) -> RolesOverTraining:
    """The roles of a model's heads at some checkpoints."""
    _check(options)
    known = catalogue.steps_of(options.model, options.seed)
    steps = schedules.chosen(options.checkpoints, known, options.model) or (None,)
    found = []
    for at, step in enumerate(steps):
        report(f"roles in {options.model}", at, len(steps))
        found.append(_at(access, options, step))
    circuits = _circuits(access, options, [one.weights for one in found])
    members = [None if c is None else heads for c, heads in circuits]
    if options.circuit and not any(c for c, _ in circuits):
        raise OptionError(
            f"no circuit of {options.task!r} is stored for these weights: find one "
            f"(circuitdb discover --task {options.task}), or leave --circuit out"
        )
    kept = [
        tuple(s for s in one.scores if _told(s, options, heads))
        for one, heads in zip(found, members, strict=True)
    ]
    return RolesOverTraining(
        catalogue.known_as(options.model), found[0].seed, options.task,
        tuple(one.checkpoint for one in found), tuple(kept), tuple(c for c, _ in circuits),
        tuple(members),
    )  # fmt: skip


def _check(options: RoleOptions) -> None:
    """Refuse, before anything is loaded, what cannot be told.

    Raises:
        UnknownNameError: no such role, or task.
        OptionError: a role needs a task, or --circuit does; or there are no prompts.
    """
    if options.task is None:
        needy = [name for name in options.roles if role_of(name).needs]
        if needy:
            raise OptionError(f"role {needy[0]!r} is one on a task's prompts: name the task")
        if options.circuit:
            raise OptionError("a stored circuit is one of a task: name the task")
    else:
        registry.get(options.task)
    if options.prompts < 2:
        raise OptionError(f"roles need 2 prompts or more, not {options.prompts}")
    for name in options.roles:
        role_of(name)


class _AtStep(NamedTuple):
    checkpoint: int | None
    seed: int | None
    weights: str
    scores: tuple[RoleScore, ...]


def _at(access: Access, options: RoleOptions, step: int | None) -> _AtStep:
    """The scores of one checkpoint."""
    from circuitdb.models import prompt_roles, roles
    from circuitdb.models.residual import ResidualForward

    model = catalogue.load(
        options.model, checkpoint=step, seed=options.seed, device=options.device,
        force=options.force,
    )  # fmt: skip
    direct = isinstance(model.forward, ResidualForward)
    if not direct:
        access.notice(
            f"{model.name} runs through TransformerLens: roles of attention patterns alone are measured"
        )
    scores: tuple[RoleScore, ...] = ()
    if not options.roles or not all(role_of(name).needs for name in options.roles):
        recipe = RoleRecipe(direct=direct)
        scores += _measured(access, model, recipe, lambda: roles.on_text(model, recipe))
    if options.task is not None:
        made = _prompts(model, options)
        rows = made.split("train")
        recipe = RoleRecipe(task=options.task, prompt_set=made.hash, direct=direct)
        scores += _measured(
            access, model, recipe, lambda: prompt_roles.on_prompts(model, rows, direct)
        )
        positions: tuple[str, ...] = prompt_roles.positions(rows.rows)
    else:
        positions = ()
    for name in options.roles:
        _require(name, scores, model, options.task, positions, direct)
    return _AtStep(model.checkpoint, model.seed, model.weights_hash, scores)


def _prompts(model: LoadedModel, options: RoleOptions) -> PromptSet:
    from circuitdb import tasks

    sizes = {"train": options.prompts, "validation": 0, "test": 0, "shift": 0}
    return tasks.build(
        registry.get(str(options.task)), model.tokenizer, sizes=sizes,
        data_seed=options.data_seed, bos=model.bos,
    )  # fmt: skip


def _measured(
    access: Access,
    model: LoadedModel,
    recipe: RoleRecipe,
    measure: Callable[[], tuple[RoleScore, ...]],
) -> tuple[RoleScore, ...]:
    """The stored scores of these weights by a recipe, else new ones, stored where that can be."""
    if not access.in_use().exists():
        with access.writing(create=True):
            pass
    with access.reading() as store:
        known = store.roles(model.weights_hash, recipe.recipe_id)
    if known is not None:
        return known.scores
    found = measure()
    made = RoleScores(
        model.name, model.checkpoint, model.seed, model.weights_hash, recipe, found
    )  # fmt: skip
    try:
        with access.writing() as store:
            store.add_roles(made)
    except StoreError as error:
        access.notice(f"roles could not be stored and will be measured anew next time: {error}")
    return found


def _require(
    name: str,
    scores: Sequence[RoleScore],
    model: LoadedModel,
    task: str | None,
    positions: Sequence[str],
    direct: bool,
) -> None:
    """Say why a role that was asked for was not measured.

    Raises:
        ModelError: the model shows its attention patterns alone.
        OptionError: the task's prompts do not have the position.
        PromptError: the tokenizer lacks the words, or the tokens there are not such.
    """
    if any(score.role == name for score in scores):
        return
    role = role_of(name)
    if not role.attention and not direct:
        raise ModelError(
            f"role {name!r} needs the residual forward, and {model.name!r} runs through "
            "TransformerLens only: its attention can be measured, as in --role induction"
        )
    wanted = [name.partition(":")[2] if need == "R" else need for need in role.needs]
    missing = [need for need in wanted if need != "END" and need not in positions]
    if missing:
        raise OptionError(
            f"role {name!r} needs the position {missing[0]!r}, and the prompts of {task!r} have "
            f"{', '.join(positions)}"
        )
    if not role.needs:
        raise PromptError(
            f"role {name!r} needs words that the tokenizer of {model.name!r} has as one token "
            "(names; months, numerals or number words), and it has fewer than 5"
        )
    raise PromptError(f"role {name!r} cannot be measured on {task!r}: {_WHY[role.name]}")


_NO_MEMBERS = "the tokens there are no members of months, numerals or number words"
_NOT_BEFORE = "the token there did not stand earlier in every prompt"
_AT_END = "it is the last position itself"
_WHY = {
    "attends": _AT_END, "copies": _AT_END, "suppresses": _AT_END, "succeeds": _NO_MEMBERS,
    "duplicate_token:R": _NOT_BEFORE, "induction:R": _NOT_BEFORE, "previous_token:R": _NOT_BEFORE,
}  # fmt: skip


def _told(score: RoleScore, options: RoleOptions, heads: frozenset[Component] | None) -> bool:
    """Whether a score is among what was asked for."""
    inside = not options.circuit or (heads is not None and score.head in heads)
    return inside and (not options.roles or score.role in options.roles)


def _circuits(
    access: Access, options: RoleOptions, weights: Sequence[str]
) -> list[tuple[str | None, frozenset[Component]]]:
    """The newest circuit of the task for each weights, and its heads; random ones are left out."""
    nothing: tuple[str | None, frozenset[Component]] = (None, frozenset())
    if options.task is None:
        return [nothing] * len(weights)
    with access.reading() as store:
        rows = store.find(task=options.task, weights=[*weights], answers="task", replicate=0)
        newest: dict[str, str] = {}
        for row in rows:
            if row.engine != "random":
                newest.setdefault(row.weights, row.circuit_id)
        found = {w: (c, _heads(store.get(c))) for w, c in newest.items()}
    return [found.get(w, nothing) for w in weights]


def _heads(circuit: Circuit) -> frozenset[Component]:
    return frozenset(
        Component("head", node.layer, node.idx)
        for node in circuit.components
        if node.kind == "head"
    )

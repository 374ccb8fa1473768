"""Plans and prompts as calls and references name them; no database is needed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from circuitdb.api.options import PROMPTS, RUN, check_names
from circuitdb.errors import CircuitReferenceError, OptionError, UnknownNameError

if TYPE_CHECKING:
    from circuitdb.circuit import Circuit
    from circuitdb.plan import Plan
    from circuitdb.tasks import PromptSet


def make_plan(**fields: Any) -> Plan:
    """A plan from keyword arguments.

    Raises:
        UnknownNameError: there is no such field.
        OptionError: a value of the wrong kind.
    """
    from pydantic import ValidationError

    from circuitdb.plan import Plan

    try:
        return Plan(**fields)
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(str(part) for part in first["loc"])
        if first["type"] == "extra_forbidden":
            known = (*Plan.model_fields, *RUN)
            raise UnknownNameError("option", name, known, of="a discovery") from error
        raise OptionError(f"option {name!r}: {first['msg']} (got {first['input']!r})") from error


def prompts(
    task: str,
    *,
    model: str = "toy-4l",
    checkpoint: int | None = None,
    seed: int | None = None,
    **options: Any,
) -> PromptSet:
    """The prompts of a task as a model's tokenizer reads them.

    Args:
        task: a task's name, or the path of a JSONL file.
        options: those of :func:`circuitdb.tasks.build` (sizes, corruption, answers …).

    Raises:
        UnknownNameError: there is no such option.
        PromptError: the task cannot make so many prompts for this tokenizer.
    """
    from circuitdb import tasks
    from circuitdb.models import catalogue

    check_names("option", options, PROMPTS, of="prompts")
    wanted = tasks.get(task)
    loaded = catalogue.load(model, checkpoint=checkpoint, seed=seed)
    return tasks.build(wanted, loaded.tokenizer, bos=loaded.bos, **options)


def plan_of_reference(ref: str, like: Circuit | None = None) -> Plan:
    """The plan that would make the circuit ``task[,key=value…]`` names.

    What the reference leaves open is as in the circuit `like`, or the default.

    Raises:
        CircuitReferenceError: an unknown key, a value that is no number where one must be, a
            selection rule without its value, or a number type, which no plan holds.
    """
    from circuitdb.store.reference import parse

    wanted = parse(ref)
    fields = {"checkpoint" if k == "step" else k: v for k, v in wanted.stated.items()}
    fields.pop("granularity", None)
    dtype = fields.pop("dtype", None)
    if dtype is not None:
        raise CircuitReferenceError(
            f"{ref!r} is not stored, and a reference cannot choose the number type of a discovery; "
            f"run 'circuitdb discover --task {wanted.task} --dtype {dtype}' first"
        )
    if fields.pop("rule", "engine") != "engine":
        raise CircuitReferenceError(
            f"{ref!r} does not say what to discover: state the rule with its value, as in "
            f"{wanted.task},edges=60"
        )
    return make_plan(task=wanted.task, **(_common(like, fields) if like else {}), **fields)


def _common(like: Circuit, stated: Mapping[str, Any]) -> dict[str, Any]:
    """What a plan takes over from a circuit, where some fields are stated already."""
    from circuitdb.revisit import partner_fields
    from circuitdb.store.reference import RULES

    taken = set(stated)
    if stated.get("engine", like.run.engine) != like.run.engine:
        # Settings and what is selected by are an engine's own.
        taken |= {"settings", "ranking", *RULES}
    if stated.get("model", like.run.model) != like.run.model:
        taken |= {"checkpoint", "seed"}
    if not taken.isdisjoint(RULES):
        taken |= set(RULES)
    return {k: v for k, v in partner_fields(like).items() if k not in taken}

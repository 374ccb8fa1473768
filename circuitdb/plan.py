"""A plan: everything that decides a discovery, checked before a model is loaded."""

from __future__ import annotations

import json
import math
import shlex
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from circuitdb import engines, tasks
from circuitdb.errors import OptionError, UnknownNameError

# A sweep whose jobs are all stored states many plans and needs no torch.
if TYPE_CHECKING:
    from circuitdb.engines.engine import Engine, Settings

MOST_EXAMPLES = 100_000
"""More prompts than this are a slip of the hand: they would take days."""
MOST_BAND = 10_000
BAND = 20
"""Matched random circuits behind the band of every figure."""


class Plan(BaseModel):
    """Everything that decides a discovery. Null means the default of the engine or task."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    task: str
    """A task's name, or the path of a JSONL file."""
    model: str = "toy-4l"
    checkpoint: int | None = None
    seed: int | None = None
    engine: str = "prune"
    settings: dict[str, Any] = {}
    metric: str | None = None
    """By default the engine's own: ``logit_diff``, of ``acdc`` ``kl``."""
    ablation: str = "resample"
    corruption: str | None = None
    examples: int = 64
    """Train prompts; validation has 64 and test 128."""
    data_seed: int = 0
    answers: Literal["task", "random"] = "task"
    replicate: int = 0
    threshold: float | None = None
    edges: int | None = None
    nodes: int | None = None
    faithfulness: float | None = None
    ranking: Literal["abs_mean", "mean_abs", "contribution"] = "abs_mean"
    keep_input: bool = False
    """The empty circuit keeps ``input->logits`` (seqcont's convention)."""
    filter: bool = False
    """Keep only prompts whose correct answer is the model's top-1 token."""
    drop_templates: tuple[str, ...] = ()
    force: bool = False
    """Go on although the model does not do the task. Not part of the run's identity."""
    band: int = BAND
    """Matched random circuits to evaluate beside each circuit. Not part of the identity."""
    unmeasured: bool = False
    """Do not run what is found on test prompts; with `force` the model is not judged either. Not part of
    the identity."""

    def command(self) -> str:
        """The command line that repeats this plan."""
        words = ["circuitdb", "discover", "--task", self.task]
        defaults = Plan(task=self.task, metric=engines.get(self.engine).metric)
        for name in Plan.model_fields:
            value = getattr(self, name)
            if name in ("task", "settings") or value in (None, getattr(defaults, name)):
                continue
            option = f"--{name.replace('_', '-')}"
            if isinstance(value, bool):
                words.append(option)
            elif isinstance(value, tuple):
                words += [w for item in value for w in (option.removesuffix("s"), str(item))]
            else:
                words += [option, str(value)]
        public = engines.get(self.engine).settings.public()
        for name, value in self.settings.items():
            if value is not None and name in public:
                words += ["--set", f"{name}={_setting(value)}"]
        return shlex.join(words)


def _setting(value: Any) -> str:
    """A setting as ``--set`` reads it: text as it is where it cannot be taken for JSON."""
    if not isinstance(value, str):
        return json.dumps(value)
    try:
        json.loads(value)
    except ValueError:
        return value
    return json.dumps(value)


def check(plan: Plan, *, task: bool = True) -> None:
    """Everything of a plan that can be checked without a model; its task only if that is needed.

    Raises:
        UnknownNameError: no such task, engine, metric, ablation or corruption.
        OptionError: a value out of range, or options that do not go together.
    """
    from circuitdb import metrics
    from circuitdb.ablation import ABLATIONS

    if task:
        tasks.get(plan.task)
    engine = engines.get(plan.engine)
    metrics.get(plan.metric or engine.metric)
    if plan.ablation not in ABLATIONS:
        raise UnknownNameError("ablation", plan.ablation, ABLATIONS)
    if plan.ablation not in engine.ablations:
        raise OptionError(
            f"engine {engine.name!r} works under {' and '.join(engine.ablations)} only, "
            f"not {plan.ablation!r}"
        )
    if not 2 <= plan.examples <= MOST_EXAMPLES:
        raise OptionError(f"--examples is {plan.examples}; give 2 to {MOST_EXAMPLES:,}")
    if plan.replicate < 0 or plan.replicate * plan.examples > MOST_EXAMPLES:
        most = MOST_EXAMPLES // plan.examples
        raise OptionError(f"replicate is {plan.replicate}; give 0 to {most} with these examples")
    if not 0 <= plan.band <= MOST_BAND:
        raise OptionError(f"--band is {plan.band}; give 0 to {MOST_BAND:,}")
    if plan.data_seed < 0:
        raise OptionError(f"--data-seed is {plan.data_seed}; give 0 or more")
    _check_selection(plan)
    engine_settings(plan, engine)


def _check_selection(plan: Plan) -> None:
    rules = {k: getattr(plan, k) for k in ("threshold", "edges", "nodes", "faithfulness")}
    given = {k: v for k, v in rules.items() if v is not None}
    if len(given) > 1:
        raise OptionError(f"give one of --{', --'.join(given)}, not several")
    for name, value in given.items():
        # The circuit of no edges, or of no nodes but input and logits, is legal.
        if name in ("edges", "nodes") and value < 0:
            raise OptionError(f"--{name} is {value}; give a number from 0 up")
        if name in ("threshold", "faithfulness") and not (math.isfinite(value) and value > 0):
            raise OptionError(f"--{name} is {value!r}; give a finite number above 0")


def _engines_with(setting: str) -> list[str]:
    """Our engines that have a setting."""
    return [e.name for e in engines.ENGINES if setting in engines.get(e.name).settings.public()]


def engine_settings(plan: Plan, engine: Engine) -> Settings:
    """An engine's settings, checked, defaults filled in.

    Raises:
        OptionError: a setting is unknown, malformed or out of range.
    """
    try:
        return engine.settings.model_validate(plan.settings)
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(str(part) for part in first["loc"])
        if first["type"] == "extra_forbidden":
            known = ", ".join(engine.settings.public())
            owners = [e for e in _engines_with(name) if e != engine.name]
            other = f"; {name!r} belongs to {', '.join(owners)}" if owners else ""
            raise OptionError(
                f"engine {engine.name!r} has no setting {name!r}{other}; it has: {known or 'none'}"
            ) from error
        raise OptionError(
            f"setting {name!r} of engine {engine.name!r}: {first['msg']} (got {first['input']!r})"
        ) from error

"""Which training steps of a model are looked at: schedules by name, and lists of steps.

The named schedules are those of Tigges et al. 2024 over the checkpoints of Pythia, which was trained
for 143,000 steps. A model with other checkpoints takes the steps of a schedule that it has.

Source: Tigges, Hanna, Yu, Biderman 2024, "LLM Circuit Analyses Are Consistent Across Training and
Scale".
Differs: an unknown name is an error, no step comes twice, and every schedule ends with the last step.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Final

from circuitdb.errors import ModelError, OptionError, UnknownNameError

LAST: Final = 143_000
"""Pythia's last step."""
PYTHIA_TOKENS: Final = 2_097_152
"""Tokens a step of Pythia: 1,024 sequences of 2,048."""

_POWERS = tuple(2**k for k in range(10))
_SCHEDULES: Final[dict[str, tuple[int, ...]]] = {
    "linear": tuple(range(1_000, LAST + 1, 1_000)),
    "exponential": (*_POWERS, 1_000, 2_000, 4_000, 8_000, 16_000, 33_000, 66_000, 131_000, LAST),
    "exponential_plus_detail": (
        *_POWERS,
        *range(1_000, 15_000, 1_000),
        *range(15_000, 65_001, 5_000),
        *range(70_000, 140_001, 10_000),
        LAST,
    ),
}
_ALIASES: Final = {"exp_plus_detail": "exponential_plus_detail"}
NAMES: Final = ("all", "last", *_SCHEDULES, *_ALIASES)
"""What stands for several steps. ``all`` and ``last`` are those that a model has."""

Wanted = str | Sequence[int]
"""A name of :data:`NAMES`, steps, or their text: ``0,900,1000-4000/500``."""

_PART = re.compile(r"(\d+)(?:-(\d+)(?:/(\d+))?)?")


def named(name: str) -> tuple[int, ...]:
    """The steps of a named schedule, ascending.

    Raises:
        UnknownNameError: there is none of that name, or it depends on the model.
    """
    known = _ALIASES.get(name, name)
    if known not in _SCHEDULES:
        raise UnknownNameError("schedule", name, [*_SCHEDULES, *_ALIASES])
    return _SCHEDULES[known]


def is_named(wanted: Wanted) -> bool:
    """Whether a text is a schedule's name rather than a list of steps.

    Raises:
        UnknownNameError: it begins like a name, and is none.
    """
    if not isinstance(wanted, str):
        return False
    if wanted in NAMES:
        return True
    if wanted[:1].isalpha():
        raise UnknownNameError(
            "schedule", wanted, NAMES, "A list of steps works too: 0,900,1000-4000/500"
        )
    return False


def listed(text: str) -> tuple[int, ...]:
    """The steps of a text, ascending, each once.

    >>> listed("0,900,1000-2000/500")
    (0, 900, 1000, 1500, 2000)

    Raises:
        OptionError: it is no list of steps, or a range runs backwards.
    """
    steps: set[int] = set()
    for part in text.split(","):
        match = _PART.fullmatch(part.strip())
        first, last, by = (int(g) if g else None for g in match.groups()) if match else (None,) * 3
        if first is None or (last is not None and last < first) or by == 0:
            raise OptionError(
                f"checkpoints {text!r}: {part!r} is no step; give steps and ranges, as in "
                f"0,900,1000-4000/500, or one of {', '.join(NAMES)}"
            )
        steps |= set(range(first, (first if last is None else last) + 1, by or 1))
    return tuple(sorted(steps))


def chosen(wanted: Wanted, there: Sequence[int], model: str) -> tuple[int, ...]:
    """The steps meant, of those a model has, ascending.

    Args:
        wanted: a schedule's name, of which the steps that are there are taken; or a list of steps,
            which must all be there.
        there: the steps a model has, ascending; none where it has its own weights alone.
        model: its name, for messages.

    Returns:
        The steps; none, for ``all`` and ``last``, where the model has its own weights alone.

    Raises:
        UnknownNameError: no schedule of that name.
        OptionError: text that is no list of steps.
        ModelError: the model lacks a step of a list, or has none of a schedule.
    """
    if is_named(wanted):
        if wanted in ("all", "last"):
            return tuple(there) if wanted == "all" else tuple(there[-1:])
        steps = tuple(sorted({*named(str(wanted))} & {*there}))
        if not steps:
            raise ModelError(f"model {model!r} has no step of schedule {wanted!r}; {told(there)}")
        return steps
    steps = listed(wanted) if isinstance(wanted, str) else tuple(sorted({*wanted}))
    missing = sorted({*steps} - {*there})
    if missing:
        raise ModelError(f"model {model!r} has no checkpoint {missing[0]}; {told(there)}")
    return steps


def within(wanted: Wanted, last: int) -> tuple[int, ...]:
    """The steps meant of a training that ends at `last`, which is always among them.

    Raises:
        UnknownNameError: no schedule of that name.
        OptionError: text that is no list of steps, or a step of a list beyond the last.
    """
    if is_named(wanted) and wanted in ("all", "last"):
        return tuple(range(last + 1)) if wanted == "all" else (last,)
    if is_named(wanted):
        steps = tuple(s for s in named(str(wanted)) if s < last)
    else:
        steps = listed(wanted) if isinstance(wanted, str) else tuple(sorted({*wanted}))
        late = [s for s in steps if s > last]
        if late:
            raise OptionError(f"checkpoint {late[0]} lies beyond the last step, {last}")
    return tuple(sorted({*steps, last}))


def told(there: Iterable[int]) -> str:
    """What checkpoints there are, for messages; a long list is cut in the middle."""
    shown = [str(step) for step in sorted(there)]
    if not shown:
        return "it has none, only its own weights"
    if len(shown) > 24:
        shown[12:-6] = [f"… ({len(shown) - 18} more)"]
    return "it has " + ", ".join(shown)

"""Texts of the command line as values: JSON where they are JSON, else the text."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from circuitdb.errors import OptionError

MOST_REPLICATES = 1000


def value_of(text: str) -> Any:
    """A value as one types it.

    >>> value_of("0.9"), value_of("true"), value_of('["a0.h1"]'), value_of("joint")
    (0.9, True, ['a0.h1'], 'joint')
    """
    try:
        return json.loads(text, parse_constant=str)
    except ValueError:
        return text


def settings_of(pairs: Sequence[str], **named: Any) -> dict[str, Any]:
    """Engine settings from ``KEY=VALUE`` texts and named options that are not None.

    A key given several times makes a list.

    Raises:
        OptionError: a text without ``=``, or a setting given in both ways.
    """
    given: dict[str, list[Any]] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals or not key.strip():
            raise OptionError(f"--set {pair!r} is no KEY=VALUE, such as --set edge_keep=0.9")
        given.setdefault(key.strip().replace("-", "_"), []).append(value_of(value))
    settings = {key: v[0] if len(v) == 1 else v for key, v in given.items()}
    for key, value in named.items():
        if value is None:
            continue
        if key in settings:
            raise OptionError(f"--{key.replace('_', '-')} and --set {key}=… say the same; give one")
        settings[key] = value
    return settings


def samples(replicates: int | None, replicate: int | None) -> list[int]:
    """The prompt samples to discover on.

    Raises:
        OptionError: both options, or a number out of range.
    """
    if replicates is not None and replicate is not None:
        raise OptionError("give --replicates K (samples 0 to K−1) or --replicate K, not both")
    if replicates is not None:
        if not 1 <= replicates <= MOST_REPLICATES:
            raise OptionError(f"--replicates is {replicates}; give 1 to {MOST_REPLICATES}")
        return list(range(replicates))
    if replicate is not None and replicate < 0:
        raise OptionError(f"--replicate is {replicate}; give 0 or more")
    return [replicate or 0]

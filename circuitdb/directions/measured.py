"""What patching a direction does, as it is asked for and kept."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final, NamedTuple

from circuitdb.circuit import digest
from circuitdb.errors import OptionError

METRICS: Final = {
    "logit_diff_denoising": "logit difference of the corrupted run with the clean coordinates, "
    "(m(patched) − m(corrupted)) / (m(clean) − m(corrupted)); unbounded, 0…1 between the two runs",
    "logit_diff_noising": "the same of the clean run with the corrupted coordinates: 1 where nothing is "
    "lost, 0 where all is; unbounded",
    "logit_flip": "of the prompts whose logit difference the corruption turns negative, the share that "
    "the clean coordinates turn positive again; 0…1",
    "prob_diff_denoising": "as logit_diff_denoising with the difference of summed probabilities; "
    "unbounded",
}
"""Metrics of patching: 0 as the corrupted run, 1 as the clean one, means over prompts taken first."""
ABLATIONS: Final = ("zero", "mean", "resample")
VERSION: Final = 1
"""Raised when what is measured changes; it is part of every question."""
_HEAD: Final = re.compile(r"a(\d+)\.h(\d+)")


class Scope(NamedTuple):
    """The sites a direction is patched at.

    >>> str(Scope.of("heads:a2.h1,a3.h0")), str(Scope.of("resid"))
    ('heads:a2.h1,a3.h0', 'resid')
    """

    layers: bool = False
    """At its kind of site in every layer, and not only its own."""
    heads: tuple[tuple[int, int], ...] = ()
    """Layer and number of heads, into whose outputs it is patched instead."""

    @classmethod
    def of(cls, text: str) -> Scope:
        """``resid`` (its own site), ``layers``, or ``heads:a2.h1,a3.h0``.

        Raises:
            OptionError: it is none of these.
        """
        if text in ("resid", "layers"):
            return cls(layers=text == "layers")
        kind, colon, names = text.partition(":")
        found = [_HEAD.fullmatch(name.strip()) for name in names.split(",")]
        if kind != "heads" or not colon or not all(found):
            raise OptionError(
                f"--at is {text!r}; give resid (its own site), layers (its kind of site in every "
                "layer), or heads, as in heads:a2.h1,a3.h0"
            )
        return cls(heads=tuple(sorted({(int(m[1]), int(m[2])) for m in found if m})))

    def __str__(self) -> str:
        if self.heads:
            return "heads:" + ",".join(f"a{layer}.h{head}" for layer, head in self.heads)
        return "layers" if self.layers else "resid"


@dataclass(frozen=True, slots=True)
class PatchQuestion:
    """All that decides a measurement: an equal one is not done again."""

    direction_id: str
    task: str
    prompt_set: str
    split: str
    at: str
    """A :class:`Scope` as text."""
    position: str
    metric: str
    """One of :data:`METRICS`, or ``ablation_zero`` …: one of :data:`ABLATIONS`."""

    @property
    def patch_id(self) -> str:
        """SHA-256 of the question; the task's name decides nothing, its prompts do."""
        return digest(
            [
                VERSION, self.direction_id, self.prompt_set, self.split, self.at, self.position,
                self.metric,
            ]
        )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Patch:
    """What patching a direction gave; the figures are those of
    :class:`circuitdb.directions.patching.Outcome`."""

    question: PatchQuestion
    value: float | None
    sd: float | None
    low: float | None
    high: float | None
    n: int
    m_clean: float
    m_corrupted: float
    m_patched: float

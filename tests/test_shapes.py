"""Under test, every array is checked against the shape that its function states."""

from __future__ import annotations

from collections.abc import Callable

import jaxtyping
import numpy as np
import pytest
import torch
from beartype.roar import BeartypeCallHintViolation
from jaxtyping import Float
from torch import Tensor

from circuitdb import metrics
from tests import shapes

Square = Float[Tensor, "n n"]
Vector = Float[Tensor, " n"]


def _refusing(function: Callable[..., object]) -> Callable[..., object]:
    made: Callable[..., object] = jaxtyping.jaxtyped(typechecker=None)(function)
    return made


def test_the_package_is_checked():
    logits, ids = torch.zeros(3, 5), torch.zeros(2, 1, dtype=torch.long)
    with pytest.raises(BeartypeCallHintViolation, match="dimension batch"):
        metrics.kl_divergence(logits, torch.zeros(2, 5))
    with pytest.raises(BeartypeCallHintViolation):
        metrics.get("logit_diff").per_prompt(logits, ids, ids)


def test_names_of_axes_hold_for_the_arguments_and_the_result_of_one_call():
    @_refusing
    def times(a: Square, b: Vector) -> Vector:
        return a @ b if a.sum() else torch.zeros(len(b) + 1)

    assert times(torch.eye(2), torch.ones(2)).tolist() == [1, 1]
    assert times(torch.eye(3), torch.ones(3)).tolist() == [1, 1, 1], "another call, other sizes"
    for a, b in ((torch.ones(2, 3), torch.ones(3)), (torch.eye(2), torch.ones(3))):
        with pytest.raises(BeartypeCallHintViolation):
            times(a, b)
    with pytest.raises(BeartypeCallHintViolation, match="return"):
        times(torch.zeros(2, 2), torch.ones(2))
    with pytest.raises(BeartypeCallHintViolation):
        times(torch.eye(2, dtype=torch.long), torch.ones(2))


def test_a_call_inside_has_names_of_its_own():
    @_refusing
    def inner(a: Vector) -> Vector:
        return a

    @_refusing
    def outer(a: Vector) -> Vector:
        inner(torch.ones(len(a) + 1))
        return a

    assert outer(torch.ones(2)).tolist() == [1, 1]


def test_plain_types_are_checked_and_names_for_mypy_only_are_let_go():
    @_refusing
    def count(n: int, of: NowhereImported) -> int:  # type: ignore[name-defined]
        return n

    assert count(1, "anything") == 1
    with pytest.raises(BeartypeCallHintViolation):
        count("one", "anything")


def test_arrays_inside_other_types_are_found():
    assert shapes._names_an_array(dict[str, Vector | None])
    assert shapes._names_an_array(tuple[Float[np.ndarray, "n"], ...])
    assert not shapes._names_an_array(dict[str, Tensor | None])

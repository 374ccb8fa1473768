"""The Python face where no model is needed."""

from __future__ import annotations

import pytest

from circuitdb import api
from circuitdb.errors import CircuitReferenceError
from circuitdb.plan import Plan


@pytest.mark.parametrize(
    ("ref", "plan"),
    [
        ("ioi", Plan(task="ioi")),
        ("ioi,step=500,seed=1,granularity=edge", Plan(task="ioi", checkpoint=500, seed=1)),
        ("ioi,engine=eap,edges=60", Plan(task="ioi", engine="eap", edges=60)),
        ("ioi,nodes=3,ranking=mean_abs", Plan(task="ioi", nodes=3, ranking="mean_abs")),
        ("ioi,faithfulness=0.9", Plan(task="ioi", faithfulness=0.9)),
        ("ioi,threshold=1e-3,answers=random", Plan(task="ioi", threshold=0.001, answers="random")),
        ("ioi,rule=engine", Plan(task="ioi")),
    ],
)
def test_a_reference_says_what_to_discover(ref: str, plan: Plan) -> None:
    assert api.plan_of_reference(ref) == plan


def test_a_rule_without_its_value_does_not_say_what_to_discover() -> None:
    with pytest.raises(CircuitReferenceError, match="rule with its value, as in ioi,edges=60"):
        api.plan_of_reference("ioi,rule=edges")

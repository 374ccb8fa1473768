"""Metrics that people bring: found, named by their file, checked, and refused in one line."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from importlib.metadata import EntryPoint
from pathlib import Path

import numpy as np
import pytest
import torch

from circuitdb import metric, metrics, own_metrics, revisit
from circuitdb.circuit import PromptRow
from circuitdb.engines.attribution import objective
from circuitdb.engines.engine import Problem
from circuitdb.errors import CircuitdbError, OptionError, UnknownNameError
from circuitdb.evaluate import does_task
from circuitdb.plan import Plan
from circuitdb.store import Store, run_sql
from tests import planted, stored

Written = Callable[[str], str]
LOGITS = torch.tensor([[0.0, 1.0, 3.0], [2.0, 0.0, 0.0]])
CORRECT, INCORRECT = torch.tensor([[2, 1], [0, -1]]), torch.tensor([[0], [1]])
FIRST = "def first(logits, correct, incorrect):\n    return {}\n"


@pytest.fixture
def written(tmp_path: Path) -> Written:
    """Write ``mine.py`` and give what names a function of it."""

    def write(text: str, function: str = "first") -> str:
        (tmp_path / "mine.py").write_text(f"import torch\nfrom circuitdb import metric\n{text}")
        return f"{tmp_path / 'mine.py'}:{function}"

    return write


def test_a_function_of_a_file_is_a_metric_named_by_the_file_s_hash(
    written: Written, tmp_path: Path
) -> None:
    name = written(FIRST.format("logits.gather(1, correct[:, :1])[:, 0]"))
    found = metrics.get(name)
    digits = hashlib.sha256((tmp_path / "mine.py").read_bytes()).hexdigest()[:8]
    assert found.name == f"first#{digits}"
    assert found.per_prompt(LOGITS, CORRECT, INCORRECT).tolist() == [3.0, 2.0]
    assert (found.unit, found.better, found.needs_incorrect) == ("", 1, False)
    assert f"--metric {name}" in Plan(task="ioi", metric=found.asked_as).command()


def test_a_changed_file_is_another_metric_and_an_equal_one_the_same(written: Written) -> None:
    text = FIRST.format("logits[:, 0]")
    before = metrics.get(written(text)).name
    changed = metrics.get(written(text + "# later\n"))
    assert changed.name != before
    assert metrics.get(written(text)).name == before
    assert metrics.get(written(text)).per_prompt(LOGITS, CORRECT, INCORRECT).tolist() == [0.0, 2.0]


def test_the_decorator_says_unit_direction_and_need(written: Written) -> None:
    mark = '@metric(unit="nats", better=-1, needs_incorrect=True, differentiable=False)\n'
    found = metrics.get(written(mark + FIRST.format("logits[:, 0]")))
    assert found.declared == {"unit": "nats", "better": -1}
    assert found.differentiable is False
    with pytest.raises(OptionError, match="needs incorrect answers"):
        metrics.require_answers(found, [PromptRow("train", "", "", "", (1,), (2,), (3,), (), {})])
    with pytest.raises(OptionError, match=r"better is 2 for a metric; give \+1"):
        metric(better=2)


@pytest.mark.parametrize(
    ("body", "gradient"),
    [
        ("logits[:, 0] * 2", True),
        ("(logits[:, 0] > 0).float()", False),
        ("logits.detach()[:, 0]", False),
        ("logits[:, 0].round()", False),
    ],
)
def test_whether_there_is_a_gradient_is_found_by_trying(
    body: str, gradient: bool, written: Written
) -> None:
    found = metrics.get(written(FIRST.format(body)))
    assert metrics.has_gradient(found, LOGITS, CORRECT, INCORRECT, LOGITS) is gradient
    bench = planted.bench(planted.linear())
    problem = Problem(bench, found)
    if gradient:
        assert objective(problem, bench.batches[0]) is not None
    else:
        with pytest.raises(OptionError, match=r"'first#\w{8}' has no gradient"):
            objective(problem, bench.batches[0])


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("logits[:, 99]", "metric 'first' raised IndexError: index 99"),
        ("logits", r"metric 'first' gave the shape \[2, 3\]; it must give one value a prompt"),
        ("logits.mean()", r"metric 'first' gave the shape \[\]"),
        ("1.0", "metric 'first' gave a float; it must give a tensor"),
        ("logits.argmax(1)", "metric 'first' gave values of type int64"),
        ("logits[:, 0] / 0", "metric 'first' gave NaN or infinity for finite logits"),
    ],
)
def test_what_is_not_one_finite_number_a_prompt_is_refused(
    body: str, said: str, written: Written
) -> None:
    found = metrics.get(written(FIRST.format(body)))
    with pytest.raises(OptionError, match=said):
        found.per_prompt(LOGITS, CORRECT, INCORRECT)


@pytest.mark.parametrize(
    ("text", "function", "said"),
    [
        ("1 +", "first", "mine.py' cannot be run: SyntaxError"),
        ("import nowhere_at_all", "first", "cannot be run: ModuleNotFoundError"),
        (FIRST.format("0"), "frist", "unknown function 'frist' of .*did you mean 'first'"),
        ("first = 3", "first", "unknown function 'first'"),
    ],
)
def test_a_file_without_such_a_function_is_refused(
    text: str, function: str, said: str, written: Callable[[str, str], str]
) -> None:
    with pytest.raises(CircuitdbError, match=said) as caught:
        metrics.get(written(text, function))
    assert "\n" not in str(caught.value)


def test_a_file_that_is_not_there_or_a_name_without_function_is_refused(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match=r"gone\.py': No such file"):
        metrics.get(f"{tmp_path}/gone.py:f")
    with pytest.raises(OptionError, match=r"give it as FILE\.py:function"):
        metrics.get("gone.py")


def test_a_stored_metric_asks_for_its_file_and_tells_a_changed_one(written: Written) -> None:
    with pytest.raises(
        OptionError, match=r"SHA-256 begins with 0123abcd; give it with --metric FILE\.py:first"
    ):
        metrics.get("first#0123abcd")
    now = metrics.get(written(FIRST.format("logits[:, 0]"))).name
    with pytest.raises(OptionError, match=rf"begins with {now[-8:]}, and that of .* 0123abcd"):
        own_metrics.check_same("first#0123abcd", now, "mine.py:first")
    own_metrics.check_same(now, now, "mine.py:first")
    own_metrics.check_same("other#0123abcd", now, "mine.py:first")
    own_metrics.check_same("logit_diff", now, "mine.py:first")


def test_an_entry_point_is_found_by_its_name_and_by_what_it_is_stored_under(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "brought.py").write_text(FIRST.format("logits[:, 0]"))
    monkeypatch.syspath_prepend(tmp_path)
    entry = EntryPoint("theirs", "brought:first", "circuitdb.metrics")
    monkeypatch.setattr(own_metrics, "_installed", lambda: {"theirs": entry})
    found = metrics.get("theirs")
    assert found.name.startswith("theirs#")
    assert found.asked_as == "theirs"
    assert metrics.get(found.name).name == found.name
    with pytest.raises(OptionError, match="metric 'theirs' has changed"):
        metrics.get("theirs#00000000")
    with pytest.raises(UnknownNameError, match="did you mean 'theirs'"):
        metrics.get("their")


def test_contributions_follow_the_direction_a_metric_of_one_s_own_declares(tmp_path: Path) -> None:
    params = {"corruption": "abc", "metric": {"unit": "nats", "better": -1}}
    found = stored.ioi(metric="mine#01234567", task_params=params)
    assert found.run.better == -1
    path = tmp_path / "own.duckdb"
    with Store.open(path) as store:
        store.add(found)
        store.add(stored.months())
        store.add(stored.months(metric="kl"))
    sql = (
        "SELECT DISTINCT metric, contribution / score FROM edges JOIN circuits USING (circuit_id) "
        "WHERE score IS NOT NULL ORDER BY 1"
    )
    assert run_sql(path, sql).rows == [["kl", 1.0], ["logit_diff", -1.0], ["mine#01234567", 1.0]]


def test_the_gate_reads_a_metric_that_is_better_when_smaller_the_other_way(
    written: Written,
) -> None:
    text = (
        "@metric(better=-1, needs_incorrect=True, differentiable=True)\n"
        "def first(logits, correct, incorrect):\n"
        "    return (logits.gather(1, incorrect) - logits.gather(1, correct))[:, 0]\n"
    )
    forward, prompts = planted.chain(), planted.prompts()
    (mine,) = does_task(forward, prompts, metrics.get(written(text)))
    (usual,) = does_task(forward, prompts, metrics.get("logit_diff"))
    assert mine.effect == pytest.approx(usual.effect)
    assert np.isclose(usual.effect, 2, atol=0.01)


def test_a_search_with_a_metric_of_a_file_is_not_repeated_behind_its_back(
    fresh_store: Store,
) -> None:
    params = {"corruption": "abc", "metric": {"unit": "", "better": 1}}
    found = stored.ioi(metric="mine#01234567", task_params=params, settings={"order_seed": 0})
    circuit = fresh_store.get(fresh_store.add(found)[0])
    with pytest.raises(OptionError, match=r"discover --replicates K.*--metric FILE\.py:mine"):
        revisit.control_plans(circuit, 2)
    with pytest.raises(OptionError, match=r"discover --order-seed N.*--metric FILE\.py:mine"):
        revisit.in_other_orders(circuit, fresh_store.prompt_set, 1, complete=lambda plan: plan)


def test_a_curve_takes_the_run_s_own_metric_and_no_other(
    written: Written, fresh_store: Store
) -> None:
    name = written(FIRST.format("logits[:, 0]"))
    params = {"corruption": "abc", "metric": {"unit": "", "better": 1}}
    found = stored.ioi(metric=metrics.get(name).name, task_params=params)
    circuit = fresh_store.get(fresh_store.add(found)[0])
    assert revisit.own_metric(circuit, None) == {}
    assert revisit.own_metric(circuit, name) == {"metric": name}
    with pytest.raises(
        OptionError, match=r"'logit_diff', and what is measured is the run's own metric, 'first#"
    ):
        revisit.own_metric(circuit, "logit_diff")
    with pytest.raises(OptionError, match="metric 'first' has changed"):
        revisit.own_metric(circuit, written(FIRST.format("logits[:, 1]")))

"""Roles of heads against a model whose heads have known roles, and against slow definitions."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import pytest
import torch

from circuitdb import tasks
from circuitdb.errors import OptionError, UnknownNameError
from circuitdb.models import catalogue, signatures
from circuitdb.models.model import LoadedModel
from circuitdb.models.prompt_roles import before, on_prompts, positions
from circuitdb.models.roles import _hits, on_text, successors
from circuitdb.names import Component
from circuitdb.roles import (
    ROLES,
    Change,
    RoleRecipe,
    RoleScore,
    RoleScores,
    RolesOverTraining,
    changes,
    level_of,
    order_of,
    role_of,
)
from circuitdb.signature import Recipe
from tests import roled

TEXT = RoleRecipe(samples=4, texts=4)


@pytest.fixture(scope="module")
def model() -> LoadedModel:
    return roled.loaded()


@pytest.fixture(scope="module")
def on_names(model: LoadedModel) -> dict[str, dict[str, RoleScore]]:
    return by_role(on_prompts(model, roled.prompts(), direct=True))


def by_role(scores: Iterable[RoleScore]) -> dict[str, dict[str, RoleScore]]:
    found: dict[str, dict[str, RoleScore]] = {}
    for score in scores:
        found.setdefault(score.role, {})[str(score.head)] = score
    return found


def held(found: dict[str, dict[str, RoleScore]]) -> dict[str, set[str]]:
    return {role: {h for h, s in of.items() if s.holds} for role, of in found.items()}


def test_heads_built_for_a_role_hold_it_and_no_others_do(model: LoadedModel) -> None:
    found = held(by_role(on_text(model, TEXT)))
    assert found == {
        "previous_token": {"a0.h0"},
        "duplicate_token": {"a0.h1"},
        "induction": {"a1.h0"},
        "copy": {"a0.h2", "a1.h0", "a1.h2"},
        "negative_copy": {"a1.h3"},
        "ov_copying": {"a0.h2", "a1.h0", "a1.h2"},
        "successor": {"a1.h1"},
    }


def test_every_head_has_a_score_and_its_level(model: LoadedModel) -> None:
    found = by_role(on_text(model, TEXT))
    assert {len(of) for of in found.values()} == {10}
    scores = found["ov_copying"]
    assert [round(scores[h].score or 0, 6) for h in ("a0.h2", "a1.h3")] == [1.0, -1.0]
    assert found["successor"]["a1.h1"].n == 33
    assert found["copy"]["a0.h2"].n == 24
    assert found["previous_token"]["a0.h0"].n == 16
    for role, of in found.items():
        chance = of["a0.h0"].chance
        assert {s.level for s in of.values()} == {level_of(role, chance)}


def test_on_prompts_heads_do_what_they_were_built_for(
    on_names: dict[str, dict[str, RoleScore]],
) -> None:
    found = held(on_names)
    assert found["name_mover"] == {"a1.h2"}
    assert found["negative_name_mover"] == {"a1.h3"}
    assert found["s_inhibition"] == {"a0.h3"}
    assert found["attends:S2"] == {"a0.h3"}
    assert found["attends:IO"] == found["copies:IO"] | found["suppresses:IO"]
    assert found["attends:IO"] == {"a1.h2", "a1.h3"}
    assert found["copies:IO"] == {"a1.h2"}
    assert found["suppresses:IO"] == {"a1.h3"}
    # S2 stands before the last word: its duplicate is S1, looked at half and half with itself.
    assert found["duplicate_token:S2"] == {"a0.h1"}
    assert found["induction:S2"] == {"a1.h0"}
    assert found["previous_token:S2"] == {"a0.h0"}
    assert on_names["duplicate_token:S2"]["a0.h1"].score == pytest.approx(0.5)
    assert found["attends:S1"] == found["copies:S2"] == found["suppresses:S2"] == set()


def test_s_inhibition_is_the_share_that_the_head_has_in_what_name_movers_do(
    on_names: dict[str, dict[str, RoleScore]],
) -> None:
    scores = {h: s.score for h, s in on_names["s_inhibition"].items()}
    assert scores["a0.h3"] == pytest.approx(1.0)
    # The first layer reaches name movers' queries, the second does not.
    others = [h for h in scores if h != "a0.h3"]
    assert [scores[h] for h in others if h.startswith("a0")] == pytest.approx([0.0] * 4, abs=1e-9)
    assert {scores[h] for h in others if h.startswith("a1")} == {None}


def test_without_name_movers_there_is_no_s_inhibition() -> None:
    model = roled.loaded()
    for head in (2, 3):
        model.forward.weights.blocks[1].attention.w_o[head] = 0.0  # type: ignore[attr-defined]
    found = by_role(on_prompts(model, roled.prompts(), direct=True))
    assert not any(s.holds for s in found["name_mover"].values())
    assert {s.score for s in found["s_inhibition"].values()} == {None}


def test_a_lowered_name_is_no_moved_one_and_words_elsewhere_are_chance(
    on_names: dict[str, dict[str, RoleScore]],
) -> None:
    assert on_names["name_mover"]["a1.h3"].score == pytest.approx(-1.0)
    assert on_names["name_mover"]["a1.h2"].score == pytest.approx(1.0)
    chance = on_names["name_mover"]["a1.h2"].chance
    assert chance is not None
    assert chance < 0.5
    # a1.h2 raises one name far: another prompt's is not among its five.
    assert on_names["copies:IO"]["a1.h2"].score == 1.0


def test_attention_patterns_alone_tell_the_roles_of_attention(model: LoadedModel) -> None:
    text = by_role(on_text(model, RoleRecipe(samples=2, direct=False)))
    assert set(text) == {"previous_token", "duplicate_token", "induction"}
    found = by_role(on_prompts(model, roled.prompts(), direct=False))
    assert all(role_of(role).attention for role in found)
    assert "attends:S2" in found


@pytest.mark.parametrize("task", ["months", "greater_than"])
def test_a_task_of_other_positions_has_roles_at_them(task: str) -> None:
    model = catalogue.load("toy-2l")
    sizes = {"train": 16, "validation": 0, "test": 0, "shift": 0}
    made = tasks.build(tasks.get(task), model.tokenizer, sizes=sizes, bos=model.bos).split("train")
    found = by_role(on_prompts(model, made, direct=True))
    named = positions(made.rows)
    assert {f"attends:{p}" for p in named if p != "END"} <= set(found)
    assert ("succeeds:M4" in found) == (task == "months")
    assert not {"name_mover", "s_inhibition"} & set(found)


def test_attention_to_positions_is_the_mean_of_the_pattern() -> None:
    model = catalogue.load("toy-2l")
    sizes = {"train": 12, "validation": 0, "test": 0, "shift": 0}
    made = tasks.build(tasks.get("ioi"), model.tokenizer, sizes=sizes, bos=model.bos).split("train")
    found = by_role(on_prompts(model, made, direct=True))
    expected: dict[str, list[float]] = {"attends:S2": [], "induction:S2": []}
    for row in made.rows:
        pattern = model.forward.patterns(torch.tensor([row.clean_ids]))[1][0, 2]
        at = row.roles["S2"]
        earlier = before(row, at)
        assert earlier is not None
        expected["attends:S2"].append(float(pattern[-1, at]))
        expected["induction:S2"].append(float(pattern[at, earlier + 1]))
    for role, values in expected.items():
        assert found[role]["a1.h2"].score == pytest.approx(np.mean(values), abs=1e-6)
        assert found[role]["a1.h2"].n == 12


def test_hits_are_those_of_the_written_out_circuit(tiny_directory) -> None:
    """A norm with bias, value biases, and an MLP that adds to embeddings."""
    model = catalogue.load(str(tiny_directory("gpt2")), forward="residual", dtype="float64")
    w = model.forward.weights  # type: ignore[attr-defined]
    read, wanted = torch.arange(4, 12), torch.arange(8, 16)[None]
    up, down = _hits(model.forward, read, wanted)  # type: ignore[arg-type]
    at = 0
    for layer, block in enumerate(w.blocks):
        for head in range(len(block.attention.w_o)):
            raised = lowered = 0
            for word, target in zip(read.tolist(), wanted[0].tolist(), strict=True):
                x = w.embed[word]
                if layer:
                    x = x + model.forward.mlp(0, x[None])[0]  # type: ignore[attr-defined]
                norm = block.attention_norm
                unit = (x - x.mean()) / (x.var(unbiased=False) + norm.eps).sqrt()
                out = (unit * norm.weight) @ block.attention.w_v[head] @ block.attention.w_o[head]
                logits = ((out - out.mean()) * w.final_norm.weight) @ w.unembed
                order = logits.argsort(descending=True).tolist()
                raised += target in order[:5]
                lowered += target in order[-5:]
            assert (up[0, at], down[0, at]) == (raised / 8, lowered / 8)
            at += 1


@pytest.mark.parametrize("kind", ["gpt2", "llama", "gpt_neox"])
def test_both_forwards_show_the_same_patterns(tiny_directory, kind: str) -> None:
    tokens = torch.randint(2, 60, (3, 9), generator=torch.Generator().manual_seed(0))
    fast, slow = (
        catalogue.load(str(tiny_directory(kind)), forward=way).forward.patterns(tokens)
        for way in ("residual", "hooked")
    )
    for a, b in zip(fast, slow, strict=True):
        assert torch.allclose(a, b, atol=1e-5)
        assert torch.allclose(a.sum(-1), torch.ones(()))


def test_successors_are_the_next_of_each_sequence(model: LoadedModel) -> None:
    found = successors(model.tokenizer)
    ids = roled.ID
    assert found[ids["May"]] == (ids["June"], ids["August"])
    assert ids["December"] not in found
    assert len(found) == 33


def score(head: str, role: str, value: float, holds: bool) -> RoleScore:
    made = Component("head", int(head[1]), int(head[-1]))
    return RoleScore(made, role, value, 0.1, 0.4, holds, 8)


STEPS = (
    (0, [score("a0.h0", "copy", 0.9, True), score("a1.h0", "copy", 0.1, False), score("a0.h0", "induction", 0.1, False)]),
    (10, [score("a0.h0", "copy", 0.2, False), score("a1.h0", "copy", 0.8, True), score("a0.h0", "induction", 0.9, True)]),
    (20, [score("a0.h0", "copy", 0.2, False), score("a1.h0", "copy", 0.3, False), score("a0.h0", "induction", 0.9, True)]),
)  # fmt: skip


def test_changes_say_who_enters_who_leaves_and_who_takes_over() -> None:
    first, second = Component("head", 0, 0), Component("head", 1, 0)
    assert changes(STEPS) == (
        Change(10, "induction", first, "enters", ("copy",), None),
        Change(10, "copy", first, "leaves", ("induction",), second),
        Change(10, "copy", second, "enters", (), None),
        Change(20, "copy", second, "leaves", (), None),
    )
    assert changes(STEPS[:1]) == ()


def test_holdings_are_told_by_role_with_their_checkpoints() -> None:
    found = RolesOverTraining(
        "toy", 0, "ioi", (0, 10, 20), tuple(tuple(s) for _, s in STEPS), (None, "c1", None),
        (None, frozenset({Component("head", 1, 0)}), None),
    )  # fmt: skip
    assert [(h.role, str(h.head), h.checkpoints, h.in_circuit) for h in found.holdings()] == [
        ("induction", "a0.h0", (10, 20), None),
        ("copy", "a0.h0", (0,), None),
        ("copy", "a1.h0", (10,), True),
    ]
    document = found.to_json()
    assert document["changes"][1]["heir"] == "a1.h0"
    assert len(document["scores"]) == 9
    assert document["holdings"][0]["head"] == "a0.h0"


@pytest.mark.parametrize("name", ["inductoin", "attends", "attends:", "name_mover:S2"])
def test_an_unknown_role_is_refused_with_near_names(name: str) -> None:
    with pytest.raises(UnknownNameError) as raised:
        role_of(name)
    assert "attends:S2" in str(raised.value)


def test_roles_are_told_in_the_order_of_the_list() -> None:
    names = [r.name for r in ROLES if "R" not in r.needs]
    assert sorted(names, key=order_of) == names != sorted(names)
    assert sorted(["attends:S2", "attends:IO", "copy"], key=order_of) == [
        "copy", "attends:IO", "attends:S2",
    ]  # fmt: skip


def test_a_recipe_depends_on_what_decides_about_it_alone() -> None:
    task = RoleRecipe(task="ioi", prompt_set="p")
    ids = {r.recipe_id for r in (RoleRecipe(), RoleRecipe(texts=2), task, RoleRecipe(direct=False))}
    assert len(ids) == 4
    assert RoleRecipe(task="ioi", prompt_set="p", texts=2).recipe_id == task.recipe_id


def test_two_scores_of_one_role_and_head_are_refused() -> None:
    twice = (score("a0.h0", "copy", 0.1, False), score("a0.h0", "copy", 0.2, False))
    with pytest.raises(OptionError):
        RoleScores("toy", None, None, "w", RoleRecipe(), twice)


def test_roles_of_attention_are_the_means_of_signatures(tiny_directory) -> None:
    model = catalogue.load(str(tiny_directory("gpt2")), forward="residual", dtype="float64")
    sizes = {"samples": 3, "texts": 2, "length": 6}
    expected = signatures.measure(model, Recipe(**sizes))
    heads = [c.kind == "head" for c in expected.components]
    found = by_role(on_text(model, RoleRecipe(**sizes)))
    for role in ("previous_token", "duplicate_token", "induction", "ov_copying"):
        of = expected.values[heads, expected.recipe.features.index(role)]
        assert [s.score for s in found[role].values()] == pytest.approx(of.tolist())
    assert found["previous_token"]["a0.h0"].chance == pytest.approx(
        sum(1 / (t + 1) for t in range(1, 12)) / 11
    )

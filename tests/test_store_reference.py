"""References: what people write for a circuit, alone and together."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest

from circuitdb.circuit import Selection
from circuitdb.errors import CircuitReferenceError
from circuitdb.store import CircuitRow, Store, reference
from circuitdb.store.reference import parse
from tests import stored


def add(store: Store, task: str, minute: int, **run: object) -> str:
    """An edge circuit of a task found at a minute; its id."""
    # Model, checkpoint and seed do not count for the id of a run; the data seed does.
    given = replace(stored.months(minute), run=stored.a_run(task, **{"data_seed": minute} | run))
    return store.add(replace(given, edge_scores=None))[0]


def select(
    store: Store, task: str, minute: int, rule: str, value: float | None = None, **more: str
):
    """A selection of a task's run, which is the same run at every minute; its circuit's id."""
    run = {"engine": more.pop("engine", "eap"), "data_seed": 0}
    ranking = more.pop("ranking", "none" if value is None else "abs_mean")
    chosen = Selection(rule=rule, value=value, ranking=ranking, **more)  # type: ignore[arg-type]
    draft = replace(stored.edge_draft(stored.MONTHS), selection=chosen)
    found = replace(stored.months(minute), run=stored.a_run(task, **run), circuits=(draft,))
    return store.add(replace(found, edge_scores=None))[0]


def told(store: Store, *refs: str) -> list[str]:
    """What is said beside the circuits that references stand for."""
    notices: list[str] = []
    store.resolve(refs, notices.append)
    return notices


def of(store: Store, *refs: str) -> list[str]:
    return [row.circuit_id for row in store.resolve(refs)]


def test_an_id_or_a_prefix_of_six_digits_names_a_circuit(fresh_store: Store) -> None:
    one = add(fresh_store, "ioi", 0)
    for text in (one, one[:12], one[:6], one[:8].upper(), f" {one[:6]} "):
        assert of(fresh_store, text) == [one]
    with pytest.raises(CircuitReferenceError, match="beginning has 6 to 64 hex digits, not 5"):
        of(fresh_store, one[:5])
    with pytest.raises(CircuitReferenceError, match="6 to 64 hex digits, not 65"):
        of(fresh_store, f"{one}0")
    with pytest.raises(CircuitReferenceError, match="no circuit id begins with '000000'"):
        of(fresh_store, "000000")


def test_choices_are_listed_as_far_as_one_line_may_be_long(fresh_store: Store) -> None:
    for k in range(12):
        select(fresh_store, "months", k, "edges", float(k + 1))
    for asked in ("months,step=7", "months,edges=99"):
        with pytest.raises(CircuitReferenceError, match=r"edges=12; .*; and \d+ more$") as told:
            of(fresh_store, asked)
        shown, more = re.split("; and ", str(told.value))
        assert len(str(told.value)) < 750
        assert shown.count("model=") + int(more.split()[0]) == 12


def test_an_ambiguous_prefix_lists_the_choices(
    fresh_store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = add(fresh_store, "ioi", 0), add(fresh_store, "months", 0)
    fresh_store._con.execute("UPDATE circuit SET circuit_id = 'abcdef' || substr(circuit_id, 7)")
    with pytest.raises(CircuitReferenceError, match="begins 2 ids") as caught:
        of(fresh_store, "abcdef")
    for circuit_id, task in ((one, "ioi"), (two, "months")):
        assert f"abcdef{circuit_id[6:12]} {task},model=toy-4l" in str(caught.value)


def test_an_alias_names_a_circuit(fresh_store: Store) -> None:
    one = add(fresh_store, "ioi", 0)
    fresh_store.set_alias(one, "best")
    assert of(fresh_store, "@best") == [one]
    with pytest.raises(CircuitReferenceError, match="alias 'bets'; did you mean 'best'"):
        of(fresh_store, "@bets")


def test_a_task_means_its_newest_circuit(fresh_store: Store) -> None:
    add(fresh_store, "ioi", 5, engine="acdc")
    newest = add(fresh_store, "ioi", 9)
    add(fresh_store, "ioi", 7, engine="exact")
    assert of(fresh_store, "ioi") == [newest]


@pytest.mark.parametrize(
    ("text", "run"),
    [
        ("ioi,model=gpt2", {"model": "gpt2"}),
        ("ioi,step=500", {"checkpoint": 500}),
        ("ioi,step=none,seed=1", {"seed": 1}),
        ("ioi,engine=acdc", {"engine": "acdc"}),
        ("ioi,metric=kl", {"metric": "kl"}),
        ("ioi, ablation = mean", {"ablation": "mean"}),
        ("ioi,step=500,engine=acdc", {"checkpoint": 500, "engine": "acdc"}),
    ],
)
def test_every_key_narrows_the_choice(
    fresh_store: Store, text: str, run: dict[str, object]
) -> None:
    wanted = add(fresh_store, "ioi", 0, **run)
    add(fresh_store, "ioi", 1)
    assert of(fresh_store, text) == [wanted]


def test_granularity_narrows_the_choice_and_edges_lead_within_a_run(fresh_store: Store) -> None:
    given = stored.ioi_nodes(0)
    both = replace(given, circuits=(*given.circuits, stored.edge_draft(stored.IOI)))
    node, edge = fresh_store.add(both)
    assert of(fresh_store, "ioi") == [edge]
    assert of(fresh_store, "ioi,granularity=node") == [node]
    # Of another run the node circuit may be the newest.
    (newer,) = fresh_store.add(stored.ioi_nodes(9, data_seed=1))
    assert of(fresh_store, "ioi") == [newer]


def test_edges_lead_within_a_run_also_when_the_nodes_came_later(fresh_store: Store) -> None:
    given = stored.ioi_nodes(9)
    (edge,) = fresh_store.add(
        replace(stored.ioi_nodes(0), circuits=(stored.edge_draft(stored.IOI),))
    )
    fresh_store.add(given)
    assert of(fresh_store, "ioi") == [edge]


def test_of_one_discovery_the_first_circuit_leads(fresh_store: Store) -> None:
    given = stored.ioi()
    sizes = tuple(stored.edge_draft(stored.IOI[:n]) for n in (3, 2, 4))
    ids = fresh_store.add(replace(given, circuits=sizes))
    assert of(fresh_store, "ioi") == [ids[0]]


def test_references_agree_in_what_they_leave_open(fresh_store: Store) -> None:
    ioi = {e: add(fresh_store, "ioi", m, engine=e) for m, e in ((0, "eap"), (1, "acdc"))}
    months = {e: add(fresh_store, "months", m, engine=e) for m, e in ((2, "prune"), (3, "eap"))}
    # Alone ioi would be acdc; only eap is there for both.
    assert of(fresh_store, "ioi", "months") == [ioi["eap"], months["eap"]]
    assert of(fresh_store, "ioi,engine=acdc", "months,engine=prune") == [
        ioi["acdc"], months["prune"],
    ]  # fmt: skip


def test_the_newest_combination_wins(fresh_store: Store) -> None:
    for engine, (first, second) in {"eap": (5, 3), "acdc": (4, 6), "exact": (6, 5)}.items():
        add(fresh_store, "ioi", first, engine=engine)
        add(fresh_store, "months", second, engine=engine)
    # exact and acdc are both complete at minute 6; the older part of exact is newer.
    rows = fresh_store.resolve(["ioi", "months"])
    assert {row.engine for row in rows} == {"exact"}


def test_what_one_reference_states_holds_for_the_others(fresh_store: Store) -> None:
    older = add(fresh_store, "months", 0, model="toy-4l")
    add(fresh_store, "months", 5, model="gpt2")
    ioi = add(fresh_store, "ioi", 1, model="toy-4l")
    assert of(fresh_store, "ioi,model=toy-4l", "months") == [ioi, older]
    assert of(fresh_store, ioi[:8], "months") == [ioi, older]
    fresh_store.set_alias(ioi, "mine")
    assert of(fresh_store, "months", "@mine") == [older, ioi]


def test_a_key_stated_differently_leaves_the_others_to_agree(fresh_store: Store) -> None:
    a = [add(fresh_store, "ioi", s, checkpoint=s, seed=seed) for s, seed in ((1, 0), (2, 1))]
    b = add(fresh_store, "ioi", 0, checkpoint=2, seed=0)
    # Seeds are open and must agree: step 2 of seed 0, although seed 1 is newer.
    assert of(fresh_store, "ioi,step=1", "ioi,step=2") == [a[0], b]


def test_a_null_agrees_with_null_only(fresh_store: Store) -> None:
    one, two = add(fresh_store, "ioi", 0, checkpoint=None), add(fresh_store, "months", 0)
    add(fresh_store, "ioi", 9, checkpoint=512)
    assert of(fresh_store, "ioi", "months") == [one, two]


def test_no_agreement_lists_the_choices(fresh_store: Store) -> None:
    add(fresh_store, "ioi", 0, engine="acdc")
    add(fresh_store, "months", 0, engine="eap")
    with pytest.raises(CircuitReferenceError, match="no stored circuits agree") as caught:
        of(fresh_store, "ioi", "months")
    assert "'ioi': ioi,model=toy-4l,seed=0,engine=acdc" in str(caught.value)
    assert "'months': months,model=toy-4l,seed=0,engine=eap" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_what_references_cannot_agree_on_is_named_with_what_to_type(fresh_store: Store) -> None:
    for minute, engine in enumerate(("acdc", "exact")):
        add(fresh_store, "ioi", minute, engine=engine)
    add(fresh_store, "months", 2, engine="eap")
    said = (
        r"cannot agree on engine, where 'ioi' has exact, acdc and 'months' has eap\. .* state engine "
        r"for each, as in 'ioi,engine=exact', .* --force"
    )
    with pytest.raises(CircuitReferenceError, match=said):
        of(fresh_store, "ioi", "months")
    with pytest.raises(CircuitReferenceError, match="'months' has eap and the others state acdc"):
        of(fresh_store, "ioi,engine=acdc", "months")


def test_no_single_key_need_be_at_fault(fresh_store: Store) -> None:
    for minute, (task, engine, metric) in enumerate(
        [("ioi", "eap", "kl"), ("ioi", "acdc", "logit_diff"), ("months", "eap", "logit_diff"),
         ("months", "acdc", "kl")]
    ):  # fmt: skip
        add(fresh_store, task, minute, engine=engine, metric=metric)
    with pytest.raises(CircuitReferenceError, match="leave open; state more keys"):
        of(fresh_store, "ioi", "months")


def test_by_force_references_that_cannot_agree_stand_each_for_its_newest(
    fresh_store: Store,
) -> None:
    ioi = [add(fresh_store, "ioi", m, engine=e) for m, e in enumerate(("acdc", "exact"))]
    months = add(fresh_store, "months", 2, engine="eap")
    forced = fresh_store.resolve(["ioi", "months"], force=True)
    assert [row.circuit_id for row in forced] == [ioi[1], months]
    # Where they can agree they do, force or not.
    alike = add(fresh_store, "months", 0, engine="acdc")
    forced = fresh_store.resolve(["ioi", "months"], force=True)
    assert [row.circuit_id for row in forced] == [ioi[0], alike]


def test_the_same_reference_twice_is_the_same_circuit(fresh_store: Store) -> None:
    one = add(fresh_store, "ioi", 0)
    assert of(fresh_store, "ioi", "ioi") == [one, one]


def test_two_references_that_end_at_one_circuit_are_refused(fresh_store: Store) -> None:
    add(fresh_store, "ioi", 0, checkpoint=500)
    add(fresh_store, "ioi", 1, checkpoint=1000)
    with pytest.raises(CircuitReferenceError, match=r"both stand for .*step=500.* state more keys"):
        of(fresh_store, "ioi,step=500", "ioi")


@pytest.mark.parametrize("engine", ["random", "import", "import-eap-ig"])
def test_random_circuits_and_imports_come_only_when_named(fresh_store: Store, engine: str) -> None:
    named = add(fresh_store, "ioi", 9, engine=engine)
    with pytest.raises(CircuitReferenceError, match=f"there are: .*engine={engine}"):
        of(fresh_store, "ioi")
    found = add(fresh_store, "ioi", 0)
    assert of(fresh_store, "ioi") == [found]
    assert of(fresh_store, f"ioi,engine={engine}") == [named]
    assert of(fresh_store, named[:10]) == [named]


def test_a_model_is_known_by_its_alias_too(fresh_store: Store) -> None:
    named = add(fresh_store, "ioi", 0, model="smollm2-135m-instruct-q4_1")
    add(fresh_store, "ioi", 1)
    assert of(fresh_store, "ioi,model=smollm2-135m") == [named]
    (found,) = fresh_store.select(["ioi,model=smollm2-135m"])
    assert [outline.circuit_id for outline in found] == [named]


def test_a_selection_of_nothing_says_what_there_is_whatever_its_wild_keys(
    fresh_store: Store,
) -> None:
    add(fresh_store, "ioi", 0)
    with pytest.raises(CircuitReferenceError, match="there are: ioi,model=toy-4l") as caught:
        fresh_store.select(["ioi,engine=acdc,replicate=*,step=*"])
    assert "whole number" not in str(caught.value)


def test_controls_come_only_when_named(fresh_store: Store) -> None:
    random = add(fresh_store, "ioi", 8, task_params={"answers": "random"})
    second = add(fresh_store, "ioi", 9, task_params={"replicate": 1})
    plain = add(fresh_store, "ioi", 0, task_params={"answers": "task", "replicate": 0})
    assert of(fresh_store, "ioi") == [plain]
    assert of(fresh_store, "ioi,answers=random") == [random]
    assert of(fresh_store, "ioi,replicate=1") == [second]
    assert of(fresh_store, random[:9]) == [random]
    with pytest.raises(CircuitReferenceError, match="answers=random"):
        of(fresh_store, "ioi,replicate=2")


def test_an_unknown_task_lists_near_names(fresh_store: Store) -> None:
    with pytest.raises(CircuitReferenceError, match="the database is empty"):
        of(fresh_store, "ioi")
    add(fresh_store, "months", 0)
    add(fresh_store, "ioi", 0)
    with pytest.raises(CircuitReferenceError, match="did you mean 'months'") as caught:
        of(fresh_store, "month")
    assert "Stored tasks: ioi, months" in str(caught.value)
    with pytest.raises(
        CircuitReferenceError, match=r"task 'xyz' is stored; stored tasks: ioi, months$"
    ):
        of(fresh_store, "xyz")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("ioi,modle=x", "'modle=x' in .* did you mean 'model'"),
        ("ioi,checkpoint=5", "'checkpoint=5' in .* did you mean 'step'"),
        ("ioi,seed=0,seed=1", "gives the key 'seed' twice"),
        ("ioi,seed=0,engine=eap, seed = 0", "gives the key 'seed' twice"),
        (",seed=0", "',seed=0' names no task"),
        ("abcdef,seed=0", "an id takes no keys: 'abcdef,seed=0'"),
        ("ioi,step", "'step' in 'ioi,step' is no key=value"),
        (
            "ioi,replicate=*",
            "'ioi,replicate=\\*' stands for several .* only selections take replicate=\\*",
        ),
        ("ioi,step=last", "step='last' in .* is no whole number"),
        (
            "ioi,engine=nothing",
            "no stored circuit is 'ioi,engine=nothing'; of 'ioi' there are: ioi,",
        ),
    ],
)
def test_a_malformed_reference_says_what_is_wrong(
    fresh_store: Store, text: str, message: str
) -> None:
    add(fresh_store, "ioi", 0)
    with pytest.raises(CircuitReferenceError, match=message):
        of(fresh_store, text)


def test_a_reference_is_taken_apart() -> None:
    assert parse("ioi, step=5,seed=none,model=a=b").stated == {
        "step": 5, "seed": None, "model": "a=b",
    }  # fmt: skip


def test_joint_resolution_equals_trying_every_combination(fresh_store: Store) -> None:
    """The slow, obvious way: all combinations, checked pair by pair, sorted by age."""
    import itertools

    import numpy as np

    rng = np.random.default_rng(3)
    for minute in rng.permutation(40).tolist():
        add(
            fresh_store, ["ioi", "months", "docstring"][minute % 3], minute,
            engine=["eap", "acdc"][int(rng.integers(2))], seed=int(rng.integers(3)),
            checkpoint=[None, 100, 200][int(rng.integers(3))], data_seed=minute,
        )  # fmt: skip
    rows = fresh_store.find()
    keys = ("model", "checkpoint", "seed", "engine", "granularity", "metric", "ablation")
    for refs in (
        ["ioi", "months"], ["ioi", "months", "docstring"], ["ioi,seed=1", "months"],
        ["ioi,step=100", "ioi,step=200", "months"], ["ioi,engine=eap", "months,engine=acdc"],
    ):  # fmt: skip
        parsed = [parse(ref) for ref in refs]
        stated = [
            {{"step": "checkpoint"}.get(k, k): v for k, v in p.stated.items()} for p in parsed
        ]
        options = [
            [r for r in rows if r.task == p.task and all(getattr(r, k) == v for k, v in s.items())]
            for p, s in zip(parsed, stated, strict=True)
        ]

        def agrees(chosen: tuple[object, ...], stated: list[dict[str, object]] = stated) -> bool:
            for key in keys:
                said = {s[key] for s in stated if key in s}
                free = {
                    getattr(c, key) for c, s in zip(chosen, stated, strict=True) if key not in s
                }
                if len(said) == 1 and free:
                    free |= said
                if len(free) > 1:
                    return False
            return True

        good = [c for c in itertools.product(*options) if agrees(c)]
        expected = max(
            (sorted((r.created_at for r in c), reverse=True), [r.circuit_id for r in c])
            for c in good
        )
        assert of(fresh_store, *refs) == expected[1], refs


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("ioi,edges=60", 0), ("ioi,edges=60.0", 0), ("ioi,edges=6e1", 0), ("ioi,edges=200", 1),
        ("ioi,threshold=0.01", 2), ("ioi,threshold=1e-2", 2), ("ioi,faithfulness=.85", 3),
        ("ioi,nodes=12", 4), ("ioi,rule=engine", 5), ("ioi,rule=edges", 1),
        ("ioi,edges=60,ranking=contribution", 6), ("ioi,edges=60,ranking=abs_mean", 0),
        ("ioi,ranking=none", 5), ("ioi,rule=faithfulness,engine=eap", 3),
    ],
)  # fmt: skip
def test_a_selection_is_named_by_its_rule_and_value(
    fresh_store: Store, text: str, wanted: int
) -> None:
    ids = [
        select(fresh_store, "ioi", 9, "edges", 60),
        select(fresh_store, "ioi", 8, "edges", 200),
        select(fresh_store, "ioi", 7, "threshold", 0.01),
        select(fresh_store, "ioi", 6, "faithfulness", 0.85),
        select(fresh_store, "ioi", 5, "nodes", 12),
        select(fresh_store, "ioi", 4, "engine"),
        select(fresh_store, "ioi", 3, "edges", 60, ranking="contribution"),
    ]
    # Of the rule alone the newest: 60 edges are newer than 200 and must not be meant by them.
    expected = ids[0] if text == "ioi,rule=edges" else ids[wanted]
    assert of(fresh_store, text) == [expected]


def test_a_number_of_edges_is_the_one_asked_for_and_not_the_one_found(fresh_store: Store) -> None:
    (row,) = fresh_store.resolve([select(fresh_store, "ioi", 0, "edges", 60)])
    assert row.n_edges == len(stored.MONTHS)
    with pytest.raises(CircuitReferenceError, match=r"of 'ioi' there are: .*,edges=60$"):
        of(fresh_store, f"ioi,edges={row.n_edges}")


@pytest.mark.parametrize("text", ["ioi,edges=many", "ioi,edges=none", "ioi,faithfulness=nan"])
def test_the_value_of_a_rule_is_a_number(fresh_store: Store, text: str) -> None:
    key, _, value = text.partition(",")[2].partition("=")
    with pytest.raises(CircuitReferenceError, match=f"{key}='{value}' in '{text}' is no number"):
        of(fresh_store, text)


def test_listed_choices_are_references_to_what_they_list(
    fresh_store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reference, "_ROOM", 2000)
    ids = {
        select(fresh_store, "ioi", 1, "edges", 60),
        select(fresh_store, "ioi", 2, "edges", 60, ranking="mean_abs"),
        select(fresh_store, "ioi", 3, "threshold", 1e-05),
        select(fresh_store, "ioi", 4, "engine", engine="prune"),
        add(fresh_store, "ioi", 5, checkpoint=500),
        add(fresh_store, "ioi", 6, engine="random"),
        add(fresh_store, "ioi", 7, task_params={"answers": "random"}),
    }
    with pytest.raises(CircuitReferenceError, match="there are: ") as caught:
        of(fresh_store, "ioi,engine=nothing")
    choices = str(caught.value).partition("there are: ")[2].split("; ")
    assert "step=none" in choices[-1], "another one has a step"
    assert len(choices) == len(ids)
    assert {of(fresh_store, choice)[0] for choice in choices} == ids


def test_choices_that_no_key_tells_apart_come_with_their_ids(fresh_store: Store) -> None:
    ids = [select(fresh_store, "ioi", m, "given", members=m * "x") for m in (1, 2)]
    with pytest.raises(CircuitReferenceError) as caught:
        of(fresh_store, "ioi,engine=nothing")
    assert f"rule=given (2 circuits: {ids[1][:12]}, {ids[0][:12]})" in str(caught.value)


def test_several_selections_of_one_run_are_told_of(fresh_store: Store) -> None:
    select(fresh_store, "ioi", 1, "edges", 200)
    select(fresh_store, "ioi", 0, "faithfulness", 0.85)
    newest = select(fresh_store, "ioi", 2, "edges", 60)
    assert of(fresh_store, "ioi") == [newest]
    assert told(fresh_store, "ioi") == [
        "ioi stands for the newest of 3: edges=60; also edges=200, faithfulness=0.85"
    ]
    assert told(fresh_store, "ioi,rule=edges") == [
        "ioi,rule=edges stands for the newest of 2: edges=60; also edges=200"
    ]
    assert told(fresh_store, "ioi,edges=60") == []


def test_nothing_is_told_of_other_runs_and_of_circuits_named_by_id(fresh_store: Store) -> None:
    one = select(fresh_store, "ioi", 1, "edges", 60)
    select(fresh_store, "ioi", 2, "edges", 200, engine="acdc")
    fresh_store.add(stored.ioi_nodes(3))
    assert told(fresh_store, "ioi") == []
    select(fresh_store, "ioi", 4, "edges", 80)
    fresh_store.set_alias(one, "mine")
    assert told(fresh_store, one[:12]) == told(fresh_store, "@mine") == []


def test_rankings_and_circuits_by_hand_are_told_apart_in_notices(fresh_store: Store) -> None:
    select(fresh_store, "ioi", 1, "edges", 60, ranking="mean_abs")
    select(fresh_store, "ioi", 2, "edges", 60)
    assert told(fresh_store, "ioi") == [
        "ioi stands for the newest of 2: edges=60,ranking=abs_mean; also edges=60,ranking=mean_abs"
    ]
    ids = [select(fresh_store, "months", m, "given", members=m * "x")[:12] for m in (1, 2)]
    assert told(fresh_store, "months") == [
        f"months stands for the newest of 2: {ids[1]}; also {ids[0]}"
    ]


def test_equal_selections_go_before_newer_mixed_ones(fresh_store: Store) -> None:
    ioi = [select(fresh_store, "ioi", m, "edges", n) for m, n in ((1, 60), (9, 200))]
    months = select(fresh_store, "months", 2, "edges", 60)
    assert of(fresh_store, "ioi") == [ioi[1]]
    assert of(fresh_store, "ioi", "months") == [ioi[0], months]
    assert told(fresh_store, "ioi", "months") == [
        "ioi stands for one of 2: edges=60; also edges=200"
    ]
    # What is stated is kept to, by a mixture if need be.
    assert of(fresh_store, "ioi,edges=200", "months") == [ioi[1], months]
    assert of(fresh_store, ioi[1], "months") == [ioi[1], months]


def test_an_equal_rule_goes_before_newer_other_rules(fresh_store: Store) -> None:
    ioi = select(fresh_store, "ioi", 1, "edges", 200)
    select(fresh_store, "ioi", 9, "faithfulness", 0.85)
    months = select(fresh_store, "months", 2, "edges", 60)
    assert of(fresh_store, "ioi", "months") == [ioi, months]
    select(fresh_store, "months", 3, "threshold", 0.1)
    assert of(fresh_store, "ioi,rule=faithfulness", "months,rule=edges")[1] == months
    # No rule is common to these: the newest.
    docstring = select(fresh_store, "docstring", 0, "nodes", 3)
    assert of(fresh_store, "docstring", "months,rule=threshold")[0] == docstring


def test_equal_selections_of_an_older_engine_do_not_go_before_newer_runs(
    fresh_store: Store,
) -> None:
    for minute, (task, engine, n) in enumerate(
        (("ioi", "eap", 60), ("months", "eap", 60), ("ioi", "exact", 80), ("months", "exact", 90))
    ):
        select(fresh_store, task, minute, "edges", n, engine=engine)
    rows = fresh_store.resolve(["ioi", "months"])
    assert [(r.engine, r.value) for r in rows] == [("exact", 80.0), ("exact", 90.0)]


def test_equality_does_not_end_two_references_at_one_circuit(fresh_store: Store) -> None:
    small = select(fresh_store, "ioi", 1, "edges", 60)
    large = select(fresh_store, "ioi", 2, "edges", 200)
    assert of(fresh_store, "ioi,edges=60", "ioi") == [small, large]
    with pytest.raises(CircuitReferenceError, match=r"both stand for .*,edges=200; state more"):
        of(fresh_store, "ioi,edges=200", "ioi")


def test_seven_stated_keys_are_not_an_id(fresh_store: Store) -> None:
    select(fresh_store, "ioi", 1, "edges", 60)
    keys = "model=toy-4l,seed=0,engine=eap,granularity=edge,metric=logit_diff"
    with pytest.raises(CircuitReferenceError, match="both stand for"):
        of(fresh_store, f"ioi,{keys},ablation=resample,edges=60", f"ioi,{keys},rule=edges,edges=60")


def test_resolution_with_selections_equals_trying_every_combination(fresh_store: Store) -> None:
    """The slow, obvious way: the keys of the newest combination, then likeness, then age."""
    import itertools

    import numpy as np

    rng = np.random.default_rng(5)
    rules = [("edges", 60), ("edges", 200), ("threshold", 0.5), ("engine", None)]
    for minute in rng.permutation(24).tolist():
        rule, value = rules[int(rng.integers(4))]
        task, engine = ["ioi", "months", "docstring"][minute % 3], ["eap", "exact"][minute % 2]
        select(fresh_store, task, minute, rule, value, engine=engine)
    rows = fresh_store.find()
    newest = {r.run_id: max(o.created_at for o in rows if o.run_id == r.run_id) for r in rows}

    def age(chosen: tuple[CircuitRow, ...]) -> list[object]:
        return sorted(((newest[r.run_id], r.created_at) for r in chosen), reverse=True)

    def likeness(chosen: tuple[CircuitRow, ...]) -> int:
        return (len({(r.rule, r.value, r.ranking) for r in chosen}) == 1) + (
            len({r.rule for r in chosen}) == 1
        )

    seen = set()
    for refs in (["ioi", "months"], ["months", "docstring"], ["ioi", "months", "docstring"]):
        options = [[r for r in rows if r.task == ref] for ref in refs]
        agree = [c for c in itertools.product(*options) if len({r.engine for r in c}) == 1]
        engine = max(agree, key=age)[0].engine
        expected = max(
            (c for c in agree if c[0].engine == engine), key=lambda c: (likeness(c), age(c))
        )
        assert of(fresh_store, *refs) == [r.circuit_id for r in expected], refs
        seen.add((likeness(expected), expected == max(agree, key=age)))
    assert len(seen) > 1, "the cases differ in what decides them"

"""A search goes on where it stopped, and stored decisions are repeated without a model."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np
import pytest

from circuitdb import api, metrics
from circuitdb.circuit import Decision
from circuitdb.compare.stability import stability
from circuitdb.engines import acdc
from circuitdb.engines.engine import Found, Problem
from circuitdb.engines.prune import Prune, PruneSettings
from circuitdb.errors import OptionError
from circuitdb.journal import FileJournal, Journal, beside, differences, read, require_unfinished
from circuitdb.replay import agreeing, command_with, differ_in_threshold_alone, replay, rethreshold
from circuitdb.space import Space, SpaceSpec
from tests import planted
from tests.stored import a_run
from tests.test_acdc import random_problem, same, search

MADE = tuple(Decision(f"m{i}->logits", "edges", float(i), i + 0.1, i % 2 == 0) for i in range(4))


class Kept(Journal):
    """A journal that remembers."""

    def __init__(self, known: Sequence[Decision] = ()) -> None:
        super().__init__(known)
        self.made: list[Decision] = []

    def record(self, decisions: Sequence[Decision]) -> None:
        self.made += decisions


# files


def test_what_was_written_down_is_begun_with_and_goes_when_the_run_is_stored(tmp_path):
    database, run = tmp_path / "a.duckdb", a_run()
    first = FileJournal(database, run)
    assert (first.start, first.resumed) == ((), False)
    first.record(MADE[:1])
    first.record(MADE[1:3])
    first.close()
    second = FileJournal(database, run)
    assert (second.start, second.resumed) == (MADE[:3], True)
    assert [second.next(d.item, d.phase) for d in MADE] == [*MADE[:3], None]
    second.record(MADE[3:])
    second.close()
    assert FileJournal(database, run).start == MADE
    assert FileJournal(database, a_run(task="months")).start == ()
    second.remove()
    assert list(tmp_path.iterdir()) == []


def test_a_line_cut_off_by_the_end_of_a_process_is_left_out_and_written_again(tmp_path):
    database, run = tmp_path / "a.duckdb", a_run()
    journal = FileJournal(database, run)
    journal.record(MADE)
    journal.close()
    (file,) = beside(database).iterdir()
    file.write_text(file.read_text()[:-7])
    again = FileJournal(database, run)
    assert again.start == MADE[:3]
    again.record(MADE[3:])
    again.close()
    assert read(file)[1] == MADE


def test_two_processes_at_the_same_search_do_not_disturb_one_another(tmp_path, monkeypatch):
    database, run = tmp_path / "a.duckdb", a_run()
    one = FileJournal(database, run)
    one.record(MADE[:1])
    monkeypatch.setattr("os.getpid", lambda: 1)
    other = FileJournal(database, run)
    other.record(MADE[1:3])
    one.record(MADE[1:2])
    assert FileJournal(database, run).start == MADE[:3]
    other.close()
    one.remove()
    assert not beside(database).exists()


def test_the_longer_of_two_beginnings_is_taken(tmp_path):
    journal = FileJournal(tmp_path / "a.duckdb", a_run(), MADE[:2])
    assert (journal.start, journal.resumed) == (MADE[:2], False)
    journal.record(MADE[2:3])
    journal.close()
    assert FileJournal(tmp_path / "a.duckdb", a_run(), MADE[:2]).start == MADE[:3]
    assert FileJournal(tmp_path / "a.duckdb", a_run(), MADE).start == MADE


def test_a_file_that_is_no_journal_is_named(tmp_path):
    database, run = tmp_path / "a.duckdb", a_run()
    beside(database).mkdir()
    wrong = beside(database) / f"{run.run_id}-1.jsonl"
    wrong.write_text("something else\n")
    with pytest.raises(OptionError, match=r"-1.jsonl' is no record of an unfinished search"):
        FileJournal(database, run)


def test_going_on_with_what_was_not_begun_says_what_differs(tmp_path):
    database = tmp_path / "a.duckdb"
    run = a_run(engine="acdc", settings={"tau": 0.01})
    with pytest.raises(OptionError, match="no search of this database was left unfinished"):
        require_unfinished(database, run)
    journal = FileJournal(database, run)
    journal.record(MADE)
    journal.close()
    require_unfinished(database, run)
    other = run.model_copy(update={"settings": {"tau": 0.02}, "prompt_set": "f" * 64})
    with pytest.raises(
        OptionError,
        match=r"4 decisions\) differs in prompt_set .*now f{12}\), settings.tau \(0.01, now 0.02",
    ):
        require_unfinished(database, other)
    assert differences(run, run) == []


# engines


@pytest.mark.parametrize("n", [0, 1, 7, 40, 80, 81])
@pytest.mark.parametrize("plain", [False, True])
def test_acdc_goes_on_after_any_number_of_decisions(n, plain, monkeypatch):
    on = random_problem("llama")
    whole = search(on, tau=0.003)
    known = whole.decisions[:n]
    assert len(whole.decisions) > n
    journal = Kept(known)
    measured = counted(monkeypatch, acdc.Plain if plain else acdc.Fast)
    same(search(dataclasses.replace(on, journal=journal), tau=0.003, plain=plain), whole)
    assert [d.item for d in journal.made] == [d.item for d in whole.decisions[n:]]
    assert sum(measured) >= sum(d.before != d.after for d in journal.made)


def test_a_search_known_to_its_end_measures_nothing(monkeypatch):
    on = random_problem()
    whole = search(on, tau=0.003)
    measured = counted(monkeypatch, acdc.Fast)
    same(search(dataclasses.replace(on, journal=Journal(whole.decisions)), tau=0.003), whole)
    assert measured == []


def counted(monkeypatch: pytest.MonkeyPatch, way: type[acdc.Fast] | type[acdc.Plain]) -> list[int]:
    """How many removals each call measures."""
    calls: list[int] = []
    measure: Callable[..., np.ndarray] = way.measure

    def noted(self: acdc.Trial, senders: Sequence[int]) -> np.ndarray:
        calls.append(len(senders))
        return measure(self, senders)

    monkeypatch.setattr(way, "measure", noted)
    return calls


def pruned(on: Problem, known: Sequence[Decision] = ()) -> tuple[Found, Kept]:
    journal = Kept(known)
    settings = PruneSettings(node_threshold=30, edge_keep=0.8)
    return Prune().run(dataclasses.replace(on, journal=journal), settings), journal


def test_prune_goes_on_after_any_number_of_decisions(monkeypatch):
    on = Problem(planted.bench(planted.chain()), metrics.get("logit_diff"))
    whole, journal = pruned(on)
    assert tuple(journal.made) == whole.decisions
    for n in (1, len(whole.decisions) // 2, len(whole.decisions)):
        again, rest = pruned(on, whole.decisions[:n])
        assert again.decisions == whole.decisions
        assert tuple(rest.made) == whole.decisions[n:]
        assert [m.edges.tolist() for m in again.members] == [
            m.edges.tolist() for m in whole.members
        ]


def test_decisions_of_another_search_are_refused():
    on = random_problem()
    with pytest.raises(
        OptionError, match=r"decided on m9->logits .* where this one comes to m1->logits"
    ):
        search(dataclasses.replace(on, journal=Journal([MADE[0]._replace(item="m9->logits")])))


def test_an_interrupted_discovery_is_gone_on_with_and_says_so(tmp_path, monkeypatch):
    plan = api.make_plan(task="months", engine="acdc", examples=8, band=0)
    database = api.Database(tmp_path / "a.duckdb")
    measure, calls = acdc.Fast.measure, []

    def interrupted(self, senders):
        calls.append(len(senders))
        if len(calls) == 40:
            raise KeyboardInterrupt
        return measure(self, senders)

    with monkeypatch.context() as patched:
        patched.setattr(acdc.Fast, "measure", interrupted)
        with pytest.raises(KeyboardInterrupt):
            database.discover_plans([plan])
    (file,) = beside(database.path).iterdir()
    n = len(read(file)[1])
    assert n > 20
    other = plan.model_copy(update={"settings": {"tau": 0.012}})
    with pytest.raises(OptionError, match=r"differs in settings.tau \(0.01, now 0.012\)"):
        database.discover_plans([other], resume=True)
    (found,) = database.discover_plans([plan], resume=True)
    assert f"took over {n} decisions of an unfinished search" in found.notices
    assert not beside(database.path).exists()
    (whole,) = api.Database(tmp_path / "b.duckdb").discover_plans([plan])
    assert found.circuit_id == whole.circuit_id
    assert [e.name for e in found.members] == [e.name for e in whole.members]

    # Another threshold takes over what stays the same, and gives what a search of its own gives.
    (loose,) = database.discover_plans([other])
    assert any("of a stored run" in told for told in loose.notices)
    (alone,) = api.Database(tmp_path / "c.duckdb").discover_plans([other])
    assert [e.name for e in loose.members] == [e.name for e in alone.members]

    replayed, same_circuit, _ = database.replay(found.circuit_id)
    assert same_circuit
    assert replayed.n_decisions == 479
    (chosen,) = database.discover_plans([plan.model_copy(update={"edges": 20})])
    assert not database.replay(chosen.circuit_id)[1]
    steady = database.stability(found.circuit_id, orders=3)
    assert (steady.n, steady.by, steady.unit) == (3, "orders", "edges")
    assert 0 < steady.mean_jaccard <= 1


# thresholds


def decided(*moves: tuple[str, float, bool]) -> list[Decision]:
    made, now = [], 1.0
    for item, move, kept in moves:
        made.append(Decision(item, "edges", now, now + move, kept))
        now = now if kept else now + move
    return made


TINY = Space(SpaceSpec(n_layers=1, n_heads=1, n_kv_heads=1))
TAKEN = decided(
    ("m0->logits", 0.5, True), ("a0.h0->logits", 0.02, False), ("input->logits", -0.3, False),
    ("a0.h0->m0", 0.09, False), ("input->m0", 0.2, True), ("input->a0.h0<q>", 0.0, False),
    ("input->a0.h0<k>", 0.0, False), ("input->a0.h0<v>", 0.2, True),
)  # fmt: skip
BY_KL = a_run(engine="acdc", metric="kl", settings={"tau": 0.1})


def test_decisions_give_their_circuit_and_the_thresholds_they_hold_for():
    found = replay(BY_KL, TINY, TAKEN)
    assert [str(TINY.edge(e)) for e in found.edges.tolist()] == ["input->m0", "m0->logits"]
    assert (found.n_decisions, found.n_kept, found.threshold) == (8, 3, 0.1)
    assert (found.lowest, found.highest) == pytest.approx((0.09, 0.2))
    by_size = replay(BY_KL.model_copy(update={"metric": "logit_diff"}), TINY, TAKEN)
    assert by_size.lowest == pytest.approx(0.3)
    nothing_kept = [d._replace(kept=False) for d in TAKEN]
    assert replay(BY_KL, TINY, nothing_kept).highest is None


def test_the_command_with_another_threshold_has_everything_else_of_the_run():
    rest = "circuitdb discover --task 'my file.jsonl' --seed 3 --engine acdc --set order_seed=1"
    given = f"{rest} --set tau=0.01 --dtype float64"
    expected = f"{rest} --dtype float64 --set tau=0.123456789"
    assert command_with(BY_KL, given, 0.123456789) == expected
    assert command_with(BY_KL, f"{rest} --dtype float64", 0.123456789) == expected
    by_hand = replay(BY_KL.model_copy(update={"engine": "prune"}), TINY, TAKEN)
    assert (by_hand.threshold, by_hand.lowest) == (None, None)


@pytest.mark.parametrize(
    ("threshold", "n"),
    [(0.1, 8), (0.199, 8), (0.095, 8), (0.21, 4), (0.085, 3), (0.6, 0), (0.01, 1), (0, 0)],
)
def test_another_threshold_leaves_decisions_as_they_are_up_to_the_first_it_changes(threshold, n):
    made = [d._replace(after=d.before + round(d.after - d.before, 6)) for d in TAKEN]
    found = rethreshold(BY_KL, made, threshold)
    assert agreeing(BY_KL, made, threshold) == found.n_same == n
    assert found.decision == (made[n] if n < 8 else None)


def test_what_another_threshold_keeps_is_what_a_search_with_it_decides():
    on = random_problem()
    coarse = search(on, tau=0.003)
    run = BY_KL.model_copy(update={"settings": {"tau": 0.003}})
    for tau in (0.0031, 0.004, 0.002, 0.1, 0.00001):
        n = agreeing(run, coarse.decisions, tau)
        fine = search(on, tau=tau)
        assert [d.kept for d in fine.decisions[:n]] == [d.kept for d in coarse.decisions[:n]]
        if n < len(fine.decisions):
            assert fine.decisions[n].kept != coarse.decisions[n].kept
        taken_over = dataclasses.replace(on, journal=Journal(coarse.decisions[:n]))
        same(search(taken_over, tau=tau), fine)


def test_thresholds_of_other_engines_and_numbers_that_are_none_are_refused():
    pruned_run = BY_KL.model_copy(update={"engine": "prune"})
    with pytest.raises(OptionError, match="of engine 'prune' do not follow from a threshold alone"):
        rethreshold(pruned_run, TAKEN, 0.1)
    with pytest.raises(OptionError, match="threshold is nan; give a number, 0 or more"):
        rethreshold(BY_KL, TAKEN, float("nan"))
    with pytest.raises(OptionError, match="'eap' took no decisions about edges"):
        replay(BY_KL.model_copy(update={"engine": "eap"}), TINY, ())


def test_runs_that_differ_in_more_than_the_threshold_are_not_taken_from():
    other = BY_KL.model_copy(update={"settings": {"tau": 0.7}})
    assert differ_in_threshold_alone(BY_KL, other)
    assert not differ_in_threshold_alone(BY_KL, other.model_copy(update={"metric": "logit_diff"}))
    shuffled = other.model_copy(update={"settings": {"tau": 0.7, "order_seed": 1}})
    assert not differ_in_threshold_alone(BY_KL, shuffled)
    eap = BY_KL.model_copy(update={"engine": "eap"})
    assert not differ_in_threshold_alone(eap, eap)


# stability


def test_agreement_of_circuits_by_hand():
    ids = [np.array(x, dtype=np.int32) for x in ([1, 2, 3], [2, 3, 4], [2, 3])]
    found = stability(ids, "orders", "edges")
    assert found.mean_jaccard == pytest.approx((1 / 2 + 2 / 3 + 2 / 3) / 3)
    assert (found.lowest_jaccard, found.highest_jaccard) == pytest.approx((1 / 2, 2 / 3))
    assert (found.sizes, found.in_all, found.in_any) == ((3, 3, 2), 2, 4)
    empty = stability([ids[0][:0]] * 2, "orders", "edges")
    assert (empty.mean_jaccard, empty.in_any) == (None, 0)


def test_stability_needs_one_thing_that_differs(tmp_path):
    with pytest.raises(OptionError, match="samples is 1; give 2 or more"):
        api.Database(tmp_path / "a.duckdb").stability("ioi", samples=1)


def test_stability_of_node_circuits_leaves_out_what_every_one_has(tmp_path):
    database = api.Database(tmp_path / "a.duckdb")
    made = database.discover("months", engine="nap", nodes=0, band=0, examples=8)
    assert database.stability(made.circuit_id, samples=2).sizes == (0, 0)


@pytest.mark.parametrize("setting", ["within", "like"])
def test_a_circuit_of_another_architecture_is_refused(setting, tmp_path):
    database = api.Database(tmp_path / "a.duckdb")
    other = database.discover("months", model="toy-2l", engine="eap", edges=9, band=0, examples=8)
    engine = "acdc" if setting == "within" else "random"
    with pytest.raises(
        OptionError, match=f"--{setting} names circuit .* of toy-2l, which has other"
    ):
        database.discover("months", engine=engine, settings={setting: other.circuit_id}, band=0)

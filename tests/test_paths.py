"""Path patching against hooks set by hand, and on circuits built by hand."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from circuitdb import engines, metrics
from circuitdb.engines import exact, paths
from circuitdb.engines.engine import Found, Problem
from circuitdb.errors import NameSyntaxError, NumericalError, OptionError
from circuitdb.models import hub
from circuitdb.models.families import from_hf
from circuitdb.models.hooked import HookedForward, boot
from circuitdb.models.residual import ResidualForward
from circuitdb.plan import Plan, engine_settings
from tests import planted
from tests.tiny_models import COUPLED, WORDS

Directory = Callable[..., Path]
FAMILIES = ("gpt2", "llama", "gpt_neox", "gemma2")
RECEIVERS = [("logits",), ("a1.h1<v>",), ("a1.h2", "m1"), ("a0.h2<v>", "a1.h2", "m1", "logits")]
CHAINED = (False, False, True, True)
"""Whether one of them hears another; in a parallel layer the MLP hears no head of its own."""


@pytest.fixture(scope="module", params=FAMILIES)
def pair(
    request: pytest.FixtureRequest, tiny_directory: Directory
) -> tuple[str, HookedForward, ResidualForward]:
    """A family, and one random model of it through hooks and through our forward."""
    directory = tiny_directory(request.param)
    stored = hub.read(str(directory))
    ours = ResidualForward(from_hf(stored.state, stored.config, dtype=torch.float64))
    return request.param, boot(directory, "float64"), ours


def run(on: Problem, **chosen: Any) -> Found:
    engine = engines.get("paths")
    return engine.run(on, engine.settings(**chosen))


def site(layer: int | None, kind: str, port: str | None, last: int) -> str:
    """The hook at which a component is read (with a port, or as logits) or written."""
    if kind == "logits":
        return f"blocks.{last}.hook_out"
    if kind == "input":
        return "blocks.0.hook_in"
    if kind == "mlp":
        return f"blocks.{layer}.hook_mlp_{port or 'out'}"
    return f"blocks.{layer}.attn.hook_{f'{port}_input' if port else 'result'}"


class ByHand:
    """Wang et al.'s four runs on one pair of prompts, each hook set explicitly."""

    def __init__(self, family: str, forward: HookedForward, clean: Tensor, corrupted: Tensor):
        self.coupled = family in COUPLED
        self.bridge, self.space, self.tokens = forward.bridge, forward.space, clean
        self.last = self.space.spec.n_layers - 1
        self.written = {w: site(w.layer, w.kind, None, self.last) for w in self.space.writers}
        self.read = {
            r: site(r.component.layer, r.component.kind, r.port or "in", self.last)
            for r in self.space.readers
        }
        scales = [f"blocks.{i}.ln1_post.hook_scale" for i in range(self.last + 1) if self.coupled]
        names = [*self.written.values(), *self.read.values(), *scales]
        self.clean, self.corrupted = self.recorded(clean, names), self.recorded(corrupted, names)

    def recorded(self, tokens: Tensor, names: list[str], **changed: Any) -> dict[str, Tensor]:
        found: dict[str, Tensor] = {}

        def keep(name: str) -> Callable[..., None]:
            def hook(x: Tensor, hook: Any) -> None:
                found[name] = x.clone()

            return hook

        self.logits(tokens, [(name, keep(name)) for name in dict.fromkeys(names)])
        return found

    def logits(self, tokens: Tensor, hooks: list[tuple[str, Any]]) -> Tensor:
        out = self.bridge.run_with_hooks(
            tokens, fwd_hooks=hooks, return_type="logits", attention_mask=torch.ones_like(tokens)
        )
        return out[:, -1]

    def frozen(self, sender: Any) -> dict[str, Tensor]:
        """What is read when every component writes as on the clean prompt, but for the sender."""
        found: dict[str, Tensor] = {}
        hooks: list[tuple[str, Any]] = []
        for name in dict.fromkeys(self.written.values()):
            value = self.clean[name].clone()
            if self.written[sender] == name:
                if sender.kind == "head":
                    value[:, :, sender.index] = self.corrupted[name][:, :, sender.index]
                else:
                    value = self.corrupted[name]
            hooks.append((name, lambda x, hook, value=value: value))
        for name in dict.fromkeys(self.read.values()):
            hooks.append((name, lambda x, hook, name=name: found.update({name: x.clone()})))
        self.logits(self.tokens, hooks)
        return found

    def shifted(self, sender: Any) -> dict[str, Tensor]:
        """The same where heads share a norm: the clean input and the change of the sender's share."""

        def share(run: dict[str, Tensor]) -> Tensor:
            x = run[self.written[sender]]
            if sender.kind != "head":
                return x
            norm = self.bridge.blocks[sender.layer].ln1_post
            scale = run[f"blocks.{sender.layer}.ln1_post.hook_scale"]
            return x[:, :, sender.index] * (1 + norm.weight) / scale

        change = share(self.corrupted) - share(self.clean)
        found = {}
        for row, r in enumerate(self.space.readers):
            x, name = self.clean[self.read[r]], self.read[r]
            sees = self.space.edge_id[row, self.space.writer_index[sender]] >= 0
            found[name] = x + sees * (change if x.dim() == 3 else change[:, :, None])
        return found

    def patched(self, sender: Any, rows: list[int]) -> Tensor:
        """Logits of the clean prompt when the receivers read what the frozen run gave them."""
        given = (self.shifted if self.coupled else self.frozen)(sender)
        hooks: list[tuple[str, Any]] = []
        for row in rows:
            r = self.space.readers[row]

            def patch(x: Tensor, hook: Any, r: Any = r) -> Tensor:
                if r.component.kind in ("mlp", "logits"):
                    return given[self.read[r]]
                x = x.clone()
                x[:, :, r.component.index] = given[self.read[r]][:, :, r.component.index]
                return x

            hooks.append((self.read[r], patch))
        return self.logits(self.tokens, hooks)


@pytest.mark.parametrize("names", RECEIVERS, ids="+".join)
def test_scores_are_those_of_path_patching_by_hooks(pair, names):
    family, slow, ours = pair
    some = planted.prompts(4, len(WORDS), 6)
    on = Problem(planted.bench(ours, some, size=3), metrics.get("logit_diff"))
    found, space = run(on, receivers=names), ours.space
    rows = space.reader_ids(names).tolist()
    hands = [ByHand(family, slow, b.clean, b.corrupted) for b in on.bench.batches]

    def expected(sender: int, rows: list[int]) -> np.ndarray:
        changes = []
        for hand, b in zip(hands, on.bench.batches, strict=True):
            after = hand.patched(space.writers[sender], rows)
            before = hand.logits(b.clean, [])
            values = [on.metric.per_prompt(x, b.correct, b.incorrect) for x in (after, before)]
            changes.append((values[0] - values[1]).detach().numpy())
        return np.concatenate(changes)

    close = {"rel": 1e-3, "abs": 1e-4}
    senders = [w for w in range(len(space.writers)) if (space.edge_id[rows, w] >= 0).any()]
    for w in senders:
        change = expected(w, rows)
        assert found.node_scores.mean[w] == pytest.approx(change.mean(), **close)
        assert found.node_scores.mean_abs[w] == pytest.approx(abs(change).mean(), **close)
        assert found.node_scores.se[w] == pytest.approx(change.std(ddof=1) / 2, **close)
        for row in rows:
            if w % 3 == 0 and space.edge_id[row, w] >= 0:
                mean = expected(w, [row]).mean()
                assert found.edge_scores.mean[space.edge_id[row, w]] == pytest.approx(mean, **close)
    assert np.nanmax(np.abs(found.node_scores.mean)) > 0.01
    unmeasured = np.delete(np.arange(len(space.components)), senders)
    assert np.isnan(found.node_scores.mean[unmeasured]).all()
    measured = np.isfinite(found.edge_scores.mean)
    assert np.array_equal(measured, np.isin(space.edge_dst, rows))


def test_receivers_that_hear_another_are_known(pair):
    family, _, ours = pair
    for names, chained in zip(RECEIVERS, CHAINED, strict=True):
        if not (family == "gpt_neox" and names == ("a1.h2", "m1")):
            assert paths._chained(ours.space, ours.space.reader_ids(names)) == chained


def test_where_no_receiver_hears_another_cutting_edges_is_the_same(pair):
    _, _, ours = pair
    some = planted.prompts(4, len(WORDS), 6)
    on = Problem(planted.bench(ours, some), metrics.get("kl"))
    rows = ours.space.reader_ids(["a1.h1<q>", "a1.h3<v>"])
    found = run(on, receivers=("a1.h1<q>", "a1.h3<v>"))
    given = exact.scores_of(paths._patched(on, rows, [0, 2, 5]), len(ours.space.components))
    assert found.node_scores.mean[[0, 2, 5]] == pytest.approx(given.mean[[0, 2, 5]], rel=1e-4)


def test_a_receiver_that_hears_another_reads_nothing_of_what_that_one_makes_of_it():
    chain = planted.chain()
    on = Problem(planted.bench(chain), metrics.get("logit_diff"))
    through_both = run(on, receivers=("a0.h1<v>", "a1.h0<v>")).node_scores
    of_input = chain.space.writer_index[chain.space.writers[0]]
    # The token comes to a1.h0 by way of a0.h1 alone, and a1.h0 reads its clean input.
    assert through_both.mean[of_input] == pytest.approx(0.0, abs=0.1)
    alone = run(on, receivers=("a0.h1<v>",)).node_scores
    assert alone.mean[of_input] == pytest.approx(-2.0, abs=0.1)


def test_the_planted_chain_is_found_receiver_by_receiver():
    chain = planted.chain()
    on = Problem(planted.bench(chain), metrics.get("logit_diff"))
    space = chain.space
    for receiver, sender in (("logits", "a1.h0"), ("a1.h0", "a0.h1"), ("a0.h1", "input")):
        scores = run(on, receivers=(receiver,)).node_scores.mean
        strongest = int(np.nanargmax(np.abs(scores)))
        assert str(space.components[strongest]) == sender
        assert scores[strongest] == pytest.approx(-2.0, abs=0.1)
        assert np.nanmax(np.abs(np.delete(scores, strongest)), initial=0.0) < 0.1


def test_only_the_senders_that_were_named_are_measured():
    chain = planted.chain()
    on = Problem(planted.bench(chain), metrics.get("logit_diff"))
    found = run(on, senders="a1.h0,m0")
    measured = np.flatnonzero(np.isfinite(found.node_scores.mean))
    assert [str(chain.space.components[c]) for c in measured] == ["m0", "a1.h0"]
    assert np.isfinite(found.edge_scores.mean).sum() == 2


def test_what_does_not_exist_is_refused_with_near_names():
    chain = planted.chain()
    on = Problem(planted.bench(chain), metrics.get("logit_diff"))
    with pytest.raises(OptionError, match=r"receiver 'a1.h7<q>' does not exist.*'a1.h1<q>'"):
        run(on, receivers="a1.h7<q>")
    with pytest.raises(OptionError, match=r"component 'a0.h9' does not exist.*'a0.h1'"):
        run(on, senders="a0.h9")
    with pytest.raises(OptionError, match=r"no receiver of a0.h1<q> sees m1"):
        run(on, receivers="a0.h1<q>", senders="input,m1")
    for wrong in ("logit", "m1<q>", "a0.h1<x>", "a0.kv1<q>"):
        with pytest.raises(NameSyntaxError, match=wrong.split("<")[0]):
            paths.PathsSettings(receivers=wrong)


def test_equal_receivers_are_equal_settings_however_they_are_written():
    one = paths.PathsSettings(receivers="A1.0<q>, logits", senders=["input", "m0"])
    other = paths.PathsSettings(receivers=["logits", "a1.h0<q>", "logits"], senders="m0,input")
    assert one == other
    assert one.receivers == ("a1.h0<q>", "logits")


def test_engines_without_receivers_refuse_them():
    for engine in ("eap", "exact"):
        plan = Plan(task="ioi", engine=engine, settings={"receivers": ["logits"]})
        with pytest.raises(OptionError, match=f"engine '{engine}' has no setting 'receivers'"):
            engine_settings(plan, engines.get(engine))
    plan = Plan(task="ioi", engine="paths", settings={"receivers": []})
    with pytest.raises(OptionError, match="setting 'receivers' of engine 'paths'"):
        engine_settings(plan, engines.get("paths"))


def test_patched_values_that_are_no_numbers_are_an_error(monkeypatch):
    chain = planted.chain()
    on = Problem(planted.bench(chain), metrics.get("logit_diff"))
    monkeypatch.setattr(ResidualForward, "masked", lambda self, t, a, k: self.logits(t) * torch.nan)
    with pytest.raises(NumericalError, match="patched forward gave NaN"):
        paths._patched(on, chain.space.reader_ids(["logits"]), [0])

"""Measure roles of heads on a task's prompts; docs/roles.md defines every score.

From the last position, END, to each position role R of the task; A is the attention pattern, top 5 are
the tokens that the head's direct effect on the logits at END raises most, of the whole vocabulary:

- ``attends:R``: mean A[END, R]; chance is even attention;
- ``copies:R``, ``suppresses:R``: share of prompts in which R's token is among the top 5, or the 5
  lowered most; ``succeeds:R``: in which its successor is (months, numerals, number words). Held by
  heads that hold ``attends:R``. Chance: the same for the token at R in another prompt, for the third
  member on.

Where the token at R stood before, last at p: ``duplicate_token:R`` is A[R, p], ``induction:R`` A[R, p + 1],
``previous_token:R`` A[p + 1, p]. Chance: the largest mean that a head has at these places on corrupted
prompts that do not repeat the token, else even attention.

Of tasks with positions IO, S1, S2 and END:

- ``name_mover``: correlation, over prompts and the names at IO and S1, of A[END, name] with the name's
  direct logit. Held by heads that attend to IO, more than evenly and more than to S1, and raise IO's
  logit above that of S (both by 95 % interval). ``negative_name_mover``: minus the correlation, and the
  logit lowered. Chance: with the names' logits of another prompt;
- ``s_inhibition``: what the head does through name movers' queries. A name mover's query at END is
  made anew with the head's output replaced by that on the corrupted prompt; the score is what A[END, IO]
  − A[END, S1] loses, mean over name movers behind the head, as a share of what it loses where all that
  the queries read is replaced. Held by heads that attend to S2 more than evenly, where the loss is above
  0 by its 95 % interval. Null where no name mover is behind the head, or nothing is lost.

Source: Wang et al. 2022, "Interpretability in the wild" (name movers, S-inhibition heads, duplicate token
and induction heads at S2), McDougall et al. 2023, "Copy suppression", Lan et al. 2024.
Differs: the papers say by eye, or by path patching into heads found before, who has a role; McDougall et
al. and Tigges et al. 2024 measure copy suppression by an ablation that keeps nothing else (CSPA).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch  # noqa: TID253
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor  # noqa: TID253

from circuitdb.circuit import PromptRow
from circuitdb.models.forward import Tokens, Writers
from circuitdb.models.lens import Lens, last_stream
from circuitdb.models.model import LoadedModel
from circuitdb.models.residual import ResidualForward
from circuitdb.models.roles import TOP, Measured, ranks, scored, successors
from circuitdb.roles import RoleScore, level_of
from circuitdb.tasks.prompts import Prompts

Floats = NDArray[np.float64]
ByPrompt = Float[NDArray[np.float64], "prompt head"]
_AT_ONCE = 32
_IOI = ("IO", "S1", "S2", "END")


@torch.no_grad()
def on_prompts(model: LoadedModel, prompts: Prompts, direct: bool) -> tuple[RoleScore, ...]:
    """The roles on a task's prompts.

    Args:
        model: the model.
        prompts: of one split, with position roles.
        direct: measure what heads write too; the model's forward is a
            :class:`~circuitdb.models.residual.ResidualForward`.
    """
    kept = _Kept()
    after = successors(model.tokenizer)
    for batch in prompts.batches(_AT_ONCE):
        rows = [prompts.rows[i] for i in batch.index]
        tokens, other = (
            torch.from_numpy(ids).to(model.device) for ids in (batch.clean, batch.corrupted)
        )
        _look(kept, model, rows, tokens, other)
        if direct:
            assert isinstance(model.forward, ResidualForward)
            _write(kept, model.forward, rows, tokens, after)
    found = list(_measured(kept, prompts.rows, direct))
    if direct and {*_IOI} <= {*positions(prompts.rows)}:
        assert isinstance(model.forward, ResidualForward)
        found += _of_names(kept, model.forward, prompts)
    return scored(model.spec, found)


def positions(rows: Sequence[PromptRow]) -> tuple[str, ...]:
    """The position roles that all prompts have, in the order of the first."""
    if not rows:
        return ()
    shared = set.intersection(*({*row.roles} for row in rows))
    return tuple(role for role in rows[0].roles if role in shared)


@dataclass
class _Kept:
    """What batches gave, by what it is; each value ``[prompt, head]``, in the order of batches."""

    parts: dict[str, list[Floats]] = field(default_factory=dict)

    def add(self, name: str, values: Tensor) -> None:
        self.parts.setdefault(name, []).append(values.double().cpu().numpy())

    def of(self, name: str) -> Floats:
        return np.concatenate(self.parts[name])

    def __contains__(self, name: str) -> bool:
        return name in self.parts


def before(row: PromptRow, position: int) -> int | None:
    """The last earlier position with the same token."""
    token = row.clean_ids[position]
    found = [at for at in range(position) if row.clean_ids[at] == token]
    return found[-1] if found else None


def _places(rows: Sequence[PromptRow]) -> Iterator[tuple[str, list[int], list[int]]]:
    """What is looked at: its role, and of each prompt the position of the query and of the key."""
    for role in positions(rows):
        at = [row.roles[role] for row in rows]
        end = [len(row.clean_ids) - 1 for row in rows]
        if at != end:
            yield f"attends:{role}", end, at
        earlier = [before(row, i) for row, i in zip(rows, at, strict=True)]
        known = [p for p in earlier if p is not None]
        if len(known) == len(rows):
            behind = [p + 1 for p in known]
            yield f"duplicate_token:{role}", at, known
            yield f"induction:{role}", at, behind
            yield f"previous_token:{role}", behind, known


def _look(
    kept: _Kept, model: LoadedModel, rows: Sequence[PromptRow], tokens: Tokens, other: Tokens
) -> None:
    """Attention at the places of a batch, on clean prompts, and by chance where that can be told."""
    clean, corrupted = (torch.cat(model.forward.patterns(t), 1) for t in (tokens, other))
    of_row = torch.arange(len(rows), device=clean.device)
    for name, queries, keys in _places(rows):
        q, k = (torch.tensor(x, device=clean.device) for x in (queries, keys))
        kept.add(name, clean[of_row, :, q, k])
        kept.add(f"{name} evenly", (1 / (q + 1.0))[:, None])
        if name.startswith(("duplicate_token", "induction")):
            role = name.partition(":")[2]
            apart = [_repeats_nothing(row, role) for row in rows]
            kept.add(f"{name} by chance", corrupted[of_row, :, q, k][apart])


def _repeats_nothing(row: PromptRow, role: str) -> bool:
    """Whether the corrupted prompt does not repeat the token that the clean one repeats there."""
    at = row.roles[role]
    earlier = before(row, at)
    return earlier is not None and row.corrupted_ids[earlier] != row.corrupted_ids[at]


def _write(
    kept: _Kept,
    forward: ResidualForward,
    rows: Sequence[PromptRow],
    tokens: Tokens,
    after: Mapping[int, tuple[int, int]],
) -> None:
    """What heads write at the last position of a batch, of the tokens at positions."""
    wanted = _wanted(rows, after)
    if not wanted:
        return
    targets = torch.tensor(list(wanted.values()), device=tokens.device)
    lens, writers = Lens.of(forward), forward.writers(tokens)
    stream = last_stream(forward, writers)[:, -1]
    above, below, direct = [], [], []
    for at, component in enumerate(forward.space.writers):
        if component.kind == "head":
            logits = lens.seen(writers[at, :, -1], stream) @ lens.unembed
            up, down = ranks(logits, targets)
            above.append(up < TOP)
            below.append(down < TOP)
            direct.append(logits.gather(1, targets.T).T)
    stacked = [torch.stack(x, 2) for x in (above, below, direct)]
    for i, name in enumerate(wanted):
        for what, values in zip(("raised", "lowered", "logit"), stacked, strict=True):
            kept.add(f"{what} {name}", values[i])


def _wanted(
    rows: Sequence[PromptRow], after: Mapping[int, tuple[int, int]]
) -> dict[str, list[int]]:
    """Token ids whose logits are asked for: at each position, in another prompt, and successors."""
    found: dict[str, list[int]] = {}
    for role in positions(rows):
        at = [row.clean_ids[row.roles[role]] for row in rows]
        if role == "END":
            continue
        found[role] = at
        found[f"{role} elsewhere"] = [*at[1:], *at[:1]]
        if all(token in after for token in at):
            found[f"{role} next"] = [after[token][0] for token in at]
            found[f"{role} third"] = [after[token][1] for token in at]
    return found


def _measured(kept: _Kept, rows: Sequence[PromptRow], direct: bool) -> Iterator[Measured]:
    """The roles at positions."""
    for name in [name for name in kept.parts if ":" in name and " " not in name]:
        if len(kept.of(name)) == len(rows):
            yield Measured(name, kept.of(name).mean(0), _chance_of(kept, name), len(rows))
    if not direct:
        return
    for role in positions(rows):
        if f"attends:{role}" not in kept or f"raised {role}" not in kept:
            continue
        looks = _attends(kept, role)
        for form, what, token, rival in (
            ("copies", "raised", role, f"{role} elsewhere"),
            ("suppresses", "lowered", role, f"{role} elsewhere"),
            ("succeeds", "raised", f"{role} next", f"{role} third"),
        ):
            if f"{what} {token}" in kept and len(kept.of(f"{what} {token}")) == len(rows):
                chance = float(kept.of(f"{what} {rival}").mean(0).max())
                share = kept.of(f"{what} {token}").mean(0)
                yield Measured(f"{form}:{role}", share, chance, len(rows), looks)


def _chance_of(kept: _Kept, name: str) -> float:
    by_chance = f"{name} by chance"
    if by_chance in kept and len(kept.of(by_chance)):
        return float(kept.of(by_chance).mean(0).max())
    return float(kept.of(f"{name} evenly").mean())


def _attends(kept: _Kept, role: str) -> NDArray[np.bool_]:
    """Which heads hold ``attends`` at a position."""
    name = f"attends:{role}"
    return np.asarray(kept.of(name).mean(0) >= level_of(name, _chance_of(kept, name)))


def _of_names(kept: _Kept, forward: ResidualForward, prompts: Prompts) -> Iterator[Measured]:
    """The roles of a task with an indirect object and a subject named twice."""
    looks = [kept.of(f"attends:{role}") for role in ("IO", "S1")]
    logits = [kept.of(f"logit {role}") for role in ("IO", "S1")]
    elsewhere = [kept.of(f"logit {role} elsewhere") for role in ("IO", "S1")]
    moved = _correlation(np.concatenate(looks), np.concatenate(logits))
    by_chance = _correlation(np.concatenate(looks), np.concatenate(elsewhere))
    chance = float(np.abs(by_chance).max())
    to_io = _above(looks[0] - looks[1]) & _above(looks[0] - kept.of("attends:IO evenly"))
    raises = logits[0] - logits[1]
    n = len(raises)
    moves = to_io & _above(raises)
    yield Measured("name_mover", moved, chance, n, moves)
    yield Measured("negative_name_mover", -moved, chance, n, to_io & _above(-raises))
    movers = np.flatnonzero(moves & (moved >= level_of("name_mover", chance)))
    yield _inhibition(kept, forward, prompts, movers)


def _above(values: ByPrompt) -> NDArray[np.bool_]:
    """Whether the mean over prompts is above 0 by its 95 % interval."""
    error = values.std(0, ddof=1) / np.sqrt(len(values)) if len(values) > 1 else np.inf
    return np.asarray(values.mean(0) > 1.96 * error)


def _correlation(a: ByPrompt, b: ByPrompt) -> Floats:
    """Pearson's, head by head; 0 where one does not vary."""
    x, y = a - a.mean(0), b - b.mean(0)
    size = np.sqrt((x**2).sum(0) * (y**2).sum(0))
    return np.asarray(np.divide((x * y).sum(0), size, out=np.zeros_like(size), where=size > 1e-12))


def _inhibition(
    kept: _Kept, forward: ResidualForward, prompts: Prompts, movers: NDArray[np.intp]
) -> Measured:
    """What heads do through the queries of name movers (numbers of heads in forward order)."""
    spec = forward.space.spec
    shape = (spec.n_layers * spec.n_heads, prompts.n)
    lost, total = np.zeros(shape), np.zeros(shape)
    for batch in prompts.batches(_AT_ONCE) if len(movers) else ():
        rows = [prompts.rows[i] for i in batch.index]
        clean, corrupted = (
            forward.writers(torch.from_numpy(ids).to(forward.device))
            for ids in (batch.clean, batch.corrupted)
        )
        for layer in sorted({int(m) // spec.n_heads for m in movers}):
            chosen = [int(m) % spec.n_heads for m in movers if m // spec.n_heads == layer]
            by_head, whole = _lost(forward, layer, chosen, clean, corrupted, rows)
            lost[: len(by_head), batch.index] += by_head
            total[: len(by_head), batch.index] += whole
    scores = np.full(len(lost), np.nan)
    told = _above(total.T) & (total.mean(1) > 0)
    scores[told] = lost[told].mean(1) / total[told].mean(1)
    to_s2 = _above(kept.of("attends:S2") - kept.of("attends:S2 evenly"))
    return Measured("s_inhibition", scores, None, prompts.n, to_s2 & _above(lost.T))


def _lost(
    forward: ResidualForward,
    layer: int,
    movers: Sequence[int],
    clean: Writers,
    corrupted: Writers,
    rows: Sequence[PromptRow],
) -> tuple[Floats, Floats]:
    """What A[END, IO] − A[END, S1], summed over some heads of a layer, loses.

    Returns:
        With the output of each head before the layer replaced in the queries, ``[head, prompt]``, and
        with all that the queries read replaced, ``[prompt]``.
    """
    seen = forward.blocks[2 * layer].n_visible
    bias = forward.bias_before(2 * layer)
    streams = [w[:seen].sum(0) + bias for w in (clean, corrupted)]
    keys = forward.unrotated(layer, streams[0])[1]
    of_row = torch.arange(len(rows), device=keys.device)
    io, s = (torch.tensor([row.roles[r] for row in rows], device=keys.device) for r in ("IO", "S1"))

    def gap(stream: Tensor) -> Floats:
        queries = forward.unrotated(layer, stream)[0]
        at_end = forward.pattern(layer, queries, keys)[:, list(movers), -1].sum(1)
        found: Floats = (at_end[of_row, io] - at_end[of_row, s]).double().cpu().numpy()
        return found

    heads = [i for i, c in enumerate(forward.space.writers[:seen]) if c.kind == "head"]
    whole = gap(streams[0])
    by_head = [whole - gap(streams[0] + corrupted[i] - clean[i]) for i in heads]
    return np.asarray(by_head).reshape(len(heads), len(rows)), whole - gap(streams[1])

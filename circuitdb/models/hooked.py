"""The generic masked forward: any architecture TransformerLens boots, through its hooks.

1. Boot the model's directory as a ``TransformerBridge`` with split query, key, value and MLP
   inputs and per-head results switched on.
2. Each hook that carries a writer's output hands it over; each hook that carries a reader's
   input replaces it by the mixture its edges ask for.
3. Every reader is replaced, so what the model's own residual stream holds no longer matters.

It is slower than :mod:`circuitdb.models.residual` and knows far more architectures; it is that
module's oracle in tests. Where a norm stands between the heads and the residual stream (Gemma 2),
the head's hook comes before it, and what it gives is divided by the scale the norm then has. An
architecture whose writers do not add up to what its readers read is refused when it is loaded.

Source: hook names are those of TransformerLens, https://github.com/TransformerLensOrg.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch  # noqa: TID253
from jaxtyping import Float
from torch import Tensor  # noqa: TID253

from circuitdb.errors import ModelError, OptionError
from circuitdb.models import hub
from circuitdb.models.families import FAMILIES
from circuitdb.models.forward import (
    Activations,
    EdgeGates,
    EdgeMask,
    EdgeSums,
    Held,
    Logits,
    MaskedRun,
    NeuronSums,
    Objective,
    Pattern,
    Place,
    Tokens,
    Visits,
    Widths,
    Writers,
)
from circuitdb.models.sites import Site
from circuitdb.space import Space, SpaceSpec

# A closure on one hook: sees the activation, may return its replacement. TransformerLens passes
# the hook point too, whose name may be an alias, so what a hook stands for is bound beforehand.
_Hook = tuple[str, Callable[..., Tensor | None]]

ADDS_UP = 1e-4
"""Largest deviation, relative to the largest input, of a reader's input from its writers' sum."""


_VISITED = {
    "resid_pre": "hook_in", "attn_in": "attn.hook_in", "z": "attn.hook_z",
    "result": "attn.hook_result", "attn_out": "hook_attn_out", "resid_mid": "hook_mlp_in",
    "mlp_in": "mlp.hook_in", "neurons": "mlp.hook_post", "mlp_out": "hook_mlp_out",
    "resid_post": "hook_out",
}  # fmt: skip
"""Where kinds of sites are visited: the bridge's hooks that carry their values."""


class _Site(NamedTuple):
    """A hook at which some readers are fed, or some writers come out."""

    hook: str
    rows: slice
    """Reader or writer indices, in the order of the hook's head axis where it has one."""
    heads: bool
    """``[batch, pos, head, d_model]``; ``[batch, pos, d_model]`` otherwise."""
    layer: int
    """Attention output biases of the layers before this one belong to a reader's input."""


class _Apart:
    """What writers wrote, each site's a tensor of its own: nothing is written over.

    Gradients could not pass through one tensor that is filled bit by bit.
    """

    def __init__(self) -> None:
        self._parts: dict[int, Tensor] = {}

    def __setitem__(self, rows: slice, written: Tensor) -> None:
        self._parts[rows.start] = written

    def __getitem__(self, rows: slice) -> Tensor:
        """All sites that begin within some writer indices, ``[writer, batch, pos, d_model]``."""
        within = range(rows.start or 0, rows.stop)
        return torch.cat([self._parts[at] for at in sorted(self._parts) if at in within])


class HookedForward:
    """Masked forward through a ``TransformerBridge``.

    Raises:
        ModelError: the architecture lacks the hooks, or its writers do not add up.
    """

    def __init__(self, bridge: Any) -> None:
        self._bridge = bridge
        self.space = Space(spec_of(bridge.cfg))
        self._switch_on()
        self._writers = _writer_sites(self.space.spec)
        self._post_norms = [
            site for site in _post_norm_sites(self.space.spec) if self._post_norm(site)
        ]
        self._readers = _reader_sites(self.space.spec)
        self._visible = (self.space.edge_id >= 0).sum(1).tolist()
        self.deviation = self._require_adding_up()
        """Largest relative deviation of a reader's input from its writers' sum, on loading."""

    @property
    def bridge(self) -> Any:
        """The ``TransformerBridge``, for what the graph view does not offer."""
        return self._bridge

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        device: torch.device = next(self._bridge.original_model.parameters()).device
        return device

    @property
    def heads_coupled(self) -> bool:
        """Whether a norm stands between the heads of a layer and the residual stream."""
        return bool(self._post_norms)

    @property
    def vocabulary(self) -> int:
        """Token ids it embeds and gives a logit."""
        return int(self._bridge.original_model.get_input_embeddings().num_embeddings)

    @property
    def context(self) -> int:
        """Tokens it reads."""
        return int(self._bridge.cfg.n_ctx)

    @torch.no_grad()
    def patterns(self, tokens: Tokens) -> list[Pattern]:
        """Attention probabilities in the full model, layer by layer."""
        found: dict[int, Tensor] = {}

        def keep(x: Tensor, hook: Any, layer: int) -> None:
            found[layer] = x.clone()

        layers = range(self.space.spec.n_layers)
        with self._plain_attention(results=False):
            self._every(
                tokens,
                [
                    (f"blocks.{i}.attn.hook_pattern", functools.partial(keep, layer=i))
                    for i in layers
                ],
            )
        return [found[layer] for layer in layers]

    @property
    def neurons(self) -> int:
        """None: this forward does not take MLPs apart."""
        return 0

    def activations(self, tokens: Tokens) -> Activations:
        """Refused.

        Raises:
            ModelError: always.
        """
        raise ModelError(
            "neurons can be told apart only in models that run by the residual forward; this one "
            "runs by the hooked one"
        )

    @torch.no_grad()
    def logits(self, tokens: Tokens) -> Logits:
        """The full model's logits at the last position."""
        return self._run(tokens, [])

    def visited(
        self, tokens: Tokens, visits: Visits, *, every: bool = False, since: Place | None = None
    ) -> Float[Tensor, "batch *pos vocab"]:
        """The full model's logits with functions put in at some sites; differentiable."""
        passed: set[tuple[str, int]] = set()
        hooks = [hook for place in visits for hook in self._visit(place, visits[place], passed)]
        with self._plain_attention(any(kind == "result" for kind, _ in visits)):
            logits = self._every(tokens, hooks)
        self._require_passed(visits, passed)
        return logits if every else logits[:, -1]

    def _visit(
        self,
        place: tuple[str, int],
        visit: Callable[[Tensor], Tensor],
        passed: set[tuple[str, int]],
    ) -> list[_Hook]:
        """The hooks that put a function in; what it was called for goes to `passed`."""
        kind, layer = place
        moved: list[Tensor] = []

        def act(x: Tensor, hook: Any) -> Tensor:
            passed.add(place)
            # A copy, because transformers may write into its tensors later.
            new = visit(x.clone())
            if kind == "resid_mid":
                moved.append(new - x)
            return new

        hooks: list[_Hook] = [(self._hook_at(place), act)]
        if kind == "resid_mid":
            # Only the MLP reads this hook's value; the stream itself goes around it.
            hooks.append((f"blocks.{layer}.hook_out", lambda x, hook: x + moved.pop()))
        return hooks

    def _hook_at(self, place: tuple[str, int]) -> str:
        """The bridge's hook of a kind of site in a layer."""
        kind, layer = place
        name = f"blocks.{layer}.{_VISITED[kind]}"
        if name not in self._bridge.hook_dict:
            raise self._not_passed(place)
        return name

    def _require_passed(self, visits: Visits, passed: set[tuple[str, int]]) -> None:
        for place in visits:
            if place not in passed:
                raise self._not_passed(place)

    def _not_passed(self, place: tuple[str, int]) -> ModelError:
        name = type(self._bridge.original_model).__name__
        return ModelError(
            f"{name} does not pass {str(Site(*place))!r} in TransformerLens: choose another site"
        )

    @contextlib.contextmanager
    def _plain_attention(self, results: bool) -> Iterator[None]:
        """Attention with one input for all its heads, which go apart only where asked."""
        self._bridge.set_use_split_qkv_input(False)
        self._bridge.set_use_attn_result(results)
        try:
            yield
        finally:
            self._bridge.set_use_attn_result(True)
            self._bridge.set_use_split_qkv_input(True)

    def widths(self, layer: int) -> Widths:
        """Sizes of one layer."""
        cfg = self._bridge.cfg
        return Widths(int(cfg.d_model), int(cfg.d_head), int(cfg.d_mlp))

    @torch.no_grad()
    def writers(self, tokens: Tokens) -> Writers:
        """What every writer adds to the residual stream in the full model."""
        return self._observe(tokens)[0]

    @torch.no_grad()
    def masked(self, tokens: Tokens, ablated: Writers, keep: EdgeMask) -> Logits:
        """Logits with the kept edges live and every other edge carrying its ablated sender."""
        return self._mixed(tokens, ablated, keep.to(ablated), torch.zeros_like(ablated))

    def gated(self, tokens: Tokens, ablated: Writers, gates: EdgeGates) -> Logits:
        """Logits with every edge live as far as its gate is open; differentiable in the gates."""
        return self._mixed(tokens, ablated, gates.to(ablated), _Apart())

    def _mixed(
        self, tokens: Tokens, ablated: Writers, gates: EdgeGates, live: Writers | _Apart
    ) -> Logits:
        """Logits under gates; `live` takes in what writers write."""

        def read(site: _Site, x: Tensor) -> Tensor:
            n = self._visible[site.rows.start]
            share = gates[self._edges(site)].reshape(-1, n)
            mixed = torch.einsum("rw,wbtd->btrd", share, live[:n])
            mixed = mixed + torch.einsum("rw,wbtd->btrd", 1 - share, ablated[:n])
            mixed = mixed + self._bias(site.layer, x)
            return (mixed if site.heads else mixed[:, :, 0]).to(x)

        return self._run(tokens, self._writes(live) + _hooks(self._readers, read))

    def _edges(self, site: _Site) -> slice:
        """The edges of a site's readers: reader by reader, writer by writer."""
        ids = self.space.edge_id[site.rows, : self._visible[site.rows.start]]
        return slice(int(ids[0, 0]), int(ids[-1, -1]) + 1)

    def masked_run(
        self, tokens: Tokens, ablated: Writers, hidden: Activations | None = None
    ) -> MaskedRun:
        """The masked forward on fixed prompts; nothing is remembered between masks."""
        assert hidden is None, "activations() refuses before"
        return functools.partial(self.masked, tokens, ablated)

    def edge_gradients(
        self,
        tokens: Tokens,
        delta: Writers,
        objective: Objective,
        held: Held | None = None,
        *,
        senders: slice | None = None,
        by_position: bool = False,
        neurons: NeuronSums | None = None,
        less_own: bool = False,
    ) -> Float[Tensor, "batch *pos edge"]:
        """For every edge and prompt: Σ over positions and d_model of delta · ∂objective/∂input."""
        assert neurons is None, "activations() refuses before"
        if less_own:
            delta -= self.writers(tokens)
        inputs: list[Tensor] = []

        def branch(site: _Site, x: Tensor) -> Tensor:
            # A tensor of its own: the MLP's input is otherwise the residual stream itself.
            inputs.append(x.clone())
            return inputs[-1]

        with torch.enable_grad():
            # Weights take no gradient: the graph starts at the embedding, be it held or not.
            start = _hooks(self._writers[:1], lambda site, x: x.detach().requires_grad_())
            hooks = self._holding(held) + start + _hooks(self._readers, branch)
            total = objective(self._run(tokens, hooks)).sum()
            grads = torch.autograd.grad(total, inputs, materialize_grads=True)
        sums = EdgeSums(delta, self.space.n_edges, senders, by_position)
        for site, grad in zip(self._readers, grads, strict=True):
            per_reader = grad.movedim(2, 0) if site.heads else grad[None]
            first = int(self.space.edge_id[site.rows.start, 0])
            sums.add(first, self._visible[site.rows.start], per_reader)
        return sums.scores

    def _holding(self, held: Held | None) -> list[_Hook]:
        """Hooks that put constants in place of what some writers write."""
        if held is None:
            return []
        site = next(s for s in self._writers if held.at(s.rows))
        inside = held.at(site.rows)
        assert inside is not None
        after_norm = next((s for s in self._post_norms if s.rows == site.rows), None)
        if after_norm is not None:
            return self._holding_shares(site, after_norm, inside)

        def replace(site: _Site, x: Tensor) -> Tensor:
            if not site.heads:
                return inside.outputs[0].to(x)
            x = x.clone()
            x[:, :, inside.writers] = inside.outputs.movedim(0, 2).to(x)
            return x

        return _hooks([site], replace)

    def _holding_shares(self, heads: _Site, norm: _Site, held: Held) -> list[_Hook]:
        """The same for heads behind a norm: after it, their live shares are exchanged."""
        live: list[Tensor] = []

        def keep(site: _Site, x: Tensor) -> None:
            live.append(x[:, :, held.writers].sum(2))

        def share(site: _Site, scale: Tensor) -> None:
            live.append(live.pop() * self._post_weight(site) / scale)

        def exchange(site: _Site, x: Tensor) -> Tensor:
            return x - live.pop() + held.outputs.sum(0).to(x)

        after = norm._replace(hook=f"blocks.{norm.layer}.hook_attn_out")
        return _hooks([heads], keep) + _hooks([norm], share) + _hooks([after], exchange)

    def _run(self, tokens: Tokens, hooks: list[_Hook]) -> Logits:
        return self._every(tokens, hooks)[:, -1]

    def _every(self, tokens: Tokens, hooks: list[_Hook]) -> Float[Tensor, "batch pos vocab"]:
        context = getattr(self._bridge.cfg, "n_ctx", None)
        if context and tokens.shape[1] > context:
            raise OptionError(
                f"prompts of {tokens.shape[1]} tokens do not fit a context of {context}"
            )
        # Prompts are never padded; without a mask transformers warns of ids equal to the pad id.
        logits: Tensor = self._bridge.run_with_hooks(
            tokens,
            fwd_hooks=hooks,
            return_type="logits",
            attention_mask=torch.ones_like(tokens),
        )
        return logits

    def _observe(self, tokens: Tokens) -> tuple[Writers, list[tuple[_Site, Tensor]]]:
        """Every writer's output and, in forward order, every reader hook's input."""
        width = int(self._bridge.cfg.d_model)
        parameter = next(self._bridge.original_model.parameters())
        out = parameter.new_zeros((len(self.space.writers), *tokens.shape, width))
        seen: list[tuple[_Site, Tensor]] = []

        def read(site: _Site, x: Tensor) -> None:
            seen.append((site, x.clone()))

        self._run(tokens, self._writes(out) + _hooks(self._readers, read))
        return out, seen

    def _writes(self, out: Writers | _Apart) -> list[_Hook]:
        """Hooks that put into `out` what every writer adds to the residual stream."""

        def share(site: _Site, scale: Tensor) -> None:
            out[site.rows] = out[site.rows] * (self._post_weight(site) / scale)

        stored = _hooks(self._writers, lambda site, x: _store(out, site, x))
        return stored + _hooks(self._post_norms, share)

    def _post_norm(self, site: _Site) -> Any:
        """The norm between a layer's heads and the residual stream; none in most architectures."""
        return getattr(self._bridge.blocks[site.layer], "ln1_post", None)

    def _post_weight(self, site: _Site) -> Tensor:
        """What the norm behind attention multiplies by, ``[d_model]``."""
        norm = self._post_norm(site)
        weight: Tensor = 1 + norm.weight if norm.uses_weight_offset else norm.weight
        return weight

    def _switch_on(self) -> None:
        bridge, name = self._bridge, type(self._bridge.original_model).__name__
        try:
            bridge.set_use_attn_result(True)
            bridge.set_use_split_qkv_input(True)
            bridge.set_use_hook_mlp_in(True)
            biases = [block.attn.b_O for block in bridge.blocks]
        except (AttributeError, NotImplementedError, ValueError) as error:
            raise _not_apart(name, "TransformerLens has no hooks at its single heads") from error
        bridge.original_model.eval().requires_grad_(False)
        self._biases: list[Tensor | None] = biases

    def _bias(self, layer: int, like: Tensor) -> Tensor:
        """Attention output biases of the layers before `layer`, ``[d_model]``."""
        total = like.new_zeros(like.shape[-1])
        for bias in itertools.islice(self._biases, layer):
            total = total if bias is None else total + bias
        return total

    @torch.no_grad()
    def _require_adding_up(self) -> float:
        n = min(6, int(getattr(self._bridge.cfg, "n_ctx", 0) or 6))
        writers, seen = self._observe(torch.arange(n, device=self.device)[None] + 1)
        name = type(self._bridge.original_model).__name__
        if [site for site, _ in seen] != self._readers:
            missing = {s.hook for s in self._readers} - {s.hook for s, _ in seen}
            first = min(missing, default="its hooks in order")
            raise _not_apart(name, f"in TransformerLens it does not pass {first}")
        worst = max(self._deviation(site, x, writers) for site, x in seen)
        # Half precision rounds every partial sum; what is looked for is a term left out.
        tolerance = ADDS_UP if writers.dtype in (torch.float32, torch.float64) else 0.05
        if not worst <= tolerance:
            raise ModelError(
                f"the heads and MLPs of {name} do not add up to what its layers read "
                f"(off by {worst:.2g}); circuits over it would be wrong"
            )
        return worst

    def _deviation(self, site: _Site, x: Tensor, writers: Writers) -> float:
        total = writers[: self._visible[site.rows.start]].sum(0) + self._bias(site.layer, x)
        n_readers = site.rows.stop - site.rows.start
        if site.heads and x.shape[2] != n_readers:
            raise ModelError(
                f"{site.hook} has {x.shape[2]} heads where the configuration says {n_readers}"
            )
        expected = total[:, :, None] if site.heads else total
        return float((x - expected).abs().max() / x.abs().max())


def boot(directory: Path, dtype: str = "float32", device: str = "cpu") -> HookedForward:
    """The hooked forward of a local Hugging Face directory. Never touches the network.

    Raises:
        ModelError: a weight is missing, TransformerLens does not know the architecture, or its
            hooks do not carry a graph of writers and readers.
    """
    with hub.quiet(), hub.offline():
        try:
            return HookedForward(_bridge(directory, dtype, device))
        except (ValueError, OSError, KeyError, NotImplementedError, RuntimeError) as error:
            reason = str(error).strip().splitlines() or [type(error).__name__]
            raise ModelError(
                f"TransformerLens cannot boot {str(directory)!r}: {reason[0]}"
            ) from error


def _not_apart(name: str, why: str) -> ModelError:
    return ModelError(
        f"{name} cannot be taken apart into heads and MLPs: {why}; "
        f"choose a model of type {', '.join(FAMILIES)} or another that docs/models.md names"
    )


def _bridge(directory: Path, dtype: str, device: str) -> Any:
    # Imported here: several seconds, and only this forward needs it.
    from transformer_lens.model_bridge import TransformerBridge
    from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

    # Loaded here and handed over, because a tensor missing from the files is filled with random
    # numbers, and only this call tells.
    model, told = AutoModelForCausalLM.from_pretrained(
        directory,
        dtype=getattr(torch, dtype),
        attn_implementation="eager",
        output_loading_info=True,
        local_files_only=True,
    )
    if told["missing_keys"]:
        first = min(told["missing_keys"])
        raise ModelError(f"the weights in {str(directory)!r} lack the tensor {first!r}")
    # Given, because TransformerLens finds none for Llama-type directories. It plays no part
    # beyond that: prompts arrive as token ids.
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(directory / "tokenizer.json"))
    return TransformerBridge.boot_transformers(
        # Absolute, because a relative path like 'gpt2' is taken for a name on the hub.
        str(directory.resolve()),
        hf_model=model.to(device),
        tokenizer=tokenizer,
        dtype=getattr(torch, dtype),
        device=device,
    )


def spec_of(cfg: Any) -> SpaceSpec:
    """The graph space of a TransformerLens configuration."""
    heads = int(cfg.n_heads)
    return SpaceSpec(
        n_layers=int(cfg.n_layers),
        n_heads=heads,
        n_kv_heads=int(getattr(cfg, "n_key_value_heads", None) or heads),
        mlps=not getattr(cfg, "attn_only", False),
        parallel=bool(getattr(cfg, "parallel_attn_mlp", False)),
    )


def _writer_sites(spec: SpaceSpec) -> list[_Site]:
    sites = [_Site("blocks.0.hook_in", slice(0, 1), False, 0)]
    at = 1
    for layer in range(spec.n_layers):
        heads = slice(at, at + spec.n_heads)
        sites.append(_Site(f"blocks.{layer}.attn.hook_result", heads, True, layer))
        at = heads.stop
        if spec.mlps:
            sites.append(_Site(f"blocks.{layer}.hook_mlp_out", slice(at, at + 1), False, layer))
            at += 1
    return sites


def _post_norm_sites(spec: SpaceSpec) -> list[_Site]:
    """Where the scale of a norm behind attention would pass, with the rows of its heads."""
    heads = [site for site in _writer_sites(spec) if site.heads]
    return [s._replace(hook=f"blocks.{s.layer}.ln1_post.hook_scale", heads=False) for s in heads]


def _reader_sites(spec: SpaceSpec) -> list[_Site]:
    sites, at = [], 0
    for layer in range(spec.n_layers):
        for port, n in (("q", spec.n_heads), ("k", spec.n_kv_heads), ("v", spec.n_kv_heads)):
            hook = f"blocks.{layer}.attn.hook_{port}_input"
            sites.append(_Site(hook, slice(at, at + n), True, layer))
            at += n
        if spec.mlps:
            seen = layer if spec.parallel else layer + 1
            sites.append(_Site(f"blocks.{layer}.hook_mlp_in", slice(at, at + 1), False, seen))
            at += 1
    last = f"blocks.{spec.n_layers - 1}.hook_out"
    return [*sites, _Site(last, slice(at, at + 1), False, spec.n_layers)]


def _hooks(sites: list[_Site], act: Callable[[_Site, Tensor], Tensor | None]) -> list[_Hook]:
    def bind(site: _Site) -> Callable[..., Tensor | None]:
        def hook(x: Tensor, hook: Any) -> Tensor | None:
            return act(site, x)

        return hook

    return [(site.hook, bind(site)) for site in sites]


def _store(out: Writers | _Apart, site: _Site, x: Tensor) -> None:
    out[site.rows] = x.movedim(2, 0) if site.heads else x[None]

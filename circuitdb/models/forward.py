"""The masked forward: a model run with some edges kept and all others ablated.

Two ways implement it: :mod:`circuitdb.models.residual` (fast, for the architectures it knows) and
:mod:`circuitdb.models.hooked` (any architecture TransformerLens boots; its oracle in tests).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple, Protocol, runtime_checkable

import torch  # noqa: TID253
from jaxtyping import Bool, Float, Int
from torch import Tensor  # noqa: TID253

from circuitdb.space import Space

Tokens = Int[Tensor, "batch pos"]
Logits = Float[Tensor, "batch vocab"]
Writers = Float[Tensor, "writer batch pos d_model"]
Embedding = Float[Tensor, "batch pos d_model"]
Pattern = Float[Tensor, "batch head query key"]
EdgeMask = Bool[Tensor, " edge"]
"""Kept edges; behind them, where the space has neurons, kept neurons
(:data:`circuitdb.space.EdgeMask`)."""
EdgeGates = Float[Tensor, " edge"]
MaskedRun = Callable[[EdgeMask], Logits]
Objective = Callable[[Logits], Float[Tensor, " batch"]]
Activations = Callable[[int], Float[Tensor, "batch pos neuron"]]
"""The activations of a layer's MLP, made when asked for: what stands behind the nonlinearity, of a
gated MLP act(gate) · up. They of all layers at once would not fit into memory."""
Place = tuple[str, int]
"""A kind of site and a layer."""
Visits = Mapping[Place, Callable[[Tensor], Tensor]]
"""For some kinds of sites (:data:`circuitdb.models.sites.HOOKS`) and layers a function of what stands
there, ``[batch, pos, width]`` or by head ``[batch, pos, head, width]``. What it gives is carried on;
it must not write into what it is given."""


class Widths(NamedTuple):
    """Sizes of one layer."""

    d_model: int
    d_head: int
    """Of what a head fetches."""
    d_mlp: int


class Held(NamedTuple):
    """Consecutive writers whose outputs a forward is given instead of computing them.

    Their readers see these constants, and no gradient passes through them. They are ``input``,
    one or more heads of one layer, or one MLP. Where a norm stands between heads and stream, the
    other heads of the layer keep the shares they have in the model.
    """

    writers: slice
    """Writer indices."""
    outputs: Float[Tensor, "held batch pos d_model"]

    def at(self, writers: slice) -> Held | None:
        """Itself with indices counted from a block of writers, if it lies among them."""
        first, stop = (i - writers.start for i in (self.writers.start, self.writers.stop))
        inside = first >= 0 and stop <= writers.stop - writers.start
        return Held(slice(first, stop), self.outputs) if inside else None


class EdgeSums:
    """Gradients at readers' inputs, contracted with senders' deltas as a backward reports them.

    Args:
        delta: what each sender would change by.
        n_edges: of the space.
        senders: whose edges count, writer indices; the others' stay 0.
        by_position: keep positions apart.
    """

    def __init__(
        self, delta: Writers, n_edges: int, senders: slice | None, by_position: bool
    ) -> None:
        _, batch, pos, _ = delta.shape
        # One summed axis, so that the product needs no copy of all deltas: over d_model where
        # positions are kept apart, else over positions too.
        self._merged = (1, 2) if by_position else (2, 3)
        self._delta = delta.flatten(*self._merged)
        self._senders = slice(0, len(delta)) if senders is None else senders
        self._rows = (batch, pos) if by_position else (batch,)
        self.scores = delta.new_zeros((*self._rows, n_edges))
        """``[batch, edge]`` or ``[batch, pos, edge]``"""

    def add(
        self, first_edge: int, n_visible: int, grad: Float[Tensor, "reader batch pos d_model"]
    ) -> None:
        """Take in some consecutive readers.

        Args:
            first_edge: id of the first one's first edge.
            n_visible: they read writers 0 … n_visible − 1.
            grad: gradients at their inputs.
        """
        chosen = slice(self._senders.start, min(self._senders.stop, n_visible))
        if chosen.start >= chosen.stop:
            return
        at_inputs = grad.to(self._delta).flatten(*self._merged)
        products = torch.einsum("wbx,rbx->brw", self._delta[chosen], at_inputs)
        edges = self.scores[..., first_edge : first_edge + len(grad) * n_visible]
        edges.view(*edges.shape[:-1], len(grad), n_visible)[..., chosen] = products.view(
            *self._rows, *products.shape[1:]
        )


class NeuronSums:
    """Gradients at neurons' activations, contracted with their changes as a backward reports them.

    What several backwards report adds up.

    Args:
        delta: what the neurons of a layer would change by.
    """

    def __init__(self, delta: Activations, n_layers: int) -> None:
        self._delta = delta
        self._layers: list[Tensor | float] = [0.0] * n_layers

    def add(self, layer: int, grad: Float[Tensor, "batch pos neuron"]) -> None:
        """Take in the gradient at one layer's activations."""
        delta = self._delta(layer)
        self._layers[layer] += torch.einsum("btn,btn->bn", delta, grad.to(delta))

    def scores(self) -> Float[Tensor, "batch neuron"]:
        """Σ over positions of delta · gradient, the neurons layer by layer."""
        return torch.cat([part for part in self._layers if isinstance(part, Tensor)], dim=1)


@runtime_checkable
class Patterned(Protocol):
    """What tells where a model's heads look."""

    def patterns(self, tokens: Tokens) -> list[Pattern]:
        """Attention probabilities in the full model, layer by layer."""
        ...


@runtime_checkable
class MaskedForward(Patterned, Protocol):
    """A model over its graph space. Logits are those of the last position, or of every position
    in turn where the weights say so.

    The input of a reader is the sum of what the writers before it wrote plus the attention
    output biases of the layers before it; those biases belong to no writer and are never
    ablated. The output of a head excludes that bias, the output of an MLP includes its own,
    and ``input`` is the token embedding plus, where there is one, the position embedding.

    Where a norm stands between a component and the stream (Gemma 2), the component's output is
    what the norm lets through: the MLP's normed output, and of a head its share of the heads'
    normed sum, ``head · weight / rms(sum of the layer's live heads)``.
    """

    @property
    def space(self) -> Space: ...

    @property
    def device(self) -> torch.device:
        """Where the weights are, and tokens and ablated activations must be."""
        ...

    @property
    def heads_coupled(self) -> bool:
        """Whether a norm stands between the heads of a layer and the residual stream.

        A head's output then depends on what all heads of its layer read. Cutting the edges out
        of a head does not silence it; ablating its inputs too does.
        """
        ...

    @property
    def vocabulary(self) -> int:
        """Token ids it knows, 0 to one less: it embeds each of them and gives it a logit."""
        ...

    @property
    def context(self) -> int:
        """Tokens it reads."""
        ...

    @property
    def neurons(self) -> int:
        """Neurons of every MLP that can be taken apart; 0 where this forward cannot."""
        ...

    def logits(self, tokens: Tokens) -> Logits:
        """The full model's logits."""
        ...

    def visited(
        self, tokens: Tokens, visits: Visits, *, every: bool = False, since: Place | None = None
    ) -> Float[Tensor, "batch *pos vocab"]:
        """The full model's logits with functions put in at some sites; differentiable.

        Args:
            tokens: prompts.
            visits: the functions. Whatever one raises ends the run.
            every: logits of every position, ``[batch, pos, vocab]``.
            since: a site of the stream whose function gives the same whatever it is given. The run may
                begin there, functions before it left uncalled; a forward that cannot runs it all.

        Raises:
            ModelError: this forward does not pass one of the sites.
        """
        ...

    def widths(self, layer: int) -> Widths:
        """Sizes of one layer."""
        ...

    def writers(self, tokens: Tokens) -> Writers:
        """What every writer adds to the residual stream in the full model."""
        ...

    def masked(self, tokens: Tokens, ablated: Writers, keep: EdgeMask) -> Logits:
        """Logits with the kept edges live and every other edge carrying its ablated sender.

        Everything downstream is recomputed, norm scales included.
        """
        ...

    def activations(self, tokens: Tokens) -> Activations:
        """The activations of every MLP in the full model.

        Raises:
            ModelError: this forward cannot take MLPs apart.
        """
        ...

    def masked_run(
        self, tokens: Tokens, ablated: Writers, hidden: Activations | None = None
    ) -> MaskedRun:
        """The masked forward on fixed prompts, to be called with many masks.

        It may remember what masks have in common; the result is that of :meth:`masked`.

        Args:
            tokens: prompts.
            ablated: what ablated senders carry.
            hidden: what ablated neurons carry, for masks that take MLPs apart: an edge out of an
                MLP then carries what it writes with its other neurons ablated. Its output bias
                stays.
        """
        ...

    def gated(self, tokens: Tokens, ablated: Writers, gates: EdgeGates) -> Logits:
        """Logits with every edge partly live: gate · live + (1 − gate) · ablated sender.

        Differentiable in `gates`; at 0 and 1 alone it is :meth:`masked`. The derivative at a gate
        is Σ over positions and d_model of (live − ablated) · ∂/∂input of the edge's reader; where
        all gates are 1 that is −1 times the edge's ``eap`` score, whatever its port.
        """
        ...

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
        """For every edge and prompt: Σ over positions and d_model of delta · ∂objective/∂input.

        The gradient is that of the edge's reader input in the full model on `tokens`; `delta` is
        what the edge's sender would change by. This is the first-order estimate of the
        objective's change.

        Args:
            tokens: prompts.
            delta: change of every sender's output.
            objective: what is estimated, a function of the logits.
            held: writers that are constants in this run.
            senders: contract the edges of these writers only; the others' values are 0.
            by_position: do not sum over positions.
            neurons: takes in the gradients at neurons' activations too.
            less_own: `delta` holds what senders would write instead; what they write in this run
                is taken off it, in place. Saves the forward that would tell. Not with `held`.

        Returns:
            ``[batch, edge]``, or ``[batch, pos, edge]`` by position.
        """
        ...

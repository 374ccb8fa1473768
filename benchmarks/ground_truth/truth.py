"""The true edges of a compiled program: derived from its weights, and measured by brute force.

Nothing here uses circuitdb, so that its engines can be tested against it; numpy is all it needs.

A compiled residual stream is a sum of named *variables*, each with directions of its own. Backward
from the logits, an edge ``writer->reader<port>`` is true when

1. the ablation changes what the writer writes on some input (``zero``: it is not always 0;
   ``resample``: at some position it differs between two inputs), and
2. the reader's weights take this change in: for ``logits``, an MLP or a value port the read map is
   not 0 on it; for a query or key port it moves the attention scores of some query by something
   other than a constant, which softmax would cancel, and
3. what the reader writes is itself read, by these rules, on some path to the logits. Here it counts
   which variable is read at which position: an MLP that computes two is followed for each.

:func:`measured` cuts every edge alone on all inputs (``resample``: on all pairs of inputs) and
keeps the largest change of an output. The two agree unless a program computes the same twice, or
rounds a change away; such edges are the exceptions a fixture lists.

The start token's own output means nothing and is left out throughout.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Tokens = NDArray[np.int64]
"""``[prompt, pos]``, the start token first."""
Ablation = Literal["zero", "resample"]
ABLATIONS: tuple[Ablation, ...] = ("zero", "resample")

TOLERANCE = 1e-3
"""Below lie the leaks of a softmax that is not infinitely sharp, above it real changes (0.5 or more)."""


class Reader(NamedTuple):
    """One input of the network."""

    name: str
    layer: int
    """The number of layers for ``logits``."""
    head: int | None
    port: str | None
    visible: int
    """It reads the writers before this index."""


@dataclass(frozen=True)
class Network:
    """A compiled transformer: no norms, no biases, attention in both directions, ReLU.

    Attributes:
        embed: ``[vocab, d_model]``.
        position: ``[context, d_model]``.
        w_q, w_k, w_v: ``[layer, head, d_model, d_head]``.
        w_o: ``[layer, head, d_head, d_model]``.
        w_in, w_out: ``[layer, d_model, d_mlp]``, ``[layer, d_mlp, d_model]``.
        unembed: ``[d_model, output]``.
        variables: the variable of each direction, ``[d_model]``.
    """

    embed: Array
    position: Array
    w_q: Array
    w_k: Array
    w_v: Array
    w_o: Array
    w_in: Array
    w_out: Array
    unembed: Array
    variables: tuple[str, ...]

    @property
    def attention(self) -> tuple[Array, Array, Array, Array]:
        return self.w_q, self.w_k, self.w_v, self.w_o

    @property
    def n_layers(self) -> int:
        return len(self.w_q)

    @property
    def n_heads(self) -> int:
        return self.w_q.shape[1]

    def writers(self) -> list[str]:
        """Names in forward order."""
        names = ["input"]
        for layer in range(self.n_layers):
            names += [f"a{layer}.h{head}" for head in range(self.n_heads)] + [f"m{layer}"]
        return names

    def readers(self) -> list[Reader]:
        """All inputs in forward order."""
        made = []
        for layer in range(self.n_layers):
            before = 1 + layer * (self.n_heads + 1)
            made += [
                Reader(f"a{layer}.h{head}", layer, head, port, before)
                for head, port in itertools.product(range(self.n_heads), "qkv")
            ]
            made.append(Reader(f"m{layer}", layer, None, None, before + self.n_heads))
        return [*made, Reader("logits", self.n_layers, None, None, len(self.writers()))]


class Cut(NamedTuple):
    """One edge, or all edges of a writer, and what is read instead."""

    writer: int
    reader: Reader | None
    """None: every reader."""
    instead: Array
    """``[prompt, pos, d_model]``"""


def edge_name(writer: str, reader: Reader) -> str:
    return f"{writer}->{reader.name}" + (f"<{reader.port}>" if reader.port else "")


def run(network: Network, tokens: Tokens, cut: Cut | None = None) -> tuple[Array, Array]:
    """What every writer writes, ``[writer, prompt, pos, d_model]``, and the outputs.

    Outputs are ``[prompt, pos, output]``; with a cut, those of the network without that edge.
    """
    written: list[Array] = []
    stream = np.zeros((*tokens.shape, network.embed.shape[1]))

    def write(live: Array) -> None:
        nonlocal stream
        whole = cut is not None and cut.reader is None and cut.writer == len(written)
        written.append(live)
        stream = stream + (cut.instead if cut is not None and whole else live)

    def read(layer: int, head: int | None, port: str | None) -> Array:
        if cut is None or cut.reader is None or cut.reader[1:4] != (layer, head, port):
            return stream
        return stream - written[cut.writer] + cut.instead

    write(network.embed[tokens] + network.position[: tokens.shape[1]])
    for layer in range(network.n_layers):
        inputs = [[read(layer, h, port) for port in "qkv"] for h in range(network.n_heads)]
        for head, (q, k, v) in enumerate(inputs):
            write(attend(network, layer, head, q, k, v))
        hidden = np.maximum(read(layer, None, None) @ network.w_in[layer], 0)
        write(hidden @ network.w_out[layer])
    return np.stack(written), read(network.n_layers, None, None) @ network.unembed


def attend(network: Network, layer: int, head: int, q: Array, k: Array, v: Array) -> Array:
    """What a head writes, given its three inputs ``[prompt, pos, d_model]``."""
    maps = (network.w_q, network.w_k, network.w_v)
    q, k, v = (x @ w[layer, head] for x, w in zip((q, k, v), maps, strict=True))
    scores = q @ k.swapaxes(1, 2) / np.sqrt(q.shape[-1])
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    return weights / weights.sum(-1, keepdims=True) @ v @ network.w_o[layer, head]


def derived(network: Network, tokens: Tokens, ablation: Ablation) -> list[str]:
    """The true edges by the weights on these inputs, in forward order."""
    written, _ = run(network, tokens)
    changes = written if ablation == "zero" else written - written.mean(1, keepdims=True)
    variables = np.asarray(network.variables)
    names = network.writers()
    true: set[str] = set()
    # What of a writer's output is read on some path to the logits, [writer, pos, d_model].
    live = np.zeros((len(names), *written.shape[2:]), dtype=np.bool_)
    for reader in reversed(network.readers()):
        intake = taken_in(network, reader, written[: reader.visible].sum(0), live)
        for writer in range(reader.visible):
            if intake(changes[writer]).max() <= TOLERANCE:
                continue
            true.add(edge_name(names[writer], reader))
            for variable in set(network.variables):
                own = variables == variable
                live[writer] |= (intake(changes[writer] * own) > TOLERANCE)[:, None] & own
    return [edge for edge in every_edge(network) if edge in true]


def taken_in(
    network: Network, reader: Reader, stream: Array, live: NDArray[np.bool_]
) -> Callable[[Array], Array]:
    """The map from a change of a reader's input to how much of it counts, at most, ``[pos]``.

    `stream` is the reader's whole input ``[prompt, pos, d_model]``.
    """
    if reader.port is None and reader.layer == network.n_layers:
        # The start token's own output means nothing.
        answers = np.arange(stream.shape[1]) > 0
        return lambda change: np.abs(change @ network.unembed).max((0, 2)) * answers
    onward = live[network.writers().index(reader.name)]
    at, directions = onward.any(1), onward.any(0)
    if reader.head is None:
        used = (onward @ np.abs(network.w_out[reader.layer]).T) > 0
        return lambda change: (np.abs(change @ network.w_in[reader.layer]).max(0) * used).max(1)
    w_q, w_k, w_v, w_o = (w[reader.layer, reader.head] for w in network.attention)
    if reader.port == "v":
        return lambda change: np.abs(change @ w_v @ w_o * directions).max((0, 2))
    # Softmax sees only how scores differ between the positions attended to.
    if reader.port == "q":
        keys = _distinct(_centred(stream @ w_k))
        return lambda change: np.abs(change @ w_q @ keys.T).max((0, 2)) * at
    queries = _distinct((stream @ w_q)[:, at])
    everywhere = np.ones(stream.shape[1])
    return lambda change: np.abs(_centred(change @ w_k) @ queries.T).max(initial=0.0) * everywhere


def _centred(x: Array) -> Array:
    return x - x.mean(1, keepdims=True)


def _distinct(x: Array) -> Array:
    """The different rows of ``[prompt, pos, d_head]``."""
    return np.unique(x.reshape(-1, x.shape[-1]).round(9), axis=0)


def every_edge(network: Network) -> Iterator[str]:
    """All edges, reader by reader in forward order."""
    names = network.writers()
    for reader in network.readers():
        yield from (edge_name(w, reader) for w in names[: reader.visible])


def measured(
    network: Network, tokens: Tokens, ablation: Ablation
) -> tuple[dict[str, float], dict[str, float]]:
    """The largest change of any output when one edge, or one node, alone is cut.

    Returns:
        By name: all edges, and all writers.
    """
    written, clean = run(network, tokens)
    names = network.writers()

    def largest(writer: int, reader: Reader | None) -> float:
        own, change = written[writer], 0.0
        if ablation == "zero":
            others = [np.zeros_like(own)]
        else:
            others = [np.roll(own, shift, axis=0) for shift in range(1, len(tokens))]
        for instead in others:
            if np.abs(instead - own).max() < 1e-12:
                continue
            _, without = run(network, tokens, Cut(writer, reader, instead))
            change = max(change, float(np.abs(without - clean)[:, 1:].max()))
        return change

    edges = {
        edge_name(names[writer], reader): largest(writer, reader)
        for reader in network.readers()
        for writer in range(reader.visible)
    }
    return edges, {name: largest(writer, None) for writer, name in enumerate(names)}

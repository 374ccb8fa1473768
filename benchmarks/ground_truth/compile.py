"""Compile RASP programs with tracr: `python -m benchmarks.ground_truth.compile` makes the fixtures.

tracr (Lindner et al. 2023, "Tracr: Compiled Transformers as a Laboratory for Interpretability")
needs jax, which circuitdb does not. This script therefore runs in an environment of its own::

    python3.11 -m venv tracr-venv
    tracr-venv/bin/pip install tracr-pypi==1.0.0 jax==0.10.2 dm-haiku==0.0.17 numpy==2.4.6
    tracr-venv/bin/python -m benchmarks.ground_truth.compile

It writes ``tests/ground_truth/NAME.npz`` (weights) and ``NAME.json`` (vocabulary, outputs, true
edges and nodes), a few minutes in all. Nothing is drawn at random and no date is stored: a
second run gives the same bytes. A program is only written when, on every input,

- our plain numpy forward gives the residual stream that tracr's own model gives,
- its decoded outputs are those of tracr's RASP interpreter, and
- the edges derived from the weights are those that change an output when cut alone, apart from the
  exceptions below, each with its reason.

The programs read a start token and four tokens; they are compiled for up to five, because tracr's
lookup tables take whatever lies outside their range for its end, and a cut edge would then happen
to give the right answer.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from tracr.compiler import compiling, lib
from tracr.compiler.assemble import AssembledTransformerModel
from tracr.rasp import rasp
from tracr.transformer.encoder import CategoricalEncoder

from benchmarks.ground_truth.truth import (
    ABLATIONS,
    TOLERANCE,
    Ablation,
    Network,
    Tokens,
    derived,
    measured,
    run,
)

FOLDER = Path(__file__).resolve().parents[2] / "tests" / "ground_truth"
LENGTH, LONGEST = 4, 5

DEFAULT = (
    "Only tells the head to look at the start token when nothing matches; on these inputs "
    "something always does."
)
ROUNDED = (
    "The head then averages over the start token too; the share it finds of negative balances is "
    "smaller, but the lookup table behind it only asks whether it is 0."
)


@dataclass(frozen=True)
class Program:
    """A RASP program over three tokens, and the edges that are read but never matter alone."""

    name: str
    summary: str
    make: Callable[[], rasp.SOp]
    tokens: Sequence[str | int]
    exceptions: dict[Ablation, dict[str, str]]


def after() -> rasp.SOp:
    """The share of 'x' among the tokens that stand after a token like this one."""
    before = rasp.Aggregate(
        rasp.Select(rasp.indices, rasp.indices, lambda k, q: k == max(q - 1, 0)), rasp.tokens
    ).named("before")
    is_x = rasp.numerical(rasp.Map(lambda token: int(token == "x"), rasp.tokens)).named("is_x")
    same = rasp.Select(before, rasp.tokens, rasp.Comparison.EQ)
    return rasp.numerical(rasp.Aggregate(same, is_x, default=0)).named("after")


PROGRAMS = (
    Program(
        "reverse",
        "The tokens in reverse order.",
        lambda: lib.make_reverse(rasp.tokens),
        "abc",
        {"zero": {"input->a3.h0<q>": DEFAULT}},
    ),
    Program(
        "xproportion",
        "The share of 'x' among the tokens so far.",
        lambda: lib.make_frac_prevs(rasp.tokens == "x"),
        "wxy",
        {},
    ),
    Program(
        "pair_balance",
        "The share of '(' minus the share of ')' among the tokens so far.",
        lambda: lib.make_pair_balance(rasp.tokens, "(", ")"),
        "()a",
        {},
    ),
    Program(
        "reverse_histogram",
        "How often each token occurs, in reverse order.",
        lambda: lib.make_reverse(lib.make_hist()),
        "abc",
        {"zero": {"input->a3.h0<q>": DEFAULT}},
    ),
    Program(
        "rare",
        "How many tokens occur at most twice.",
        lambda: lib.make_count_less_freq(2),
        "abc",
        {},
    ),
    Program(
        "after",
        "The share of 'x' among the tokens that stand after a token like this one.",
        after,
        "wxy",
        {},
    ),
    Program(
        "sort",
        "The tokens in ascending order.",
        lambda: lib.make_sort(rasp.tokens, rasp.tokens, max_seq_len=LONGEST, min_key=1),
        (1, 2, 3),
        {"zero": {"input->a2.h0<k>": DEFAULT}},
    ),
    Program(
        "sort_by_frequency",
        "The tokens, the most frequent first, equally frequent ones in the order they come.",
        lambda: lib.make_sort_freq(LONGEST),
        (1, 2, 3),
        {"zero": {"input->a4.h0<k>": DEFAULT}},
    ),
    Program(
        "dyck",
        "Whether the parentheses are balanced.",
        lambda: lib.make_shuffle_dyck(["()"]),
        "()a",
        {
            "zero": {
                "input->a4.h0<q>": DEFAULT,
                "input->a4.h1<k>": ROUNDED,
                "input->a4.h1<q>": ROUNDED,
            }
        },
    ),
)


def main() -> None:
    FOLDER.mkdir(exist_ok=True)
    for program in PROGRAMS:
        rasp_program = program.make()
        model = compiling.compile_rasp_to_model(rasp_program, set(program.tokens), LONGEST)
        network = converted(model, rasp_program.label)
        sequences = list(itertools.product(program.tokens, repeat=LENGTH))
        tokens = np.asarray([model.input_encoder.encode([*_start(model), *s]) for s in sequences])
        check_outputs(model, network, tokens, [rasp_program(list(s)) for s in sequences])
        _write(program, model, network, truths(program, network, tokens))


def converted(model: AssembledTransformerModel, output: str) -> Network:
    """tracr's parameters, heads in an axis of their own; `output` is the program's label."""
    c = model.model_config
    parameters = {
        name: {k: np.asarray(v, dtype=np.float64) for k, v in group.items()}
        for name, group in model.params.items()
    }
    assert not any(group["b"].any() for group in parameters.values() if "b" in group)

    def layers(part: str) -> list[np.ndarray[Any, np.dtype[np.float64]]]:
        return [parameters[f"transformer/layer_{i}/{part}"]["w"] for i in range(c.num_layers)]

    def heads(part: str) -> np.ndarray[Any, np.dtype[np.float64]]:
        split = [w.reshape(len(w), c.num_heads, -1).swapaxes(0, 1) for w in layers(part)]
        return np.stack(split)

    labels = model.residual_labels
    answers = [i for i, label in enumerate(labels) if label.partition(":")[0] == output]
    return Network(
        embed=parameters["token_embed"]["embeddings"],
        position=parameters["pos_embed"]["embeddings"],
        w_q=heads("attn/query"),
        w_k=heads("attn/key"),
        w_v=heads("attn/value"),
        w_o=np.stack(
            [w.reshape(c.num_heads, c.key_size, len(labels)) for w in layers("attn/linear")]
        ),
        w_in=np.stack(layers("mlp/linear_1")),
        w_out=np.stack(layers("mlp/linear_2")),
        unembed=np.eye(len(labels))[:, answers],
        variables=tuple(_variables(labels)),
    )


def _variables(labels: Sequence[str]) -> list[str]:
    """The variable of each label, without tracr's running number unless it is needed."""
    found: dict[str, str] = {}
    for variable in (label.partition(":")[0] for label in labels):
        plain = re.sub(r"_\d+(?=$|_selector_width)", "", variable)
        taken = [v for k, v in found.items() if k != variable and v.split("#")[0] == plain]
        found.setdefault(variable, f"{plain}#{len(taken) + 1}" if taken else plain)
    return [found[label.partition(":")[0]] for label in labels]


def _start(model: AssembledTransformerModel) -> list[str]:
    return [model.input_encoder.bos_token]


def check_outputs(
    model: AssembledTransformerModel, network: Network, tokens: Tokens, expected: list[list[Any]]
) -> None:
    """Hold our forward against tracr's, and decoded outputs against the RASP interpreter's."""
    written, outputs = run(network, tokens)
    theirs = model.forward(model.params, tokens).transformer_output.output
    assert np.allclose(written.sum(0), theirs, atol=1e-3)
    for found, wanted in zip(outputs[:, 1:], expected, strict=True):
        if isinstance(model.output_encoder, CategoricalEncoder):
            assert model.output_encoder.decode(found.argmax(-1).tolist()) == wanted
        else:
            assert np.allclose(found[:, 0], wanted, atol=1e-3)


def truths(program: Program, network: Network, tokens: Tokens) -> dict[str, dict[str, Any]]:
    """Per ablation: true edges and nodes, exceptions, and how far true and false lie apart."""
    found = {}
    for ablation in ABLATIONS:
        edges, nodes = measured(network, tokens, ablation)
        by_weights = derived(network, tokens, ablation)
        exceptions = program.exceptions.get(ablation, {})
        true = [e for e in by_weights if e not in exceptions]
        assert set(exceptions) <= set(by_weights), (program.name, ablation)
        assert true == [e for e, change in edges.items() if change > TOLERANCE], program.name
        writers = {e.split("->")[0] for e in by_weights}
        assert writers == {n for n, change in nodes.items() if change > TOLERANCE}, program.name
        found[ablation] = {
            "edges": true,
            "nodes": [n for n in nodes if n in writers],
            "exceptions": exceptions,
            "smallest_true_change": round(min(edges[e] for e in true), 3),
            "largest_false_change": float(
                f"{max(v for e, v in edges.items() if e not in true):.0e}"
            ),
        }
        print(f"{program.name:18} {ablation:9} {len(true):3} of {len(edges)} edges", flush=True)
    return found


def _write(
    program: Program,
    model: AssembledTransformerModel,
    network: Network,
    found: dict[str, dict[str, Any]],
) -> None:
    arrays = {k: v for k, v in vars(network).items() if k != "variables"}
    np.savez_compressed(
        FOLDER / f"{program.name}.npz", **{k: v.astype(np.float32) for k, v in arrays.items()}
    )
    encoder, decoder = model.input_encoder, model.output_encoder
    categorical = isinstance(decoder, CategoricalEncoder)
    about = {
        "program": program.name,
        "summary": program.summary,
        "source": f"tracr-pypi {version('tracr-pypi')}",
        "seed": None,
        "length": LENGTH,
        "vocabulary": list(encoder.encoding_map),
        "tokens": list(program.tokens),
        "start": encoder.bos_token,
        "outputs": list(decoder.encoding_map) if categorical else None,
        "variables": list(network.variables),
        "truth": found,
    }
    text = json.dumps(about, indent=1, ensure_ascii=False) + "\n"
    (FOLDER / f"{program.name}.json").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()

"""Names of components and edges: what they mean, and that printing undoes parsing."""

from __future__ import annotations

import doctest
import importlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from circuitdb.errors import NameSyntaxError
from circuitdb.names import Component, Edge, edge, hook_name, parse_component, parse_edge

numbers = st.integers(0, 10**6)
sites = st.from_regex(r"[a-z_]{1,20}", fullmatch=True)
words = st.text(min_size=1, max_size=20).filter(lambda t: max(t) < "\ud800" or max(t) > "\udfff")
positions = (
    st.none() | st.integers(0, 10**4) | st.from_regex(r"[A-Za-z_][A-Za-z0-9_]{0,8}", fullmatch=True)
)


def _component(kind: str) -> st.SearchStrategy[Component]:
    parts = {
        "input": {},
        "logits": {},
        "logit": {"index": numbers},
        "head": {"layer": numbers, "index": numbers},
        "kv": {"layer": numbers, "index": numbers},
        "mlp": {"layer": numbers},
        "neuron": {"layer": numbers, "index": numbers},
        "feature": {"layer": numbers, "index": numbers, "site": sites, "space": words},
        "error": {"layer": numbers, "site": sites, "space": words},
        "direction": {"layer": numbers, "site": sites, "space": words},
    }[kind]
    drawn = st.fixed_dictionaries({**parts, "position": positions})
    return drawn.map(lambda values: Component(kind, **values))  # type: ignore[arg-type]


WRITERS = ("input", "head", "mlp", "neuron", "feature", "error", "direction")
READERS = ("head", "kv", "mlp", "neuron", "feature", "error", "direction", "logit", "logits")
writers = st.sampled_from(WRITERS).flatmap(_component)
readers = st.sampled_from(READERS).flatmap(_component)


@given(writers | readers)
def test_a_printed_component_parses_to_itself(component):
    assert parse_component(str(component)) == component
    assert str(parse_component(str(component))) == str(component)


@given(writers, readers, st.sampled_from("qkv"))
def test_a_printed_edge_parses_to_itself(writer, reader, port):
    ports = {"head": port, "kv": "k" if port == "q" else port}
    made = edge(writer, reader, ports.get(reader.kind))
    assert parse_edge(str(made)) == made
    assert str(parse_edge(str(made))) == str(made)


@given(st.text(max_size=30))
def test_any_text_is_a_component_or_refused_in_one_line(text):
    try:
        parsed = parse_component(text)
    except NameSyntaxError as refused:
        message = str(refused)
    else:
        message = ""
        assert parse_component(str(parsed)) == parsed
    assert "\n" not in message


@pytest.mark.parametrize(
    ("alias", "canonical"),
    [
        ("A5.3", "a5.h3"), ("a5.3", "a5.h3"), ("5.3", "a5.h3"), ("L5H3", "a5.h3"),
        ("l5h3", "a5.h3"), ("a05.h3", "a5.h3"), ("MLP 4", "m4"), ("mlp4", "m4"), ("M_4", "m4"),
        ("embed", "input"), ("Resid Start", "input"), ("resid_post", "logits"),
        ("Resid End", "logits"), (" a0.h1@S2 ", "a0.h1@S2"), ("A0.1@7", "a0.h1@7"),
    ],
)  # fmt: skip
def test_other_tools_spellings_become_ours(alias, canonical):
    assert str(parse_component(alias)) == canonical


@pytest.mark.parametrize(
    ("text", "component"),
    [
        ("a5.h3", Component("head", 5, 3)),
        ("a5.kv1", Component("kv", 5, 1)),
        ("m4.n512", Component("neuron", 4, 512)),
        ("f/4.resid_post/res-jb/123", Component("feature", 4, 123, "resid_post", "res-jb")),
        ("f/4.resid_post/res-jb/err", Component("error", 4, None, "resid_post", "res-jb")),
        ("d/4.resid_post/a%2Fb", Component("direction", 4, None, "resid_post", "a/b")),
        ("logit/1234", Component("logit", None, 1234)),
        ("a0.h1@END", Component("head", 0, 1, position="END")),
        ("a0.h1@7", Component("head", 0, 1, position=7)),
    ],
)
def test_every_kind_reads_as_its_parts(text, component):
    assert parse_component(text) == component
    assert str(component) == text


def test_names_inside_are_percent_encoded_but_for_the_safe_characters():
    assert str(Component("direction", 0, None, "resid_post", "A_b.c-9 ~/é")) == (
        "d/0.resid_post/A_b.c-9%20%7E%2F%C3%A9"
    )


def test_positions_come_before_the_port():
    made = parse_edge("a0.h1@S2->a5.h3@END<q>")
    assert (made.src.position, made.dst.position, made.port) == ("S2", "END", "q")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("a0.h1->m0<q>", "has a port, but m0 is no attention head"),
        ("m0->a1.h2", "needs a port at its head"),
        ("m0->a1.kv2", "needs a port at its head"),
        ("m0->a1.kv0<q>", "a key/value head has no <q>"),
        ("logits->m1", "runs from logits to m1"),
        ("m0->input", "runs from m0 to input"),
        ("a0.kv1->m3", "runs from a0.kv1 to m3"),
        ("m0->a1.h2<x>", "unknown port"),
        ("m0->a1.h2<q", "unknown port"),
        ("m0-a1.h2<q>", "is no edge"),
        ("m0->a1.g2<q>", "'a1.g2' is no component name"),
    ],
)
def test_what_is_no_edge_is_refused_with_the_reason(text, reason):
    with pytest.raises(NameSyntaxError, match=reason):
        parse_edge(text)


@pytest.mark.parametrize(
    "text", ["", "a5", "h3", "a5.h", "a-1.h3", "m", "f/4.x/d", "a5.h3@", "a5.h3@S 2"]
)
def test_what_is_no_component_is_refused(text):
    with pytest.raises(NameSyntaxError, match=r"is no component name|has no valid position"):
        parse_component(text)


@pytest.mark.parametrize(
    ("name", "port", "hook"),
    [
        ("a5.h3", None, "blocks.5.attn.hook_z"),
        ("a5.h3", "q", "blocks.5.hook_q_input"),
        ("a5.kv1", "v", "blocks.5.hook_v_input"),
        ("m4", None, "blocks.4.hook_mlp_out"),
        ("m4.n7", None, "blocks.4.mlp.hook_post"),
        ("input", None, "hook_embed"),
        ("logits", None, "unembed"),
        ("f/4.resid_post/D/1", None, "blocks.4.hook_resid_post"),
    ],
)
def test_hooks_carry_transformer_lens_legacy_names(name, port, hook):
    assert hook_name(parse_component(name), port) == hook


def test_components_and_edges_show_their_names():
    assert repr(parse_component("m4")) == "Component('m4')"
    assert repr(Edge(Component("input"), Component("mlp", 0))) == "Edge('input->m0')"


@pytest.mark.parametrize("module", ["names", "space", "errors", "circuit", "resources"])
def test_the_examples_in_docstrings_hold(module):
    assert doctest.testmod(importlib.import_module(f"circuitdb.{module}")).failed == 0

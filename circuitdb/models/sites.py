"""Sites: the places in a model that dictionaries and directions read and write.

A site is a kind, a layer and, for single heads, a head. It has three spellings:

- TransformerLens's, which is printed: ``blocks.3.hook_resid_pre``, ``blocks.3.attn.hook_z``; of one
  head ``blocks.3.attn.hook_z.h2``, which TransformerLens has no name for.
- that of feature names (:mod:`circuitdb.names`): ``3.resid_pre``, ``3.z.h2``.
- gpt-circuits' keys: ``3_residpre``; ``3_act`` is what layer 3 reads, and one layer more than there
  are what the last one leaves.

Differs: ``ln1.hook_normalized`` and ``ln2.hook_normalized`` are what attention and the MLP read,
the norm's weight and bias included, as in TransformerLens before its version 4; its bridge has these
values at ``attn.hook_in`` and ``mlp.hook_in``.
Source: https://github.com/TransformerLensOrg; https://github.com/peterlai/gpt-circuits.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final, NamedTuple

from circuitdb.errors import OptionError, UnknownNameError
from circuitdb.space import SpaceSpec

if TYPE_CHECKING:
    from circuitdb.models.model import LoadedModel

HOOKS: Final = {
    "resid_pre": "hook_resid_pre",
    "attn_in": "ln1.hook_normalized",
    "z": "attn.hook_z",
    "result": "attn.hook_result",
    "attn_out": "hook_attn_out",
    "resid_mid": "hook_resid_mid",
    "mlp_in": "ln2.hook_normalized",
    "neurons": "mlp.hook_post",
    "mlp_out": "hook_mlp_out",
    "resid_post": "hook_resid_post",
}
"""Kinds of sites in the order in which a layer passes them, and TransformerLens's name of each.

``attn_out`` and ``mlp_out`` are what is added to the stream, behind a norm where one stands there;
``z`` is what a head fetches, ``result`` what it writes, before output bias and norm; ``neurons`` are
what stands behind the MLP's nonlinearity, of a gated one act(gate) · up.
"""
STREAM: Final = ("resid_pre", "resid_mid", "resid_post")
"""Kinds at which the whole stream stands: all behind one depends on nothing else before it."""
BEFORE_ATTENTION: Final = ("resid_pre", "attn_in")
"""Kinds that attention reads at every position."""
HEADS: Final = ("z", "result")
"""Kinds that have heads; without one, a site is all of them side by side."""
_MLP: Final = ("resid_mid", "mlp_in", "neurons", "mlp_out")
"""Kinds that only models with MLPs have."""
_KEYS: Final = {kind: kind.replace("_", "") for kind in HOOKS if kind not in (*HEADS, "neurons")}
_BRIDGE: Final = {
    "hook_in": "resid_pre", "hook_out": "resid_post", "attn.hook_in": "attn_in",
    "mlp.hook_in": "mlp_in",
}  # fmt: skip
"""Names that TransformerLens's bridge alone has."""
_UNNORMED: Final = ("hook_attn_in", "hook_mlp_in")

_NAME: Final = re.compile(
    r"(?:blocks\.(?P<hooked>\d+)\.(?P<hook>.+?)|(?P<dotted>\d+)\.(?P<kind>\w+))(?:\.h(?P<head>\d+))?"
)
_KEY: Final = re.compile(r"(\d+)_(\w+)")


class Site(NamedTuple):
    """A place in a model; ``str()`` prints it as TransformerLens calls it.

    >>> str(Site("resid_pre", 3)), str(Site("z", 3, 2))
    ('blocks.3.hook_resid_pre', 'blocks.3.attn.hook_z.h2')
    """

    kind: str
    """One of :data:`HOOKS`."""
    layer: int
    head: int | None = None

    def __str__(self) -> str:
        head = "" if self.head is None else f".h{self.head}"
        return f"blocks.{self.layer}.{HOOKS.get(self.kind, self.kind)}{head}"

    @property
    def key(self) -> str:
        """The key gpt-circuits has for it.

        Raises:
            OptionError: it has none.

        >>> Site("resid_pre", 3).key
        '3_residpre'
        """
        if self.kind not in _KEYS or self.head is not None:
            raise OptionError(
                f"gpt-circuits has no key for {str(self)!r}, only for {', '.join(_KEYS)}"
            )
        return f"{self.layer}_{_KEYS[self.kind]}"


def parse(name: str, spec: SpaceSpec) -> Site:
    """The site of a name in any of the spellings.

    Raises:
        UnknownNameError: it is no site.
        OptionError: the model has no such layer, head or place.

    >>> parse("4_act", SpaceSpec(n_layers=4, n_heads=2, n_kv_heads=2))
    Site(kind='resid_post', layer=3, head=None)
    """
    site = _of_key(name, spec) if _KEY.fullmatch(name) else of_hook(name)
    require(site, spec)
    return site


def _of_key(name: str, spec: SpaceSpec) -> Site:
    layer, hook = name.split("_", 1)
    kinds = {key: kind for kind, key in _KEYS.items()} | {"act": "resid_pre"}
    if hook not in kinds:
        raise UnknownNameError("site", name, [f"{layer}_{key}" for key in kinds])
    if hook == "act" and int(layer) == spec.n_layers:
        return Site("resid_post", spec.n_layers - 1)
    return Site(kinds[hook], int(layer))


def of_hook(name: str) -> Site:
    """The site that TransformerLens or a feature name calls so, of whatever model.

    Raises:
        UnknownNameError: it is no site.
        OptionError: it lies before a norm.

    >>> of_hook("blocks.3.hook_resid_pre")
    Site(kind='resid_pre', layer=3, head=None)
    """
    match = _NAME.fullmatch(name)
    if match is None:
        examples = [str(Site(kind, 3)) for kind in HOOKS]
        raise UnknownNameError("site", name, examples, "The number is the layer")
    head = None if match["head"] is None else int(match["head"])
    if match["kind"] is not None:
        if match["kind"] not in HOOKS:
            raise UnknownNameError("site", name, [f"{match['dotted']}.{kind}" for kind in HOOKS])
        return Site(match["kind"], int(match["dotted"]), head)
    layer, hook = int(match["hooked"]), match["hook"]
    if hook in _UNNORMED:
        kind = hook.removeprefix("hook_")
        raise OptionError(
            f"{name!r} lies before the norm, where one sublayer alone branches off the stream: take "
            f"the stream (resid_pre, resid_mid), or {str(Site(kind, layer))!r} behind the norm"
        )
    kinds = {hook: kind for kind, hook in HOOKS.items()} | _BRIDGE
    if hook not in kinds:
        raise UnknownNameError("site", name, [str(Site(kind, layer)) for kind in HOOKS])
    return Site(kinds[hook], layer, head)


def forward_order(site: Site) -> tuple[int, int, int]:
    """By this, sites stand as a run of the model passes them.

    >>> sorted([Site("resid_post", 0), Site("attn_in", 1), Site("z", 0)], key=forward_order)[0].kind
    'z'
    """
    return site.layer, list(HOOKS).index(site.kind), -1 if site.head is None else site.head


def require(site: Site, spec: SpaceSpec) -> None:
    """Refuse a site that a model does not have.

    Raises:
        UnknownNameError: no such kind.
        OptionError: no such layer, head or place in the model.
    """
    if site.kind not in HOOKS:
        raise UnknownNameError("kind of site", site.kind, HOOKS)
    problem = _problem(site, spec)
    if problem:
        raise OptionError(f"no site {str(site)!r}: {problem}")


def _problem(site: Site, spec: SpaceSpec) -> str | None:
    if not 0 <= site.layer < spec.n_layers:
        return f"the model has layers 0 to {spec.n_layers - 1}"
    if site.head is not None and site.kind not in HEADS:
        return f"heads stand only at {' and '.join(HEADS)}"
    if site.head is not None and not 0 <= site.head < spec.n_heads:
        return f"the model has heads 0 to {spec.n_heads - 1}"
    if site.kind in _MLP and not spec.mlps:
        return "the model has no MLPs"
    if site.kind == "resid_mid" and spec.parallel:
        return (
            "attention and MLP of this model run side by side, so nothing lies between them; "
            "both read resid_pre"
        )
    return None


def width(model: LoadedModel, site: Site) -> int:
    """How many numbers stand at a site, per position.

    Raises:
        OptionError: the model has no such site.
    """
    require(site, model.spec)
    sizes = model.forward.widths(site.layer)
    heads = model.spec.n_heads if site.head is None else 1
    match site.kind:
        case "z":
            return heads * sizes.d_head
        case "result":
            return heads * sizes.d_model
        case "neurons":
            return sizes.d_mlp
        case _:
            return sizes.d_model

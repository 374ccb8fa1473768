"""What stands at sites of a model, and the model with something else put there.

Both run the model once, by whichever forward it has. Functions put in are differentiable: gradients
flow through them and the rest of the model, as attribution and training end to end need.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Mapping

import torch  # noqa: TID253
from jaxtyping import Float
from torch import Tensor  # noqa: TID253

from circuitdb.errors import OptionError
from circuitdb.models.forward import MaskedForward, Place, Tokens
from circuitdb.models.sites import Site, require

Activation = Float[Tensor, "batch pos width"]
Replacement = Callable[[Tensor], Tensor]
"""From the activation ``[batch, pos, width]`` at a site to what is carried on instead. It must not
write into its argument."""


class _Enough(Exception):
    """Ends a run once all that was asked for has been seen."""


@torch.no_grad()
def activations(
    forward: MaskedForward, tokens: Tokens, sites: Iterable[Site]
) -> dict[Site, Activation]:
    """What stands at some sites, in one pass that ends at the last of them; without gradients.

    Of a site with heads and none named they are side by side, ``[batch, pos, head · width]``.

    Raises:
        OptionError: the model has no such site, or the prompts are longer than its context.
        ModelError: the model's forward does not pass a site.
    """
    asked, found = tuple(dict.fromkeys(sites)), dict[Site, Tensor]()
    places = _by_place(asked, forward)
    if not asked:
        return {}

    def taking(at: list[Site]) -> Replacement:
        def take(x: Tensor) -> Tensor:
            found.update((site, _part(site, x)) for site in at)
            if len(found) == len(asked):
                raise _Enough
            return x

        return take

    with contextlib.suppress(_Enough):
        forward.visited(tokens, {place: taking(at) for place, at in places.items()})
    return {site: found[site] for site in asked}


def replaced(
    forward: MaskedForward,
    tokens: Tokens,
    functions: Mapping[Site, Replacement],
    *,
    every: bool = False,
    since: Site | None = None,
) -> Float[Tensor, "batch *pos vocab"]:
    """The model's logits with functions put in at some sites; differentiable.

    All downstream is recomputed, norms included; a function sees what those before it made of the
    run. What is put in at ``resid_mid`` both the MLP and all after it read.

    Args:
        forward: the model's.
        tokens: prompts.
        functions: by site.
        every: logits of every position, ``[batch, pos, vocab]``, and not of the last.
        since: a site of the stream whose function gives the same whatever it is given: what lies below
            it is not run where the forward can begin there.

    Raises:
        OptionError: the model has no such site, a function gives another shape, or one is given for
            all heads of a layer and another for one of them.
        ModelError: the model's forward does not pass a site.
    """
    places = _by_place(functions, forward)
    for at in places.values():
        if len(at) > 1 and any(site.head is None for site in at):
            whole = next(site for site in at if site.head is None)
            raise OptionError(f"{str(whole)!r} is all heads: give no function for single ones too")
    visits = {place: _replacing(at, functions) for place, at in places.items()}
    begin = None if since is None else (since.kind, since.layer)
    return forward.visited(tokens, visits, every=every, since=begin)


def _by_place(sites: Iterable[Site], forward: MaskedForward) -> dict[Place, list[Site]]:
    """Sites by kind and layer."""
    places: dict[Place, list[Site]] = {}
    for site in sites:
        require(site, forward.space.spec)
        places.setdefault((site.kind, site.layer), []).append(site)
    return places


def _part(site: Site, x: Tensor) -> Activation:
    """A site's share of what stands at its kind of site: one head, all side by side, or all."""
    # A copy of the one head, so that the others need not stay in memory.
    return x.flatten(2) if site.head is None else x[:, :, site.head].clone()


def _replacing(at: list[Site], functions: Mapping[Site, Replacement]) -> Replacement:
    """One function of what stands at a kind of site, from those of its sites."""

    def replace(x: Tensor) -> Tensor:
        if at[0].head is None:
            return _applied(at[0], functions[at[0]], x.flatten(2)).reshape(x.shape)
        heads = list(x.unbind(2))
        for site in at:
            assert site.head is not None, "replaced() refuses both"
            heads[site.head] = _applied(site, functions[site], heads[site.head])
        return torch.stack(heads, dim=2)

    return replace


def _applied(site: Site, function: Replacement, x: Tensor) -> Tensor:
    made = function(x)
    if made.shape != x.shape:
        raise OptionError(
            f"the function at {str(site)!r} gives shape {list(made.shape)} where {list(x.shape)} stood"
        )
    return made

"""A model taken apart into features: what a feature circuit does on prompts.

At the site that a dictionary writes, the activation is the sum of what its features write and of the
*error*, what they leave out; both are components. Side by side, the features and the error of every
dictionary make the *state* of a run.

- A node circuit runs the model and, dictionary by dictionary, puts those components that it does not
  keep to their ablated values. Those kept take the values they have in this run.
- An edge circuit gives every component kept the value it has where, at all dictionaries before it,
  the components with an edge to it stand at their values in the circuit and all others are ablated.
  Model and dictionaries are run once for every different set of senders, several sets side by side,
  from the last site of the stream before the reader on: what is put there is all that is seen of what
  lies before it.

What lies below the first dictionary, and what of the stream no dictionary writes, is that of the clean
run's prompts and never ablated. Source: Marks et al. 2024, "Sparse feature circuits".
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch  # noqa: TID253
from jaxtyping import Bool, Float, Int
from torch import Tensor  # noqa: TID253

from circuitdb.ablation import Ablation
from circuitdb.circuit import Floats
from circuitdb.dictionaries.forms import Dictionary, contribution, decode, encode, reconstruct
from circuitdb.dictionaries.located import Located
from circuitdb.errors import OptionError
from circuitdb.evaluate import Bench, BenchBatch
from circuitdb.feature_space import FeatureSpace, Ids, Mask, Place
from circuitdb.models.forward import Logits, MaskedForward, Tokens
from circuitdb.models.interventions import activations, replaced
from circuitdb.models.sites import STREAM, Site, forward_order
from circuitdb.space import FeatureSite, SpaceSpec
from circuitdb.tasks.prompts import Prompts

State = Float[Tensor, "batch pos value"]
"""Features, then error, of every dictionary in turn."""
KeptValues = Bool[Tensor, "#batch #pos value"]
Activation = Float[Tensor, "batch pos width"]
Put = Callable[[Activation, Activation], Activation]
"""From what stands at the sites a dictionary reads and writes to what is written instead."""

RESTORED = ("constant_norm_rescale", "layer_norm")
"""Normalisations that what is written takes back, by what was read."""
SIDE_BYTES = 32 * 2**20
"""Writer outputs of the copies of a batch that are run side by side."""
OTHER = "other"
"""The role of positions that have none."""


@dataclass(frozen=True, slots=True, eq=False)
class Block:
    """A dictionary with its share of the state and of the components."""

    located: Located
    features: slice
    error: slice
    place: Place

    owners: Int[Tensor, " feature"] | None
    """Which component each feature belongs to, where several make one up."""

    @property
    def begins(self) -> bool:
        """Whether what it writes, once its components are put in, is all that is left of what is before.

        So it is with the stream, where nothing of what was read is used in writing.
        """
        here, form = self.located, self.located.dictionary.form
        whole = here.written.kind in STREAM and here.site == here.written
        return whole and form.normalize_activations not in RESTORED

    @property
    def values(self) -> slice:
        """Its whole share of the state."""
        return slice(self.features.start, self.error.stop)

    @property
    def n_features(self) -> int:
        """Features of its share, before the error."""
        return len(range(self.features.start, self.features.stop))

    def taken_apart(self, read: Activation, written: Activation) -> Float[Tensor, "batch pos own"]:
        """Features and error of what stands at the two sites."""
        d = self.located.dictionary
        return torch.cat([encode(d, read), written - reconstruct(d, read)], dim=-1)

    def put_together(self, own: Float[Tensor, "batch pos own"], read: Activation) -> Activation:
        """What stands at the site written where features and error have these values."""
        d, n = self.located.dictionary, self.n_features
        return decode(d, own[..., :n], read) + own[..., n:] + self.skipped(read)

    def contributed(self, own: Float[Tensor, "batch pos own"], read: Activation) -> Activation:
        """What changes of features and error add to what stands at the site written."""
        n = self.n_features
        return contribution(self.located.dictionary, own[..., :n], read) + own[..., n:]

    def adding(self, change: Float[Tensor, "batch pos own"]) -> Put:
        """Adds what changes of features and error write."""
        return lambda read, written: written + self.contributed(change, read)

    def skipped(self, read: Activation) -> Activation | float:
        """What passes a transcoder by its skip."""
        d = self.located.dictionary
        return read @ d.tensors["W_skip"].T if d.form.skip else 0.0


def space_of(
    spec: SpaceSpec, located: Sequence[Located], positions: Sequence[str] = ()
) -> FeatureSpace:
    """The graph of some dictionaries of a model, in forward order of what they write.

    Args:
        spec: the model's own.
        located: dictionaries, in that order.
        positions: roles, where components are told apart by position.
    """
    features = tuple(
        FeatureSite(
            layer=one.site.layer, site=one.site.kind, name=one.name, width=one.n_components,
            located_id=one.located_id, parts=tuple(str(part.component) for part in one.parts),
        )
        for one in located
    )  # fmt: skip
    return FeatureSpace(
        spec.model_copy(update={"features": features, "positions": tuple(positions)})
    )


class FeatureBench(Bench):
    """Prompts of one split under one ablation, for any number of feature circuits.

    Args:
        forward: the model.
        prompts: prompts of one split.
        ablation: what ablated components carry: ``resample`` their values on the paired corrupted
            prompt, ``mean`` and ``mean_global`` their mean values, ``zero`` 0.
        space: the graph of the dictionaries.
        located: the dictionaries, in the order of the graph.
        batch_size: prompts a forward.
    """

    space: FeatureSpace

    def __init__(
        self,
        forward: MaskedForward,
        prompts: Prompts,
        ablation: Ablation,
        space: FeatureSpace,
        located: Sequence[Located],
        batch_size: int | None = None,
    ) -> None:
        super().__init__(forward, prompts, ablation, batch_size, space)
        like = forward.logits(torch.zeros((1, 1), dtype=torch.int64, device=forward.device))
        self.blocks = _blocks(space, [_beside(one, like) for one in located], forward.device)
        self.sites = [
            s for b in self.blocks for s in dict.fromkeys((b.located.site, b.located.written))
        ]
        self._values_of = ablation.of(lambda tokens: self.state(tokens)[None])
        self._states: dict[int, tuple[State, State]] = {}

    @property
    def width(self) -> int:
        """Values of the state."""
        return max(int(block.error.stop) for block in self.blocks)

    @torch.no_grad()
    def state(self, tokens: Tokens) -> State:
        """The state of the full model's run on prompts."""
        found = activations(self.forward, tokens, self.sites)
        return torch.cat(
            [b.taken_apart(found[b.located.site], found[b.located.written]) for b in self.blocks],
            -1,
        )

    def states(self, batch: BenchBatch) -> tuple[State, State]:
        """The clean and the ablated state of a batch; kept while there is room."""
        key = id(batch)
        if key in self._states:
            return self._states[key]
        ablated = self._values_of(batch.corrupted, batch.template)[0]
        made = self.state(batch.clean), ablated
        if any(batch is own for own in self.batches) and self._take(ablated, 2):
            self._states[key] = made
        return made

    def forget(self) -> None:
        """Let go of the states kept between masks; they are made again when needed."""
        super().forget()
        self._states = {}

    def roles(self, batch: BenchBatch) -> Int[Tensor, "batch pos"]:
        """Which role's components a position belongs to, by number in the space; 0 without roles.

        A position of several roles belongs to the first of them by name.
        """
        found = torch.zeros(batch.clean.shape, dtype=torch.int64)
        positions = self.space.spec.positions
        if positions:
            found[:] = positions.index(OTHER)
            for row, index in enumerate(batch.index.tolist()):
                for role, at in sorted(self.prompts.rows[index].roles.items(), reverse=True):
                    found[row, at] = positions.index(role)
        return found.to(batch.clean.device)

    def kept(self, nodes: Mask, roles: Int[Tensor, "batch pos"]) -> KeptValues:
        """Which values of the state are those of some components."""
        return torch.cat([self.kept_of(block, nodes, roles) for block in self.blocks], dim=-1)

    def kept_of(
        self, block: Block, nodes: Mask, roles: Int[Tensor, "batch pos"]
    ) -> Bool[Tensor, "#batch #pos own"]:
        """The same of one dictionary's share."""
        (first, width), n = block.place, self.space.n_positions
        chosen = torch.from_numpy(nodes[first : first + (width + 1) * n].copy()).to(roles.device)
        own = chosen.view(width + 1, n)
        spread = own[:, 0][None, None] if n == 1 else own[:, roles].permute(1, 2, 0)
        d_out = block.error.stop - block.error.start
        errors, features = spread[..., width:].expand(*spread.shape[:2], d_out), spread[..., :width]
        if block.owners is not None:
            features = features[..., block.owners]
        return torch.cat([features, errors], dim=-1)

    def summed(
        self, products: State, roles: Int[Tensor, "batch pos"]
    ) -> Float[Tensor, "batch node"]:
        """Values of the state added up by component: over positions of a role, errors over widths.

        0 at ``input`` and ``logits``.
        """
        parts = [products.new_zeros(len(products), 1)]
        parts += [
            self.summed_of(block, products[..., block.values], roles) for block in self.blocks
        ]
        return torch.cat([*parts, parts[0]], dim=1)

    def summed_of(
        self, block: Block, own: Float[Tensor, "batch pos own"], roles: Int[Tensor, "batch pos"]
    ) -> Float[Tensor, "batch component"]:
        """The same of one dictionary's share, its error last."""
        n = self.space.n_positions
        features, error = own[..., : block.n_features], own[..., block.n_features :]
        if block.owners is not None:
            sums = features.new_zeros(*features.shape[:2], block.place.width)
            features = sums.index_add_(-1, block.owners, features)
        values = torch.cat([features, error.sum(-1, keepdim=True)], dim=-1)
        if n == 1:
            return values.sum(1)
        at_role = torch.nn.functional.one_hot(roles, n).to(own)
        return torch.einsum("btv,btr->bvr", values, at_role).flatten(1)

    def _run(self, batch: BenchBatch) -> Callable[[Tensor], Logits]:
        @torch.no_grad()
        def run(mask: Tensor) -> Logits:
            keep = mask.numpy()
            if len(self.space.edges_of(keep)):
                return self._of_edges(batch, keep)
            nodes = self.space.nodes_in(keep)
            return batch.full if nodes.all() else self._of_nodes(batch, nodes)

        return run

    def _of_nodes(self, batch: BenchBatch, nodes: Mask) -> Logits:
        return self.of_values(batch, self.kept(nodes, self.roles(batch)))

    def of_values(self, batch: BenchBatch, kept: KeptValues) -> Logits:
        """The model's logits where only some values of the state are kept and all others ablated."""
        _, ablated = self.states(batch)
        kept = kept.expand(len(ablated), *ablated.shape[1:2], -1)
        changed = [b for b in self.blocks if not bool(kept[..., b.values].all())]

        def of(block: Block) -> Put:
            stay, base = kept[..., block.values], ablated[..., block.values]

            def put(read: Activation, written: Activation) -> Activation:
                own = torch.where(stay, block.taken_apart(read, written), base)
                return block.put_together(own, read)

            return put

        return self.spliced(batch.clean, {b: of(b) for b in changed})

    def spliced(
        self, tokens: Tokens, functions: Mapping[Block, Put], since: Block | None = None
    ) -> Logits:
        """The model's logits where what some dictionaries write is put in by functions.

        Each is given what stands at the sites read and written, and gives what is written instead.
        The run may begin at the dictionary `since`, the first of them, whose function must give the same
        whatever it is given.
        """
        reads: dict[Site, Activation] = {}
        visits: dict[Site, Callable[[Tensor], Tensor]] = {}

        def keeping(site: Site) -> Callable[[Tensor], Tensor]:
            def keep(x: Tensor) -> Tensor:
                reads[site] = x
                return x

            return keep

        def putting(block: Block) -> Callable[[Tensor], Tensor]:
            located, function = block.located, functions[block]

            def put(x: Tensor) -> Tensor:
                read = x if located.site == located.written else reads[located.site]
                return function(read, x)

            return put

        for block in functions:
            visits[block.located.written] = putting(block)
        for block in functions:
            site = block.located.site
            if site != block.located.written:
                visits[site] = _both(keeping(site), visits.get(site))
        begin = None if since is None else since.located.written
        return replaced(self.forward, tokens, visits, since=begin)

    def _of_edges(self, batch: BenchBatch, keep: Mask) -> Logits:
        """The edge circuit: every kept component's value from those of its senders."""
        _, ablated = self.states(batch)
        roles, values = self.roles(batch), ablated.clone()
        senders = _Senders(self.space, self.space.edges_of(keep))
        for number, block in enumerate(self.blocks):
            since = self.since(number)
            found = list(senders.of(number, self._from(since)).items())
            at_once = self.copies(batch)
            for some in (found[i : i + at_once] for i in range(0, len(found), at_once)):
                states = self._set([p for p, _ in some], values, ablated, roles, since, number)
                tokens = batch.clean.repeat(len(some), 1)
                own = self.seen(tokens, block, _putting(states), since)
                for (_, readers), seen in zip(some, own.chunk(len(some)), strict=True):
                    kept = self.kept_of(block, self.only(readers), roles)
                    values[..., block.values] = torch.where(kept, seen, values[..., block.values])
        last = len(self.blocks)
        since = self.since(last)
        parents = next(iter(senders.of(last, self._from(since))), frozenset[int]())
        states = self._set([parents], values, ablated, roles, since, last)
        return self.spliced(batch.clean, _putting(states), since)

    def since(self, number: int) -> Block | None:
        """The last dictionary behind which a later one (or, one more, ``logits``) sees nothing before it.

        None where something may reach it past every dictionary.
        """
        for first in range(number - 1, -1, -1):
            begin = forward_order(self.blocks[first].located.written)
            read = [b.located.site for b in self.blocks[first + 1 : number + 1]]
            if self.blocks[first].begins and all(forward_order(site) >= begin for site in read):
                return self.blocks[first]
        return None

    def _from(self, since: Block | None) -> int:
        """The lowest id of a component that is seen there."""
        return 0 if since is None else since.place.first

    def copies(self, batch: BenchBatch, most_bytes: int = SIDE_BYTES) -> int:
        """How many copies of a batch are run side by side, by what their writer outputs take."""
        return max(1, most_bytes // (self._position_bytes * batch.clean.nelement()))

    def only(self, ids: Iterable[int]) -> Mask:
        """Some components and no others, bool ``[component]``."""
        nodes = np.zeros(self.space.n_nodes, np.bool_)
        nodes[list(ids)] = True
        return nodes

    def _set(
        self,
        parents: Sequence[frozenset[int]],
        values: State,
        ablated: State,
        roles: Int[Tensor, "batch pos"],
        since: Block | None,
        stop: int,
    ) -> dict[Block, Float[Tensor, "copies pos own"]]:
        """What readers of some sets of senders meet: those at their values, all else ablated.

        By dictionary, of those from one on and before a number; a copy of the batch for every set.
        """
        first = 0 if since is None else self.blocks.index(since)
        nodes = [self.only(ids) for ids in parents]

        def of(block: Block) -> Float[Tensor, "copies pos own"]:
            live, base = values[..., block.values], ablated[..., block.values]
            return torch.cat(
                [torch.where(self.kept_of(block, n, roles), live, base) for n in nodes]
            )

        return {block: of(block) for block in self.blocks[first:stop]}

    def seen(
        self,
        tokens: Tokens,
        block: Block,
        functions: Mapping[Block, Put],
        since: Block | None = None,
    ) -> Float[Tensor, "batch pos own"]:
        """Features and error of a dictionary in the run that functions are put into, as far as it.

        `since` is that of :meth:`spliced`.
        """
        found: list[Tensor] = []

        def look(read: Activation, written: Activation) -> Activation:
            found.append(block.taken_apart(read, written))
            raise _Seen

        with contextlib.suppress(_Seen):
            self.spliced(tokens, {**functions, block: look}, since)
        return found[0]

    def over_edges(self, src: Ids, dst: Ids, values: Floats | None) -> Floats:
        """Values of some edges, by component ids, over all of the space, which grows by them.

        NaN where none is given.
        """
        ids = self.space.grow(src, dst)
        made = np.full(self.space.n_edges, np.nan, dtype=np.float32)
        made[ids] = values
        return made

    def reversed(self) -> Bench:
        """Refused: feature circuits are scored by noising.

        Raises:
            OptionError: always.
        """
        raise OptionError(
            "circuits of features are ablated from the clean run: leave denoising out"
        )

    def inert(self) -> np.typing.NDArray[np.bool_]:
        """Bool ``[component]``, true where clean and ablated values are equal on every prompt."""
        same = np.ones(self.space.n_nodes, dtype=np.bool_)
        for batch in self.batches:
            clean, ablated = self.states(batch)
            differs = self.summed((clean != ablated).to(clean.dtype), self.roles(batch)) > 0
            same &= ~differs.any(0).cpu().numpy()
        return same


class _Seen(Exception):
    """Ends a run once a dictionary has been read."""


def _both(
    first: Callable[[Tensor], Tensor], second: Callable[[Tensor], Tensor] | None
) -> Callable[[Tensor], Tensor]:
    """A transcoder's read behind what another dictionary writes at the same site."""
    return first if second is None else lambda x: first(second(x))


def _beside(located: Located, like: Tensor) -> Located:
    """A dictionary where the model is, in its number type."""
    own = located.dictionary
    moved = Dictionary(own.form, {name: t.to(like) for name, t in own.tensors.items()})
    return replace(located, dictionary=moved)


def _blocks(space: FeatureSpace, located: Sequence[Located], device: torch.device) -> list[Block]:
    made, at = [], 0
    for one, place in zip(located, space.places, strict=True):
        middle = at + one.dictionary.form.d_dict
        end = middle + one.dictionary.form.d_out
        sizes = torch.tensor([part.size for part in one.parts], device=device)
        owners = torch.repeat_interleave(sizes) if one.parts else None
        made.append(Block(one, slice(at, middle), slice(middle, end), place, owners))
        at = end
    return made


def _putting(states: Mapping[Block, Float[Tensor, "batch pos own"]]) -> dict[Block, Put]:
    """Functions that have dictionaries write what states say."""

    def of(block: Block) -> Put:
        return lambda read, _: block.put_together(states[block], read)

    return {block: of(block) for block in states}


class _Senders:
    """Who sends to whom in an edge circuit."""

    def __init__(self, space: FeatureSpace, edges: np.typing.NDArray[np.int32]) -> None:
        self._parents: dict[int, set[int]] = {}
        src, dst = space.edge_src[edges], space.edge_dst[edges]
        for u, v in zip(src.tolist(), dst.tolist(), strict=True):
            self._parents.setdefault(v, set()).add(u)
            self._parents.setdefault(u, set())
        nodes = np.asarray(sorted(self._parents), dtype=np.int32)
        self._number = dict(zip(nodes.tolist(), space.place_of(nodes).tolist(), strict=True))

    def of(self, number: int, least: int) -> dict[frozenset[int], list[int]]:
        """The sets of senders in a dictionary by number (or one more, ``logits``), and who has each.

        Of senders with ids from `least` up. Components of the first dictionary, and others that the
        circuit has without a sender, have none.
        """
        groups: dict[frozenset[int], list[int]] = {}
        for node, number_of in self._number.items():
            if number_of == number:
                senders = frozenset(u for u in self._parents[node] if u >= least)
                groups.setdefault(senders, []).append(node)
        return groups

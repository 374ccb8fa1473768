"""Hugging Face's model families, read into :class:`~circuitdb.models.weights.Weights`.

A family is what ``config.json`` calls ``model_type``. GPT-2 and GPT-NeoX have a layout of their
own; the others share Llama's, and :data:`_KIN` says in what they differ from it. Defaults are those
of transformers' configuration classes, because older files leave fields out.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch  # noqa: TID253
from torch import Tensor  # noqa: TID253

from circuitdb.errors import ModelError
from circuitdb.models import rotary
from circuitdb.models.rotary import Rotary
from circuitdb.models.weights import Attention, Block, Mlp, Norm, StateDict, Weights
from circuitdb.space import SpaceSpec

Tensors = dict[str, Tensor]
Config = Mapping[str, Any]

_FULL, _SLIDING = "full_attention", "sliding_attention"


@dataclass(frozen=True, slots=True)
class _Kin:
    """In what a family with Llama's layout differs from Llama."""

    head_norms: bool = False
    """Queries and keys are normed, head by head."""
    gemma: bool = False
    """Norms scale by 1 + weight, embeddings by √d_model."""
    post_norms: bool = False
    """Norms stand behind attention and MLP too, scores are scaled by ``query_pre_attn_scalar``."""


_KIN = {
    "llama": _Kin(),
    "mistral": _Kin(),
    "qwen2": _Kin(),
    "qwen3": _Kin(head_norms=True),
    "gemma": _Kin(gemma=True),
    "gemma2": _Kin(gemma=True, post_norms=True),
    "gemma3_text": _Kin(head_norms=True, gemma=True, post_norms=True),
}

FAMILIES = ("gpt2", "gpt_neox", *_KIN)
"""Families :func:`from_hf` reads, by their Hugging Face ``model_type``."""


def from_hf(state: StateDict, config: Config, dtype: torch.dtype | None = None) -> Weights:
    """Weights of a Hugging Face state dict and its ``config.json``.

    Raises:
        ModelError: the family is not one of :data:`FAMILIES`, the configuration asks for
            something the residual forward does not do, or a tensor is missing.
    """
    family = config.get("model_type")
    if family not in FAMILIES:
        raise ModelError(
            f"the residual forward does not know model type {family!r}; "
            f"known: {', '.join(FAMILIES)}"
        )
    cast = {
        k: v.detach().to(dtype or torch.float32) for k, v in state.items() if v.is_floating_point()
    }
    readers: dict[str, Callable[[Tensors, Config], Weights]]
    readers = {"gpt2": _gpt2, "gpt_neox": _gpt_neox}
    try:
        return readers.get(family, _llama)(cast, config)
    except KeyError as missing:
        raise ModelError(f"the {family} weights lack the tensor {missing.args[0]!r}") from missing


def _input(w: Tensor, n: int) -> Tensor:
    """``[n·d_head, d_model]`` → ``[n, d_model, d_head]``."""
    return w.reshape(n, -1, w.shape[1]).transpose(1, 2).contiguous()


def _output(w: Tensor, n: int) -> Tensor:
    """``[d_model, n·d_head]`` → ``[n, d_head, d_model]``."""
    return w.T.reshape(n, -1, w.shape[0]).contiguous()


def _by_head(bias: Tensor | None, n: int) -> Tensor | None:
    """``[n·d_head]`` → ``[n, d_head]``."""
    return None if bias is None else bias.reshape(n, -1)


def _gpt2(state: Tensors, config: Config) -> Weights:
    if config.get("scale_attn_by_inverse_layer_idx") or config.get("add_cross_attention"):
        raise ModelError("the residual forward knows GPT-2 only with plain attention scaling")
    t = {k.removeprefix("transformer."): v for k, v in state.items()}
    n_layers, n_heads = int(config["n_layer"]), int(config["n_head"])
    eps = float(config.get("layer_norm_epsilon", 1e-5))
    activation = str(config.get("activation_function", "gelu_new"))

    def norm(prefix: str) -> Norm:
        return Norm(t[f"{prefix}.weight"], t[f"{prefix}.bias"], eps, rms=False)

    def block(i: int) -> Block:
        a, m = f"h.{i}.attn", f"h.{i}.mlp"
        # GPT-2 alone stores its maps input first.
        w = t[f"{a}.c_attn.weight"].T.chunk(3)
        b = t[f"{a}.c_attn.bias"].reshape(3, n_heads, -1)
        attention = Attention(
            w_q=_input(w[0], n_heads), b_q=b[0], w_k=_input(w[1], n_heads), b_k=b[1],
            w_v=_input(w[2], n_heads), b_v=b[2],
            w_o=_output(t[f"{a}.c_proj.weight"].T, n_heads), b_o=t[f"{a}.c_proj.bias"],
        )  # fmt: skip
        mlp = Mlp(
            t[f"{m}.c_fc.weight"], t[f"{m}.c_fc.bias"], None,
            t[f"{m}.c_proj.weight"], t[f"{m}.c_proj.bias"], activation,
        )  # fmt: skip
        return Block(norm(f"h.{i}.ln_1"), attention, norm(f"h.{i}.ln_2"), mlp)

    unembed = t.get("lm_head.weight", t["wte.weight"])
    return Weights(
        spec=SpaceSpec(n_layers=n_layers, n_heads=n_heads, n_kv_heads=n_heads),
        family="gpt2",
        embed=t["wte.weight"],
        position=t["wpe.weight"],
        blocks=tuple(block(i) for i in range(n_layers)),
        final_norm=norm("ln_f"),
        unembed=unembed.T.contiguous(),
        context=t["wpe.weight"].shape[0],
    )


def _gpt_neox(state: Tensors, config: Config) -> Weights:
    t = {k.removeprefix("gpt_neox."): v for k, v in state.items()}
    n_layers, n_heads = int(config["num_hidden_layers"]), int(config["num_attention_heads"])
    eps = float(config.get("layer_norm_eps", 1e-5))
    activation = str(config.get("hidden_act", "gelu"))
    embed, context = t["embed_in.weight"], int(config.get("max_position_embeddings", 2048))
    rope = _rope(config, "rotary_emb_base")
    share = float(rope.get("partial_rotary_factor") or config.get("rotary_pct", 0.25))
    width = int(share * (embed.shape[1] // n_heads))
    turn = rotary.from_parameters(rope, width, context, embed.device)

    def norm(prefix: str) -> Norm:
        return Norm(t[f"{prefix}.weight"], t[f"{prefix}.bias"], eps, rms=False)

    def block(i: int) -> Block:
        a, m = f"layers.{i}.attention", f"layers.{i}.mlp"
        # A head's query, key and value maps stand together, then come those of the next head.
        w = t[f"{a}.query_key_value.weight"].reshape(n_heads, 3, -1, embed.shape[1])
        w_q, w_k, w_v = (part.transpose(1, 2).contiguous() for part in w.unbind(1))
        b = t.get(f"{a}.query_key_value.bias")
        b_q, b_k, b_v = (None,) * 3 if b is None else b.reshape(n_heads, 3, -1).unbind(1)
        attention = Attention(
            w_q=w_q, b_q=b_q, w_k=w_k, b_k=b_k, w_v=w_v, b_v=b_v,
            w_o=_output(t[f"{a}.dense.weight"], n_heads), b_o=t.get(f"{a}.dense.bias"),
            rotary=turn,
        )  # fmt: skip
        mlp = Mlp(
            t[f"{m}.dense_h_to_4h.weight"].T.contiguous(), t[f"{m}.dense_h_to_4h.bias"], None,
            t[f"{m}.dense_4h_to_h.weight"].T.contiguous(), t[f"{m}.dense_4h_to_h.bias"],
            activation,
        )  # fmt: skip
        before = norm(f"layers.{i}.input_layernorm")
        return Block(before, attention, norm(f"layers.{i}.post_attention_layernorm"), mlp)

    # transformers 5.14 calls the unembedding lm_head; files written before it say embed_out.
    unembed = t["lm_head.weight"] if "lm_head.weight" in t else t["embed_out.weight"]
    return Weights(
        spec=SpaceSpec(
            n_layers=n_layers,
            n_heads=n_heads,
            n_kv_heads=n_heads,
            parallel=bool(config.get("use_parallel_residual", True)),
        ),
        family="gpt_neox",
        embed=embed,
        position=None,
        blocks=tuple(block(i) for i in range(n_layers)),
        final_norm=norm("final_layer_norm"),
        unembed=unembed.T.contiguous(),
        context=context,
    )


def _llama(state: Tensors, config: Config) -> Weights:
    reader = _Llama(state, config)
    embed = unscaled = reader.t["embed_tokens.weight"]
    if reader.kin.gemma:
        # Rounded to the model's precision before it multiplies, as transformers does.
        embed = unscaled * torch.tensor(unscaled.shape[1] ** 0.5).to(unscaled)
    return Weights(
        spec=SpaceSpec(
            n_layers=reader.n_layers, n_heads=reader.n_heads, n_kv_heads=reader.n_kv_heads
        ),
        family=str(config["model_type"]),
        embed=embed,
        position=None,
        blocks=tuple(reader.block(i) for i in range(reader.n_layers)),
        final_norm=reader.norm("norm"),
        unembed=reader.t.get("lm_head.weight", unscaled).T.contiguous(),
        context=reader.context,
        softcap=_softcaps(config)[1],
    )


class _Llama:
    """The tensors and the configuration of one model with Llama's layout."""

    def __init__(self, state: Tensors, config: Config) -> None:
        self.t = {k.removeprefix("model."): v for k, v in state.items()}
        self.config, self.kin = config, _KIN[config["model_type"]]
        self.n_layers = int(config["num_hidden_layers"])
        self.n_heads = int(config["num_attention_heads"])
        first = "layers.0.self_attn"
        self.d_head = self.t[f"{first}.q_proj.weight"].shape[0] // self.n_heads
        self.n_kv_heads = self.t[f"{first}.k_proj.weight"].shape[0] // self.d_head
        self.context = int(config.get("max_position_embeddings", 2048))
        if config.get("use_bidirectional_attention"):
            raise ModelError(
                f"the residual forward knows {config['model_type']} only with causal attention"
            )
        self.layer_types = _layer_types(config, self.n_layers)
        self.turns = self._turns()

    def block(self, i: int) -> Block:
        at = f"layers.{i}"
        before = self.norm(f"{at}.input_layernorm")
        attention, mlp = self.attention(i), self.mlp(f"{at}.mlp")
        # One name, two meanings: the norm before the MLP, or the one behind attention.
        middle = self.norm(f"{at}.post_attention_layernorm")
        if not self.kin.post_norms:
            return Block(before, attention, middle, mlp)
        before_mlp = self.norm(f"{at}.pre_feedforward_layernorm")
        behind_mlp = self.norm(f"{at}.post_feedforward_layernorm")
        return Block(before, attention, before_mlp, mlp, middle, behind_mlp)

    def attention(self, i: int) -> Attention:
        t, a, kin = self.t, f"layers.{i}.self_attn", self.kin
        kind, n, n_kv = self.layer_types[i], self.n_heads, self.n_kv_heads
        scalar = self.config.get("query_pre_attn_scalar", 256) if kin.post_norms else None
        return Attention(
            w_q=_input(t[f"{a}.q_proj.weight"], n), b_q=_by_head(t.get(f"{a}.q_proj.bias"), n),
            w_k=_input(t[f"{a}.k_proj.weight"], n_kv),
            b_k=_by_head(t.get(f"{a}.k_proj.bias"), n_kv),
            w_v=_input(t[f"{a}.v_proj.weight"], n_kv),
            b_v=_by_head(t.get(f"{a}.v_proj.bias"), n_kv),
            w_o=_output(t[f"{a}.o_proj.weight"], n), b_o=t.get(f"{a}.o_proj.bias"),
            q_norm=self.norm(f"{a}.q_norm") if kin.head_norms else None,
            k_norm=self.norm(f"{a}.k_norm") if kin.head_norms else None,
            rotary=self.turns[kind],
            scale=None if scalar is None else float(scalar) ** -0.5,
            softcap=_softcaps(self.config)[0],
            window=self.config.get("sliding_window", 4096) if kind == _SLIDING else None,
        )  # fmt: skip

    def mlp(self, m: str) -> Mlp:
        t = self.t
        return Mlp(
            t[f"{m}.up_proj.weight"].T.contiguous(), t.get(f"{m}.up_proj.bias"),
            t[f"{m}.gate_proj.weight"].T.contiguous(),
            t[f"{m}.down_proj.weight"].T.contiguous(), t.get(f"{m}.down_proj.bias"),
            self._activation(), t.get(f"{m}.gate_proj.bias"),
        )  # fmt: skip

    def norm(self, prefix: str) -> Norm:
        weight = self.t[f"{prefix}.weight"]
        eps = float(self.config.get("rms_norm_eps", 1e-6))
        return Norm(1 + weight if self.kin.gemma else weight, None, eps, rms=True)

    def _activation(self) -> str:
        if not self.kin.gemma:
            return str(self.config.get("hidden_act", "silu"))
        field = "hidden_activation" if self.kin.post_norms else "hidden_act"
        named = str(self.config.get(field, "gelu_pytorch_tanh"))
        # The first Gemma's files say gelu and mean its approximation.
        return "gelu_pytorch_tanh" if named == "gelu" and field == "hidden_act" else named

    def _turns(self) -> dict[str, Rotary]:
        """The rotation of each layer type; Gemma 3 has a base of its own for windows."""
        config = self.config
        if config["model_type"] == "gemma3_text":
            nested = config.get("rope_parameters") or {}
            full = {"rope_theta": config.get("rope_theta", 1e6), **(nested.get(_FULL) or {})}
            local = config.get("rope_local_base_freq", 1e4)
            ropes = {
                _FULL: full | dict(config.get("rope_scaling") or {}),
                _SLIDING: {"rope_theta": local, **(nested.get(_SLIDING) or {})},
            }
        else:
            ropes = dict.fromkeys((_FULL, _SLIDING), _rope(config, "rope_theta"))
        share = config.get("partial_rotary_factor")
        if any(
            rope.get("partial_rotary_factor", share) not in (None, 1) for rope in ropes.values()
        ):
            raise ModelError(
                f"the residual forward knows {config['model_type']} only with full rotation"
            )
        device = self.t["embed_tokens.weight"].device
        return {
            kind: rotary.from_parameters(rope, self.d_head, self.context, device)
            for kind, rope in ropes.items()
        }


def _rope(config: Config, base: str) -> dict[str, Any]:
    """``rope_parameters``; older files have the base beside them and call them ``rope_scaling``."""
    given = config.get("rope_scaling") or config.get("rope_parameters") or {}
    return {"rope_theta": config.get(base, 10000.0), **given}


def _softcaps(config: Config) -> tuple[float | None, float | None]:
    """Of attention scores, and of logits."""
    scores, logits = (
        config.get("attn_logit_softcapping", 50.0),
        config.get("final_logit_softcapping", 30.0),
    )
    match config["model_type"]:
        case "gemma2":
            return scores, logits
        case "gemma3_text":
            if config.get("attn_logit_softcapping") is not None:
                raise ModelError("transformers ignores attn_logit_softcapping in Gemma 3")
            return None, config.get("final_logit_softcapping")
        case _:
            return None, None


def _layer_types(config: Config, n_layers: int) -> list[str]:
    """Which layers see everything before them, and which only a window."""
    match config["model_type"]:
        case "mistral":
            return [_SLIDING] * n_layers
        case "qwen2" | "qwen3" if config.get("use_sliding_window"):
            first = int(config.get("max_window_layers", 28))
            types = [_SLIDING if i >= first else _FULL for i in range(n_layers)]
        case "gemma2":
            types = [_SLIDING if (i + 1) % 2 else _FULL for i in range(n_layers)]
        case "gemma3_text":
            period = int(config.get("sliding_window_pattern", 6))
            types = [_SLIDING if (i + 1) % period else _FULL for i in range(n_layers)]
        case _:
            return [_FULL] * n_layers
    types = list(config.get("layer_types") or types)
    unknown = set(types) - {_FULL, _SLIDING}
    if unknown:
        raise ModelError(f"the residual forward does not know layer type {min(unknown)!r}")
    return types

"""Which ggml type each tensor gets: llama.cpp's rule for its quantization mixes, without llama.cpp.

A port of `llama_tensor_get_type` and what it calls (src/llama-quant.cpp of llama-cpp-python 0.3.36); mixes and
architectures that are not ported are asked of llama.cpp itself, see dry_run.py.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from typing import Literal

import msgspec

from amigo_local.domain.errors import InputError
from amigo_local.weights.ggml_types import TYPES_BY_NAME, GgmlType
from amigo_local.weights.gguf_header import GgufHeader, TensorInfo

F16, BF16, F32 = (TYPES_BY_NAME[name] for name in ("F16", "BF16", "F32"))
Q4_0, Q4_1, Q5_0, Q5_1, Q8_0 = (TYPES_BY_NAME[name] for name in ("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0"))
Q3_K, Q4_K, Q5_K, Q6_K = (TYPES_BY_NAME[name] for name in ("Q3_K", "Q4_K", "Q5_K", "Q6_K"))

# llama_ftype_get_default_type: the type of every tensor that has no rule of its own.
MIXES = {
    "F32": F32,
    "F16": F16,
    "BF16": BF16,
    "Q8_0": Q8_0,
    "Q6_K": Q6_K,
    "Q5_K_M": Q5_K,
    "Q5_K_S": Q5_K,
    "Q4_K_M": Q4_K,
    "Q4_K_S": Q4_K,
    "Q4_0": Q4_0,
    "Q3_K_M": Q3_K,
}
# The first has rules of its own, the second counts one layer more than its metadata says.
UNPORTED_ARCHITECTURES = frozenset({"glm5-next", "granite-switch"})

# tensor_type_fallback: from blocks of 256 to blocks of 32.
_FALLBACKS = {Q3_K: Q4_0, Q4_K: Q5_0, Q5_K: Q5_1, Q6_K: Q8_0}
# load_arch_hparams of each architecture: the layers at which it is LLM_TYPE_70B.
_70B_LAYERS = {"llama": 80, "llama-embed": 80, "deci": 80, "olmo": 80, "qwen2": 80, "jais2": 68}

# tensor_allows_quantization: small tensors that keep their type although they are matrices.
_KEPT_NAMES = frozenset({"position_embd.weight", "token_types.weight"})
_KEPT_PARTS = (
    *("_norm.weight", "ffn_gate_inp.weight", "ffn_gate_tid2eid.weight", "altup", "laurel", "per_layer_model_proj"),
    *("ssm_conv1d", "shortconv.conv.weight", "indexer.k_proj.weight", "indexer.q_proj.weight", "attn_rel_b.weight"),
    *("time_mix_first.weight", "time_mix_w0.weight", "time_mix_w1.weight", "time_mix_w2.weight"),
    *("time_mix_v0.weight", "time_mix_v1.weight", "time_mix_v2.weight", "time_mix_a0.weight", "time_mix_a1.weight"),
    *("time_mix_a2.weight", "time_mix_g1.weight", "time_mix_g2.weight", "time_mix_decay_w1.weight"),
    *("time_mix_decay_w2.weight", "time_mix_lerp_fused.weight", ".position_embd", "sam.pos_embd", "sam.neck."),
    *("sam.net_", ".rel_pos", ".patch_embd", ".patch_merger", "a.rvq.codebook", "mm.a.code_embd"),
)

_Category = Literal["output", "embedding", "attn_v", "attn_k", "attn_q", "attn_output", "up", "gate", "down", "other"]
# tensor_get_category: the first part that a name contains decides. Fused projections count as attn_v
# (category_is_attn_v), which leaves llama.cpp's branch for ATTENTION_QKV without a tensor.
_CATEGORIES: dict[str, _Category] = {
    "attn_qkv.weight": "attn_v",
    "attn_kv_b.weight": "attn_v",
    "attn_v.weight": "attn_v",
    "attn_k.weight": "attn_k",
    "attn_q.weight": "attn_q",
    "attn_output.weight": "attn_output",
    "ffn_up": "up",
    "ffn_gate": "gate",
    "ffn_down": "down",
}
_LAYER = re.compile(r"blk\.(\d+)")


class _Model(msgspec.Struct, frozen=True):
    """What the rule asks about the model as a whole."""

    falcon: bool
    layers: int
    experts: int
    is_70b: bool
    tied: bool
    attn_v_tensors: int


def tensor_types(
    header: GgufHeader, tensors: Sequence[TensorInfo], mix: str, *, has_imatrix: bool = False
) -> dict[str, int]:
    """Tensor name -> ggml type id, in the order in which llama.cpp writes the tensors.

    `header` gives the architecture and its numbers; `tensors` are those of the language model with the types that
    they have in the file to be quantized, which those that the mix doesn't touch keep.
    Raises InputError for a mix outside MIXES and for UNPORTED_ARCHITECTURES.
    """
    if mix not in MIXES or header.architecture in UNPORTED_ARCHITECTURES:
        raise InputError(
            f"{header.path}: the types of {mix} for {header.architecture} are not known here",
            f"give one of: {', '.join(MIXES)}",
        )
    default = MIXES[mix]
    ordered = sorted(tensors, key=lambda tensor: (_layer_of(tensor.name, -1), tensor.name))  # weight_name_comparer
    model = _model(header, ordered)
    done: Counter[_Category] = Counter()
    types: dict[str, int] = {}
    for tensor in ordered:
        if not _allows_quantization(tensor):
            types[tensor.name] = tensor.type_id
        elif default.block_size == 1:
            types[tensor.name] = default.id
        else:
            category = _category(tensor.name)
            chosen = _chosen(mix, category, tensor.name, done[category], model, has_imatrix)
            types[tensor.name] = _fitting(chosen, tensor.dimensions[0]).id
            done[category] += 1
    return types


def _model(header: GgufHeader, tensors: Sequence[TensorInfo]) -> _Model:
    def number(key: str, default: int) -> int:
        """The first layer's where there is one value per layer, as llama_hparams has it."""
        values = header.array(f"{header.architecture}.{key}")
        return values[0] if values and isinstance(values[0], int) else default

    layers, experts = number("block_count", 0), number("expert_count", 0)
    if layers < 1:
        raise InputError(f"{header.path}: {header.architecture}.block_count is missing", "give a language model's GGUF")
    heads = number("attention.head_count", 0)
    is_70b = layers - number("nextn_predict_layers", 0) == _70B_LAYERS.get(header.architecture)
    if header.architecture.startswith("llama"):  # the first Llama's 65B has 80 layers too
        is_70b = is_70b and heads != number("attention.head_count_kv", heads)
    categories = Counter(_category(tensor.name) for tensor in tensors)
    return _Model(
        falcon=header.architecture == "falcon",
        layers=layers,
        experts=experts,
        is_70b=is_70b,
        tied=not categories["output"],
        attn_v_tensors=categories["attn_v"],
    )


def _layer_of(name: str, otherwise: int) -> int:
    match = _LAYER.match(name)
    return int(match[1]) if match else otherwise


def _category(name: str) -> _Category:
    if name == "output.weight":
        return "output"
    if name in ("token_embd.weight", "per_layer_token_embd.weight"):
        return "embedding"
    return next((category for part, category in _CATEGORIES.items() if part in name), "other")


def _allows_quantization(tensor: TensorInfo) -> bool:
    """Matrices only, and ggml calls (n, 1) a vector (ggml_n_dims)."""
    return (
        max(tensor.dimensions[1:], default=1) > 1
        and tensor.name.endswith("weight")
        and tensor.name not in _KEPT_NAMES
        and not any(part in tensor.name for part in _KEPT_PARTS)
    )


def _chosen(mix: str, category: _Category, name: str, earlier: int, model: _Model, has_imatrix: bool) -> GgmlType:
    """llama_tensor_get_type_impl; `earlier` tensors of the category came before this one."""
    default = MIXES[mix]
    if category == "output" or (category == "embedding" and model.tied):
        return Q8_0 if model.falcon or default == Q8_0 else Q6_K
    if category == "attn_v":
        return _attn_v(mix, earlier, model)
    if category == "attn_k" and model.experts == 8:
        return Q8_0
    if category == "down":
        # Experts are not in order of layers, so that there the name decides instead of the count.
        layer = _layer_of(name, earlier) if model.experts > 1 else earlier
        return _ffn_down(mix, layer, model, has_imatrix)
    if category == "attn_output" and not model.falcon:
        if model.experts == 8:
            return Q5_K if mix in ("Q3_K_M", "Q4_K_S", "Q4_K_M") else default
        return Q4_K if mix == "Q3_K_M" else default
    return default


def _more_bits(layer: int, layers: int) -> bool:
    """The first and last eighth, and every third layer between them."""
    return layer < layers // 8 or layer >= 7 * layers // 8 or (layer - layers // 8) % 3 == 2


def _attn_v(mix: str, earlier: int, model: _Model) -> GgmlType:
    if model.experts == 8:
        return Q8_0
    kind = MIXES[mix]
    if mix == "Q3_K_M":
        kind = Q5_K if earlier < 2 else Q4_K
    elif mix in ("Q4_K_M", "Q5_K_M") and _more_bits(earlier, model.attn_v_tensors):
        kind = Q6_K
    elif mix == "Q4_K_S" and earlier < 4:
        kind = Q5_K
    return Q5_K if model.is_70b and kind == Q4_K else kind


def _ffn_down(mix: str, layer: int, model: _Model, has_imatrix: bool) -> GgmlType:
    more = _more_bits(layer, model.layers)
    if mix == "Q3_K_M":
        if layer < model.layers // 16:
            return Q5_K
        return Q3_K if model.falcon and not more else Q4_K
    if mix == "Q4_K_M" and model.falcon:
        return Q6_K if layer < model.layers // 16 else Q5_K if more else Q4_K
    if mix in ("Q4_K_M", "Q5_K_M") and more:
        return Q6_K
    if layer < model.layers // 8:
        if mix == "Q4_K_S" and not model.falcon:
            return Q5_K
        if mix == "Q4_0" and has_imatrix:
            return Q4_1
    return MIXES[mix]


def _fitting(kind: GgmlType, row: int) -> GgmlType:
    """tensor_type_fallback: smaller blocks, or none, where a row isn't a whole number of blocks."""
    if row % kind.block_size:
        kind = _FALLBACKS.get(kind, kind)
    return F16 if row % kind.block_size else kind

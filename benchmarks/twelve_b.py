"""A model of Gemma-3-12B's shape in Q4_K_M with random weights, and an adapter for it, made in place."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import msgspec
import numpy as np
import safetensors.numpy

from amigo_local.weights.ggml_types import FILE_TYPE_IDS
from amigo_local.weights.gguf_header import GgufHeader, Value, read_header
from amigo_local.weights.gguf_writer import GgufWriter, PlannedTensor, carried_fields, encode_field
from amigo_local.weights.kernels import load_kernels
from amigo_local.weights.quantization_mix import tensor_types
from tests.support.model_shapes import NAMED_SHAPES, header_of, model_of

RANK = 32
_ROWS = 512  # random rows of each width and type, repeated: what is measured doesn't depend on their values
_MODULES = {
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


def write_twelve_b(path: Path, gemma: Path | None, adapter_dir: Path) -> Path:
    """Writes both and returns `adapter_dir`. With a small real Gemma the tokenizer is its own, all 262144 tokens."""
    shape = NAMED_SHAPES["gemma3-12b"]
    if gemma is not None:  # the released file pads its tokens to the embedding's rows
        tokens = read_header(gemma).array("tokenizer.ggml.tokens")
        shape = msgspec.structs.replace(shape, vocabulary=len(tokens))
    header = header_of(*model_of(shape))
    types = tensor_types(header, header.tensors, "Q4_K_M")
    plan = [PlannedTensor(tensor.name, tensor.dimensions, types[tensor.name]) for tensor in header.tensors]
    random = np.random.default_rng(0)
    blocks: dict[tuple[int, int], np.ndarray] = {}
    with GgufWriter(path, _fields(header, gemma), plan) as writer:
        for tensor in plan:
            length, total = tensor.dimensions[0], int(np.prod(tensor.dimensions[1:]))
            key = (length, tensor.type_id)
            if key not in blocks:
                rows = random.standard_normal((_ROWS, length), dtype=np.float32) / np.float32(length**0.5)
                blocks[key] = load_kernels().quantize(tensor.type_id, rows)
            for start in range(0, total, _ROWS):
                writer.write(tensor.name, blocks[key][: min(_ROWS, total - start)])
    _write_adapter(adapter_dir, plan, random)
    return adapter_dir


def _fields(header: GgufHeader, gemma: Path | None) -> list[bytes]:
    changed: dict[str, Value] = {**header.metadata, "general.file_type": FILE_TYPE_IDS["Q4_K_M"]}
    if gemma is None:
        tokens = [f"token{i}" for i in range(header.tensor("token_embd.weight").dimensions[-1])]
        fields = [encode_field(key, value) for key, value in changed.items()]  # type: ignore[arg-type]
        fields += [encode_field("tokenizer.ggml.model", "llama"), encode_field("tokenizer.ggml.tokens", tokens)]
        return [*fields, encode_field("tokenizer.ggml.scores", [-float(i) for i in range(len(tokens))])]
    return carried_fields(read_header(gemma), changed)


def _write_adapter(directory: Path, plan: Sequence[PlannedTensor], random: np.random.Generator) -> None:
    weights = {}
    for tensor in plan:
        block, _, part = tensor.name.removeprefix("blk.").partition(".")
        module = _MODULES.get(part.removesuffix(".weight"))
        if module:
            columns, rows = tensor.dimensions
            name = f"base_model.model.model.layers.{block}.{module}"
            weights[f"{name}.lora_A.weight"] = random.standard_normal((RANK, columns), dtype=np.float32)
            weights[f"{name}.lora_B.weight"] = random.standard_normal((rows, RANK), dtype=np.float32) * 1e-3
    directory.mkdir(parents=True, exist_ok=True)
    safetensors.numpy.save_file(weights, directory / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": RANK, "lora_alpha": 2 * RANK}
    (directory / "adapter_config.json").write_text(json.dumps(config))

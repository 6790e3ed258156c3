from __future__ import annotations

import ctypes
import random
import subprocess
import sys
from collections import Counter
from pathlib import Path

import gguf
import llama_cpp
import msgspec
import numpy as np
import pytest

from amigo_local.domain.errors import InputError
from amigo_local.weights.dry_run import dry_run_types
from amigo_local.weights.ggml_types import FILE_TYPE_IDS, GGML_TYPES, TYPES_BY_NAME
from amigo_local.weights.gguf_header import GgufHeader, TensorInfo, Value, read_header
from amigo_local.weights.llama_cpp_model import QuietLog
from amigo_local.weights.quantization_mix import MIXES, tensor_types
from tests.support.model_shapes import NAMED_SHAPES, NamedShape, header_of, model_of, named_model
from tests.support.tiny_gguf import write_tiny_gemma3, write_tiny_llama


def _named(name: str, weight_type: str = "F16") -> tuple[GgufHeader, list[TensorInfo]]:
    metadata, tensors = named_model(name, weight_type)
    return header_of(metadata, tensors), tensors


def _assert_llama_cpp_agrees(
    header: GgufHeader, tensors: list[TensorInfo], tmp_path: Path, *, has_imatrix: bool
) -> None:
    """Same types in the same order, for every ported mix."""
    for mix in MIXES:
        stated = dry_run_types(header, tensors, mix, tmp_path, has_imatrix=has_imatrix)
        ours = tensor_types(header, tensors, mix, has_imatrix=has_imatrix)
        differing = {name: (ours[name], stated[name]) for name in stated if ours[name] != stated[name]}
        assert not differing, (mix, header.metadata)
        assert list(ours) == list(stated)


@pytest.mark.parametrize("name", NAMED_SHAPES)
@pytest.mark.parametrize("has_imatrix", [False, True])
def test_known_models_get_the_types_that_llama_cpp_states(name: str, has_imatrix: bool, tmp_path: Path) -> None:
    _assert_llama_cpp_agrees(*_named(name), tmp_path, has_imatrix=has_imatrix)


# What llama.cpp prints about the files that are published ("llama_model_loader: - type q4_K: 193 tensors").
PUBLISHED = {
    "llama3.1-8b": {"F32": 66, "Q4_K": 193, "Q6_K": 33},
    "llama3-70b": {"F32": 161, "Q4_K": 441, "Q5_K": 40, "Q6_K": 81},
    "gemma3-12b": {"F32": 289, "Q4_K": 288, "Q6_K": 49},
    "qwen2.5-7b": {"F32": 141, "Q4_K": 169, "Q6_K": 29},
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_q4_k_m_has_as_many_tensors_of_each_type_as_published_files(name: str) -> None:
    types = tensor_types(*_named(name), "Q4_K_M")
    assert Counter(GGML_TYPES[kind].name for kind in types.values()) == PUBLISHED[name]


def test_rows_of_no_whole_number_of_blocks_fall_back() -> None:
    header, tensors = _named("smollm2-135m")  # rows of 576 and of 1536
    types = tensor_types(header, tensors, "Q4_K_M")
    names = {name: GGML_TYPES[kind].name for name, kind in types.items()}
    assert names["token_embd.weight"] == names["blk.0.attn_v.weight"] == "Q8_0"  # for Q6_K
    assert names["blk.0.attn_q.weight"] == "Q5_0"  # for Q4_K
    assert (names["blk.0.ffn_down.weight"], names["blk.3.ffn_down.weight"]) == ("Q6_K", "Q4_K")
    odd = [msgspec.structs.replace(tensor, dimensions=(100, 64)) for tensor in tensors if len(tensor.dimensions) == 2]
    assert set(tensor_types(header, odd, "Q4_K_M").values()) == {TYPES_BY_NAME["F16"].id}


def test_what_a_mix_does_not_touch_keeps_its_type(tmp_path: Path) -> None:
    header, tensors = _named("mixtral-8x7b")
    tensors = [
        msgspec.structs.replace(tensor, type_id=TYPES_BY_NAME["BF16"].id) if "ffn_gate_inp" in tensor.name else tensor
        for tensor in tensors
    ]
    for types in (tensor_types(header, tensors, "Q8_0"), dry_run_types(header, tensors, "Q8_0", tmp_path)):
        assert GGML_TYPES[types["blk.7.ffn_gate_inp.weight"]].name == "BF16"
        assert GGML_TYPES[types["output_norm.weight"]].name == "F32"
        assert GGML_TYPES[types["blk.7.ffn_down_exps.weight"]].name == "Q8_0"


# Names that other families have, with what is special about them.
ODD_TENSORS = {
    "per_layer_token_embd.weight": (256, 1000),
    "position_embd.weight": (256, 512),
    "blk.1.ffn_gate_inp_shexp.weight": (256, 1),  # a vector to ggml
    "blk.1.ffn_down_shexp.weight": (512, 256),
    "blk.1.ffn_down.3.weight": (512, 256),  # an expert of the first Mixtral files
    "blk.1.ffn_down.bias": (256, 2),
    "blk.0.attn_kv_b.weight": (512, 256),
    "blk.0.ssm_conv1d.weight": (4, 256),
    "blk.0.attn_rel_b.weight": (32, 16),
    "blk.0.time_mix_w1.weight": (256, 64),
    "blk.0.laurel_l.weight": (256, 64),
    "blk.0.inp_gate.weight": (256, 256),
    "cls.weight": (256, 32),
}


def _random_model(chance: random.Random) -> tuple[dict[str, Value], list[TensorInfo]]:
    experts = chance.choice([0, 0, 0, 2, 8, 16])
    architecture = chance.choice(["llama", "qwen2", "gemma3", "falcon", "phi3", "olmo", "jais2", "deci", "qwen3moe"])
    shape = NamedShape(
        architecture,
        layers=chance.choice([1, 2, 7, 8, 15, 16, 17, 31, 32, 68, 80, 80]),
        hidden=32 * chance.randrange(1, 33) if chance.random() < 0.8 else chance.randrange(2, 500),
        ffn=32 * chance.randrange(1, 65) if chance.random() < 0.8 else chance.randrange(2, 900),
        heads=(heads := chance.choice([4, 8])),
        kv_heads=chance.choice([1, 4, heads]),
        head_dim=chance.choice([8, 24, 64, 100, 128]),
        vocabulary=300,
        tied=chance.random() < 0.5,
        qk_norms=chance.random() < 0.5,
        qkv_biases=chance.random() < 0.3,
        fused_qkv=chance.random() < 0.3,
        gated=chance.random() < 0.8,
        layer_norm=architecture in ("falcon", "olmo", "jais2"),
        experts=experts,
        experts_used=min(experts, 2),
    )
    metadata, tensors = model_of(shape, chance.choice(["F16", "BF16", "F32"]))
    if chance.random() < 0.3:
        for key in ("head_count", "head_count_kv"):
            name = f"{architecture}.attention.{key}"
            metadata[name] = (metadata[name],) * shape.layers  # type: ignore[assignment]  # a scalar, as written above
    odd = chance.sample(sorted(ODD_TENSORS), 4) if shape.layers > 1 else []
    tensors += [TensorInfo(name, ODD_TENSORS[name], TYPES_BY_NAME["F32"].id, 0) for name in odd]
    chance.shuffle(tensors)
    return metadata, tensors


@pytest.mark.parametrize("seed", range(16))
def test_random_models_get_the_types_that_llama_cpp_states(seed: int, tmp_path: Path) -> None:
    metadata, tensors = _random_model(random.Random(seed))
    _assert_llama_cpp_agrees(header_of(metadata, tensors), tensors, tmp_path, has_imatrix=seed % 2 == 1)


@pytest.mark.parametrize("mix", ["Q4_K_M", "Q3_K_M", "Q4_0", "BF16"])
@pytest.mark.parametrize("write", [write_tiny_llama, write_tiny_gemma3])
def test_the_types_are_those_in_a_file_that_llama_cpp_writes(write: type, mix: str, tmp_path: Path) -> None:
    source, target = write(tmp_path / "source.gguf", weight_type="f16"), tmp_path / "target.gguf"
    settings = llama_cpp.llama_model_quantize_default_params()
    settings.ftype, settings.nthread = FILE_TYPE_IDS[mix], 1
    with QuietLog():
        assert llama_cpp.llama_model_quantize(str(source).encode(), str(target).encode(), ctypes.byref(settings)) == 0
    header, written = read_header(source), read_header(target)
    expected = [(tensor.name, tensor.type_id) for tensor in written.tensors]
    assert list(tensor_types(header, header.tensors, mix).items()) == expected
    assert list(dry_run_types(header, header.tensors, mix, tmp_path).items()) == expected


# (architecture, layers, keys and values of head counts): what llama.cpp takes for a 70B and what it doesn't.
LAYERS_70B = [
    *[("llama", 80, 8), ("llama", 80, 64), ("llama", 68, 8), ("qwen2", 80, 8), ("qwen2", 80, 64), ("qwen3", 80, 8)],
    *[("deci", 80, 8), ("olmo", 80, 64), ("jais2", 68, 8), ("jais2", 80, 8), ("falcon", 80, 8)],
]


@pytest.mark.parametrize(("architecture", "layers", "kv_heads"), LAYERS_70B)
@pytest.mark.parametrize("draft_layers", [0, 1])
def test_a_70b_is_what_llama_cpp_takes_for_one(
    architecture: str, layers: int, kv_heads: int, draft_layers: int, tmp_path: Path
) -> None:
    layer_norm = architecture in ("olmo", "jais2", "falcon")
    shape = NamedShape(architecture, layers + draft_layers, 256, 256, 64, kv_heads, 8, 300, layer_norm=layer_norm)
    metadata, tensors = model_of(shape)
    if draft_layers:
        metadata[f"{architecture}.nextn_predict_layers"] = draft_layers
    header = header_of(metadata, tensors)
    for mix in ("Q4_K_M", "Q3_K_M"):
        assert tensor_types(header, tensors, mix) == dry_run_types(header, tensors, mix, tmp_path)


def test_head_counts_may_be_a_long_array_in_the_file(tmp_path: Path) -> None:
    layers = 80
    writer = gguf.GGUFWriter(tmp_path / "layers.gguf", "llama")
    writer.add_block_count(layers)
    writer.add_context_length(512)
    writer.add_embedding_length(256)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_head_count([8] * layers)
    writer.add_head_count_kv([2] * layers)
    for i in range(layers):
        writer.add_tensor(f"blk.{i}.attn_v.weight", np.zeros((2, 256), np.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    header = read_header(tmp_path / "layers.gguf")
    types = tensor_types(header, header.tensors, "Q4_K_S")
    assert set(types.values()) == {TYPES_BY_NAME["Q5_K"].id}  # a 70B's; of others the first four
    assert types == dry_run_types(header, header.tensors, "Q4_K_S", tmp_path)


def test_llama_cpp_states_a_mix_that_is_not_ported(tmp_path: Path) -> None:
    header, tensors = _named("llama3.1-8b")
    with pytest.raises(InputError, match="Q3_K_L"):
        tensor_types(header, tensors, "Q3_K_L")
    types = dry_run_types(header, tensors, "Q3_K_L", tmp_path)
    counts = Counter(GGML_TYPES[kind].name for kind in types.values())
    assert counts == {"F32": 66, "Q3_K": 129, "Q5_K": 96, "Q6_K": 1}


def test_an_importance_matrix_is_asked_for_where_llama_cpp_needs_one(tmp_path: Path) -> None:
    header, tensors = _named("llama3.1-8b")
    with pytest.raises(InputError, match="IQ2_XXS needs an importance matrix") as caught:
        dry_run_types(header, tensors, "IQ2_XXS", tmp_path)
    assert "--imatrix auto" in caught.value.hint
    types = dry_run_types(header, tensors, "IQ2_XXS", tmp_path, has_imatrix=True)
    assert Counter(GGML_TYPES[kind].name for kind in types.values())["IQ2_XXS"] == 188


def test_what_llama_cpp_can_not_state_is_refused_with_its_reason(tmp_path: Path) -> None:
    metadata, tensors = named_model("gemma3-1b")
    with pytest.raises(InputError, match="'Q4KM' is not a quantization mix") as caught:
        dry_run_types(header_of(metadata, tensors), tensors, "Q4KM", tmp_path)
    assert "Q4_K_M" in caught.value.hint
    incomplete = {key: value for key, value in metadata.items() if not key.endswith("epsilon")}
    with pytest.raises(InputError, match=r"gemma3\.attention\.layer_norm_rms_epsilon"):
        dry_run_types(header_of(incomplete, tensors), tensors, "Q2_K", tmp_path)
    with pytest.raises(InputError, match="unknown model architecture: 'gemma9'"):
        dry_run_types(header_of(metadata | {"general.architecture": "gemma9"}, tensors), tensors, "Q2_K", tmp_path)
    with pytest.raises(InputError, match=r"gemma3\.block_count"):
        tensor_types(header_of({"general.architecture": "gemma3"}, tensors), tensors, "Q4_K_M")
    with pytest.raises(InputError, match="glm5-next"):
        tensor_types(header_of({"general.architecture": "glm5-next"}, tensors), tensors, "Q4_K_M")


def test_a_dry_run_leaves_nothing_and_prints_nothing(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    header, tensors = _named("llama3-70b", "F32")  # 282 GB, if it weren't sparse
    header.metadata["llama.beyond_uint32"] = -1
    dry_run_types(header, tensors, "IQ4_XS", tmp_path)
    with pytest.raises(InputError):
        dry_run_types(header, tensors, "IQ1_S", tmp_path)
    assert list(tmp_path.iterdir()) == []
    assert capfd.readouterr() == ("", "")


def test_the_ported_rule_imports_neither_numpy_nor_llama_cpp() -> None:
    code = (
        "import sys, amigo_local.weights.quantization_mix; "
        "print([name for name in ('numpy', 'gguf', 'torch', 'llama_cpp') if name in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"

from __future__ import annotations

import hashlib
import json
import os
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np
import pytest
import safetensors.torch
import torch
import transformers

from amigo_local.domain.errors import Cancelled, InputError
from amigo_local.domain.events import Note, Progress
from amigo_local.weights.architecture import architecture_of, map_tensors, supported
from amigo_local.weights.gguf_header import read_header
from amigo_local.weights.tensor_rows import TensorFile
from amigo_local.weights.unpack import checkpoint_chunks, unpack, unpack_disk_needed
from amigo_local.weights.verify_unpack import check_unpacked
from tests.support.tiny_gguf import write_tiny_gemma3, write_tiny_llama
from tests.weights.conftest import TEXTS, Events

VARIANTS: dict[str, Callable[[Path], Path]] = {
    "llama": lambda path: write_tiny_llama(path, weight_type="f32"),
    "untied, biases, sentencepiece": lambda path: write_tiny_llama(
        path, weight_type="f32", tied=False, biases=True, tokenizer="spm"
    ),
    "llama 3 rope": lambda path: write_tiny_llama(path, weight_type="f32", llama3_rope=True, pre="llama-bpe"),
    "gemma3": lambda path: write_tiny_gemma3(path, weight_type="f32"),
    "gemma3 from Ollama's library": lambda path: write_tiny_gemma3(path, weight_type="f32", ollama_style=True),
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_checkpoint_says_what_llama_cpp_says(variant: str, tmp_path: Path, events: Events) -> None:
    """In float32 nothing is rounded on either side but gemma's gelu, which llama.cpp looks up in a half table."""
    source = VARIANTS[variant](tmp_path / "model.gguf")
    unpack(source, tmp_path / "checkpoint", "f32", events)
    figures = check_unpacked(source, tmp_path / "checkpoint", TEXTS, events)
    assert figures["differing_texts"] == 0
    assert figures["kl_positions"] == sum(
        min(64, len(transformers.AutoTokenizer.from_pretrained(tmp_path / "checkpoint")(text)["input_ids"]))
        for text in TEXTS
    )
    assert 0 <= float(figures["kl_max"] or 0) < (1e-5 if "gemma" in variant else 1e-8)
    assert figures["same_top_share"] == 1.0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint", "model.gguf"]


def test_smollm2_is_the_same_model_after_unpacking(smollm2: Path, tmp_path: Path, events: Events) -> None:
    figures = unpack(smollm2, tmp_path / "out", "bf16", events)
    used = sum(path.stat().st_size for path in (tmp_path / "out").iterdir())
    assert used <= unpack_disk_needed(read_header(smollm2), "bf16") <= 1.5 * used
    assert figures == {
        "dtype": "bf16",
        "nonfinite_values": 0,
        "tensors": 272,
        "parameters": 134515008,
        "weight_bytes": 269030016,
        "shards": 1,
        "skipped_tensors": 0,
    }
    config = json.loads((tmp_path / "out/config.json").read_text())
    # config.json of HuggingFaceTB/SmolLM2-135M-Instruct
    assert {key: config[key] for key in ("hidden_size", "intermediate_size", "num_hidden_layers", "vocab_size")} == {
        "hidden_size": 576,
        "intermediate_size": 1536,
        "num_hidden_layers": 30,
        "vocab_size": 49152,
    }
    assert config["rope_parameters"] == {"rope_theta": 100000.0, "rope_type": "default"}
    assert (config["rms_norm_eps"], config["tie_word_embeddings"], config["dtype"]) == (1e-05, True, "bfloat16")
    checked = check_unpacked(smollm2, tmp_path / "out", TEXTS, events)
    assert checked["differing_texts"] == 0
    assert 0.001 < float(checked["kl_mean"] or 0) < 0.008  # measured 0.004: llama.cpp's 8-bit activations
    assert float(checked["kl_max"] or 9) < 0.06
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": "hi"}], tokenize=False, add_generation_prompt=True
    )
    assert prompt.endswith("<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n")
    assert json.loads((tmp_path / "out/generation_config.json").read_text())["eos_token_id"] == [2, 0]


def test_weights_are_gguf_pys_values_with_query_rows_in_halves(
    tiny_llama: Path, unpacked: Callable[[Path], Path]
) -> None:
    reader = {tensor.name: tensor for tensor in gguf.GGUFReader(tiny_llama).tensors}
    stored = safetensors.torch.load_file(unpacked(tiny_llama) / "model.safetensors")

    def values(name: str) -> np.ndarray:
        return gguf.quants.dequantize(reader[name].data, reader[name].tensor_type)

    assert np.array_equal(stored["model.layers.2.mlp.up_proj.weight"].numpy(), values("blk.2.ffn_up.weight"))
    # LlamaModel.permute in convert_hf_to_gguf.py brings the checkpoint's rows back into the GGUF's order.
    query = stored["model.layers.1.self_attn.k_proj.weight"].numpy()
    heads = 2
    back = query.reshape(heads, 2, query.shape[0] // heads // 2, *query.shape[1:]).swapaxes(1, 2).reshape(query.shape)
    assert np.array_equal(back, values("blk.1.attn_k.weight"))


def test_llama_3_scaling_and_gemma_layers_are_in_the_config(tmp_path: Path, events: Events, exact_gemma: Path) -> None:
    source = write_tiny_llama(tmp_path / "llama3.gguf", llama3_rope=True)
    unpack(source, tmp_path / "llama3", "bf16", events)
    assert json.loads((tmp_path / "llama3/config.json").read_text())["rope_parameters"] == {
        "rope_theta": 500000.0,
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    unpack(exact_gemma, tmp_path / "gemma", "bf16", events)
    config = json.loads((tmp_path / "gemma/config.json").read_text())
    assert config["layer_types"] == ["sliding_attention"] * 5 + ["full_attention"]
    assert (config["sliding_window"], config["query_pre_attn_scalar"], config["rms_norm_eps"]) == (32, 64, 1e-06)
    assert config["rope_parameters"]["sliding_attention"]["rope_theta"] == 10000.0
    assert config["rope_parameters"]["full_attention"]["rope_theta"] == 1000000.0


def test_a_vision_tower_is_left_out_and_said_so(ollama_gemma: Path, tmp_path: Path, events: Events) -> None:
    figures = unpack(ollama_gemma, tmp_path / "out", "f32", events)
    assert figures["skipped_tensors"] == 3
    assert any(isinstance(event, Note) and "3 tensors of the vision tower" in event.text for event in events)


def test_shards_hold_the_same_tensors_as_one_file(
    exact_llama: Path, tmp_path: Path, events: Events, unpacked: Callable[[Path], Path]
) -> None:
    figures = unpack(exact_llama, tmp_path / "out", "f32", events, shard_bytes=3 << 20)
    files = sorted((tmp_path / "out").glob("*.safetensors"))
    assert figures["shards"] == len(files) > 2
    assert files[0].name == f"model-00001-of-0000{len(files)}.safetensors"
    assert all(path.stat().st_size <= (3 << 20) + 8192 for path in files)
    whole = safetensors.torch.load_file(unpacked(exact_llama) / "model.safetensors")
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32)
    loaded = model.state_dict()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in whole.items())


@pytest.mark.parametrize("model", ["tiny_llama", "tiny_gemma"])
def test_the_same_gguf_gives_the_same_bytes(model: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    digests = []
    for attempt in ("a", "b"):
        unpack(request.getfixturevalue(model), tmp_path / attempt, "bf16", Events())
        files = sorted((tmp_path / attempt).iterdir())
        digests.append([(path.name, hashlib.sha256(path.read_bytes()).hexdigest()) for path in files])
    assert digests[0] == digests[1]
    assert {"config.json", "generation_config.json", "model.safetensors", "tokenizer.json"} < {n for n, _ in digests[0]}


def test_no_tensor_is_ever_whole_in_memory(smollm2: Path) -> None:
    header = read_header(smollm2)
    embedding = map_tensors(header, architecture_of(header))[0][0]
    assert embedding.source.elements == 49152 * 576
    with TensorFile(header) as file:
        tracemalloc.start()
        rows = sum(len(chunk) for chunk in checkpoint_chunks(file, embedding))
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert rows == 49152
    assert peak < 0.7 * embedding.source.elements * 4


def test_progress_counts_every_byte(tiny_llama: Path, tmp_path: Path, events: Events) -> None:
    figures = unpack(tiny_llama, tmp_path / "out", "f16", events)
    last = [event for event in events if isinstance(event, Progress)][-1]
    assert last.done == last.total == figures["weight_bytes"]


def test_cancelling_comes_through(tiny_llama: Path, tmp_path: Path) -> None:
    def stop(event: object) -> None:
        if isinstance(event, Progress) and event.done > 1_000_000:
            raise Cancelled

    with pytest.raises(Cancelled):
        unpack(tiny_llama, tmp_path / "out", "bf16", Events(stop))


def test_an_unsupported_architecture_is_refused_with_the_supported_ones(tmp_path: Path, events: Events) -> None:
    source = write_tiny_llama(tmp_path / "a.gguf", architecture="mamba9")
    with pytest.raises(InputError, match="architecture 'mamba9' is not supported") as caught:
        unpack(source, tmp_path / "out", "bf16", events)
    assert caught.value.hint == "supported are: gemma2, gemma3, llama, phi3, qwen2, qwen3"
    assert supported() == ("gemma2", "gemma3", "llama", "phi3", "qwen2", "qwen3")
    assert not (tmp_path / "out").exists()


def test_an_unknown_tensor_is_refused_by_name(tmp_path: Path, events: Events) -> None:
    data = write_tiny_llama(tmp_path / "a.gguf").read_bytes()
    (tmp_path / "b.gguf").write_bytes(data.replace(b"blk.3.ffn_up.weight", b"blk.3.ffn_xx.weight"))
    with pytest.raises(InputError, match=r"tensor blk\.3\.ffn_xx\.weight is unknown"):
        unpack(tmp_path / "b.gguf", tmp_path / "out", "bf16", events)


def test_a_foreign_rope_table_is_refused(tmp_path: Path, events: Events) -> None:
    source = write_tiny_llama(tmp_path / "a.gguf", llama3_rope=True)
    place = read_header(source).tensor("rope_freqs.weight").offset
    data = bytearray(source.read_bytes())
    data[place : place + 4] = np.float32(1.5).tobytes()
    source.write_bytes(data)
    with pytest.raises(InputError, match=r"not Llama 3's table: entry 0 is 1\.5"):
        unpack(source, tmp_path / "out", "bf16", events)


def test_what_float16_cannot_hold_is_refused(tmp_path: Path, events: Events) -> None:
    source = write_tiny_llama(tmp_path / "a.gguf", weight_type="f32")
    place = read_header(source).tensor("blk.0.ffn_up.weight").offset
    data = bytearray(source.read_bytes())
    data[place : place + 4] = np.float32(1e5).tobytes()
    source.write_bytes(data)
    with pytest.raises(InputError, match=r"blk\.0\.ffn_up\.weight holds 100000, float16 ends at 65504"):
        unpack(source, tmp_path / "f16", "f16", events)
    unpack(source, tmp_path / "bf16", "bf16", events)


def test_the_advised_dtype_is_what_loses_least(tmp_path: Path, events: Events) -> None:
    for weight_type, expected in (("f32", "f32"), ("bf16", "bf16"), ("f16", "f16"), ("q8_0", "f16")):
        source = write_tiny_llama(tmp_path / f"{weight_type}.gguf", weight_type=weight_type)
        assert unpack(source, tmp_path / weight_type, None, events)["dtype"] == expected
        assert json.loads((tmp_path / weight_type / "config.json").read_text())["dtype"].endswith(
            {"f32": "float32", "bf16": "bfloat16", "f16": "float16"}[expected]
        )
    gemma = write_tiny_gemma3(tmp_path / "gemma.gguf")  # whose activations leave float16's range
    assert unpack(gemma, tmp_path / "gemma", None, events)["dtype"] == "bf16"


def test_unpacking_turns_to_bfloat16_when_float16_is_too_narrow(tmp_path: Path, events: Events) -> None:
    source = write_tiny_llama(tmp_path / "a.gguf", weight_type="q8_0")
    tensor = read_header(source).tensor("blk.0.ffn_up.weight")
    data = bytearray(source.read_bytes())
    data[tensor.offset : tensor.offset + 2] = np.float16(60000).tobytes()  # the first block's scale
    source.write_bytes(data)
    with pytest.raises(InputError, match="float16 ends at 65504"):
        unpack(source, tmp_path / "f16", "f16", events)
    assert unpack(source, tmp_path / "out", None, events)["dtype"] == "bf16"
    assert any(isinstance(event, Note) and "unpacking in bfloat16 instead" in event.text for event in events)
    stored = safetensors.torch.load_file(tmp_path / "out/model.safetensors")
    assert float(stored["model.layers.0.mlp.up_proj.weight"].abs().max()) > 65504


def test_values_that_are_not_finite_are_named_counted_and_refused_unless_allowed(
    tmp_path: Path, events: Events
) -> None:
    source = write_tiny_llama(tmp_path / "a.gguf", weight_type="f32")
    tensor = read_header(source).tensor("blk.2.ffn_down.weight")
    data = bytearray(source.read_bytes())
    for place, value in ((0, np.nan), (100_000, np.inf)):
        data[tensor.offset + 4 * place : tensor.offset + 4 * place + 4] = np.float32(value).tobytes()
    source.write_bytes(data)
    with pytest.raises(InputError, match=r"tensor blk\.2\.ffn_down\.weight holds 2 values that are NaN or infinite"):
        unpack(source, tmp_path / "out", "bf16", events)
    figures = unpack(source, tmp_path / "out", "bf16", events, allow_nonfinite=True)
    assert figures["nonfinite_values"] == 2
    assert any(isinstance(event, Note) and "blk.2.ffn_down.weight holds 2 values" in event.text for event in events)
    stored = safetensors.torch.load_file(tmp_path / "out/model.safetensors")["model.layers.2.mlp.down_proj.weight"]
    assert int((~torch.isfinite(stored)).sum()) == 2


@pytest.mark.slow
def test_a_real_gemma_is_the_same_model_after_unpacking(tmp_path: Path, events: Events) -> None:
    """Measured on Gemma 3 270M Q4_K_M: mean 0.0090, max 0.10 nats over 147 positions."""
    source = os.environ.get("AMIGO_GEMMA_GGUF")
    if not source:
        pytest.skip("no Gemma 3: set AMIGO_GEMMA_GGUF to a GGUF file of it")
    unpack(Path(source), tmp_path / "out", "bf16", events)
    figures = check_unpacked(Path(source), tmp_path / "out", TEXTS, events)
    assert figures["differing_texts"] == 0
    assert float(figures["kl_mean"] or 9) < 0.03

from __future__ import annotations

import ctypes
import hashlib
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import get_args

import gguf
import llama_cpp
import numpy as np
import peft
import pytest
import torch
import transformers

from amigo_local.domain.errors import AmigoError, Cancelled, InputError
from amigo_local.domain.events import Note, Progress
from amigo_local.domain.recipe import Quant
from amigo_local.weights.export import FILE_TYPE_NAMES, disk_needed, export
from amigo_local.weights.gguf_header import read_header
from amigo_local.weights.gguf_writer import encode_field
from amigo_local.weights.quantize import quantize
from tests.weights.conftest import Events, write_adapter


def _tensors(path: Path) -> dict[str, np.ndarray]:
    return {
        tensor.name: gguf.quants.dequantize(tensor.data, tensor.tensor_type) for tensor in gguf.GGUFReader(path).tensors
    }


def _permute(rows: np.ndarray, heads: int) -> np.ndarray:
    """LlamaModel.permute in convert_hf_to_gguf.py."""
    return rows.reshape(heads, 2, rows.shape[0] // heads // 2, *rows.shape[1:]).swapaxes(1, 2).reshape(rows.shape)


def test_the_file_holds_pefts_merge_in_llama_cpps_order(
    exact_llama: Path, unpacked: Callable[[Path], Path], llama_adapter: Path, tmp_path: Path, events: Events
) -> None:
    figures = export(exact_llama, llama_adapter, tmp_path / "out.gguf", "f16", events)
    assert (figures["merged_tensors"], figures["quantization"], figures["tensor_types"]) == (28, "F16", "29 F16, 9 F32")
    model = transformers.AutoModelForCausalLM.from_pretrained(unpacked(exact_llama), dtype=torch.float32)
    merged = peft.PeftModel.from_pretrained(model, str(llama_adapter)).merge_and_unload().state_dict()
    found = _tensors(tmp_path / "out.gguf")
    expected = {
        "blk.0.attn_q.weight": _permute(merged["model.layers.0.self_attn.q_proj.weight"].numpy(), 4),
        "blk.3.attn_k.weight": _permute(merged["model.layers.3.self_attn.k_proj.weight"].numpy(), 2),
        "blk.1.attn_v.weight": merged["model.layers.1.self_attn.v_proj.weight"].numpy(),
        "blk.2.ffn_down.weight": merged["model.layers.2.mlp.down_proj.weight"].numpy(),
        "token_embd.weight": merged["model.embed_tokens.weight"].numpy(),
        "output_norm.weight": merged["model.norm.weight"].numpy(),
    }
    for name, values in expected.items():
        np.testing.assert_allclose(found[name], values, rtol=2**-10, atol=1e-6, err_msg=name)


@pytest.mark.parametrize("model", ["exact_llama", "exact_gemma"])
def test_gemma_and_llama_give_llama_cpps_own_bytes(
    model: str, request: pytest.FixtureRequest, tmp_path: Path, events: Events
) -> None:
    """Without an adapter the file is what llama_model_quantize makes of the donor's own f16 version."""
    source: Path = request.getfixturevalue(model)
    export(source, None, tmp_path / "ours.gguf", "q4_k_m", events)
    settings = llama_cpp.llama_model_quantize_default_params()
    settings.nthread = 1
    for ftype, start, end in ((1, source, tmp_path / "f16.gguf"), (15, tmp_path / "f16.gguf", tmp_path / "q.gguf")):
        settings.ftype = ftype
        assert llama_cpp.llama_model_quantize(str(start).encode(), str(end).encode(), ctypes.byref(settings)) == 0
    ours, theirs = gguf.GGUFReader(tmp_path / "ours.gguf"), gguf.GGUFReader(tmp_path / "q.gguf")
    assert {t.name: t.data.tobytes() for t in ours.tensors} == {t.name: t.data.tobytes() for t in theirs.tensors}
    export(source, None, tmp_path / "half.gguf", "f16", events)
    half, whole = gguf.GGUFReader(tmp_path / "half.gguf"), gguf.GGUFReader(tmp_path / "f16.gguf")
    assert {t.name: t.data.tobytes() for t in half.tensors} == {t.name: t.data.tobytes() for t in whole.tensors}


@pytest.mark.parametrize("quant", sorted(FILE_TYPE_NAMES))
def test_every_quantization_is_written_and_metadata_is_the_donors(
    quant: Quant, tiny_llama: Path, llama_adapter: Path, tmp_path: Path, events: Events
) -> None:
    figures = export(tiny_llama, llama_adapter, tmp_path / "out.gguf", quant, events, threads=1)
    header, donor = read_header(tmp_path / "out.gguf"), read_header(tiny_llama)
    assert header.quantization == FILE_TYPE_NAMES[quant] == figures["quantization"]
    assert figures["file_bytes"] == (tmp_path / "out.gguf").stat().st_size
    for key in donor.raw_fields.keys() - {"general.file_type"}:
        assert header.array(key) == donor.array(key)
    assert set(header.raw_fields) == set(donor.raw_fields) | {"general.quantization_version"}
    assert [p.name for p in tmp_path.iterdir()] == ["out.gguf"]
    expected = {"q4_k_m": "9 F32, 24 Q4_K, 5 Q6_K", "q8_0": "9 F32, 29 Q8_0", "bf16": "29 BF16, 9 F32"}
    assert figures["tensor_types"] == expected.get(quant, figures["tensor_types"])


def test_a_vision_tower_is_carried_over_verbatim(
    ollama_gemma: Path, gemma_adapter: Path, tmp_path: Path, events: Events
) -> None:
    figures = export(ollama_gemma, gemma_adapter, tmp_path / "out.gguf", "q4_k_m", events)
    assert (figures["carried_vision_tensors"], figures["merged_tensors"]) == (3, 42)
    ours = {tensor.name: tensor for tensor in gguf.GGUFReader(tmp_path / "out.gguf").tensors}
    donor = {tensor.name: tensor for tensor in gguf.GGUFReader(ollama_gemma).tensors}
    assert list(ours) == list(donor)
    for name in ("v.blk.0.attn_q.weight", "mm.mm_input_projection.weight", "v.post_layernorm.weight"):
        assert ours[name].tensor_type == donor[name].tensor_type
        assert ours[name].data.tobytes() == donor[name].data.tobytes()
    assert ours["blk.0.attn_q.weight"].tensor_type == gguf.GGMLQuantizationType.Q4_K
    header = read_header(tmp_path / "out.gguf")
    assert len(header.array("tokenizer.ggml.tokens")) == 1025  # the surplus token too
    assert "gemma3.attention.layer_norm_rms_epsilon" not in header.metadata  # as the donor has it


def test_the_same_input_gives_the_same_bytes(
    tiny_llama: Path, llama_adapter: Path, tmp_path: Path, events: Events
) -> None:
    digests = set()
    for out, threads in (("a.gguf", 1), ("b.gguf", 2)):
        export(tiny_llama, llama_adapter, tmp_path / out, "q4_k_m", events, threads=threads)
        digests.add(hashlib.sha256((tmp_path / out).read_bytes()).hexdigest())
    assert len(digests) == 1


@pytest.mark.parametrize("model", ["tiny_llama", "ollama_gemma"])
@pytest.mark.parametrize("quant", ["q4_k_m", "q8_0", "f16"])
def test_disk_needed_covers_the_peak(model: str, quant: Quant, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    source: Path = request.getfixturevalue(model)
    peak = 0

    def measure(event: object) -> None:
        nonlocal peak
        peak = max(peak, sum(path.stat().st_size for path in tmp_path.iterdir()))

    export(source, None, tmp_path / "out.gguf", quant, Events(measure))
    measure(None)
    assert peak <= disk_needed(read_header(source), quant) <= 2.2 * peak


def test_a_weight_beyond_float16_stays_float32_on_the_way(exact_llama: Path, tmp_path: Path, events: Events) -> None:
    source = tmp_path / "large.gguf"
    data = bytearray(exact_llama.read_bytes())
    place = read_header(exact_llama).tensor("blk.1.ffn_gate.weight").offset
    data[place : place + 4] = np.float32(1e5).tobytes()
    source.write_bytes(data)
    figures = export(source, None, tmp_path / "out.gguf", "q8_0", events)
    assert figures["beyond_f16"] == 1
    assert any(isinstance(event, Note) and "blk.1.ffn_gate.weight" in event.text for event in events)
    values = _tensors(tmp_path / "out.gguf")["blk.1.ffn_gate.weight"]
    # Q8_0's scale is itself a half: 1e5 / 127 fits.
    assert values[0, 0] == pytest.approx(1e5, rel=0.01)
    assert np.isfinite(values).all()


@pytest.mark.parametrize(("label", "quant"), [("merging", "q4_k_m"), ("quantizing", "q4_k_m"), ("merging", "f16")])
def test_cancelling_leaves_nothing_behind(
    label: str, quant: Quant, tiny_llama: Path, llama_adapter: Path, tmp_path: Path
) -> None:
    def stop(event: object) -> None:
        if isinstance(event, Progress) and event.label == label and event.total and event.done > event.total / 3:
            raise Cancelled

    with pytest.raises(Cancelled):
        export(tiny_llama, llama_adapter, tmp_path / "out.gguf", quant, Events(stop))
    assert list(tmp_path.iterdir()) == []


def test_an_older_file_stays_when_the_work_fails(tiny_llama: Path, tmp_path: Path) -> None:
    (tmp_path / "out.gguf").write_bytes(b"older")

    def stop(event: object) -> None:
        raise Cancelled

    with pytest.raises(Cancelled):
        export(tiny_llama, None, tmp_path / "out.gguf", "q8_0", Events(stop))
    assert (tmp_path / "out.gguf").read_bytes() == b"older"


def test_nothing_is_printed(
    tiny_llama: Path, tmp_path: Path, events: Events, capfd: pytest.CaptureFixture[str]
) -> None:
    export(tiny_llama, None, tmp_path / "out.gguf", "q4_k_m", events)
    assert capfd.readouterr() == ("", "")
    labels = [event.label for event in events if isinstance(event, Progress)]
    assert labels.count("quantizing") == 38


def test_what_llama_cpp_refuses_is_reported_in_its_words(tmp_path: Path, events: Events) -> None:
    (tmp_path / "bad.gguf").write_bytes(b"GGUF" + bytes(100))
    with pytest.raises(AmigoError, match=r"could not quantize .*failed to"):
        quantize(tmp_path / "bad.gguf", tmp_path / "out.gguf", "Q8_0", events)


def test_the_quantizing_process_ends_with_its_parent(smollm2: Path, tmp_path: Path, events: Events) -> None:
    export(smollm2, None, tmp_path / "f16.gguf", "f16", events)
    command = [sys.executable, "-m", "amigo_local.weights.quantize", str(tmp_path / "f16.gguf"), str(tmp_path / "o")]
    process = subprocess.Popen([*command, "15", "1"], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdin and process.stdout
    process.stdout.readline()  # it is at work
    process.stdin.close()
    started = time.monotonic()
    assert process.wait(timeout=20) == 1
    assert time.monotonic() - started < 5
    process.stdout.close()
    os.sync()


def test_bad_input_is_refused_before_anything_is_written(
    tiny_llama: Path, tiny_gemma: Path, llama_adapter: Path, tmp_path: Path, events: Events
) -> None:
    out = tmp_path / "out.gguf"
    with pytest.raises(InputError, match="quant 'keep' can't be written yet") as caught:
        export(tiny_llama, llama_adapter, out, "keep", events)
    assert "q4_k_m" in caught.value.hint
    assert set(get_args(Quant)) - set(FILE_TYPE_NAMES) == {"keep"}
    with pytest.raises(InputError, match="adapter for another base"):
        export(tiny_gemma, llama_adapter, out, "q8_0", events)
    with pytest.raises(InputError, match="is the base itself"):
        export(tiny_llama, llama_adapter, tiny_llama, "q8_0", events)
    assert list(tmp_path.iterdir()) == []


def test_tied_lm_head_lora_is_refused(
    exact_llama: Path, unpacked: Callable[[Path], Path], tmp_path: Path, events: Events
) -> None:
    adapter = write_adapter(unpacked(exact_llama), tmp_path / "adapter", target_modules=["q_proj"])
    import safetensors.numpy

    path = adapter / "adapter_model.safetensors"
    weights = safetensors.numpy.load_file(path)
    weights["base_model.model.lm_head.lora_A.weight"] = np.zeros((8, 256), np.float32)
    weights["base_model.model.lm_head.lora_B.weight"] = np.zeros((1024, 8), np.float32)
    safetensors.numpy.save_file(weights, path)
    with pytest.raises(InputError, match="lm_head, the base's output is tied"):
        export(exact_llama, adapter, tmp_path / "out.gguf", "q8_0", events)


def test_metadata_is_encoded_as_gguf_py_encodes_it(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "a.gguf", "llama")
    writer.add_uint32("a", 7)
    writer.add_float32("b", 0.5)
    writer.add_bool("c", True)
    writer.add_string("d", "Grüße")
    writer.add_array("e", [1, 2, 3])
    writer.add_array("f", ["x", "yz"])
    writer.add_array("g", [0.5, 1.5])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    values = {"a": 7, "b": 0.5, "c": True, "d": "Grüße", "e": (1, 2, 3), "f": ("x", "yz"), "g": (0.5, 1.5)}
    ours = b"".join(encode_field(key, value) for key, value in values.items())  # type: ignore[arg-type]
    assert ours in (tmp_path / "a.gguf").read_bytes()

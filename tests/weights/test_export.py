from __future__ import annotations

import ctypes
import hashlib
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import get_args

import gguf
import llama_cpp
import numpy as np
import peft
import pytest
import safetensors.numpy
import torch
import transformers

from amigo_local.domain.errors import InputError
from amigo_local.domain.events import AnyEvent
from amigo_local.domain.recipe import PortedMix, Quant
from amigo_local.weights.export import export
from amigo_local.weights.export_plan import plan_export
from amigo_local.weights.ggml_types import FILE_TYPE_IDS
from amigo_local.weights.gguf_header import read_header
from tests.support.exporting import decoded, run
from tests.weights.conftest import Events, write_adapter

MIXES: tuple[PortedMix, ...] = get_args(PortedMix)


def _stored(path: Path) -> dict[str, tuple[int, bytes]]:
    return {t.name: (int(t.tensor_type), t.data.tobytes()) for t in gguf.GGUFReader(path).tensors}


def _permute(rows: np.ndarray, heads: int) -> np.ndarray:
    """LlamaModel.permute in convert_hf_to_gguf.py."""
    return rows.reshape(heads, 2, rows.shape[0] // heads // 2, *rows.shape[1:]).swapaxes(1, 2).reshape(rows.shape)


PARTS = {
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


def _merged_by_peft(base: Path, checkpoint: Path, adapter: Path | None, out: Path) -> Path:
    """The two-step's first half, without our code: PEFT's merge put into a copy of a float32 GGUF."""
    model = transformers.AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32)
    if adapter is not None:
        model = peft.PeftModel.from_pretrained(model, str(adapter)).merge_and_unload()
    weights = model.state_dict()
    data = bytearray(base.read_bytes())
    for tensor in gguf.GGUFReader(base).tensors:
        block, _, part = tensor.name.removeprefix("blk.").partition(".")
        module = PARTS.get(part.removesuffix(".weight"))
        if module is None or tensor.name.startswith("v."):
            continue
        rows = weights[f"model.layers.{block}.{module}.weight"].numpy()
        if "llama" in base.parent.name and part in ("attn_q.weight", "attn_k.weight"):
            rows = _permute(rows, 4 if "attn_q" in part else 2)
        data[tensor.data_offset : tensor.data_offset + tensor.n_bytes] = rows.tobytes()
    out.write_bytes(data)
    return out


def _llama_cpp_quantize(source: Path, out: Path, mix: str) -> None:
    settings = llama_cpp.llama_model_quantize_default_params()
    settings.nthread, settings.ftype = 1, FILE_TYPE_IDS[mix.upper()]
    assert llama_cpp.llama_model_quantize(str(source).encode(), str(out).encode(), ctypes.byref(settings)) == 0


@pytest.fixture(scope="module")
def merged_llama(
    exact_llama: Path,
    unpacked: Callable[[Path], Path],
    llama_adapter: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    out = tmp_path_factory.mktemp("llama") / "merged.gguf"
    return _merged_by_peft(exact_llama, unpacked(exact_llama), llama_adapter, out)


@pytest.fixture(scope="module")
def merged_gemma(
    exact_gemma: Path,
    unpacked: Callable[[Path], Path],
    gemma_adapter: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    out = tmp_path_factory.mktemp("gemma") / "merged.gguf"
    return _merged_by_peft(exact_gemma, unpacked(exact_gemma), gemma_adapter, out)


@pytest.mark.parametrize("family", ["llama", "gemma"])
@pytest.mark.parametrize("mix", MIXES)
def test_one_pass_gives_the_bytes_of_pefts_merge_and_llama_cpps_quantization(
    family: str, mix: PortedMix, request: pytest.FixtureRequest, tmp_path: Path, events: Events
) -> None:
    base, adapter = (request.getfixturevalue(f"exact_{family}"), request.getfixturevalue(f"{family}_adapter"))
    figures = run(base, adapter, tmp_path / "ours.gguf", mix, events)
    _llama_cpp_quantize(request.getfixturevalue(f"merged_{family}"), tmp_path / "theirs.gguf", mix)
    ours, theirs = _stored(tmp_path / "ours.gguf"), _stored(tmp_path / "theirs.gguf")
    assert {name: kind for name, (kind, _) in ours.items()} == {name: kind for name, (kind, _) in theirs.items()}
    # torch and numpy may add up B @ A in another order; the last bit of a float32 hardly ever moves a block.
    different = sum(
        int(np.count_nonzero(np.frombuffer(data, np.uint8) != np.frombuffer(theirs[name][1], np.uint8)))
        for name, (_, data) in ours.items()
    )
    total = sum(len(data) for _, data in ours.values())
    assert different <= 1e-4 * total, f"{different} of {total} bytes"
    assert figures["merged_tensors"] == (28 if family == "llama" else 42)
    assert figures["file_bytes"] == (tmp_path / "ours.gguf").stat().st_size


def test_keep_changes_only_what_the_adapter_touches_and_no_type(
    tiny_llama: Path, llama_adapter: Path, tmp_path: Path, events: Events
) -> None:
    figures = run(tiny_llama, llama_adapter, tmp_path / "out.gguf", "keep", events)
    assert (figures["quantization"], figures["merged_tensors"], figures["copied_tensors"]) == ("Q8_0", 28, 10)
    before, after = _stored(tiny_llama), _stored(tmp_path / "out.gguf")
    assert list(before) == list(after)
    assert {name for name in before if before[name] != after[name]} == {
        f"blk.{layer}.{part}.weight" for layer in range(4) for part in PARTS
    }
    assert {name: kind for name, (kind, _) in before.items()} == {name: kind for name, (kind, _) in after.items()}
    head = read_header(tiny_llama).data_offset
    assert (tmp_path / "out.gguf").read_bytes()[:head] == tiny_llama.read_bytes()[:head]


@pytest.mark.parametrize("model", ["tiny_llama", "tiny_gemma", "ollama_gemma"])
def test_keep_without_an_adapter_is_the_same_file(
    model: str, request: pytest.FixtureRequest, tmp_path: Path, events: Events
) -> None:
    source: Path = request.getfixturevalue(model)
    run(source, None, tmp_path / "out.gguf", "keep", events)
    assert (tmp_path / "out.gguf").read_bytes() == source.read_bytes()


def test_a_real_model_kept_is_the_same_file(smollm2: Path, tmp_path: Path, events: Events) -> None:
    run(smollm2, None, tmp_path / "keep.gguf", "keep", events)
    digests = [hashlib.sha256(path.read_bytes()).hexdigest() for path in (smollm2, tmp_path / "keep.gguf")]
    assert digests[0] == digests[1]


@pytest.mark.slow
def test_a_real_model_quantized_has_llama_cpps_bytes(smollm2: Path, tmp_path: Path, events: Events) -> None:
    """SmolLM2's rows of 576 values are no whole K-quant blocks: the fallbacks are llama.cpp's."""
    run(smollm2, None, tmp_path / "f32.gguf", "f32", events)
    for mix in MIXES:
        run(smollm2, None, tmp_path / "q.gguf", mix, events, like_llama_cpp=True)
        _llama_cpp_quantize(tmp_path / "f32.gguf", tmp_path / "theirs.gguf", mix)
        assert _stored(tmp_path / "q.gguf") == _stored(tmp_path / "theirs.gguf"), mix


def test_a_checkpoint_gives_the_weights_and_the_donor_the_rest(
    exact_llama: Path,
    tiny_llama: Path,
    unpacked: Callable[[Path], Path],
    llama_adapter: Path,
    tmp_path: Path,
    events: Events,
) -> None:
    """The donor here is the Q8_0 of another random model: its weights must not be in the result."""
    figures = run(
        tiny_llama, llama_adapter, tmp_path / "out.gguf", "q6_k", events, checkpoint_dir=unpacked(exact_llama)
    )
    assert figures["copied_tensors"] == 0
    run(exact_llama, llama_adapter, tmp_path / "direct.gguf", "q6_k", events)
    assert _stored(tmp_path / "out.gguf") == _stored(tmp_path / "direct.gguf")
    kept = run(tiny_llama, llama_adapter, tmp_path / "keep.gguf", "keep", events, checkpoint_dir=unpacked(exact_llama))
    assert kept["quantization"] == "Q8_0"
    with pytest.raises(InputError, match=r"isn't a checkpoint of this model: .* missing"):
        run(tiny_llama, None, tmp_path / "x.gguf", "keep", events, checkpoint_dir=tmp_path_with_another(tmp_path))


def tmp_path_with_another(tmp_path: Path) -> Path:
    other = tmp_path / "other"
    other.mkdir()
    safetensors.numpy.save_file({"model.norm.weight": np.ones(256, np.float32)}, other / "model.safetensors")
    return other


def test_gemmas_norm_offset_is_added_to_a_checkpoints_norms(
    exact_gemma: Path, unpacked: Callable[[Path], Path], tmp_path: Path, events: Events
) -> None:
    run(exact_gemma, None, tmp_path / "out.gguf", "f32", events, checkpoint_dir=unpacked(exact_gemma))
    before, after = decoded(exact_gemma), decoded(tmp_path / "out.gguf")
    for name, values in before.items():  # (w - 1) + 1 in float32 may lose the last bit of a small w
        np.testing.assert_allclose(after[name], values, rtol=0, atol=1.3e-7 if "norm" in name else 0, err_msg=name)


@pytest.mark.parametrize(
    "settings",
    [
        {"use_dora": True},
        {"use_rslora": True, "rank_pattern": {"down_proj": 3}, "alpha_pattern": {"up_proj": 5}},
        {"modules_to_save": ["norm", "lm_head"], "target_modules": ["q_proj"]},
        {"target_modules": ["embed_tokens", "k_proj"]},
        {"target_modules": ["lm_head", "q_proj"]},
    ],
    ids=["dora", "rslora and patterns", "modules_to_save", "embedding", "head"],
)
def test_every_kind_of_adapter_is_merged_as_peft_does(
    settings: dict[str, object], tmp_path: Path, events: Events
) -> None:
    from amigo_local.weights.merge import merge
    from amigo_local.weights.unpack import unpack
    from tests.support.tiny_gguf import write_tiny_llama

    base = write_tiny_llama(tmp_path / "base.gguf", weight_type="f32", tied=False)
    unpack(base, tmp_path / "base", "f32", events)
    adapter = write_adapter(tmp_path / "base", tmp_path / "adapter", **settings)
    if settings.get("modules_to_save") or settings.get("use_dora"):
        _shake(adapter / "adapter_model.safetensors")
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "base", dtype=torch.float32)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    expected = peft.PeftModel.from_pretrained(model, str(adapter)).merge_and_unload().state_dict()

    figures = merge(tmp_path / "base", adapter, tmp_path / "merged", events)
    ours = safetensors.numpy.load_file(tmp_path / "merged/model.safetensors")
    changed = 0
    for name, tensor in expected.items():
        np.testing.assert_allclose(ours[name], tensor.numpy(), rtol=0, atol=3e-6, err_msg=name)
        changed += not torch.equal(tensor, before[name])
    assert changed == figures["merged_tensors"] > 0

    run(base, adapter, tmp_path / "out.gguf", "f32", events)
    unpack(tmp_path / "out.gguf", tmp_path / "again", "f32", events)
    again = safetensors.numpy.load_file(tmp_path / "again/model.safetensors")
    for name, values in ours.items():
        np.testing.assert_allclose(again[name], values, rtol=0, atol=3e-6, err_msg=name)


def _shake(path: Path) -> None:
    """What training would have done to whole tensors and magnitudes, which start as the base's own."""
    weights = safetensors.numpy.load_file(path)
    random = np.random.default_rng(0)
    for name, values in weights.items():
        if "lora_A" not in name and "lora_B" not in name:
            weights[name] = values * (1 + 0.1 * random.standard_normal(values.shape, dtype=np.float32))
    safetensors.numpy.save_file(weights, path)


@pytest.mark.parametrize("quant", MIXES)
def test_metadata_is_the_donors(quant: Quant, tiny_llama: Path, llama_adapter: Path, tmp_path: Path) -> None:
    figures = run(tiny_llama, llama_adapter, tmp_path / "out.gguf", quant, Events(), threads=1)
    header, donor = read_header(tmp_path / "out.gguf"), read_header(tiny_llama)
    assert header.quantization == quant.upper() == figures["quantization"]
    for key in donor.raw_fields.keys() - {"general.file_type"}:
        assert list(header.array(key)) == list(donor.array(key))
    assert set(header.raw_fields) == set(donor.raw_fields) | {"general.quantization_version"}
    assert [p.name for p in tmp_path.iterdir()] == ["out.gguf"]
    expected = {"q4_k_m": "9 F32, 24 Q4_K, 5 Q6_K", "q8_0": "9 F32, 29 Q8_0", "bf16": "29 BF16, 9 F32"}
    assert figures["tensor_types"] == expected.get(quant, figures["tensor_types"])


def test_a_mix_that_is_not_ported_is_asked_of_llama_cpp(
    exact_llama: Path, merged_llama: Path, llama_adapter: Path, tmp_path: Path, events: Events
) -> None:
    for mix in ("q5_0", "iq4_nl", "q2_k"):
        figures = run(exact_llama, llama_adapter, tmp_path / "ours.gguf", mix, events)
        _llama_cpp_quantize(merged_llama, tmp_path / "theirs.gguf", mix)
        ours, theirs = _stored(tmp_path / "ours.gguf"), _stored(tmp_path / "theirs.gguf")
        assert {name: kind for name, (kind, _) in ours.items()} == {name: kind for name, (kind, _) in theirs.items()}
        assert figures["quantization"] == mix.upper()
    with pytest.raises(InputError, match="importance matrix"):
        run(exact_llama, llama_adapter, tmp_path / "none.gguf", "iq2_xxs", events)


def test_a_vision_tower_is_carried_over_verbatim(
    ollama_gemma: Path, gemma_adapter: Path, tmp_path: Path, events: Events
) -> None:
    figures = run(ollama_gemma, gemma_adapter, tmp_path / "out.gguf", "q4_k_m", events)
    assert (figures["carried_vision_tensors"], figures["merged_tensors"]) == (3, 42)
    ours, donor = _stored(tmp_path / "out.gguf"), _stored(ollama_gemma)
    assert list(ours) == list(donor)
    for name in ("v.blk.0.attn_q.weight", "mm.mm_input_projection.weight", "v.post_layernorm.weight"):
        assert ours[name] == donor[name]
    assert ours["blk.0.attn_q.weight"][0] == gguf.GGMLQuantizationType.Q4_K
    header = read_header(tmp_path / "out.gguf")
    assert len(header.array("tokenizer.ggml.tokens")) == 1025  # the surplus token too
    assert "gemma3.attention.layer_norm_rms_epsilon" not in header.metadata  # as the donor has it


def test_the_same_input_gives_the_same_bytes(tiny_llama: Path, llama_adapter: Path, tmp_path: Path) -> None:
    digests = set()
    for out, threads in (("a.gguf", 1), ("b.gguf", 2)):
        run(tiny_llama, llama_adapter, tmp_path / out, "q4_k_m", Events(), threads=threads)
        digests.add(hashlib.sha256((tmp_path / out).read_bytes()).hexdigest())
    assert len(digests) == 1


def test_nothing_but_the_result_is_ever_on_disk_and_its_size_is_known_before(
    ollama_gemma: Path, gemma_adapter: Path, tmp_path: Path
) -> None:
    plan = plan_export(ollama_gemma, gemma_adapter, "q4_k_m", tmp_path)
    seen: set[str] = set()
    peak = 0

    def look(event: AnyEvent) -> None:
        nonlocal peak
        files = list(tmp_path.iterdir())
        seen.update(path.name for path in files)
        peak = max(peak, sum(path.stat().st_size for path in files))

    export(plan, tmp_path / "out.gguf", Events(look))
    assert seen == {"out.gguf.partial"}
    assert peak == plan.file_bytes == (tmp_path / "out.gguf").stat().st_size


def test_memory_is_bounded_by_chunks_and_not_by_the_model(smollm2: Path, tmp_path: Path) -> None:
    """In a process of its own; 135 M weights are 538 MB in float32. Measured: 93 MB, numpy and libggml included."""
    code = (
        "import sys; from pathlib import Path; "
        "from amigo_local.weights.export_plan import plan_export; from amigo_local.weights.export import export; "
        "out = Path(sys.argv[2]); plan = plan_export(Path(sys.argv[1]), None, 'f16', out.parent); "
        "export(plan, out, lambda event: None); "
        "print(next(line for line in open('/proc/self/status') if line.startswith('VmHWM')).split()[1])"
    )
    if sys.platform != "linux":
        pytest.skip("reads /proc; run it on Linux")
    command = [sys.executable, "-c", code, str(smollm2), str(tmp_path / "out.gguf")]
    peak_kib = int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    assert peak_kib < 150 * 1024

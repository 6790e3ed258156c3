from __future__ import annotations

import ctypes
import json
import math
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np
import pytest
import safetensors.numpy
import transformers

from amigo_local.domain.errors import Cancelled, InputError
from amigo_local.domain.events import Progress
from amigo_local.weights.compare_base import BaseComparison, compare, language_tensors, pair_tensors
from amigo_local.weights.ggml_types import TYPES_BY_NAME
from amigo_local.weights.gguf_header import read_header
from amigo_local.weights.kernels import load_kernels
from amigo_local.weights.language_checkpoint import is_multimodal, write_language_checkpoint
from amigo_local.weights.quantization_grid import residual
from amigo_local.weights.safetensors_file import read_checkpoint
from amigo_local.weights.tensor_rows import TensorFile
from amigo_local.weights.unpack import unpack
from tests.support.altered_checkpoint import Weights, altered, low_rank
from tests.support.tiny_gguf import write_tiny_llama
from tests.weights.conftest import Events

FILE_TYPES = {"F16": 1, "Q4_0": 2, "Q8_0": 7, "Q2_K": 10, "Q4_K_M": 15, "Q5_K_M": 17, "Q6_K": 18, "BF16": 32}


def quantized_by_llama_cpp(source: Path, target: Path, file_type: str) -> Path:
    import llama_cpp

    settings = llama_cpp.llama_model_quantize_default_params()
    settings.ftype, settings.nthread = FILE_TYPES[file_type], 1
    assert llama_cpp.llama_model_quantize(str(source).encode(), str(target).encode(), ctypes.byref(settings)) == 0
    return target


def compared(gguf_path: Path, checkpoint: Path) -> BaseComparison:
    header = read_header(gguf_path)
    pairs = pair_tensors(header, read_checkpoint(checkpoint), "org/original")
    return compare(header, [(pair, pair.rows) for pair in pairs], Events(), "comparing")


@pytest.fixture(scope="module")
def original(unpacked: Callable[[Path], Path], exact_llama: Path) -> Path:
    return unpacked(exact_llama)


@pytest.mark.parametrize("file_type", FILE_TYPES)
def test_what_llama_cpp_quantized_is_identical_and_shows_what_its_types_cost(
    file_type: str, tmp_path: Path, exact_llama: Path, original: Path
) -> None:
    source = quantized_by_llama_cpp(exact_llama, tmp_path / "quantized.gguf", file_type)
    found = compared(source, original)
    assert found.verdict == "identical" and found.change == 0.0 and found.changed == []
    # Against gguf-py's own reading of the file; query and key rows lie in another order there.
    expected = safetensors.numpy.load_file(original / "model.safetensors")
    tensors = {tensor.name: tensor for tensor in gguf.GGUFReader(source).tensors}
    for ours, name in (
        ("model.layers.1.mlp.down_proj.weight", "blk.1.ffn_down.weight"),
        ("model.embed_tokens.weight", "token_embd.weight"),
        ("model.norm.weight", "output_norm.weight"),
    ):
        read = gguf.quants.dequantize(tensors[name].data, tensors[name].tensor_type).reshape(expected[ours].shape)
        error = np.linalg.norm(read - expected[ours]) / np.linalg.norm(expected[ours])
        [tensor] = [tensor for tensor in found.tensors if tensor.name == ours]
        assert tensor.type == tensors[name].tensor_type.name
        assert tensor.error == pytest.approx(float(error), rel=1e-4, abs=1e-9)
        assert tensor.quantization == pytest.approx(tensor.error, rel=1e-6)


@pytest.mark.parametrize(
    ("variant", "settings"),
    [
        ("biases, untied", {"tied": False, "biases": True}),
        ("llama 3 rope", {"llama3_rope": True, "pre": "llama-bpe"}),
    ],
)
def test_interleaved_rows_and_biases_are_put_in_order(
    variant: str, settings: dict[str, bool], tmp_path: Path, events: Events
) -> None:
    source = write_tiny_llama(tmp_path / "model.gguf", weight_type="q8_0", **settings)  # type: ignore[arg-type]
    unpack(source, tmp_path / "checkpoint", "f32", events)
    found = compared(source, tmp_path / "checkpoint")
    assert found.verdict == "identical" and found.worst.error == 0.0

    def swap(weights: Weights) -> None:
        name = "model.layers.0.self_attn.q_proj.weight"
        weights[name] = weights[name][::-1].copy()

    other = compared(source, altered(tmp_path / "checkpoint", tmp_path / "swapped", swap))
    assert [tensor.name for tensor in other.changed] == ["model.layers.0.self_attn.q_proj.weight"]
    assert other.worst.error == pytest.approx(math.sqrt(2), rel=0.05)


def test_the_offset_of_gemmas_norms_is_undone(
    tmp_path: Path, tiny_gemma: Path, ollama_gemma: Path, unpacked: Callable[[Path], Path]
) -> None:
    for source in (tiny_gemma, ollama_gemma):
        assert compared(source, unpacked(source)).verdict == "identical"

    def forget(weights: Weights) -> None:
        weights["model.layers.3.self_attn.q_norm.weight"] += 1

    found = compared(tiny_gemma, altered(unpacked(tiny_gemma), tmp_path / "shifted", forget))
    assert [tensor.name for tensor in found.changed] == ["model.layers.3.self_attn.q_norm.weight"]


@pytest.mark.parametrize("file_type", ["Q4_0", "Q4_K_M", "Q6_K", "F16"])
def test_low_rank_tuning_of_one_layer_is_found_in_that_layer(
    file_type: str, tmp_path: Path, exact_llama: Path, original: Path
) -> None:
    """One percent, an eighth to a tenth of what Q4_0 itself costs: the mean error alone would never show it."""
    tuned = [f"model.layers.2.self_attn.{part}_proj.weight" for part in "qv"]

    def tune(weights: Weights) -> None:
        for name in tuned:
            weights[name] = low_rank(weights[name], 0.01)

    base = altered(original, tmp_path / "base", tune)
    source = quantized_by_llama_cpp(exact_llama, tmp_path / "tuned.gguf", file_type)
    found = compared(source, base)
    assert found.verdict == "fine-tuned"
    assert sorted(tensor.name for tensor in found.changed) == sorted(tuned)
    assert [layer for layer, _ in found.most_changed_layers()] == ["layer 2"]
    for tensor in found.changed:
        assert 0.003 < tensor.change < 0.011
        assert tensor.error == pytest.approx(math.hypot(tensor.quantization, tensor.change), rel=1e-6)
    assert found.change < 0.003


def test_norms_alone_that_were_tuned_are_fine_tuning(tmp_path: Path, exact_llama: Path, original: Path) -> None:
    def tune(weights: Weights) -> None:
        for name in weights:
            if name.endswith("layernorm.weight"):
                weights[name] *= np.float32(1.01)

    found = compared(exact_llama, altered(original, tmp_path / "base", tune))
    assert found.verdict == "fine-tuned" and len(found.changed) == 8 and found.change == 0.0


@pytest.mark.parametrize("file_type", ["Q2_K", "Q4_K_M", "F16"])
def test_other_weights_of_the_same_shape_are_another_model(file_type: str, tmp_path: Path, original: Path) -> None:
    other = write_tiny_llama(tmp_path / "other.gguf", weight_type="f32", seed=7)
    source = quantized_by_llama_cpp(other, tmp_path / "quantized.gguf", file_type)
    found = compared(source, original)
    assert found.verdict == "another"
    assert 1.2 < found.change < 1.5 and found.worst.error < 1.6


def test_weights_that_are_no_numbers_are_another_model(tmp_path: Path, exact_llama: Path, original: Path) -> None:
    def spoil(weights: Weights) -> None:
        weights["model.layers.0.mlp.up_proj.weight"][3, 3] = np.nan

    assert compared(exact_llama, altered(original, tmp_path / "spoilt", spoil)).verdict == "another"


@pytest.mark.parametrize("name", ["Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K"])
@pytest.mark.parametrize("deviation", [None, 0.3, 1.5])
def test_an_importance_matrix_is_not_taken_for_tuning_and_two_percent_of_tuning_is_found(
    name: str, deviation: float | None
) -> None:
    """Quantized by ggml itself, with log-normal importances as activations have them."""
    random = np.random.default_rng(3)
    kernels, kind = load_kernels(), TYPES_BY_NAME[name]
    weight = random.standard_t(5, (128, 1024)).astype(np.float32) * np.float32(0.02)
    weight = weight.astype(np.float16).astype(np.float32)
    importance = None if deviation is None else np.exp(deviation * random.standard_normal(1024)).astype(np.float32)
    own = residual(kernels, kind, kernels.quantize(kind.id, weight, importance), weight)
    assert own.is_explained and own.elements == weight.size
    tuned = residual(kernels, kind, kernels.quantize(kind.id, low_rank(weight, 0.02), importance), weight)
    assert not tuned.is_explained
    assert math.sqrt((tuned.found - tuned.nearest) / tuned.original) == pytest.approx(0.02, rel=0.6)
    if deviation is None:
        assert own.misplaced == 0 and own.weighted_blocks == 0


@pytest.mark.parametrize("name", ["IQ4_NL", "IQ4_XS", "MXFP4"])
def test_types_with_uneven_values_are_judged_by_what_they_usually_cost(name: str) -> None:
    random = np.random.default_rng(4)
    kernels, kind = load_kernels(), TYPES_BY_NAME[name]
    weight = random.standard_normal((64, 1024), dtype=np.float32)
    importance = np.exp(random.standard_normal(1024)).astype(np.float32)
    raw = kernels.quantize(kind.id, weight, importance)
    assert residual(kernels, kind, raw, weight).is_explained
    assert not residual(kernels, kind, raw, random.permutation(weight)).is_explained


def multimodal(plain: Path, out: Path, prefix: str, rows: int = 64) -> Path:
    """The checkpoint as Gemma3ForConditionalGeneration holds it: a prefix, a vision tower, padded embeddings."""

    def wrap(weights: Weights) -> Weights:
        wrapped = {prefix + name.removeprefix("model."): value for name, value in weights.items()}
        embedding = wrapped[f"{prefix}embed_tokens.weight"]
        padding = np.zeros((rows, embedding.shape[1]), np.float32)
        wrapped[f"{prefix}embed_tokens.weight"] = np.concatenate([embedding, padding])
        return wrapped | {"vision_tower.vision_model.post_layernorm.weight": np.ones(64, np.float32)}

    altered(plain, out, wrap)
    settings = json.loads((out / "config.json").read_text())
    text = {key: settings[key] for key in ("hidden_size", "intermediate_size", "num_hidden_layers")}
    nested = {"architectures": ["Gemma3ForConditionalGeneration"], "model_type": "gemma3", "text_config": text}
    (out / "config.json").write_text(json.dumps(nested))
    return out


@pytest.mark.parametrize("prefix", ["language_model.model.", "model.language_model."])
def test_a_multimodal_checkpoint_is_compared_and_its_language_model_taken_out(
    prefix: str, tmp_path: Path, tiny_gemma: Path, unpacked: Callable[[Path], Path], events: Events
) -> None:
    plain = unpacked(tiny_gemma)
    source = multimodal(plain, tmp_path / "multimodal", prefix)
    found = compared(tiny_gemma, source)
    assert found.verdict == "identical" and len(found.tensors) == 6 * 13 + 2

    stored = read_checkpoint(source)
    assert is_multimodal(stored) and not is_multimodal(read_checkpoint(plain))
    assert set(read_checkpoint(plain)) < set(language_tensors(stored))
    write_language_checkpoint(read_header(tiny_gemma), source, stored, tmp_path / "text", events)
    model, report = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "text", output_loading_info=True)
    assert type(model).__name__ == "Gemma3ForCausalLM"
    assert not report["missing_keys"] and not report["unexpected_keys"] and not report["mismatched_keys"]
    assert model.config.vocab_size == 1024 + 64
    expected = safetensors.numpy.load_file(plain / "model.safetensors")
    assert np.array_equal(
        model.model.layers[5].mlp.up_proj.weight.detach().numpy(), expected["model.layers.5.mlp.up_proj.weight"]
    )
    assert compared(tiny_gemma, tmp_path / "text").verdict == "identical"
    assert (tmp_path / "text" / "tokenizer.json").read_bytes() == (plain / "tokenizer.json").read_bytes()


def test_a_written_out_output_matrix_is_compared_with_the_tied_embedding(tmp_path: Path, events: Events) -> None:
    source = write_tiny_llama(tmp_path / "untied.gguf", tied=False)
    unpack(source, tmp_path / "untied", "f32", events)

    def tie(weights: Weights) -> None:
        del weights["lm_head.weight"]

    found = compared(source, altered(tmp_path / "untied", tmp_path / "tied", tie))
    assert [tensor.name for tensor in found.changed] == ["lm_head.weight"]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda w: w.pop("model.layers.3.mlp.up_proj.weight"), "has no model.layers.3.mlp.up_proj.weight"),
        (lambda w: w.update({"model.layers.4.mlp.up_proj.weight": np.ones((2, 2), np.float32)}), "the file has not"),
        (
            lambda w: w.update({"model.layers.1.mlp.up_proj.weight": np.ones((256, 256), np.float32)}),
            "256 × 256 there, 512 × 256 in the file",
        ),
        (
            lambda w: w.update({"model.embed_tokens.weight": np.ones((2048, 256), np.float32)}),
            "2048 × 256 there, 1024 × 256 in the file",
        ),
    ],
    ids=["a tensor missing", "a layer more", "another width", "another vocabulary"],
)
def test_another_shape_is_refused_naming_the_tensor(
    change: Callable[[Weights], object], says: str, tmp_path: Path, exact_llama: Path, original: Path
) -> None:
    def apply(weights: Weights) -> None:
        change(weights)

    stored = read_checkpoint(altered(original, tmp_path / "other", apply))
    with pytest.raises(InputError, match=r"org/name is another model than exact\.gguf") as raised:
        pair_tensors(read_header(exact_llama), stored, "org/name")
    assert says in raised.value.message and "amigo-local base" in raised.value.hint


def test_the_real_smollm2_is_identical_within_64_mib(smollm2: Path, tmp_path: Path) -> None:
    """Its Q4_1, Q8_0 and F32 tensors against a bf16 checkpoint, the precision that originals come in."""
    unpack(smollm2, tmp_path / "out", "bf16", Events())
    header = read_header(smollm2)
    pairs = pair_tensors(header, read_checkpoint(tmp_path / "out"), "SmolLM2")
    events = Events()
    tracemalloc.start()
    try:
        found = compare(header, [(pair, pair.rows) for pair in pairs], events, "comparing")
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 64 << 20
    assert found.verdict == "identical" and len(found.tensors) == 272 and found.changed == []
    assert 0 < found.worst.error < 2**-8 and found.mean_error < 0.002
    steps = [event for event in events if isinstance(event, Progress)]
    assert [step.done for step in steps] == sorted(step.done for step in steps)
    assert steps[-1].done == steps[-1].total


def test_comparing_can_be_cancelled(exact_llama: Path, original: Path) -> None:
    def cancel(event: object) -> None:
        raise Cancelled

    header = read_header(exact_llama)
    pairs = pair_tensors(header, read_checkpoint(original), "x")
    with pytest.raises(Cancelled):
        compare(header, [(pair, pair.rows) for pair in pairs], Events(cancel), "comparing")


@pytest.mark.slow
@pytest.mark.parametrize("file_type", ["Q4_0", "Q4_K_M", "Q6_K"])
def test_the_real_smollm2_with_noise_between_its_codes_is_told_from_a_tuned_one(
    file_type: str, smollm2: Path, tmp_path: Path
) -> None:
    """Real weights that no grid fits: dequantized Q4_1 plus noise, quantized again by llama.cpp."""
    header = read_header(smollm2)
    random = np.random.default_rng(5)
    writer = gguf.GGUFWriter(tmp_path / "noisy.gguf", "llama")
    reader = gguf.GGUFReader(smollm2)
    for key, entry in reader.fields.items():
        if not key.startswith("GGUF.") and key != "general.architecture":
            kind = entry.types[0]
            writer.add_key_value(key, entry.contents(), kind, entry.types[-1] if len(entry.types) > 1 else None)
    with TensorFile(header) as file:
        for tensor in header.tensors:
            rows = file.rows(tensor, 0, tensor.elements // tensor.dimensions[0])
            if len(tensor.dimensions) > 1:
                rows = rows + random.standard_normal(rows.shape, dtype=np.float32) * (0.1 * rows.std())
            writer.add_tensor(tensor.name, rows.reshape(tensor.shape).astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    unpack(tmp_path / "noisy.gguf", tmp_path / "noisy", "bf16", Events())
    source = quantized_by_llama_cpp(tmp_path / "noisy.gguf", tmp_path / "quantized.gguf", file_type)
    assert compared(source, tmp_path / "noisy").verdict == "identical"
    unpack(tmp_path / "noisy.gguf", tmp_path / "exact", "f32", Events())

    def tune(weights: Weights) -> None:
        for name, weight in weights.items():
            if "_proj" in name:
                weights[name] = low_rank(weight, 0.005)

    tuned = compared(source, altered(tmp_path / "exact", tmp_path / "tuned", tune))
    assert tuned.verdict == "fine-tuned" and len(tuned.changed) == 210
    assert tuned.change < 0.006

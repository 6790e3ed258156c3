"""llama.cpp with the adapter applied at run time against transformers with PEFT, and against the merged export."""

from __future__ import annotations

import ctypes
import math
import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import llama_cpp
import numpy as np
import peft
import pytest
import torch
import transformers
from safetensors.numpy import load_file, save_file

from amigo_local.domain.errors import AmigoError, InputError
from amigo_local.weights import adapter_gguf
from amigo_local.weights.adapter_gguf import write_adapter_gguf
from amigo_local.weights.divergence import ChangeShare, change_share, divergence
from amigo_local.weights.gguf_header import read_header
from amigo_local.weights.kernels import Rows
from amigo_local.weights.language_model import loadable
from amigo_local.weights.llama_cpp_model import LlamaCppModel, QuietLog
from amigo_local.weights.probe import Probe, probes
from tests.support.exporting import run
from tests.support.tiny_families import write_family
from tests.support.tiny_gguf import VOCABULARY, _add_bpe
from tests.weights.conftest import TEXTS, Events, write_adapter

Unpacked = Callable[[Path], Path]
PLAIN_ROPE = {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4}}
# Family of tests/support -> GGUF's architecture and settings that leave no table to be written.
FAMILIES: dict[str, tuple[gguf.MODEL_ARCH, dict[str, Any]]] = {
    "llama": (gguf.MODEL_ARCH.LLAMA, PLAIN_ROPE),
    "llama-untied-biased-odd": (gguf.MODEL_ARCH.LLAMA, {}),
    "qwen2": (gguf.MODEL_ARCH.QWEN2, {}),
    "qwen3": (gguf.MODEL_ARCH.QWEN3, {}),
    "gemma2": (gguf.MODEL_ARCH.GEMMA2, {}),
    "gemma3": (gguf.MODEL_ARCH.GEMMA3, {"query_pre_attn_scalar": 32}),
    "phi3": (gguf.MODEL_ARCH.PHI3, {}),
}
PROBE = Probe(tuple((7 * i * i + 11 * i + 3) % VOCABULARY for i in range(48)), tuple(range(48)))


class AdaptedModel(LlamaCppModel):
    """llama.cpp's arithmetic in float32 with a LoRA GGUF on the base."""

    def __init__(self, path: Path, adapter: Path) -> None:
        self._adapter = adapter
        super().__init__(path, threads=1)

    def _new_context(self, path: Path, threads: int | None, log: QuietLog) -> object:
        adapter = llama_cpp.llama_adapter_lora_init(self._model, str(self._adapter).encode())
        assert adapter, log.first_error
        context: Any = super()._new_context(path, threads, log)
        adapters, scales = (llama_cpp.llama_adapter_lora_p_ctypes * 1)(adapter), (ctypes.c_float * 1)(1.0)
        assert llama_cpp.llama_set_adapters_lora(context, adapters, 1, scales) == 0
        return context


def served(base: Path, adapter: Path | None = None, on: tuple[Probe, ...] = (PROBE,)) -> Rows:
    with AdaptedModel(base, adapter) if adapter else LlamaCppModel(base, threads=1) as model:
        return model.logits(on)


def trained(checkpoint: Path, adapter: Path | None = None) -> Rows:
    """The logits of transformers, with the adapter as PEFT applies it."""
    model: Any = transformers.AutoModelForCausalLM.from_pretrained(
        checkpoint, dtype=torch.float32, attn_implementation="eager"
    )
    if adapter:
        model = peft.PeftModel.from_pretrained(model, str(adapter))
    with torch.inference_mode():
        logits: Rows = model.eval()(torch.tensor([PROBE.tokens])).logits[0].numpy()
    return logits


def _permuted(values: np.ndarray, heads: int) -> np.ndarray:
    """LlamaModel.permute in llama.cpp's conversion/llama.py, of matrices and biases."""
    halves = values.reshape(heads, 2, values.shape[0] // heads // 2, *values.shape[1:])
    return np.ascontiguousarray(halves.swapaxes(1, 2).reshape(values.shape))


def write_base(folder: Path, name: str) -> tuple[Path, Path]:
    """(checkpoint, GGUF) of a family, in float32; the GGUF by gguf-py's names and not by the product's."""
    architecture, settings = FAMILIES[name]
    checkpoint = write_family(folder / name, name, dtype="float32", vocab_size=VOCABULARY, **settings)
    config = transformers.AutoConfig.from_pretrained(checkpoint)
    arch = gguf.MODEL_ARCH_NAMES[architecture]
    writer = gguf.GGUFWriter(folder / f"{name}.gguf", arch)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    writer.add_key_length(head_dim)
    writer.add_value_length(head_dim)
    writer.add_rope_dimension_count(head_dim)
    rope = config.rope_parameters
    full = rope.get("full_attention", rope)
    writer.add_rope_freq_base(full["rope_theta"])
    if full["rope_type"] == "linear":
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(full["factor"])
    if getattr(config, "sliding_window", None):
        writer.add_sliding_window(config.sliding_window)
    if arch == "gemma2":
        writer.add_attn_logit_softcapping(config.attn_logit_softcapping)
        writer.add_final_logit_softcapping(config.final_logit_softcapping)
    _add_bpe(writer)
    names = gguf.get_tensor_name_map(architecture, config.num_hidden_layers)
    for key, values in load_file(checkpoint / "model.safetensors").items():
        for part, heads in (("q_proj", config.num_attention_heads), ("k_proj", config.num_key_value_heads)):
            if arch == "llama" and f".{part}." in key:
                values = _permuted(values, heads)
        if arch.startswith("gemma") and "norm" in key:
            values = values + np.float32(1)
        found = names.get_name(key, try_suffixes=(".weight", ".bias"))
        assert found, key
        writer.add_tensor(found, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return checkpoint, folder / f"{name}.gguf"


def written(adapter: Path, base: Path, out: Path) -> Path:
    write_adapter_gguf(adapter, base, out)
    return out


@pytest.mark.parametrize("name", FAMILIES)
def test_llama_cpp_says_what_peft_says(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint, base = write_base(tmp_path, name)
    adapter = write_adapter(checkpoint, tmp_path / "adapter", scale=0.05)
    expected = trained(checkpoint, adapter)
    # llama.cpp looks up gemma's gelu in a table of halves, with and without an adapter.
    bound = 1e-5 if name.startswith("gemma") else 1e-12
    lora = written(adapter, base, tmp_path / "lora.gguf")
    assert divergence(expected, served(base, lora)).max < bound
    assert divergence(trained(checkpoint), served(base)).max < bound
    assert divergence(expected, served(base)).mean > 0.02
    if name.startswith("llama"):
        monkeypatch.setattr(adapter_gguf, "to_gguf_rows", lambda rows, head_dim: rows)
        unpermuted = written(adapter, base, tmp_path / "unpermuted.gguf")
        assert divergence(expected, served(base, unpermuted)).mean > 1e5 * bound


@pytest.mark.parametrize(
    "settings",
    [
        {"use_rslora": True, "r": 5, "lora_alpha": 3},
        {"rank_pattern": {"v_proj": 3, "layers.1.mlp.up_proj": 7}},
        {"alpha_pattern": {"q_proj": 1, "o_proj": 0, "down_proj": 40}, "rank_pattern": {"q_proj": 3}},
        {"alpha_pattern": {"k_proj": 3}, "rank_pattern": {"k_proj": 2}, "use_rslora": True, "lora_alpha": 0},
        {"target_modules": ["embed_tokens", "lm_head", "v_proj"], "rank_pattern": {"embed_tokens": 3}},
    ],
    ids=["rslora", "ranks", "alphas", "alpha-0", "embedding-and-head"],
)
def test_scales_ranks_and_an_embedding_are_pefts(settings: dict[str, object], tmp_path: Path) -> None:
    checkpoint, base = write_base(tmp_path, "llama-untied-biased-odd")
    adapter = write_adapter(checkpoint, tmp_path / "adapter", scale=0.2, **settings)
    expected = trained(checkpoint, adapter)
    lora = written(adapter, base, tmp_path / "lora.gguf")
    assert divergence(expected, served(base, lora)).max < 1e-12
    assert divergence(expected, served(base)).mean > 1e-6


def test_an_adapter_without_any_strength_changes_nothing(tmp_path: Path) -> None:
    # llama.cpp takes an alpha of 0 for a scale of 1.
    checkpoint, base = write_base(tmp_path, "qwen2")
    adapter = write_adapter(checkpoint, tmp_path / "adapter", lora_alpha=0)
    np.testing.assert_array_equal(served(base, written(adapter, base, tmp_path / "lora.gguf")), served(base))


def test_the_file_is_what_llama_cpps_converter_writes(tmp_path: Path) -> None:
    checkpoint, base = write_base(tmp_path, "llama")
    adapter = write_adapter(checkpoint, tmp_path / "adapter", r=4, lora_alpha=6, target_modules=["q_proj", "up_proj"])
    reader = gguf.GGUFReader(written(adapter, base, tmp_path / "lora.gguf"))
    fields = {name: field.contents() for name, field in reader.fields.items() if not name.startswith("GGUF.")}
    assert fields == {
        "general.architecture": "llama",
        "general.type": "adapter",
        "adapter.type": "lora",
        "adapter.lora.alpha": 6.0,
    }
    assert reader.fields["adapter.lora.alpha"].types == [gguf.GGUFValueType.FLOAT32]
    # ggml's order of dimensions: columns first.
    shapes = {
        "attn_q.weight.lora_a": (64, 4),
        "attn_q.weight.lora_b": (4, 64),
        "ffn_up.weight.lora_a": (64, 4),
        "ffn_up.weight.lora_b": (4, 96),
    }
    expected = {f"blk.{layer}.{name}": shape for layer in range(2) for name, shape in shapes.items()}
    assert {tensor.name: tuple(int(n) for n in tensor.shape) for tensor in reader.tensors} == expected
    assert {tensor.tensor_type for tensor in reader.tensors} == {gguf.GGMLQuantizationType.F32}
    theirs = load_file(adapter / "adapter_model.safetensors")
    found = {tensor.name: tensor.data for tensor in reader.tensors}
    q = "base_model.model.model.layers.1.self_attn.q_proj"
    np.testing.assert_array_equal(found["blk.1.attn_q.weight.lora_a"], theirs[f"{q}.lora_A.weight"])
    np.testing.assert_array_equal(found["blk.1.attn_q.weight.lora_b"], _permuted(theirs[f"{q}.lora_B.weight"], 4))
    again = written(adapter, base, tmp_path / "again.gguf")
    assert again.read_bytes() == (tmp_path / "lora.gguf").read_bytes()


def test_a_bfloat16_adapter_loses_nothing(tmp_path: Path) -> None:
    checkpoint, base = write_base(tmp_path, "qwen3")
    adapter = write_adapter(checkpoint, tmp_path / "adapter", scale=0.05)
    from safetensors.torch import load_file as load_torch
    from safetensors.torch import save_file as save_torch

    path = adapter / "adapter_model.safetensors"
    save_torch({name: value.bfloat16() for name, value in load_torch(path).items()}, path, {"format": "pt"})
    lora = written(adapter, base, tmp_path / "lora.gguf")
    assert divergence(trained(checkpoint, adapter), served(base, lora)).max < 1e-12


class Compared:
    """A base, the base in float32, base + adapter, and the adapter merged into a float32 export, on real texts."""

    def __init__(self, base: Path, adapter: Path, folder: Path) -> None:
        self.base, self.adapter, self.folder = base, adapter, folder
        lora = written(adapter, base, folder / "lora.gguf")
        exact = self.exported("f32", None)
        with loadable(read_header(base), folder) as runnable:
            with LlamaCppModel(runnable, threads=1) as model:
                self.on = tuple(probes([model.tokenize(text) for text in TEXTS], model.vocabulary_size))
            self.plain, self.adapted = served(runnable, on=self.on), served(runnable, lora, self.on)
        self.exact, self.merged = self.logits(exact), self.logits(self.exported("f32", adapter))

    def exported(self, quant: Any, adapter: Path | None) -> Path:
        out = self.folder / f"{quant}-{adapter is not None}.gguf"
        run(self.base, adapter, out, quant, Events())
        return out

    def logits(self, path: Path) -> Rows:
        with loadable(read_header(path), self.folder) as runnable:
            return served(runnable, on=self.on)

    def share(self) -> ChangeShare:
        """How much of what merging changes is changed at run time."""
        return change_share(self.exact, self.merged, self.plain, self.adapted)


@pytest.mark.parametrize("name", ["exact_llama", "exact_gemma", "ollama_gemma"])
def test_an_exact_base_with_the_adapter_says_what_its_export_says(
    name: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    adapter = request.getfixturevalue("gemma_adapter" if "gemma" in name else "llama_adapter")
    made = Compared(request.getfixturevalue(name), adapter, tmp_path)
    assert divergence(made.merged, made.adapted).max < (1e-5 if "gemma" in name else 1e-9)
    assert divergence(made.merged, made.plain).mean > 3
    half = made.logits(made.exported("f16", adapter))
    assert divergence(half, made.adapted).mean < 2e-4  # what the export's rounding takes


def test_a_quantized_base_with_the_adapter_says_what_its_export_says(
    tiny_llama: Path, llama_adapter: Path, tmp_path: Path
) -> None:
    made = Compared(tiny_llama, llama_adapter, tmp_path)
    # llama.cpp rounds activations to Q8_0 where weights are, with and without an adapter, and merged ones aren't.
    assert divergence(made.exact, made.plain).mean == pytest.approx(0.006, abs=0.003)
    assert divergence(made.merged, made.adapted).mean == pytest.approx(0.009, abs=0.004)
    assert divergence(made.merged, made.plain).mean > 3
    assert made.share().share == pytest.approx(1, abs=0.01)


@pytest.mark.slow
def test_smollm2_with_an_adapter_says_what_its_export_says(smollm2: Path, unpacked: Unpacked, tmp_path: Path) -> None:
    adapter = write_adapter(unpacked(smollm2), tmp_path / "adapter", scale=0.005)
    made = Compared(smollm2, adapter, tmp_path)
    noise = divergence(made.exact, made.plain).mean  # of a Q4_1 base's activations: 0.0040
    half = made.logits(made.exported("f16", adapter))
    assert divergence(half, made.adapted).mean < 2 * noise < 0.012  # 0.0056
    assert divergence(half, made.plain).mean > 0.4  # 0.51
    assert made.share().share == pytest.approx(1, abs=0.02)


def refused(adapter: Path, base: Path, out: Path, message: str) -> InputError:
    with pytest.raises(InputError, match=message) as caught:
        write_adapter_gguf(adapter, base, out)
    assert list(out.parent.glob(f"{out.name}*")) == []
    return caught.value


def test_what_the_format_cannot_say_is_refused_by_name(tmp_path: Path) -> None:
    checkpoint, base = write_base(tmp_path, "llama-untied-biased-odd")
    out = tmp_path / "lora.gguf"
    dora = write_adapter(checkpoint, tmp_path / "dora", use_dora=True)
    error = refused(dora, base, out, r"dora: is DoRA, .* rows of model\.layers\.0\.\w+\.\w+; llama\.cpp only adds")
    assert "amigo-local export" in str(error.hint)
    saved = write_adapter(checkpoint, tmp_path / "saved", target_modules=["q_proj"], modules_to_save=["lm_head"])
    error = refused(saved, base, out, r"replaces lm_head \(modules_to_save\); llama\.cpp only adds")
    assert "amigo-local export" in str(error.hint)
    norms = write_adapter(checkpoint, tmp_path / "norms", target_modules=["q_proj"], modules_to_save=["norm"])
    refused(norms, base, out, r"replaces model\.layers\.0\.input_layernorm")  # llama.cpp would skip it in silence


def test_an_adapter_of_another_base_is_refused(llama_adapter: Path, tmp_path: Path) -> None:
    checkpoint, base = write_base(tmp_path, "llama")
    fused, _ = write_base(tmp_path, "phi3")
    out = tmp_path / "lora.gguf"
    qkv = write_adapter(fused, tmp_path / "qkv", target_modules=["qkv_proj"])
    refused(qkv, base, out, r"another base .*phi3\): it changes model\.layers\.0\.self_attn\.qkv_proj, the base has no")
    refused(llama_adapter, base, out, r"down_proj is \[64, 96\] in the base, the adapter expects \[256, 512\]")
    embedding = write_adapter(checkpoint, tmp_path / "embedding", target_modules=["embed_tokens"])
    refused(embedding, base, out, r"it changes embed_tokens, the base's output is tied to its embedding")


def test_broken_weights_and_the_base_itself_are_refused(tmp_path: Path) -> None:
    checkpoint, base = write_base(tmp_path, "qwen2")
    adapter = write_adapter(checkpoint, tmp_path / "adapter", target_modules=["v_proj"])
    before = base.read_bytes()
    with pytest.raises(InputError, match=r"qwen2\.gguf: is the base itself"):
        write_adapter_gguf(adapter, base, base)
    assert base.read_bytes() == before
    weights = adapter / "adapter_model.safetensors"
    stored = load_file(weights)
    stored["base_model.model.model.layers.1.self_attn.v_proj.lora_B.weight"][3, :2] = math.nan, math.inf
    save_file(stored, weights, {"format": "pt"})
    refused(
        adapter,
        base,
        tmp_path / "lora.gguf",
        r"adapter: holds 2 values for blk\.1\.attn_v\.weight\.lora_b that are NaN",
    )


def test_a_full_disk_leaves_nothing(tmp_path: Path) -> None:
    checkpoint, base = write_base(tmp_path, "qwen2")
    adapter = write_adapter(checkpoint, tmp_path / "adapter")
    out = tmp_path / "lora.gguf"
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20000, limits[1]))
    try:
        with pytest.raises(AmigoError, match=r"are needed, .* are free now"):
            write_adapter_gguf(adapter, base, out)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert list(tmp_path.glob("lora.gguf*")) == []

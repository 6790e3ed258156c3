"""Tiny random models as GGUF files that real llama.cpp and a real Ollama load: the test models of this suite.

Written with gguf-py, tokenizers and sentencepiece, none of which the product's own GGUF code uses,
so that a test which reads these files compares with an independent writer.
"""

from __future__ import annotations

import argparse
import functools
import inspect
import io
import string
import textwrap
from pathlib import Path
from typing import Any, Literal

import numpy as np

CHATML = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
GEMMA = (
    "{{ bos_token }}{% for message in messages %}"
    "{{ '<start_of_turn>' + ('model' if message['role'] == 'assistant' else message['role']) + '\n' }}"
    "{{ message['content'] | trim + '<end_of_turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)
# Widths are multiples of 256 so that every K-quant applies.
HIDDEN, FFN, VOCABULARY, CONTEXT = 256, 512, 1024, 512
BPE_SPECIALS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
SPM_CONTROLS = ["<start_of_turn>", "<end_of_turn>"]
SPM_USER_DEFINED = ["\n\n", "\n", "\u2581\u2581", "\u2581\u2581\u2581\u2581"]

TokenizerKind = Literal["bpe", "spm"]


def _corpus() -> list[str]:
    """Standard-library sources and a line of other scripts: enough text to learn a real vocabulary from."""
    sources = [inspect.getsource(module) for module in (argparse, string, textwrap, functools)]
    return [line + "\n" for line in "\n".join(sources).splitlines()] + ["Grüße, naïve café, 東京, привет 🙂\n"] * 4


@functools.cache
def _bpe() -> tuple[list[str], list[str]]:
    """(tokens by id, merges as "left right") of a byte-level BPE trained as SmolLM's is (digits split, GPT-2 regex)."""
    import json

    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=BPE_SPECIALS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_corpus(), trainer)
    model = json.loads(tokenizer.to_str())["model"]
    vocab: dict[str, int] = model["vocab"]
    merges = [" ".join(m) if isinstance(m, list) else m for m in model["merges"]]
    return sorted(vocab, key=vocab.__getitem__), merges


@functools.cache
def spm_model() -> bytes:
    """A sentencepiece BPE model with byte fallback, with Gemma's ids for pad, eos, bos and unk."""
    import sentencepiece

    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(line.strip("\n") for line in _corpus() if line.strip()),
        model_writer=model,
        model_type="bpe",
        vocab_size=VOCABULARY,
        byte_fallback=True,
        split_digits=True,
        character_coverage=1.0,
        normalization_rule_name="identity",
        add_dummy_prefix=False,
        remove_extra_whitespaces=False,
        num_threads=1,
        minloglevel=2,
        pad_id=0,
        eos_id=1,
        bos_id=2,
        unk_id=3,
        control_symbols=SPM_CONTROLS,
        user_defined_symbols=SPM_USER_DEFINED,
    )
    return model.getvalue()


def _add_bpe(writer: Any, pre: str = "smollm") -> int:
    tokens, merges = _bpe()
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokens)
    writer.add_token_types([3 if token in BPE_SPECIALS else 1 for token in tokens])
    writer.add_token_merges(merges)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_pad_token_id(2)
    writer.add_add_bos_token(False)
    writer.add_add_space_prefix(False)
    return len(tokens)


def _add_spm(writer: Any, surplus: int = 0) -> int:
    """Returns how many tokens the embedding has; `surplus` unused tokens come after them."""
    import sentencepiece

    spm = sentencepiece.SentencePieceProcessor(model_proto=spm_model())
    count = spm.vocab_size()
    kinds = [
        2 if spm.is_unknown(i) else 3 if spm.is_control(i) else 6 if spm.is_byte(i) else 1  #
        for i in range(count)
    ]
    pieces = [spm.id_to_piece(i) for i in range(count)]
    kinds = [4 if piece in SPM_USER_DEFINED else kind for piece, kind in zip(pieces, kinds, strict=True)]
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    # llama.cpp's converter spells user-defined space runs with plain spaces.
    tokens = [p.replace("\u2581", " ") if k == 4 else p for p, k in zip(pieces, kinds, strict=True)]
    writer.add_token_list(tokens + [f"<surplus{i}>" for i in range(surplus)])
    writer.add_token_scores([spm.get_score(i) for i in range(count)] + [-1000.0] * surplus)
    writer.add_token_types(kinds + [1] * surplus)
    writer.add_pad_token_id(0)
    writer.add_eos_token_id(1)
    writer.add_bos_token_id(2)
    writer.add_unk_token_id(3)
    writer.add_add_bos_token(True)
    writer.add_add_space_prefix(False)
    return count


class _Tensors:
    """Adds random matrices in one quantization type, and vectors in f32, in the order asked for."""

    def __init__(self, writer: Any, seed: int, weight_type: str) -> None:
        from gguf import GGMLQuantizationType

        self.writer, self.random = writer, np.random.default_rng(seed)
        self.type = GGMLQuantizationType[weight_type.upper()]

    def matrix(self, name: str, rows: int, columns: int, scale: float = 1.0) -> None:
        from gguf import GGMLQuantizationType, quants

        values = self.random.standard_normal((rows, columns), dtype=np.float32) * (scale / columns**0.5)
        kind = self.type if values.shape[1] % 32 == 0 else GGMLQuantizationType.F16
        self.writer.add_tensor(name, quants.quantize(values, kind), raw_dtype=kind)

    def vector(self, name: str, size: int, mean: float = 0.0, deviation: float = 0.1) -> None:
        values = mean + deviation * self.random.standard_normal(size, dtype=np.float32)
        self.writer.add_tensor(name, values.astype(np.float32))


def _finish(writer: Any) -> None:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _file_type(weight_type: str) -> int:
    from gguf import LlamaFileType

    names = {"f32": "ALL_F32"}
    return int(LlamaFileType[names.get(weight_type, f"MOSTLY_{weight_type.upper()}")])


def llama3_factors(head_dim: int, base: float = 500000.0, factor: float = 8.0) -> np.ndarray:
    """The `rope_freqs.weight` of Llama 3.1 (convert_hf_to_gguf.py, LlamaModel.generate_extra_tensors)."""
    low, high, original = 1.0, 4.0, 8192
    wavelengths = 2 * np.pi * base ** (np.arange(0, head_dim, 2, dtype=np.float64) / head_dim)
    smooth = (original / wavelengths - low) / (high - low)
    between = 1 / ((1 - smooth) / factor + smooth)
    factors = np.where(wavelengths < original / high, 1.0, np.where(wavelengths > original / low, factor, between))
    return factors.astype(np.float32)


def write_tiny_llama(
    path: Path,
    *,
    seed: int = 0,
    chat_template: str | None = CHATML,
    weight_type: str = "q8_0",
    tokenizer: TokenizerKind = "bpe",
    llama3_rope: bool = False,
    tied: bool = True,
    biases: bool = False,
    pre: str = "smollm",
    architecture: str = "llama",
) -> Path:
    """A random 4-layer llama (2.6 M parameters, grouped-query attention, 1024 tokens); returns `path`."""
    import gguf

    layers, heads, kv_heads, head_dim = 4, 4, 2, 64
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_name("Tiny Llama")
    writer.add_block_count(layers)
    writer.add_context_length(CONTEXT)
    writer.add_embedding_length(HIDDEN)
    writer.add_feed_forward_length(FFN)
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv_heads)
    writer.add_rope_dimension_count(head_dim)
    writer.add_rope_freq_base(500000.0 if llama3_rope else 10000.0)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_file_type(_file_type(weight_type))
    vocabulary = _add_bpe(writer, pre) if tokenizer == "bpe" else _add_spm(writer)
    writer.add_vocab_size(vocabulary)
    if chat_template is not None:
        writer.add_chat_template(chat_template)

    tensors = _Tensors(writer, seed, weight_type)
    tensors.matrix("token_embd.weight", vocabulary, HIDDEN, scale=2.0)
    tensors.vector("output_norm.weight", HIDDEN, mean=1.0)
    if llama3_rope:
        writer.add_tensor("rope_freqs.weight", llama3_factors(head_dim))
    if not tied:
        tensors.matrix("output.weight", vocabulary, HIDDEN, scale=2.0)
    projections = (("attn_q", heads * head_dim), ("attn_k", kv_heads * head_dim), ("attn_v", kv_heads * head_dim))
    for i in range(layers):
        tensors.vector(f"blk.{i}.attn_norm.weight", HIDDEN, mean=1.0)
        for name, rows in projections:
            tensors.matrix(f"blk.{i}.{name}.weight", rows, HIDDEN, scale=2.0)
            if biases:
                tensors.vector(f"blk.{i}.{name}.bias", rows)
        tensors.matrix(f"blk.{i}.attn_output.weight", HIDDEN, heads * head_dim)
        if biases:
            tensors.vector(f"blk.{i}.attn_output.bias", HIDDEN)
        tensors.vector(f"blk.{i}.ffn_norm.weight", HIDDEN, mean=1.0)
        tensors.matrix(f"blk.{i}.ffn_gate.weight", FFN, HIDDEN)
        tensors.matrix(f"blk.{i}.ffn_up.weight", FFN, HIDDEN)
        tensors.matrix(f"blk.{i}.ffn_down.weight", HIDDEN, FFN)
    _finish(writer)
    return path


def write_tiny_gemma3(
    path: Path,
    *,
    seed: int = 0,
    chat_template: str | None = GEMMA,
    weight_type: str = "q8_0",
    ollama_style: bool = False,
) -> Path:
    """A random 6-layer gemma3 (five sliding-window layers, one full; sentencepiece tokenizer); returns `path`.

    `ollama_style` writes what Ollama's library blobs look like: a vision tower in the same file,
    `rope.global/local.freq_base`, no epsilon, one token more than embedding rows. Ollama 0.9.3 splits
    runs of spaces otherwise than llama.cpp does; on other text the token ids are the same.
    """
    import gguf

    layers, heads, kv_heads, head_dim, window = 6, 4, 1, 64, 32
    writer = gguf.GGUFWriter(path, "gemma3")
    writer.add_name("Tiny Gemma")
    writer.add_block_count(layers)
    writer.add_context_length(CONTEXT)
    writer.add_embedding_length(HIDDEN)
    writer.add_feed_forward_length(FFN)
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv_heads)
    writer.add_key_length(head_dim)
    writer.add_value_length(head_dim)
    writer.add_sliding_window(window)
    writer.add_file_type(_file_type(weight_type))
    if ollama_style:
        writer.add_float32("gemma3.rope.global.freq_base", 1000000.0)
        writer.add_float32("gemma3.rope.local.freq_base", 10000.0)
        writer.add_uint32("gemma3.mm.tokens_per_image", 256)
        writer.add_uint32("gemma3.vision.block_count", 1)
        writer.add_uint32("gemma3.vision.embedding_length", 64)
    else:
        writer.add_layer_norm_rms_eps(1e-6)
        writer.add_rope_freq_base(1000000.0)
    vocabulary = _add_spm(writer, surplus=1 if ollama_style else 0)
    if chat_template is not None:
        writer.add_chat_template(chat_template)

    tensors = _Tensors(writer, seed, weight_type)
    # Gemma multiplies embeddings by sqrt(hidden); its stored norms are w + 1, as the converter writes them.
    tensors.matrix("token_embd.weight", vocabulary, HIDDEN, scale=2.0)
    tensors.vector("output_norm.weight", HIDDEN, mean=1.0)
    projections = (("attn_q", heads * head_dim), ("attn_k", kv_heads * head_dim), ("attn_v", kv_heads * head_dim))
    for i in range(layers):
        for norm in ("attn_norm", "post_attention_norm", "ffn_norm", "post_ffw_norm"):
            tensors.vector(f"blk.{i}.{norm}.weight", HIDDEN, mean=4.0 if norm.startswith("post") else 1.0)
        for name, rows in projections:
            tensors.matrix(f"blk.{i}.{name}.weight", rows, HIDDEN)
        for norm in ("attn_q_norm", "attn_k_norm"):
            tensors.vector(f"blk.{i}.{norm}.weight", head_dim, mean=1.5)
        tensors.matrix(f"blk.{i}.attn_output.weight", HIDDEN, heads * head_dim)
        tensors.matrix(f"blk.{i}.ffn_gate.weight", FFN, HIDDEN)
        tensors.matrix(f"blk.{i}.ffn_up.weight", FFN, HIDDEN)
        tensors.matrix(f"blk.{i}.ffn_down.weight", HIDDEN, FFN)
    if ollama_style:
        tensors.matrix("mm.mm_input_projection.weight", HIDDEN, 64)
        tensors.matrix("v.blk.0.attn_q.weight", 64, 64)
        tensors.vector("v.post_layernorm.weight", 64, mean=1.0)
    _finish(writer)
    return path

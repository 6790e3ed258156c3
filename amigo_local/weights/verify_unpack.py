"""Proof that an unpacked checkpoint is the same model: token ids and next-token distributions against llama.cpp."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from amigo_local.domain.artifact import Figure
from amigo_local.domain.errors import AmigoError
from amigo_local.domain.events import Emit, Note, Progress
from amigo_local.weights.divergence import DivergenceMeter
from amigo_local.weights.gguf_header import read_header
from amigo_local.weights.language_model import loadable
from amigo_local.weights.llama_cpp_model import LlamaCppModel
from amigo_local.weights.torch_model import TorchModel, load_tokenizer, too_big_for_torch

MAX_TOKENS = 64
# Both sides hold the same weights, so what differs is llama.cpp's arithmetic: it rounds activations to 8 bits before
# each product with a quantized matrix. Measured, every position of five texts: SmolLM2-135M Q4_1 mean 0.0040, max
# 0.024; Gemma 3 270M Q4_K_M mean 0.0090, max 0.105 nats, the same to three digits with bf16, f16 and f32 checkpoints.
# Query and key rows left interleaved: mean 2.5, max 14.7.
MEAN_KL_LIMIT = 0.05
MAX_KL_LIMIT = 1.0


def check_unpacked(
    gguf_path: Path,
    checkpoint_dir: Path,
    texts: Sequence[str],
    emit: Emit,
    *,
    max_parameters: int | None = None,
    threads: int | None = None,
) -> dict[str, Figure]:
    """Compares the checkpoint in torch (float32) with llama.cpp on the GGUF it came from.

    `texts` are cut to 64 tokens for the distributions, not for the token ids. The distributions are left out, with a
    Note, above `max_parameters`, or (None) when float32 weights don't fit into the memory that is available now.
    Returns texts, differing_texts, and where measured kl_mean, kl_max (nats), same_top_share and kl_positions.
    Raises AmigoError when a text is tokenized differently or a limit above is passed.
    """
    header = read_header(gguf_path)
    prompts = _check_tokens(gguf_path, checkpoint_dir, texts, emit)
    figures: dict[str, Figure] = {"texts": len(texts), "differing_texts": 0}
    reason = too_big_for_torch(header.parameters, max_parameters)
    if reason:
        emit(Note(f"the next-token check was left out: {reason}", "warning"))
        return figures | {"kl_checked": False}
    meter = DivergenceMeter()
    reference = TorchModel(checkpoint_dir)
    with loadable(header, checkpoint_dir.parent) as path, LlamaCppModel(path, threads=threads) as served:
        for i, tokens in enumerate(prompts):
            meter.add(reference.logits(tokens), served.logits(tokens))
            emit(Progress("comparing with llama.cpp", i + 1, len(prompts), "prompts"))
    result = meter.result()
    # Written so that NaN fails too.
    if not (result.mean <= MEAN_KL_LIMIT and result.max <= MAX_KL_LIMIT):
        raise AmigoError(
            f"{checkpoint_dir}: is not the model in {gguf_path}: next-token KL mean {result.mean:.3g}, "
            f"max {result.max:.3g} nats, expected at most {MEAN_KL_LIMIT} and {MAX_KL_LIMIT}",
            "report this file's architecture and quantization: unpacking it is wrong",
        )
    return figures | {
        "kl_checked": True,
        "kl_mean": result.mean,
        "kl_max": result.max,
        "same_top_share": result.same_top,
        "kl_positions": result.positions,
    }


def _check_tokens(gguf_path: Path, checkpoint_dir: Path, texts: Sequence[str], emit: Emit) -> list[list[int]]:
    """llama.cpp's ids of each text, cut for the distributions. Raises AmigoError when transformers' differ."""
    tokenizer = load_tokenizer(checkpoint_dir)
    prompts: list[list[int]] = []
    differing: list[str] = []
    with (
        loadable(read_header(gguf_path), checkpoint_dir.parent, vocabulary_only=True) as path,
        LlamaCppModel(path, vocabulary_only=True) as served,
    ):
        for text in texts:
            tokens = served.tokenize(text)
            if tokens != tokenizer(text)["input_ids"]:
                differing.append(text)
            prompts.append(tokens[:MAX_TOKENS])
    emit(Progress("comparing tokens", len(texts), len(texts), "texts"))
    if differing:
        raise AmigoError(
            f"{checkpoint_dir}: {len(differing)} of {len(texts)} texts get other tokens than in llama.cpp, "
            f"first {differing[0][:60]!r}",
            "report this file's tokenizer: unpacking it is wrong",
        )
    return [tokens for tokens in prompts if tokens]

"""Proof that an unpacked checkpoint is the same model: token ids and next-token distributions against llama.cpp."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from amigo_local.domain.artifact import Figure
from amigo_local.domain.errors import AmigoError
from amigo_local.domain.events import Emit, Note, Progress
from amigo_local.weights.divergence import divergence
from amigo_local.weights.gguf_header import read_header
from amigo_local.weights.language_model import loadable
from amigo_local.weights.llama_cpp_model import LlamaCppModel
from amigo_local.weights.probe import probes
from amigo_local.weights.torch_model import TorchModel, load_tokenizer
from amigo_local.weights.verify_tokens import check_chats, check_tokens
from amigo_local.weights.weight_source import CheckpointWeights

PROMPTS = 20
# Both sides hold the same weights, so what differs is llama.cpp's arithmetic: it rounds activations to 8 bits before
# each product with a quantized matrix. Measured, every position of five texts: SmolLM2-135M Q4_1 mean 0.0040, max
# 0.024; Gemma 3 270M Q4_K_M mean 0.0090, max 0.105 nats, the same to three digits with bf16, f16 and f32 checkpoints.
# Query and key rows left interleaved: mean 2.5, max 14.7.
MEAN_KL_LIMIT = 0.05
MAX_KL_LIMIT = 1.0


def check_tokenizer(gguf_path: Path, tokenizer_dir: Path, texts: Sequence[str], emit: Emit) -> dict[str, Figure]:
    """The token part of `check_unpacked`, of a directory without weights."""
    header = read_header(gguf_path)
    tokenizer = load_tokenizer(tokenizer_dir)
    with (
        loadable(header, tokenizer_dir.parent, vocabulary_only=True) as path,
        LlamaCppModel(path, vocabulary_only=True) as served,
    ):
        emit(Progress("comparing tokens", 0, len(texts), "texts"))
        figures = check_tokens(tokenizer, served, texts, tokenizer_dir)
        return figures | check_chats(tokenizer, header, served, tokenizer_dir)


def check_unpacked(
    gguf_path: Path,
    checkpoint_dir: Path,
    texts: Sequence[str],
    emit: Emit,
    *,
    prompts: Sequence[str] | None = None,
    threads: int | None = None,
) -> dict[str, Figure]:
    """Compares the checkpoint in torch (float32) with llama.cpp on the GGUF it came from.

    `texts` are tokenized by both, and a few chats; `prompts` (None: the first 20 texts), cut to 64 tokens, are what
    both predict the next tokens of.
    Returns texts, differing_texts, chat_template, chats, refused_chats, kl_mean, kl_max (nats), same_top_share and
    kl_positions. Raises AmigoError when anything is tokenized differently or a limit above is passed.
    """
    header = read_header(gguf_path)
    tokenizer = load_tokenizer(checkpoint_dir)
    with loadable(header, checkpoint_dir.parent) as path, LlamaCppModel(path, threads=threads) as served:
        emit(Progress("comparing tokens", 0, len(texts), "texts"))
        figures = check_tokens(tokenizer, served, texts, checkpoint_dir)
        figures |= check_chats(tokenizer, header, served, checkpoint_dir)
        chosen = probes(map(served.tokenize, texts[:PROMPTS] if prompts is None else prompts), served.vocabulary_size)
        if not chosen:
            emit(Note("no prompts were given: the checkpoint's predictions were not compared", "warning"))
            return figures | {"kl_checked": False}
        emit(Progress("comparing predictions", 0, 2, "models"))
        found = served.logits(chosen)
    emit(Progress("comparing predictions", 1, 2, "models"))
    result = divergence(TorchModel(checkpoint_dir, CheckpointWeights(checkpoint_dir)).logits(chosen), found)
    emit(Progress("comparing predictions", 2, 2, "models"))
    # Written so that NaN fails too.
    if not (result.mean <= MEAN_KL_LIMIT and result.max <= MAX_KL_LIMIT):
        raise AmigoError(
            f"{checkpoint_dir}: is not the model in {gguf_path}: next-token KL mean {result.mean:.3g}, "
            f"max {result.max:.3g} nats, expected at most {MEAN_KL_LIMIT} and {MAX_KL_LIMIT}",
            "report this file: unpacking it is wrong",
        )
    return figures | {
        "kl_checked": True,
        "kl_mean": result.mean,
        "kl_max": result.max,
        "same_top_share": result.same_top,
        "kl_positions": result.positions,
    }

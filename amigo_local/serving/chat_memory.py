"""What a model takes while it talks, besides its weights: llama.cpp's cache of keys and values, and its buffers."""

from __future__ import annotations

from amigo_local.domain.shape import ModelShape

_BATCH_TOKENS = 512  # n_ubatch, of ours and of Ollama's
_F16, _F32 = 2, 4
_CACHE_STEP_TOKENS = 256  # llama-kv-cache-iswa.cpp: GGML_PAD of the sliding layers' cache


def cache_bytes(shape: ModelShape, context_length: int) -> int:
    """Keys and values in f16. Sliding layers keep their window and one batch (llama-kv-cache-iswa.cpp: size_swa)."""
    tokens = min(context_length, shape.context_length or context_length)
    token_bytes = 2 * shape.kv_size * _F16
    kept = tokens
    if shape.sliding_window is not None:
        kept = min(tokens, _padded(shape.sliding_window + _BATCH_TOKENS))
    return token_bytes * ((shape.layers - shape.sliding_layers) * tokens + shape.sliding_layers * kept)


def buffer_bytes(shape: ModelShape, context_length: int) -> int:
    """Of one batch: logits (llama-context.cpp reserves them for every token), hidden values, an MLP, the mask. Up to a
    fifth more than what llama.cpp reserves on a CPU."""
    tokens = min(context_length, shape.context_length or context_length)
    width = shape.vocabulary + shape.hidden_size + 2 * shape.intermediate_size + tokens
    return min(tokens, _BATCH_TOKENS) * _F32 * width


def _padded(tokens: int) -> int:
    return -(-tokens // _CACHE_STEP_TOKENS) * _CACHE_STEP_TOKENS

"""What a talking model takes, against what llama.cpp itself says that it reserves."""

from __future__ import annotations

import ctypes
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from amigo_local.serving.chat_memory import buffer_bytes, cache_bytes
from amigo_local.weights.gguf_header import model_shape, read_header
from tests.support.tiny_gguf import write_tiny_gemma3

MIB = 1 << 20


def reserved(gguf: Path, context_length: int) -> tuple[float, float]:
    """(cache, compute buffers) in MiB, from llama.cpp's log."""
    import llama_cpp

    from amigo_local.serving import llama_session

    lines: list[str] = []

    @llama_cpp.llama_log_callback  # type: ignore[untyped-decorator]
    def keep(level: int, text: bytes, user_data: object) -> None:
        lines.append(text.decode("utf-8", "replace"))

    llama_cpp.llama_backend_init()
    llama_cpp.llama_log_set(keep, ctypes.c_void_p(0))
    try:
        model = llama_cpp.llama_model_load_from_file(str(gguf).encode(), llama_cpp.llama_model_default_params())
        settings = llama_cpp.llama_context_default_params()
        settings.n_ctx, settings.n_batch, settings.n_ubatch, settings.swa_full = context_length, 512, 512, False
        context = llama_cpp.llama_init_from_model(model, settings)
    finally:
        llama_cpp.llama_log_set(llama_session._silence, ctypes.c_void_p(0))
    llama_cpp.llama_free(context)
    llama_cpp.llama_model_free(model)
    log = "".join(lines)
    cache = sum(float(size) for size in re.findall(r"KV buffer size = +([\d.]+) MiB", log))
    return cache, sum(float(size) for size in re.findall(r"compute buffer size = +([\d.]+) MiB", log))


@pytest.fixture(scope="module")
def windowed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    yield write_tiny_gemma3(tmp_path_factory.mktemp("memory") / "gemma3.gguf")


@pytest.mark.parametrize("context_length", [256, 512, 4096])
def test_the_cache_is_what_llama_cpp_reserves_and_the_buffers_a_little_more(
    smollm2_gguf: Path, context_length: int
) -> None:
    shape = model_shape(read_header(smollm2_gguf))
    cache, buffers = reserved(smollm2_gguf, context_length)
    assert cache_bytes(shape, context_length) / MIB == pytest.approx(cache, abs=0.02)
    assert cache_bytes(shape, context_length) == 30 * 2 * 3 * 64 * 2 * context_length
    assert buffers <= buffer_bytes(shape, context_length) / MIB < 1.2 * buffers


def test_sliding_layers_keep_their_window_alone(windowed: Path) -> None:
    shape = model_shape(read_header(windowed))
    assert (shape.sliding_window, shape.sliding_layers, shape.layers) == (32, 5, 6)
    cache, _ = reserved(windowed, 512)
    assert cache_bytes(shape, 512) / MIB == pytest.approx(cache, abs=0.02)
    # What is beyond the model's own context is never reserved; of a longer one the window and a batch are, in 256s.
    assert cache_bytes(shape, 4096) == cache_bytes(shape, 512)
    import msgspec

    longer = msgspec.structs.replace(shape, context_length=8192)
    token_bytes = 2 * 2 * shape.kv_heads * shape.head_dim
    assert cache_bytes(longer, 8192) == token_bytes * (1 * 8192 + 5 * 768)

"""Well-formed files whose metadata says anything: whatever is made of a header works or fails by an AmigoError."""

from __future__ import annotations

import functools
import math
import random
import struct
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from amigo_local.domain.errors import AmigoError
from amigo_local.weights.architecture import architecture_of, map_tensors, supported
from amigo_local.weights.base_candidates import base_candidates
from amigo_local.weights.checkpoint_config import generation_config
from amigo_local.weights.gguf_header import GgufHeader, model_shape, read_header
from amigo_local.weights.gguf_writer import carried_fields
from amigo_local.weights.language_model import mended_fields, needs_copy
from amigo_local.weights.quantization_mix import tensor_types
from amigo_local.weights.tokenizer import stop_token_ids, write_tokenizer
from tests.support.gguf_bytes import (
    BOOL,
    FLOAT32,
    FLOAT64,
    INT32,
    INT64,
    STRING,
    UINT8,
    UINT32,
    UINT64,
    array_field,
    field,
    tensor_entry,
)
from tests.support.small_gguf import write_small_model

pytestmark = pytest.mark.usefixtures("garbage_of_others_stays")

DEFAULT_CASES, MANY_CASES = 1_000, 25_000
SECONDS = 1.0
SIZES = (
    *("block_count", "embedding_length", "feed_forward_length", "context_length", "attention.head_count"),
    *("attention.head_count_kv", "attention.key_length", "attention.value_length", "attention.sliding_window"),
    *("attention.sliding_window_pattern", "attention.layer_norm_rms_epsilon", "attention.causal"),
    *("attn_logit_softcapping", "final_logit_softcapping", "rope.dimension_count", "rope.freq_base"),
    *("rope.freq_base_swa", "rope.global.freq_base", "rope.local.freq_base", "rope.scale_linear"),
    *(f"rope.scaling.{key}" for key in ("type", "factor", "attn_factor", "original_context_length")),
    *(f"rope.scaling.yarn_{key}" for key in ("ext_factor", "attn_factor", "beta_fast", "log_multiplier")),
)
TOKENIZER = (
    *("model", "pre", "tokens", "token_type", "scores", "merges", "bos_token_id", "eos_token_id", "eot_token_id"),
    *("unknown_token_id", "padding_token_id", "add_bos_token", "add_eos_token", "add_space_prefix"),
)
LENGTHS = (0, 1, 2, 3, 64, 65, 79, 80, 81)
VALUES: dict[int, tuple[int | float | bool | str | bytes, ...]] = {
    UINT8: (0, 1, 2, 255),
    UINT32: (0, 1, 2, 79, 80, 512, 513, 1 << 31, (1 << 32) - 1),
    INT32: (-1, 0, 1, 6, 7, (1 << 31) - 1),
    UINT64: (0, 1, 2, 1 << 31, 1 << 63, (1 << 64) - 1),
    INT64: (-1, -(1 << 63)),
    FLOAT32: (0.0, 1.0, -1.0, 8.0, 1e-45, 3e38, math.nan, math.inf, -math.inf),
    FLOAT64: (0.5, 1e300, -1e300, math.nan),
    BOOL: (True, False),
    STRING: ("", "8", "none", "linear", "yarn", "llama", "gpt2", "t 1", "\0", "\x1b[2J", "\u2581", b"\xff", "x" * 9999),
}


def _anything(chance: random.Random, key: str) -> bytes:
    kind = chance.choice(list(VALUES))
    if chance.random() < 0.5:
        return field(key, kind, chance.choice(VALUES[kind]))
    return array_field(key, kind, [chance.choice(VALUES[kind]) for _ in range(chance.choice(LENGTHS))])


def _file(header: GgufHeader, stored: bytes, fields: dict[str, bytes]) -> bytes:
    start = header.data_offset
    entries = [tensor_entry(t.name, t.dimensions, t.type_id, t.offset - start) for t in header.tensors]
    head = b"GGUF" + struct.pack("<IQQ", 3, len(entries), len(fields)) + b"".join([*fields.values(), *entries])
    return head + bytes(-len(head) % 32) + stored[start:]


def _use(path: Path, out: Path) -> Counter[str]:
    """Everything that is made of metadata alone. Counts what worked."""
    header = normal = read_header(path)
    assert header.quantization and header.parameters > 0 and header.context_length != 0
    assert header.chat_template is None or header.chat_template
    steps: dict[str, Callable[[], object]] = {"shape": lambda: model_shape(header)}
    try:
        family = architecture_of(header)
        normal = family.normalize(header)
    except AmigoError:
        pass
    else:
        steps["config"] = lambda: family.config(normal)
        steps["tensors"] = lambda: map_tensors(normal, family)
        steps["copy"] = lambda: needs_copy(header)
        steps["fields"] = lambda: carried_fields(header, mended_fields(header, normal))
    steps["types"] = lambda: tensor_types(normal, normal.tensors, "Q4_K_M")
    steps["candidates"] = lambda: base_candidates(header)
    steps["generation"] = lambda: generation_config(normal, stop_token_ids(normal))
    steps["tokenizer"] = lambda: write_tokenizer(normal, out)
    steps |= {key: functools.partial(lambda key: list(normal.array(key)), key) for key in normal.metadata}
    worked = Counter[str]()
    for name, step in steps.items():
        try:
            step()
        except AmigoError as error:
            assert len(error.message) < 1000, name
        else:
            worked[name] += 1
    return worked


def _fuzz(folder: Path, cases: int, seed: int) -> Counter[str]:
    chance, worked = random.Random(seed), Counter[str]()
    models: list[tuple[str, GgufHeader, bytes]] = []
    for name in supported():
        for tokenizer in ("gpt2", "llama"):
            path = folder / f"{name}-{tokenizer}.gguf"
            stored = write_small_model(path, name, tokenizer)
            models.append((name, read_header(path), stored))
    path = folder / "case.gguf"
    for case in range(cases):
        name, header, stored = chance.choice(models)
        fields = {key: stored[start:end] for key, (start, end) in header.raw_fields.items()}
        for _ in range(chance.choice((1, 1, 2, 4))):
            key = chance.choice((f"{name}.{chance.choice(SIZES)}", f"tokenizer.ggml.{chance.choice(TOKENIZER)}"))
            key = chance.choice((key, key, key, "general.file_type", "tokenizer.chat_template", "general.name"))
            fields[key] = _anything(chance, key)
        for key in chance.sample(sorted(fields.keys() - {"general.architecture"}), chance.choice((0, 0, 0, 1))):
            del fields[key]
        path.write_bytes(_file(header, stored, fields))
        start = time.process_time()
        try:
            worked += _use(path, folder)
        except Exception as error:
            raise AssertionError(f"case {case} of seed {seed} ({name}) ended in {error!r}") from error
        assert time.process_time() - start < SECONDS, (seed, case)
    return worked


def test_metadata_of_any_type_and_value_leads_to_nothing_but_amigo_errors(tmp_path: Path) -> None:
    worked = _fuzz(tmp_path, DEFAULT_CASES, seed=1)
    # Most of what a case leaves alone goes through, or nothing was tested.
    assert min(worked[step] for step in ("shape", "generation", "tokenizer")) > DEFAULT_CASES // 4, worked
    assert worked["config"] > DEFAULT_CASES // 8, worked


@pytest.mark.slow
def test_very_much_metadata_of_any_type_and_value_does_neither(tmp_path: Path) -> None:
    assert _fuzz(tmp_path, MANY_CASES, seed=2)["shape"] > MANY_CASES // 4

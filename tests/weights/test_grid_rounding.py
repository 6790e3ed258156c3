from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from amigo_local.weights.export import export
from amigo_local.weights.export_plan import plan_export
from amigo_local.weights.ggml_types import TYPES_BY_NAME
from amigo_local.weights.gguf_header import read_header
from amigo_local.weights.grid_rounding import GridRounding, can_round_on_grid
from amigo_local.weights.kernels import load_kernels
from amigo_local.weights.tensor_rows import TensorFile
from amigo_local.weights.verify_export import check_exported
from tests.support.tiny_gguf import write_tiny_llama
from tests.weights.conftest import TEXTS, Events, write_adapter

ON_GRID = ("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K")


def _base(name: str) -> tuple[np.ndarray, np.ndarray]:
    """(blocks, values) of 512 rows of 512 in one type."""
    kind = TYPES_BY_NAME[name]
    rows = np.random.default_rng(0).standard_normal((512, 512), dtype=np.float32)
    raw = load_kernels().quantize(kind.id, rows)
    return raw, load_kernels().dequantize(kind.id, raw, rows.size).reshape(rows.shape)


@pytest.mark.parametrize("name", ON_GRID)
def test_a_change_far_below_a_step_survives_on_average_where_rounding_to_nearest_drops_it(name: str) -> None:
    kind, kernels = TYPES_BY_NAME[name], load_kernels()
    raw, base = _base(name)
    step = {"Q8_0": 0.02, "Q6_K": 0.08, "Q2_K": 0.9, "Q3_K": 0.5}.get(name, 0.25)
    # One direction for all rows, as a LoRA update of rank 1 has.
    random = np.random.default_rng(1)
    change = np.outer(random.standard_normal(512), random.standard_normal(512)).astype(np.float32) * (step / 20)

    def kept(rows: np.ndarray) -> float:
        written = kernels.dequantize(kind.id, kernels.quantize(kind.id, rows), rows.size).reshape(rows.shape)
        return float(((written - base) * change).sum() / (change * change).sum())

    ours = kept(GridRounding(kernels, kind, "blk.0.attn_q.weight").round(raw, base + change))
    # Weights at an end of their block's scale can't move outwards: with 4 or 8 codes that is many of them.
    assert ours == pytest.approx(1, abs={"Q2_K": 0.35, "Q3_K": 0.15}.get(name, 0.08))
    assert abs(1 - ours) < abs(1 - kept(base + change))


def test_nothing_changes_where_nothing_was_changed() -> None:
    for name in ON_GRID:
        kind = TYPES_BY_NAME[name]
        raw, base = _base(name)
        rounded = GridRounding(load_kernels(), kind, "x").round(raw, base)
        np.testing.assert_allclose(rounded, base, rtol=1e-5, atol=1e-6)


def test_values_stay_on_the_bases_grid() -> None:
    """Requantizing them gives them back, but where the weight that sets a block's scale has moved."""
    for name, share in (("Q4_1", 0.99), ("Q8_0", 0.93), ("Q4_K", 0.97)):
        kind, kernels = TYPES_BY_NAME[name], load_kernels()
        raw, base = _base(name)
        change = np.random.default_rng(2).standard_normal(base.shape).astype(np.float32) * 0.004
        rounded = GridRounding(kernels, kind, "x").round(raw, base + change)
        again = kernels.dequantize(kind.id, kernels.quantize(kind.id, rounded), rounded.size).reshape(rounded.shape)
        assert (np.abs(again - rounded) < 1e-2 * np.abs(base).max() / 16).mean() > share, name


def test_the_same_tensor_gets_the_same_choices_for_any_number_of_threads() -> None:
    kind = TYPES_BY_NAME["Q4_K"]
    raw, base = _base("Q4_K")
    one, three = (GridRounding(load_kernels(n), kind, "a").round(raw, base + np.float32(0.01)) for n in (1, 3))
    assert np.array_equal(one, three)
    other = GridRounding(load_kernels(1), kind, "b").round(raw, base + np.float32(0.01))
    assert not np.array_equal(one, other)


def test_types_with_uneven_values_are_left_to_their_quantizer() -> None:
    assert all(can_round_on_grid(TYPES_BY_NAME[name]) for name in ON_GRID)
    assert not any(can_round_on_grid(TYPES_BY_NAME[name]) for name in ("F32", "F16", "BF16", "IQ4_NL", "MXFP4"))


def test_raw_rows_are_those_of_the_chunk(tiny_llama: Path) -> None:
    header = read_header(tiny_llama)
    tensor = header.tensor("blk.0.ffn_up.weight")
    with TensorFile(header) as file:
        raw = file.raw_rows(tensor, 100, 130)
        rows = load_kernels().dequantize(tensor.type_id, raw.reshape(-1), raw.shape[0] * 256).reshape(-1, 256)
        assert raw.shape == (30, 272)
        assert np.array_equal(rows, file.rows(tensor, 100, 130))


@pytest.mark.parametrize("like_llama_cpp", [False, True], ids=["on the grid", "to nearest"])
def test_a_weak_adapter_is_still_in_a_four_bit_export(
    like_llama_cpp: bool, tmp_path: Path, unpacked: Callable[[Path], Path], events: Events
) -> None:
    base = write_tiny_llama(tmp_path / "base.gguf", weight_type="q4_0")
    adapter = write_adapter(unpacked(base), tmp_path / "adapter", scale=0.0003)
    plan = plan_export(base, adapter, "keep", tmp_path, like_llama_cpp=like_llama_cpp)
    assert len(plan.on_grid) == (0 if like_llama_cpp else 28)
    figures = export(plan, tmp_path / "out.gguf", events)
    assert figures["grid_rounded_tensors"] == len(plan.on_grid)
    found = check_exported(
        tmp_path / "out.gguf",
        base,
        adapter,
        events,
        expected_types=plan.types,
        verbatim=plan.copied,
        token_texts=TEXTS,
        checkpoint_dir=unpacked(base),
    )
    share = float(found["adapter_in_weights"] or 0)
    assert share < 0.35 if like_llama_cpp else share > 0.9

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from amigo_local.domain.errors import AmigoError
from amigo_local.domain.events import Note
from amigo_local.weights import export as export_module
from amigo_local.weights.export import export
from amigo_local.weights.verify_export import check_exported
from tests.support.tiny_gguf import write_tiny_llama
from tests.weights.conftest import TEXTS, Events, write_adapter


@pytest.mark.parametrize("model", ["exact_llama", "exact_gemma", "ollama_gemma"])
def test_a_right_export_passes_and_says_how_close_it_is(
    model: str,
    request: pytest.FixtureRequest,
    unpacked: Callable[[Path], Path],
    tmp_path: Path,
    events: Events,
) -> None:
    source: Path = request.getfixturevalue(model)
    adapter = request.getfixturevalue("gemma_adapter" if "gemma" in model else "llama_adapter")
    export(source, adapter, tmp_path / "out.gguf", "f16", events)
    base = unpacked(source)
    figures = check_exported(base, adapter, tmp_path / "out.gguf", TEXTS, events, base_gguf=source)
    assert figures["structure_checked"] is True
    assert 0 <= float(figures["kl_mean"] or 0) < 0.005
    assert float(figures["same_top_share"] or 0) > 0.95
    assert float(figures["kl_of_base"] or 0) < 1e-5  # float32 on both sides
    assert float(figures["kl_without_adapter"] or 0) > 0.3  # the adapter changes the model


def test_rows_in_the_wrong_order_are_found(
    exact_llama: Path,
    unpacked: Callable[[Path], Path],
    llama_adapter: Path,
    tmp_path: Path,
    events: Events,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(export_module, "to_gguf_rows", lambda rows, head_dim: rows)
    export(exact_llama, llama_adapter, tmp_path / "out.gguf", "f16", events)
    with pytest.raises(AmigoError, match="is not base plus adapter: next-token KL mean"):
        check_exported(unpacked(exact_llama), llama_adapter, tmp_path / "out.gguf", TEXTS, events)


def test_a_lost_adapter_is_found_even_where_the_limit_is_wide(
    exact_llama: Path, unpacked: Callable[[Path], Path], tmp_path: Path, events: Events
) -> None:
    weak = write_adapter(unpacked(exact_llama), tmp_path / "adapter", scale=0.0007)
    export(exact_llama, None, tmp_path / "out.gguf", "q8_0", events)
    with pytest.raises(AmigoError, match="the adapter is not in it"):
        check_exported(unpacked(exact_llama), weak, tmp_path / "out.gguf", TEXTS, events)
    assert (
        float(check_exported(unpacked(exact_llama), None, tmp_path / "out.gguf", TEXTS, events)["kl_mean"] or 9) < 0.05
    )


def test_smollm2_q4_k_m_stays_near_its_checkpoint(
    smollm2: Path, unpacked: Callable[[Path], Path], tmp_path: Path, events: Events
) -> None:
    export(smollm2, None, tmp_path / "out.gguf", "q4_k_m", events)
    figures = check_exported(unpacked(smollm2), None, tmp_path / "out.gguf", TEXTS, events, base_gguf=smollm2)
    assert 0.01 < float(figures["kl_mean"] or 0) < 0.15  # 0.07 measured, from Q4_1 to a smaller Q4
    assert float(figures["kl_of_base"] or 0) < 0.008


def test_a_donor_of_another_shape_or_with_other_metadata_is_found(
    exact_llama: Path, unpacked: Callable[[Path], Path], tmp_path: Path, events: Events
) -> None:
    export(exact_llama, None, tmp_path / "out.gguf", "f16", events)
    base = unpacked(exact_llama)
    untied = write_tiny_llama(tmp_path / "untied.gguf", tied=False)
    with pytest.raises(AmigoError, match=r"tensor output\.weight is None"):
        check_exported(base, None, tmp_path / "out.gguf", TEXTS, events, base_gguf=untied)
    other = write_tiny_llama(tmp_path / "other.gguf", chat_template="{{ messages }}")
    with pytest.raises(AmigoError, match=r"tokenizer\.chat_template differs"):
        check_exported(base, None, tmp_path / "out.gguf", TEXTS, events, base_gguf=other)


def test_a_model_too_big_for_memory_is_only_checked_for_structure(
    exact_llama: Path, unpacked: Callable[[Path], Path], tmp_path: Path, events: Events
) -> None:
    export(exact_llama, None, tmp_path / "out.gguf", "f16", events)
    figures = check_exported(
        unpacked(exact_llama), None, tmp_path / "out.gguf", TEXTS, events, base_gguf=exact_llama, max_parameters=1000
    )
    assert figures == {"tensors": 38, "metadata_keys": 26, "structure_checked": True, "kl_checked": False}
    assert any(isinstance(event, Note) and "was left out" in event.text for event in events)

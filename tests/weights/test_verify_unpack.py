from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from amigo_local.domain.errors import AmigoError
from amigo_local.domain.events import Note
from amigo_local.weights import unpack as unpack_module
from amigo_local.weights.divergence import DivergenceMeter
from amigo_local.weights.verify_unpack import MEAN_KL_LIMIT, check_unpacked
from tests.weights.conftest import TEXTS, Events


@pytest.fixture
def checkpoint(exact_llama: Path, unpacked: Callable[[Path], Path], tmp_path: Path) -> Path:
    """A copy to break."""
    return Path(shutil.copytree(unpacked(exact_llama), tmp_path / "checkpoint"))


def _change(path: Path, change: Callable[[dict[str, object]], None]) -> None:
    content = json.loads(path.read_text("utf-8"))
    change(content)
    path.write_text(json.dumps(content), "utf-8")


def test_a_slightly_wrong_config_shows_in_the_figures(checkpoint: Path, exact_llama: Path, events: Events) -> None:
    right = check_unpacked(exact_llama, checkpoint, TEXTS, events)
    _change(checkpoint / "config.json", lambda config: config.update(rms_norm_eps=1e-4))
    wrong = check_unpacked(exact_llama, checkpoint, TEXTS, events)
    assert float(wrong["kl_max"] or 0) > 100 * float(right["kl_max"] or 1)


def test_rows_left_interleaved_are_found(
    exact_llama: Path, tmp_path: Path, events: Events, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(unpack_module, "to_checkpoint_rows", lambda rows, head_dim: rows)
    unpack_module.unpack(exact_llama, tmp_path / "wrong", "f32", events)
    with pytest.raises(AmigoError, match=f"next-token KL mean .* expected at most {MEAN_KL_LIMIT}"):
        check_unpacked(exact_llama, tmp_path / "wrong", TEXTS, events)


def test_another_tokenizer_is_found(checkpoint: Path, exact_llama: Path, events: Events) -> None:
    def forget_merges(tokenizer: dict[str, object]) -> None:
        tokenizer["model"]["merges"] = []  # type: ignore[index]

    _change(checkpoint / "tokenizer.json", forget_merges)
    with pytest.raises(AmigoError, match=f"{len(TEXTS)} of {len(TEXTS)} texts get other tokens"):
        check_unpacked(exact_llama, checkpoint, TEXTS, events)


def test_broken_weights_are_found(checkpoint: Path, exact_llama: Path, events: Events) -> None:
    data = bytearray((checkpoint / "model.safetensors").read_bytes())
    data[-4:] = np.float32("nan").tobytes()
    (checkpoint / "model.safetensors").write_bytes(data)
    with pytest.raises(AmigoError, match="next-token KL mean nan"):
        check_unpacked(exact_llama, checkpoint, TEXTS, events)


def test_a_model_too_big_for_memory_is_only_tokenized(checkpoint: Path, exact_llama: Path, events: Events) -> None:
    figures = check_unpacked(exact_llama, checkpoint, TEXTS, events, max_parameters=1_000_000)
    assert figures == {"texts": len(TEXTS), "differing_texts": 0, "kl_checked": False}
    notes = [event.text for event in events if isinstance(event, Note)]
    assert notes == ["the next-token check was left out: 2623744 parameters, the limit is 1000000"]


def test_neither_llama_cpp_nor_transformers_prints(
    checkpoint: Path, exact_llama: Path, events: Events, capfd: pytest.CaptureFixture[str]
) -> None:
    check_unpacked(exact_llama, checkpoint, TEXTS, events)
    assert capfd.readouterr() == ("", "")


def test_divergence_is_kullback_leiblers() -> None:
    meter = DivergenceMeter()
    p, q = np.array([[0.5, 0.25, 0.25]]), np.array([[0.25, 0.5, 0.25]])
    meter.add(np.log(p).astype(np.float32), np.log(q).astype(np.float32) + 3)
    result = meter.result()
    assert result.mean == pytest.approx(0.25 * np.log(2), abs=1e-6)
    assert (result.same_top, result.positions) == (0.0, 1)
    assert not DivergenceMeter().result().mean <= 1

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from amigo_local.domain.errors import AmigoError
from amigo_local.weights import tensor_rows
from amigo_local.weights import unpack as unpack_module
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
    monkeypatch.setattr(tensor_rows, "to_checkpoint_rows", lambda rows, head_dim: rows)
    unpack_module.unpack(exact_llama, tmp_path / "wrong", "f32", events)
    with pytest.raises(AmigoError, match=rf"next-token KL mean .* expected at most {MEAN_KL_LIMIT}"):
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


def test_chats_and_predictions_are_counted(checkpoint: Path, exact_llama: Path, events: Events) -> None:
    figures = check_unpacked(exact_llama, checkpoint, TEXTS, events)
    counts = ("texts", "differing_texts", "chat_template", "chats", "refused_chats", "kl_checked", "same_top_share")
    assert [figures[name] for name in counts] == [5, 0, True, 12, 0, True, 1.0]
    assert figures["kl_positions"] == 228
    assert check_unpacked(exact_llama, checkpoint, TEXTS, events, prompts=TEXTS[:1])["kl_positions"] == 51


def test_another_chat_template_is_found(checkpoint: Path, exact_llama: Path, events: Events) -> None:
    (checkpoint / "chat_template.jinja").write_text("{{ messages[0]['content'] }}", "utf-8")
    with pytest.raises(AmigoError, match="its chat template makes"):
        check_unpacked(exact_llama, checkpoint, TEXTS, events)


def test_neither_llama_cpp_nor_transformers_prints(
    checkpoint: Path, exact_llama: Path, events: Events, capfd: pytest.CaptureFixture[str]
) -> None:
    check_unpacked(exact_llama, checkpoint, TEXTS, events)
    assert capfd.readouterr() == ("", "")

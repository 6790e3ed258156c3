"""Which pairs can be trained on, and what is said of the others; out of memory and NaN on pairs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch

from amigo_local.domain.errors import AmigoError, InputError
from amigo_local.domain.events import AnyEvent, Note
from amigo_local.domain.recipe import DpoSettings, LoraSettings
from amigo_local.training.micro_batches import StepRow, completion_tokens
from amigo_local.training.preferences import PreferenceFile
from amigo_local.training.samples import Sample
from tests.support.tiny_preferences import PAIRS, SETTINGS, TinyDpo, changed, log_of

ROW: dict[str, Any] = {"prompt_ids": [1, 2, 3], "chosen_ids": [4, 5], "rejected_ids": [6]}


def write(folder: Path, *rows: dict[str, Any], name: str = "train.jsonl") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder / name


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> TinyDpo:
    return TinyDpo(tmp_path_factory.mktemp("dpo"))


def test_a_row_is_two_chats_that_share_their_prompt(tmp_path: Path) -> None:
    path = write(tmp_path, ROW, {**ROW, "chosen_ids": [7]})
    with path.open("a") as file:
        file.write("\n" + json.dumps({**ROW, "rejected_ids": [8, 9, 9], "chosen": "text"}) + "\n")
    pairs = PreferenceFile(path, vocabulary=10)
    assert len(pairs) == 3 and list(pairs.lengths) == [9, 8, 11]
    assert completion_tokens(pairs) == 3 + 2 + 5
    assert pairs[2] == StepRow(2, 4, (Sample([1, 2, 3, 4, 5], 3), Sample([1, 2, 3, 8, 9, 9], 3)))
    assert [row.line for row in pairs[:2]] == [1, 2]


def test_long_and_equal_pairs_are_left_out_and_told(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        {**ROW, "chosen_ids": [4] * 3},  # six tokens with the prompt
        {**ROW, "rejected_ids": [4] * 3},
        {**ROW, "prompt_ids": [1] * 9},
        {**ROW, "chosen_ids": [6]},
        ROW,
    )
    pairs = PreferenceFile(path, 10, max_length_tokens=5)
    assert (len(pairs), pairs.too_long, pairs.without_gradient) == (1, 3, 1)
    assert pairs[0].line == 5
    told: list[AnyEvent] = []
    pairs.tell(told.append)
    assert [note.text.split(": ")[1][:7] for note in told if isinstance(note, Note)] == ["3 pairs", "1 pairs"]
    with pytest.raises(InputError, match="no pair to train on: 1 are longer than 4 tokens, 0 have two equal"):
        PreferenceFile(write(tmp_path, ROW), 10, max_length_tokens=4)


@pytest.mark.parametrize(
    ("row", "complaint", "hint"),
    [
        (
            {"input_ids": [1, 2, 3], "completion_start": 2},
            "a single answer, where train.method: dpo",
            "train.method: sft",
        ),
        ({"prompt_ids": [1]}, "no prompt_ids, chosen_ids and rejected_ids", "prepare"),
        ({**ROW, "rejected_ids": []}, "rejected_ids is empty: no token to train on", "prepare"),
        ({**ROW, "chosen_ids": []}, "chosen_ids is empty: no token to train on", "prepare"),
        ({**ROW, "prompt_ids": []}, "prompt_ids is empty: no token to predict the answer from", "prepare"),
        ({**ROW, "rejected_ids": [10]}, "token id 10 is outside the base's vocabulary of 10", "another base"),
        ({**ROW, "chosen_ids": [-1]}, "token id -1 is outside", "another base"),
        ({**ROW, "chosen_ids": "x"}, "Expected `array", "prepare"),
    ],
)
def test_what_is_no_pair_is_refused_with_its_line(
    row: dict[str, Any], complaint: str, hint: str, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=complaint) as refused:
        PreferenceFile(write(tmp_path, ROW, row), 10)
    assert "train.jsonl:2: " in refused.value.message
    assert hint in refused.value.hint


def test_a_set_without_pairs_and_no_set_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no pairs"):
        PreferenceFile(write(tmp_path), 10)
    with pytest.raises(InputError, match="no such file"):
        PreferenceFile(tmp_path / "none.jsonl", 10)


def test_a_file_that_changes_while_it_is_trained_on_is_told(tmp_path: Path) -> None:
    pairs = PreferenceFile(write(tmp_path, ROW), 10)
    write(tmp_path, {**ROW, "chosen_ids": [4, 5, 6]})
    with pytest.raises(InputError, match=r"train.jsonl:1 changed"):
        pairs[0]
    (tmp_path / "train.jsonl").unlink()
    with pytest.raises(InputError, match="can't be read any more"):
        pairs[0]


def test_settings_and_adapters_that_do_not_fit_are_refused_before_the_base_is_loaded(
    tiny: TinyDpo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("amigo_local.training.base.load_base", None)
    with pytest.raises(InputError, match=r"label_smoothing is 0\.1, and has no place in the loss ipo"):
        tiny.train(tmp_path, changed(dpo=DpoSettings(loss="ipo", label_smoothing=0.1)))
    with pytest.raises(InputError, match="holds nothing to evaluate on"):
        tiny.train(tmp_path, dataset=write(tmp_path / "set", ROW).parent)
    with pytest.raises(InputError, match="rank"):
        tiny.train(tmp_path, changed(lora=LoraSettings(rank=8, alpha=8)))
    config = tiny.adapter / "adapter_config.json"
    original = config.read_text()
    config.write_text(original.replace('"tiny"', '"another"'))
    try:
        with pytest.raises(InputError, match="another"):
            tiny.train(tmp_path)
    finally:
        config.write_text(original)


def test_out_of_memory_on_pairs_makes_the_micro_batch_smaller_and_changes_no_number(
    tiny: TinyDpo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from amigo_local.training.preference_trainer import PreferenceTrainer

    monkeypatch.setattr("amigo_local.training.base.multiplies_bf16", lambda: False)
    tiny.train(tmp_path / "enough", changed(max_steps=2))
    original, sizes = PreferenceTrainer.token_logps, []

    def tight(self: Any, micro_batch: Any) -> torch.Tensor:
        sizes.append(micro_batch.input_ids.numel())
        if sizes[-1] > 200:  # a pair has up to 170 tokens
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return original(self, micro_batch)

    monkeypatch.setattr(PreferenceTrainer, "token_logps", tight)
    events: list[AnyEvent] = []
    figures = tiny.train(tmp_path / "tight", changed(max_steps=2), emit=events.append)
    assert figures["tokens_at_once"] == 192  # half of 4 x 96
    assert max(sizes) > 200 and sum(size > 200 for size in sizes) == 1
    assert any(isinstance(event, Note) and "out of memory" in event.text for event in events)
    for tight_line, line in zip(log_of(tmp_path / "tight"), log_of(tmp_path / "enough"), strict=True):
        assert list(tight_line.values()) == pytest.approx(list(line.values()), rel=2e-4, abs=2e-4)


def test_a_loss_that_is_no_number_names_the_lines_of_its_pairs(tiny: TinyDpo, tmp_path: Path) -> None:
    wild = msgspec.structs.replace(SETTINGS, learning_rate=1e30, max_grad_norm=1e30, evaluate_every_steps=None)
    with pytest.raises(AmigoError, match=r"became (NaN|infinite) at step \d, in .*: lines [\d, ]+ of .*train.jsonl"):
        tiny.train(tmp_path, wild)
    kept = [path.name for path in (tmp_path / "checkpoints").iterdir()]
    assert any(name.startswith("checkpoint-") for name in kept) and PAIRS == 10

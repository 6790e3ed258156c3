"""Samples of earlier sets come again as they were, and only those that were trained on."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from amigo_local.data.pair import Pair
from amigo_local.data.preferences import PreferenceRow
from amigo_local.data.reading import Reading
from amigo_local.data.row import HELD_OUT_FILE, TRAIN_FILE, Row
from amigo_local.data.source_files import file_of
from amigo_local.domain.answer_check import AnswerCheck
from amigo_local.domain.data_source import ReplaySource
from amigo_local.domain.errors import InputError

CHECK = AnswerCheck(skill="context", names=("load",), hard=False)


def row(prompt: str, source: str = "stdlib") -> Row:
    return Row(
        prompt=prompt,
        completion="c",
        source=source,
        module="m",
        name="m.f",
        license="MIT",
        language="python",
        check=CHECK,
        input_ids=[1, 2, 3],
        completion_start=1,
    )


def made(folder: Path, *prompts: str, source: str = "stdlib") -> Path:
    folder.mkdir(parents=True)
    (folder / TRAIN_FILE).write_bytes(b"".join(msgspec.json.encode(row(each, source)) + b"\n" for each in prompts))
    (folder / HELD_OUT_FILE).write_bytes(msgspec.json.encode(row("held out")) + b"\n")
    return folder


def read(folders: dict[str, Path], *names: str) -> list[Pair]:
    source = ReplaySource(replay=names[0] if len(names) == 1 else names)
    return list(file_of(source).read(source, Reading(emit=lambda event: None, folders=folders)))


def test_a_sample_comes_again_with_its_check_and_origin_and_held_out_ones_dont(tmp_path: Path) -> None:
    pairs = read({"earlier one": made(tmp_path / "one", "p", "q")}, "earlier")
    assert [pair.prompt for pair in pairs] == ["p", "q"]
    assert pairs[0] == Pair(
        prompt="p",
        completion="c",
        source="replay of stdlib",
        module="m",
        name="m.f",
        license="MIT",
        language="python",
        check=CHECK,
    )


def test_earlier_runs_and_folders_are_read_in_order_and_each_once(tmp_path: Path) -> None:
    folders = {
        "earlier stage2": made(tmp_path / "2", "two"),
        "earlier stage1": made(tmp_path / "1", "one"),
        "run:7 prepare-a": made(tmp_path / "7a", "seven a"),
        "run:7 prepare-b": made(tmp_path / "7b", "seven b"),
        "run:77": made(tmp_path / "77", "seventy-seven"),
    }
    path = str(made(tmp_path / "mine", "mine"))
    assert [pair.prompt for pair in read(folders, "earlier")] == ["two", "one"]
    assert [pair.prompt for pair in read(folders, "run:7", "earlier", path, str(tmp_path / "2"))] == [
        "seven a",
        "seven b",
        "two",
        "one",
        "mine",
    ]


def test_what_was_replayed_before_keeps_its_first_origin(tmp_path: Path) -> None:
    folder = made(tmp_path / "one", "p", source="replay of stdlib")
    assert read({"earlier": folder}, "earlier")[0].source == "replay of stdlib"


def test_pairs_of_answers_are_not_replayed_among_single_ones(tmp_path: Path) -> None:
    folder = made(tmp_path / "one")
    preference = PreferenceRow(
        prompt="p",
        chosen="c",
        rejected="r",
        source="s",
        module="",
        name="",
        license="",
        prompt_ids=[1],
        chosen_ids=[2],
        rejected_ids=[3],
    )
    (folder / TRAIN_FILE).write_bytes(msgspec.json.encode(preference) + b"\n")
    with pytest.raises(InputError, match="holds pairs of answers") as refused:
        read({"earlier": folder}, "earlier")
    assert "sft" in refused.value.hint


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (None, r"is no set that `prepare` made"),
        (b"", "is empty"),
        (b'{"text": 1}\n', "holds other rows"),
        (b"{", "rows"),
    ],
)
def test_a_wrong_folder_is_named(tmp_path: Path, content: bytes | None, complaint: str) -> None:
    folder = tmp_path / "set"
    folder.mkdir()
    if content is not None:
        (folder / TRAIN_FILE).write_bytes(content)
    with pytest.raises(InputError, match=complaint) as refused:
        read({}, str(folder))
    assert str(folder) in refused.value.message and refused.value.hint
    source = ReplaySource(replay=str(folder))
    assert file_of(source).look(source, Reading(emit=lambda event: None)).reachable is (content is not None)


def test_a_name_that_is_nowhere_is_refused() -> None:
    with pytest.raises(InputError, match="replay: earlier names no set"):
        read({}, "earlier")

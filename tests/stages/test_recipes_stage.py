"""The verb `recipes`: list, show with origins, save, check."""

from __future__ import annotations

from pathlib import Path

import pytest

from amigo_local.domain.events import Note, StageFailed, StageFinished, Table
from amigo_local.engine.recipe_chain import load_chain
from tests.support.command_here import amigo_here, amigo_records_here
from tests.support.command_line import events


def table(home: Path, *arguments: str) -> list[Table]:
    code, records = amigo_records_here(home, "recipes", *arguments)
    assert code == 0
    return [event for event in events(records, Table) if isinstance(event, Table)]


def refused(home: Path, *arguments: str) -> StageFailed:
    code, records = amigo_records_here(home, "recipes", *arguments)
    (error,) = events(records, StageFailed)
    assert isinstance(error, StageFailed) and (code, error.exit_code) == (2, 2)
    return error


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "home"


def test_ls_lists_shipped_ones_and_ones_own_with_what_is_wrong(home: Path) -> None:
    for folder, text in ((Path("recipes"), "summary: mine\n"), (home / "recipes", "trian: {}\n")):
        folder.mkdir(parents=True)
        (folder / "own.yaml").write_text(text)
    code, records = amigo_records_here(home, "recipes")
    (listed,) = events(records, Table)
    (note,) = events(records, Note)
    assert isinstance(listed, Table) and isinstance(note, Note) and code == 0
    rows = {row[0]: row for row in listed.rows}
    assert rows["all"][1] == 5 and rows["demo"][1] == 1
    assert rows[str(Path("recipes/own.yaml").absolute())][1:3] == (1, "mine")
    assert rows[str(home / "recipes" / "own.yaml")][1] is None
    assert "own.yaml:1: trian: unknown key; did you mean train?" in note.text
    (finished,) = events(records, StageFinished)
    assert isinstance(finished, StageFinished) and finished.figures["broken"] == 1


def test_show_says_every_value_and_where_it_comes_from(home: Path) -> None:
    (shown,) = table(home, "show", "demo", "--set", "train.lora.rank=8")
    rows = {row[0]: row[1:] for row in shown.rows}
    assert shown.title == "demo" and len(rows) == 67
    assert rows["train.lora.rank"] == ("8", "--set train.lora.rank")
    assert rows["train.lora.alpha"] == ("32", "recipes/demo.yaml:20")
    assert rows["evaluate.suites"] == ("[directness, humaneval]", "recipes/base.yaml:22")
    assert rows["train.max_grad_norm"] == ("1.0", "built-in default")
    assert rows["model.source"] == (None, "built-in default")
    assert len(table(home, "show", "all")) == 5


def test_save_writes_into_the_home_or_where_one_says_and_never_over_a_file(home: Path) -> None:
    assert amigo_here(home, "recipes", "save", "demo", "--out", "mine", "--set", "train.epochs=3").returncode == 0
    assert load_chain((str(home / "recipes" / "mine.yaml"),)).stages[0].recipe.train.epochs == 3
    assert "is there already" in refused(home, "save", "demo", "--out", "mine").message
    done = amigo_here(home, "recipes", "save", "demo", "--out", "mine", "--replace")
    assert done.returncode == 0 and f"saved: {home / 'recipes' / 'mine.yaml'}" in done.stderr
    assert amigo_here(home, "recipes", "save", "all", "--out", "deep/chain.yaml").returncode == 0
    assert len(load_chain(("deep/chain.yaml",)).stages) == 5


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("train: {epochs: many}\n", "one.yaml:1: train.epochs: found 'many'"),
        ("train: {keep_best: true}\n", "train.keep_best needs evaluations"),
        ("train: {method: dpo}\ndata: {sources: [{stdlib: all}]}\n", "train.method is dpo"),
        ("gate: {humaneval: much}\n", "much"),
        ("chain: [stage1_nl_to_code, stage2_context]\neach: {train: {lora: {use_dora: true}}}\n", "can't apply DoRA"),
    ],
)
def test_check_tells_what_the_loop_would_refuse(home: Path, text: str, says: str) -> None:
    Path("one.yaml").write_text(text)
    assert says in refused(home, "check", "one.yaml").message


def test_check_lets_good_ones_pass_and_says_what_is_missing(home: Path) -> None:
    assert "stage5_preference: every setting is valid" in amigo_here(home, "recipes", "check", "all").stderr
    Path("one.yaml").write_text("train: {epochs: 2}\n")
    assert "one: no data source yet" in amigo_here(home, "recipes", "check", "one.yaml").stderr


@pytest.mark.parametrize("arguments", [("show",), ("save",), ("save", "demo"), ("show", "stage9")])
def test_what_is_left_out_is_asked_for(home: Path, arguments: tuple[str, ...]) -> None:
    refused(home, *arguments)

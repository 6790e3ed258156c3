from __future__ import annotations

from pathlib import Path

import pytest

from amigo_local.engine.contract import RecipeRequest
from amigo_local.engine.data_paths import found_from_anywhere


@pytest.mark.parametrize(
    ("model", "found"),
    [("m.gguf", "{here}/m.gguf"), ("./base", "{here}/base"), ("gemma3:1b", "gemma3:1b"), ("ollama:a:b", "ollama:a:b"),
     ("gemma-3-12b", "gemma-3-12b"), ("run:r1", "run:r1"), ("no model!", "no model!"), (None, None)],
)  # fmt: skip
def test_what_is_a_path_is_found_from_another_folder_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: str | None, found: str | None
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("mine.yaml").write_text("name: mine\n")
    Path("base").mkdir()
    params = found_from_anywhere(RecipeRequest(recipe=("mine.yaml", "laptop"), model=model))
    assert isinstance(params, RecipeRequest)
    assert params.recipe == (str(tmp_path / "mine.yaml"), "laptop")
    assert params.model == (found and found.format(here=tmp_path))

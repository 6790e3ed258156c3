from __future__ import annotations

from pathlib import Path

import pytest

from amigo_local.domain.errors import InputError
from amigo_local.engine.recipe_chain import load_chain
from amigo_local.engine.recipe_file import find_recipe, load_recipe

GOOD = """\
name: mine
model:
  source: gemma3:12b
data:
  sources:
    - stdlib: all
    - jsonl: pairs/mine.jsonl
      limit: 5
train:
  learning_rate: 2e-4
  lora:
    rank: 8
"""


def write(folder: Path, text: str) -> str:
    path = folder / "mine.yaml"
    path.write_text(text)
    return str(path)


def test_a_recipe_lies_over_base_and_a_flag_over_both(tmp_path: Path) -> None:
    loaded = load_recipe(write(tmp_path, GOOD), ["train.lora.alpha=48", "evaluate.suites=[directness]"])
    train = loaded.recipe.train
    assert (train.learning_rate, train.lora.rank, train.lora.alpha, train.effective_batch) == (2e-4, 8, 48, 8)
    assert loaded.recipe.evaluate.suites == ("directness",)
    assert loaded.origins["train.lora.rank"].endswith("mine.yaml:12")
    assert loaded.origins["train.lora.alpha"] == "--set train.lora.alpha"
    assert loaded.origins["train.effective_batch"].startswith("recipes/base.yaml:")


def test_data_paths_are_relative_to_the_recipe(tmp_path: Path) -> None:
    sources = load_recipe(write(tmp_path, GOOD)).recipe.data.sources
    assert sources[1].jsonl == str((tmp_path / "pairs" / "mine.jsonl").resolve())


@pytest.mark.parametrize(
    ("old", "new", "line", "says"),
    [
        (
            "learning_rate: 2e-4",
            "learning_rat: 2e-4",
            10,
            "train.learning_rat: unknown key; did you mean learning_rate?",
        ),
        ("learning_rate: 2e-4", "learning_rate: fast", 10, "train.learning_rate: found 'fast': expected `float`"),
        ("learning_rate: 2e-4", "learning_rate: -1", 10, "train.learning_rate: found -1"),
        ("rank: 8", "rank: 8.5", 12, "train.lora.rank: found 8.5: expected `int`"),
        ("limit: 5", "limit: 0", 8, "data.sources[1].limit: found 0"),
        ("- stdlib: all", "- limit: 3", 6, "data.sources[0]: found limit, expected exactly one kind"),
        (
            "- stdlib: all",
            "- stdlb: all",
            6,
            "data.sources[0]: found stdlb, expected exactly one kind; did you mean stdlib?",
        ),
        ("- stdlib: all", "- {stdlib: all, repo: .}", 6, "data.sources[0]: found both stdlib and repo"),
        ("- stdlib: all", "- {stdlib: all, prompt: q}", 6, "data.sources[0].prompt: unknown key"),
        ("name: mine", "nam: mine", 1, "nam: unknown key; did you mean name?"),
        ("name: mine", "name: mine\nname: yours", 2, "name: given twice"),
        ("name: mine", "name: [", 3, "not valid YAML"),
    ],
)
def test_an_error_names_file_line_key_and_the_nearest_spelling(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, old: str, new: str, line: int, says: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError) as refused:
        load_recipe(write(tmp_path, GOOD.replace(old, new)))
    assert refused.value.message.startswith(f"mine.yaml:{line}: ")
    assert says in refused.value.message


def test_a_choice_lists_its_words_and_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(InputError) as refused:
        load_recipe(write(tmp_path, GOOD), ["export.quant=q4_km"])
    assert "did you mean q4_k_m?" in refused.value.message and refused.value.message.startswith("--set export.quant")
    assert "q8_0" in refused.value.hint


def test_a_missing_recipe_lists_the_shipped_ones() -> None:
    with pytest.raises(InputError) as refused:
        find_recipe("stage9")
    assert "demo" in refused.value.hint


def test_every_shipped_recipe_loads() -> None:
    paths = sorted(find_recipe("demo").parent.glob("*.yaml"))
    assert len(paths) == 10
    for path in paths:
        chain = load_chain((str(path),))
        assert chain.name == path.stem
        assert len(chain.stages) == (5 if path.stem in ("all", "smoke") else 1)


@pytest.mark.parametrize("text", ["no-equals", "=3", "a..b=1", "train.epochs=[1"])
def test_a_malformed_override_is_refused_with_an_example(tmp_path: Path, text: str) -> None:
    with pytest.raises(InputError) as refused:
        load_recipe(write(tmp_path, GOOD), [text])
    assert "--set" in refused.value.message and "--set" in refused.value.hint

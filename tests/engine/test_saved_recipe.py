"""Saving a recipe or a chain with changes: the file gives the same again, and nothing of the person's is lost."""

from __future__ import annotations

import random
from pathlib import Path

import msgspec
import pytest

from amigo_local.domain.data_source import JsonlSource, StdlibSource
from amigo_local.domain.errors import InputError
from amigo_local.engine.recipe_chain import LoadedChain, load_chain
from amigo_local.engine.recipe_file import load_recipe
from amigo_local.engine.saved_recipe import recipe_path, save_recipes
from amigo_local.shipped import shipped_folder

SHIPPED = sorted(path.stem for path in shipped_folder("recipes").glob("*.yaml") if path.stem != "base")
FLAGS = (
    "train.lora.rank=16",
    "data.languages=[python, '12']",
    "summary='2e-4'",
    "train.max_steps=null",
    "evaluate.seed=3",
)


def settings(chain: LoadedChain) -> list[object]:
    """Without the names, which a saved recipe has from its file."""
    return [msgspec.structs.replace(stage.recipe, name="") for stage in chain.stages]


def refused(*texts: str, overrides: tuple[str, ...] = (), path: Path, replace: bool = False) -> InputError:
    with pytest.raises(InputError) as found:
        save_recipes(texts, overrides, path, replace=replace)
    assert found.value.hint
    return found.value


@pytest.mark.parametrize("name", SHIPPED)
@pytest.mark.parametrize("flags", [(), FLAGS])
def test_a_saved_recipe_gives_the_same_from_any_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, flags: tuple[str, ...]
) -> None:
    saved = save_recipes((name,), flags, tmp_path / "deep" / "mine.yaml")
    monkeypatch.chdir("/")
    again = load_chain((str(saved.path),))
    assert settings(again) == settings(load_chain((name,), flags)) == settings(saved.chain)
    assert [path.name for path in saved.path.parent.iterdir()] == ["mine.yaml"]


def test_only_what_is_the_recipes_own_is_written_and_it_is_called_as_its_file(tmp_path: Path) -> None:
    saved = save_recipes(("demo",), ("train.lora.rank=8", "train.learning_rate=5e-5"), tmp_path / "small.yaml")
    text = saved.path.read_text()
    assert text.startswith("# Saved from demo; changed: train.lora.rank, train.learning_rate.\nname: small\n")
    assert "  learning_rate: 5e-5\n" in text and "    rank: 8\n" in text and "- stdlib: all\n" in text
    assert "weight_decay" not in text and "suites" not in text  # built in, and base.yaml's
    recipe = saved.chain.stages[0].recipe
    assert (recipe.name, recipe.train.lora.rank, recipe.register.tag) == ("small", 8, "smollm2-135m:amigo-demo")
    assert load_recipe(str(saved.path)).origins["train.lora.rank"] == f"{saved.path}:17"
    named = save_recipes(("demo",), ("name=other",), tmp_path / "named.yaml")
    assert named.chain.stages[0].recipe.name == "other"


def test_what_equals_base_is_kept_where_the_recipe_says_it(tmp_path: Path) -> None:
    """base.yaml may change; what the recipe states doesn't change with it."""
    (tmp_path / "one.yaml").write_text("train: {lora: {rank: 32}}\n")
    assert "rank: 32" in save_recipes((str(tmp_path / "one.yaml"),), (), tmp_path / "two.yaml").path.read_text()


def test_relative_data_paths_stay_true(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "one.yaml").write_text("data: {sources: [{jsonl: mine.jsonl}], evaluation_sets: [e.jsonl]}\n")
    monkeypatch.chdir(tmp_path)
    saved = save_recipes(("a/one.yaml",), (), tmp_path / "b" / "two.yaml").chain.stages[0].recipe.data
    assert saved.sources == (JsonlSource(jsonl=str(tmp_path / "a" / "mine.jsonl")),)
    assert saved.evaluation_sets == (str(tmp_path / "a" / "e.jsonl"),)
    flag = ("data.sources=[{jsonl: here.jsonl}]",)
    chain = save_recipes(("a/one.yaml", "stage1_nl_to_code"), flag, tmp_path / "b" / "chain.yaml").chain
    here = (JsonlSource(jsonl=str(tmp_path / "here.jsonl")),)
    assert [stage.recipe.data.sources for stage in chain.stages] == [here, here]


def test_a_stage_of_a_chain_keeps_what_the_chain_lays_over_it(tmp_path: Path) -> None:
    (tmp_path / "chain.yaml").write_text(
        "chain: [{recipe: demo, train: {epochs: 5}}]\neach: {data: {sources: [{stdlib: [heapq]}]}}\n"
    )
    recipe = save_recipes((str(tmp_path / "chain.yaml"),), (), tmp_path / "mine.yaml").chain.stages[0].recipe
    assert (recipe.train.epochs, recipe.data.sources) == (5, (StdlibSource(stdlib=("heapq",)),))


def test_a_chain_is_saved_as_the_recipes_that_it_names_and_what_lies_over_each(tmp_path: Path) -> None:
    saved = save_recipes(("all",), ("train.epochs=2", "train.lora.rank=16"), tmp_path / "mine.yaml")
    assert saved.path.read_text() == (
        "# Saved from all; changed: train.epochs, train.lora.rank.\n"
        "summary: From a reasoning model to one that writes code at once, in five stages.\n"
        "chain: [all]\n"
        "each:\n"
        "  train:\n"
        "    epochs: 2.0\n"
        "    lora:\n"
        "      rank: 16\n"
    )
    assert saved.chain.name == "mine" and len(saved.chain.stages) == 5
    gates = save_recipes(("all",), ("gate.humaneval=-3pt",), tmp_path / "gates.yaml").chain.stages
    assert [stage.recipe.gate["humaneval"] for stage in gates] == ["-3pt"] * 5 and len(gates[2].recipe.gate) == 3
    # A file of one's own beside it would be meant by `all`: then the whole path is written.
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "all.yaml").write_text("name: mine\n")
    other = save_recipes(("all",), (), tmp_path / "x" / "mine.yaml")
    assert f"chain: [{shipped_folder('recipes') / 'all.yaml'}]" in other.path.read_text()


def test_a_file_that_is_there_is_replaced_only_when_asked(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("name: precious\n")
    assert "is there already" in refused("demo", path=path).message
    assert path.read_text() == "name: precious\n"
    save_recipes(("demo",), (), path, replace=True)
    again = save_recipes((str(path),), ("train.epochs=3",), path, replace=True)  # over itself
    assert again.chain.stages[0].recipe.train.epochs == 3


def test_a_chain_is_not_saved_over_what_it_is_made_of(tmp_path: Path) -> None:
    outer = save_recipes(("all",), (), tmp_path / "inner.yaml").path
    chain = save_recipes((str(outer),), (), tmp_path / "outer.yaml").path
    for path in (outer, chain):
        assert "would name itself" in refused(str(chain), path=path, replace=True).message
    assert len(load_chain((str(chain),)).stages) == 5


def test_what_a_chain_file_cannot_say_is_refused_and_leaves_nothing(tmp_path: Path) -> None:
    error = refused("all", overrides=("gate={}",), path=tmp_path / "mine.yaml")
    assert "wouldn't give the same gate in stage1_nl_to_code" in error.message
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert "can't be written" in refused("demo", path=tmp_path / "file" / "mine.yaml").message


def test_random_changes_survive_saving(tmp_path: Path) -> None:
    rng = random.Random(7)
    for at in range(10):
        source = rng.choice(("gemma3:1b", "'12'", "'a: b'"))
        flags = (
            f"train.learning_rate={rng.random()!r}",
            f"model.source={source}",
            f"gate={rng.choice(['{}', '{humaneval: -1pt}'])}",
            f"train.memory.slots={rng.choice(['null', '3'])}",
        )
        saved = save_recipes(("stage1_nl_to_code",), flags, tmp_path / f"{at}.yaml")
        assert settings(load_chain((str(saved.path),))) == settings(load_chain(("stage1_nl_to_code",), flags))


def test_a_bare_name_lies_in_the_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    home = tmp_path / "home"
    assert recipe_path("mine", home) == home / "recipes" / "mine.yaml"
    assert recipe_path("mine.yaml", home) == tmp_path / "mine.yaml"
    assert recipe_path("a/mine", home) == tmp_path / "a" / "mine.yaml"
    assert recipe_path("v1.5", home) == home / "recipes" / "v1.5.yaml"

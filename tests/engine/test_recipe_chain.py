"""Several recipes as one chain: files, chain files, what lies over what, and what can't be chained."""

from __future__ import annotations

from pathlib import Path

import pytest

from amigo_local.domain.data_source import CandidatesSource, JsonlSource
from amigo_local.domain.errors import InputError
from amigo_local.engine.recipe_chain import load_chain

ONE = "name: one\nmodel: {source: 'gemma3:1b'}\ndata: {sources: [{jsonl: one.jsonl}]}\ntrain: {epochs: 3}\n"
TWO = "name: two\nmodel: {source: 'gemma3:1b'}\ndata: {sources: [{jsonl: two.jsonl}]}\n"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "one.yaml").write_text(ONE)
    (tmp_path / "two.yaml").write_text(TWO)
    return tmp_path


def chain_file(folder: Path, text: str, name: str = "both.yaml") -> str:
    path = folder / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    return str(path)


def refused(*texts: str) -> InputError:
    with pytest.raises(InputError) as found:
        load_chain(texts)
    assert found.value.hint
    return found.value


def test_one_recipe_is_a_chain_of_one(folder: Path) -> None:
    chain = load_chain(("one.yaml",), ["train.epochs=2"])
    assert (chain.name, [stage.recipe.name for stage in chain.stages]) == ("one", ["one"])
    assert chain.stages[0].recipe.train.epochs == 2


def test_files_are_chained_in_the_order_they_are_named(folder: Path) -> None:
    assert [stage.recipe.name for stage in load_chain(("two.yaml", "one.yaml")).stages] == ["two", "one"]


def test_a_chain_file_lays_its_settings_over_each_recipe_and_an_entry_over_that(folder: Path) -> None:
    text = "chain: [one, {recipe: two, train: {epochs: 5}}]\neach: {train: {epochs: 4, max_steps: 7}}\n"
    one, two = load_chain((chain_file(folder, text),), ["train.seed=9"]).stages
    assert (one.recipe.train.epochs, one.recipe.train.max_steps, one.recipe.train.seed) == (4, 7, 9)
    assert (two.recipe.train.epochs, two.recipe.train.max_steps, two.recipe.train.seed) == (5, 7, 9)
    assert one.recipe.train.learning_rate == 2e-4  # base.yaml's
    assert two.origins["train.epochs"] == "both.yaml:1" and two.origins["train.max_steps"] == "both.yaml:2"


def test_an_outer_chain_lies_over_an_inner_one(folder: Path) -> None:
    chain_file(folder, "chain: [one]\neach: {train: {epochs: 4, max_steps: 7}}\n", "inner.yaml")
    (stage,) = load_chain((chain_file(folder, "chain: [inner]\neach: {train: {epochs: 6}}\n"),)).stages
    assert (stage.recipe.train.epochs, stage.recipe.train.max_steps) == (6, 7)


def test_paths_are_relative_to_the_file_that_they_stand_in(folder: Path) -> None:
    data = "{sources: [{jsonl: mine.jsonl}, {candidates: [{jsonl: a/*.jsonl}]}]}"
    text = f"chain: [../one, {{recipe: ../two, data: {data}}}]\n"
    one, two = load_chain((chain_file(folder, text, "chains/both.yaml"),)).stages
    assert one.recipe.data.sources == (JsonlSource(jsonl=str(folder / "one.jsonl")),)
    mine, asked = two.recipe.data.sources
    assert mine == JsonlSource(jsonl=str(folder / "chains" / "mine.jsonl"))
    assert isinstance(asked, CandidatesSource)
    assert asked.candidates == (JsonlSource(jsonl=str(folder / "chains" / "a" / "*.jsonl")),)
    (flagged,) = load_chain(("one.yaml",), ["data.sources=[{repo: x}]"]).stages
    assert flagged.recipe.data.sources[0].repo == str(folder / "x")


def test_packages_and_words_are_no_paths(folder: Path) -> None:
    text = ONE.replace(
        "{jsonl: one.jsonl}", "{doctest: [stdlib, numpy, ./src]}, {votes: mine}, {replay: [earlier, old]}"
    )
    (folder / "one.yaml").write_text(text)
    doctest, votes, replay = load_chain(("one.yaml",)).stages[0].recipe.data.sources
    assert doctest.doctest == ("stdlib", "numpy", str(folder / "src"))
    assert votes.votes == "mine" and replay.replay == ("earlier", str(folder / "old"))


def test_a_chain_that_holds_itself_is_told_with_its_circle(folder: Path) -> None:
    chain_file(folder, "chain: [one, there]\n", "here.yaml")
    chain_file(folder, "chain: [here]\n", "there.yaml")
    error = refused("here.yaml")
    assert error.message == "the chain never ends: here.yaml → there.yaml → here.yaml"
    assert "there.yaml" in error.hint


def test_a_recipe_that_comes_twice_is_refused(folder: Path) -> None:
    assert refused("one.yaml", "two.yaml", "one.yaml").message == "the chain has one twice"
    chain_file(folder, ONE, "copy.yaml")
    assert "one.yaml and " in refused("one.yaml", "copy.yaml").message


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("gemma3:1b", "gemma3:4b", "two.yaml:2: two has another model.source than one: gemma3:4b, not gemma3:1b"),
        ("name: two", "name: two\ntrain: {quantization: none}", "two.yaml:2: two has another train.quantization"),
        ("name: two", "name: two\ntrain: {lora: {rank: 8}}", "two has another train.lora than one: rank 8, alpha 64"),
        (
            "data: {",
            "data: {held_out_fraction: 0.3, ",
            "another data.held_out_fraction than one: 0.3, not 0.15; what one",
        ),
        ("data: {", "data: {seed: 4, ", "two.yaml:3: two has another data.seed than one: 4, not 0"),
        ("name: two", "name: two\ntrain: {adapter: a}", "two.yaml:2: two names an adapter"),
    ],
)
def test_stages_that_cannot_go_on_from_one_another_are_refused(folder: Path, old: str, new: str, says: str) -> None:
    (folder / "two.yaml").write_text(TWO.replace(old, new))
    error = refused("one.yaml", "two.yaml")
    assert says in error.message


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("chain: one\n", "both.yaml:1: chain: expected a list of recipes"),
        ("chain: []\n", "both.yaml:1: chain: expected a list of recipes"),
        ("chain: [one]\neach: 3\n", "both.yaml:2: each: expected settings"),
        ("chain: [one]\ntrain: {epochs: 2}\n", "both.yaml:2: train: unknown key of a chain"),
        ("chain: [{train: {epochs: 2}}]\n", "both.yaml:1: chain: expected a recipe's name or path"),
        ("chain: [one]\neach: {train: {epoch: 2}}\n", "both.yaml:2: train.epoch: unknown key; did you mean epochs?"),
        ("chain: [three]\n", "no recipe at three"),
    ],
)
def test_a_malformed_chain_is_told_with_file_and_line(folder: Path, text: str, says: str) -> None:
    assert refused(chain_file(folder, text)).message.startswith(says)


def test_a_recipe_without_a_name_is_called_as_its_file(folder: Path) -> None:
    for name in ("plain", "other"):
        chain_file(folder, ONE.replace("name: one\n", ""), f"{name}.yaml")
    assert [stage.recipe.name for stage in load_chain(("plain.yaml", "other.yaml")).stages] == ["plain", "other"]

"""The form of a recipe: its fields, what one may type into them, and the flags that say the same."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from amigo_local.domain.data_source import CandidatesSource, HubSource, JsonlSource, StdlibSource
from amigo_local.domain.errors import InputError
from amigo_local.engine.form_field import FormField
from amigo_local.engine.recipe_chain import load_chain
from amigo_local.engine.recipe_form import RecipeForm, recipe_forms
from amigo_local.engine.setting_text import setting_text
from amigo_local.shipped import shipped_folder

SHIPPED = sorted(path.stem for path in shipped_folder("recipes").glob("*.yaml") if path.stem != "base")
HARD_TEXTS = (
    "12",
    "2e-4",
    "1_000",
    "null",
    "~",
    "yes",
    "a: b",
    "- a",
    "# x",
    "[a]",
    "{a}",
    "x y",
    "ü",
    "1:30",
    "'",
    "a=b",
    "*x",
    "0BSD",
)


@pytest.fixture
def demo() -> RecipeForm:
    return recipe_forms(("demo",))[0]


def kinds(form: RecipeForm) -> dict[str, str]:
    return {field.key: field.kind for field in form.fields}


def reason(form: RecipeForm, key: str, text: str) -> str:
    with pytest.raises(InputError) as refused:
        form.check(key, text)
    return refused.value.message


def test_every_leaf_is_a_field_with_its_kind(demo: RecipeForm) -> None:
    found = kinds(demo)
    assert list(found)[:4] == ["name", "summary", "model.source", "model.base"]
    assert {key: found[key] for key in ("train.packing", "train.method", "train.epochs", "train.lora.rank")} == {
        "train.packing": "bool",
        "train.method": "choice",
        "train.epochs": "number",
        "train.lora.rank": "integer",
    }
    assert (found["train.memory.offload_checkpoints"], found["model.source"]) == ("bool", "text")
    assert (found["train.lora.targets"], found["evaluate.suites"]) == ("text list", "text list")
    assert (found["data.sources"], found["gate"]) == ("yaml", "yaml")
    assert len(found) == 67


def test_a_field_says_bounds_choices_default_origin_and_what_it_is_for(demo: RecipeForm) -> None:
    rank, slots = demo.field("train.lora.rank"), demo.field("train.memory.slots")
    assert (rank.section, rank.name, rank.value, rank.default) == ("train.lora", "rank", 16, 32)
    assert (rank.bounds, rank.optional, rank.origin) == ("≥ 1", False, "recipes/demo.yaml:19")
    assert (slots.bounds, slots.optional, slots.origin) == ("≥ 1 and ≤ 8", True, "built-in default")
    assert demo.field("train.dpo.label_smoothing").bounds == "≥ 0 and < 0.5"
    assert demo.field("evaluate.suites").choices[0] == "directness"
    assert demo.field("export.quant").choices[:3] == ("keep", "f16", "bf16")
    assert demo.field("train.effective_batch").doc == (
        "Samples per optimizer step. The plan splits it into micro-batch x accumulation."
    )
    assert demo.field("train.weight_decay").origin == "built-in default"
    assert recipe_forms(("stage2_context",))[0].field("gate").origin.startswith("recipes/stage2_context.yaml:")


@pytest.mark.parametrize(
    ("key", "text", "says"),
    [
        ("train.lora.rank", "0", "train.lora.rank: found 0: expected `int` >= 1"),
        ("train.lora.rank", "many", "train.lora.rank: found 'many': expected `int`, got `str`"),
        ("train.lora.rank", "", "train.lora.rank: found None: expected `int`, got `null`"),
        ("train.lora.rank", "[1", "the value can't be read"),
        ("train.method", "dp", "train.method: found 'dp': invalid enum value 'dp'; did you mean dpo?"),
        ("evaluate.suites", "directness, humanevl", "evaluate.suites[1]: found 'humanevl'"),
        ("data.sources", "[{stdlb: all}]", "data.sources[0]: found stdlb, expected exactly one kind; did you mean std"),
        ("data.sources", "[{stdlib: all, limit: 0}]", "data.sources[0].limit: found 0"),
        ("data.sources", "[{jsonl: a, chosen: b}]", "names both columns"),
        ("train.packing", "maybe", "train.packing: found 'maybe': expected `bool`"),
    ],
)
def test_what_cannot_be_is_refused_as_one_types_in_the_words_of_loading(
    demo: RecipeForm, key: str, text: str, says: str
) -> None:
    found = reason(demo, key, text)
    assert says in found
    with pytest.raises(InputError) as loading:
        load_chain(("demo",), (f"{key}={demo.field(key)._as_yaml(text)}",))
    assert loading.value.message.removeprefix(f"--set {key}: ") == found


def test_plain_text_is_taken_as_it_stands(demo: RecipeForm) -> None:
    for text in HARD_TEXTS:
        form = demo.edit("model.source", text)
        assert form.value("model.source") == text and form.text("model.source") == text
        assert load_chain(("demo",), form.overrides).stages[0].recipe.model.source == text
    assert demo.edit("model.source", "x").edit("model.source", "").value("model.source") is None
    assert demo.edit("summary", "").value("summary") == ""


def test_a_list_needs_no_brackets(demo: RecipeForm) -> None:
    assert demo.check("evaluate.suites", "directness, context") == ("directness", "context")
    assert demo.check("evaluate.suites", "[directness]") == ("directness",)
    assert demo.check("evaluate.suites", "") == ()
    assert demo.check("train.lora.targets", "all-linear") == "all-linear"
    assert demo.check("train.lora.targets", "q_proj, v_proj") == ("q_proj", "v_proj")
    assert demo.check("train.memory.slots", "") is None and demo.check("train.max_steps", "null") is None


def test_rich_settings_may_be_typed_on_several_lines(demo: RecipeForm) -> None:
    text = "- stdlib: all\n  limit: 5\n- jsonl: /a.jsonl\n"
    assert demo.check("data.sources", text) == (StdlibSource(stdlib="all", limit=5), JsonlSource(jsonl="/a.jsonl"))
    assert reason(demo, "data.sources", text + "- repo: [\n").startswith("line 4: not valid YAML")
    assert reason(demo, "data.sources", text.replace("limit: 5", "limit: 0")).startswith(
        "line 2: data.sources[0].limit: found 0"
    )


def test_what_is_typed_back_is_no_change_and_what_is_changed_can_be_reverted(demo: RecipeForm) -> None:
    form = demo.edit("train.lora.rank", "8").edit("train.epochs", "2e0")
    assert form.overrides == ("train.epochs=2.0", "train.lora.rank=8")
    assert (form.settings.train.lora.rank, form.settings.train.epochs, demo.settings.train.lora.rank) == (8, 2.0, 16)
    assert form.edit("train.epochs", "1").overrides == ("train.lora.rank=8",)
    back = form.revert("train.lora.rank")
    assert (back.overrides, back.settings.train.lora.rank) == (("train.epochs=2.0",), 16)


def test_a_path_that_is_typed_means_where_the_person_is(
    demo: RecipeForm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    form = demo.edit("data.sources", "[{jsonl: mine.jsonl}]")
    assert form.value("data.sources")[0].jsonl == str(tmp_path / "mine.jsonl")
    monkeypatch.chdir("/")  # as when the app is started again elsewhere
    assert load_chain(("demo",), form.overrides).stages[0].recipe == form.settings


def test_flags_and_the_form_that_is_made_of_them_agree() -> None:
    flags = ("train.lora={rank: 4}", "gate={humaneval: -5pt}", "data.sources=[{stdlib: [heapq]}]")
    (form,) = recipe_forms(("stage1_nl_to_code",), flags)
    assert set(form.edits) == {"train.lora.rank", "gate", "data.sources"}
    assert form.settings.gate == {"humaneval": "-5pt"}  # the whole gate, not one entry more
    assert recipe_forms(("stage1_nl_to_code",), form.overrides)[0].settings == form.settings
    (one,) = recipe_forms(("stage1_nl_to_code",), ("gate.humaneval=-5pt",))
    assert one.settings.gate == {"directness": "+0pt", "humaneval": "-5pt"}
    assert one.overrides == ("gate.humaneval=-5pt",)
    assert one.edit("gate", "{humaneval: -1pt}").overrides[1:] == ("gate={humaneval: -1pt}",)
    third = recipe_forms(("all",), ("gate.humaneval=-5pt",))[2].edit("train.epochs", "1")
    assert third.overrides == ("gate.humaneval=-5pt", "train.epochs=1.0") and third.settings.gate["debugging"] == "+0pt"
    (none,) = recipe_forms(("stage1_nl_to_code",), ("gate={}",))
    assert none.settings.gate == {} and none.overrides == ("gate={}",)


def test_changes_hold_for_all_stages_of_a_chain() -> None:
    forms = recipe_forms(("all",), ("train.lora.rank=16", "train.epochs=1"))
    assert [form.settings.train.lora.rank for form in forms] == [16] * 5
    # Stage 2 has one epoch of its own: for the others it is a change all the same.
    assert {form.overrides for form in forms} == {("train.epochs=1.0", "train.lora.rank=16")}
    assert forms[1].edit("train.lora.rank", "32").overrides == ("train.epochs=1.0", "train.lora.rank=32")
    assert "name" not in forms[0].keys


def other_values(field: FormField, rng: random.Random) -> Iterator[Any]:
    """Valid ones, the awkward among them."""
    if field.optional:
        yield None
    match field.kind:
        case "bool":
            yield from (True, False)
        case "choice":
            yield from field.choices
        case "integer":
            yield from (int(v) for v in (1, 3, 256, 4096) if accepts(field, v))
        case "number":
            yield from (v for v in (1e-5, 0.1, rng.random() / 2, 1.0, 3.0, 1e22, 5e-324) if accepts(field, v))
        case "text":
            yield from HARD_TEXTS
        case "text list":
            items = field.choices or HARD_TEXTS
            yield from ((), tuple(items[:1]), tuple(items))
            if field.name == "targets":
                yield from ("all-linear", HARD_TEXTS)


def accepts(field: FormField, value: Any) -> bool:
    try:
        msgspec.convert(value, field.hint)
    except msgspec.ValidationError:
        return False
    return True


RICH = {
    "data.sources": (
        (),
        (HubSource(hub="a/b", files="*.json*", where={"language": ("python3", "12"), "x: y": ("null",)}, rows=5),),
        (CandidatesSource(candidates=(StdlibSource(stdlib=("a", "b")), JsonlSource(jsonl=f"{os.sep}a b.jsonl"))),),
    ),
    "gate": ({}, {"humaneval": "+5pt", "1": "2e-4"}),
    "data.evaluation_sets": ((), (f"{os.sep}a, b.jsonl", f"{os.sep}c*.jsonl")),
}


@pytest.mark.parametrize("name", SHIPPED)
def test_every_value_of_every_leaf_goes_through_text_and_flags_unchanged(name: str) -> None:
    rng = random.Random(name)
    form = changed = recipe_forms((name,))[0]
    for field in form.fields:
        values = [*RICH[field.key]] if field.key in RICH else [*other_values(field, rng)]
        assert values, field.key
        for value in (field.value, *values):
            assert field.check(field.shown(value)) == value, (field.key, value)
        # What a chain's stages must agree on, or can't have, is left as it is.
        if form.alone or field.key != "train.adapter":
            changed = changed.put(field.key, rng.choice(values))
    assert len(changed.edits) > 40
    assert load_chain((name,), changed.overrides).stages[0].recipe == changed.settings
    assert recipe_forms((name,), changed.overrides)[0].edits == changed.edits


def test_values_on_one_line_read_back() -> None:
    assert setting_text("a\nb") == '"a\\nb"' and setting_text(1e-05) == "1e-5" and setting_text(("a", 1)) == "[a, 1]"
    assert setting_text(HubSource(hub="a/b", files="*.json")) == "{hub: a/b, files: '*.json'}"

"""plan, from a config.json or a shipped name alone: every stage's needs, training's memory, and refusals."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from amigo_local.domain.errors import InputError
from amigo_local.domain.events import Note, PlanMade, StageFailed, StageFinished, Table
from amigo_local.domain.plan import Plan
from amigo_local.domain.shape import ModelShape
from amigo_local.domain.units import GIB, MIB
from amigo_local.stages._shapes import checkpoint_shape, config_shape, named_shapes, shape_of_config
from amigo_local.weights.gguf_header import model_shape
from tests.support.command_line import amigo, amigo_records, events
from tests.support.model_shapes import NAMED_SHAPES, NamedShape, header_of, model_of
from tests.support.planning import shipped_config

NAMES = ["gemma-3-12b", "gemma-3-1b", "gemma-3-27b", "gemma-3-4b", "llama-3.1-8b", "mistral-7b-v0.3", "qwen3-8b"]
LAPTOP = ("--vram", "6GiB", "--ram", "16GiB")


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("recipe")
    pairs = folder / "pairs.jsonl"
    pairs.write_text('{"prompt": "a", "completion": "b"}\n', encoding="utf-8")
    path = folder / "recipe.yaml"
    path.write_text(f"name: r\ndata:\n  sources:\n    - jsonl: {pairs}\n      limit: 1000\n", encoding="utf-8")
    return path


def planned(home: Path, recipe: Path, *arguments: str) -> tuple[int, Plan, list[Any]]:
    code, records = amigo_records(home, "plan", str(recipe), *arguments)
    found = [record.event for record in records]
    (made,) = [event for event in found if isinstance(event, PlanMade)]
    return code, made.plan, found


def test_a_shipped_name_is_enough_to_plan_every_stage(tmp_path: Path, recipe: Path) -> None:
    code, plan, found = planned(tmp_path, recipe, "--model", "gemma-3-12b", *LAPTOP)
    assert code == 0
    needs = {stage.stage: stage.needs for stage in plan.stages}
    assert list(needs) == ["tokenizer", "prepare", "quantize", "train", "export", "register", "evaluate"]
    assert needs["train"].vram_bytes / MIB == pytest.approx(5643, abs=1)
    # 850 samples are 107 steps of eight.
    assert plan.memory is not None and plan.memory.step_seconds is not None
    assert needs["train"].seconds == pytest.approx(107 * plan.memory.step_seconds)
    assert needs["quantize"].disk_bytes / GIB == pytest.approx(5.2, abs=0.1)  # the NF4 of 48 layers
    assert needs["export"].disk_bytes == pytest.approx(7.301e9, rel=0.01)  # measured, as Q4_K_M
    assert needs["evaluate"].ram_bytes > needs["export"].disk_bytes
    assert all(n.ram_bytes > 0 for name, n in needs.items() if name != "register")
    assert events_of(found, Note)[-1].text == "it fits that machine"
    (finished,) = events_of(found, StageFinished)
    assert finished.figures["peak_vram_bytes"] == needs["train"].vram_bytes
    assert not (tmp_path / "artifacts").exists() or not any((tmp_path / "artifacts").iterdir())


def events_of(found: list[Any], kind: type[Any]) -> list[Any]:
    return [event for event in found if isinstance(event, kind)]


def test_json_carries_the_whole_memory_plan(tmp_path: Path, recipe: Path) -> None:
    _, plan, found = planned(tmp_path, recipe, "--model", "gemma-3-12b", *LAPTOP)
    memory = plan.memory
    assert memory is not None
    assert (memory.resident_layers, memory.streamed_layers, memory.slots) == (27, 21, 2)
    assert sum(part.nbytes for part in memory.vram) == memory.peak_vram_bytes <= memory.vram_budget_bytes
    levers = events_of(found, Table)[1]
    assert [row[0] for row in levers.rows] == [lever.name.removeprefix("train.") for lever in memory.levers]
    assert len(memory.levers) == 7


@pytest.mark.parametrize("given", ["file", "directory"])
def test_a_config_json_is_read_wherever_it_lies(tmp_path: Path, recipe: Path, given: str) -> None:
    folder = tmp_path / "qwen"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(shipped_config("qwen3-8b")), encoding="utf-8")
    text = str(folder / "config.json") if given == "file" else str(folder)
    code, plan, _ = planned(tmp_path / "home", recipe, "--model", text, *LAPTOP)
    assert (code, plan.memory is not None) == (0, True)
    assert plan.memory is not None and plan.memory.resident_layers == 36


def test_levers_of_the_recipe_and_of_the_command_line_count(tmp_path: Path, recipe: Path) -> None:
    options = ("--set", "train.memory.resident_layers=3", "--set", "train.lora.rank=16", "--set", "train.micro_batch=1")
    _, plan, _ = planned(tmp_path, recipe, "--model", "gemma-3-12b", *LAPTOP, *options)
    assert plan.memory is not None and plan.memory.resident_layers == 3
    impossible = amigo(
        tmp_path, "plan", str(recipe), "--model", "gemma-3-12b", *LAPTOP, "--set", "train.memory.resident_layers=60"
    )
    assert impossible.returncode == 2
    assert "train.memory.resident_layers is 60, the model has 48 layers" in impossible.stderr


def test_a_planned_card_is_as_large_as_it_is_said_to_be(tmp_path: Path, recipe: Path) -> None:
    _, plan, _ = planned(tmp_path, recipe, "--model", "gemma-3-27b", "--vram", "80GiB", "--ram", "256GiB")
    assert plan.memory is not None
    assert (plan.memory.resident_layers, plan.memory.streamed_layers) == (62, 0)
    assert plan.memory.vram_budget_bytes == int(0.93 * 80 * GIB)


def test_a_refusal_shows_the_plan_names_what_binds_and_what_would_fit(tmp_path: Path, recipe: Path) -> None:
    longer = ("--set", "data.max_length_tokens=2048")
    code, plan, found = planned(tmp_path, recipe, "--model", "gemma-3-27b", *LAPTOP, *longer)
    assert code == 2
    (failed,) = events_of(found, StageFailed)
    assert failed.message.startswith("RAM: training needs 15.6 GiB, there are 14.9 GiB (gemma3_text, 27.0 B parameters")
    assert failed.hint.startswith(
        "--set data.max_length_tokens=1024 would fit (5.5 GiB VRAM and 14.8 GiB RAM); or --set"
    )
    assert (plan.binding, plan.nearest) == (failed.message, failed.hint)
    assert plan.memory is not None and plan.memory.peak_ram_bytes > plan.memory.ram_budget_bytes
    following = amigo(
        tmp_path, "plan", str(recipe), "--model", "gemma-3-27b", *LAPTOP, "--set", "data.max_length_tokens=1024"
    )
    assert following.returncode == 0, following.stderr


def test_bars_are_drawn_for_a_person(tmp_path: Path, recipe: Path) -> None:
    done = amigo(tmp_path, "plan", str(recipe), "--model", "gemma-3-12b", *LAPTOP)
    assert done.returncode == 0, done.stderr
    assert "VRAM 5.5 GiB of 5.6 GiB" in done.stdout
    assert "b resident layers      2.9 GiB" in done.stdout
    assert "memory.resident_layers  " in done.stdout


def test_only_a_plan_can_be_made_of_a_config_alone(tmp_path: Path, recipe: Path) -> None:
    config = tmp_path / "config.json"
    config.write_text(json.dumps(shipped_config("gemma-3-1b")), encoding="utf-8")
    done = amigo(tmp_path / "home", "run", str(recipe), "--model", str(config))
    assert done.returncode == 2
    assert f"{config} holds no weights" in done.stderr and "plan can do with it" in done.stderr


def test_a_name_that_is_neither_tag_nor_shape_is_answered_with_the_shapes(tmp_path: Path, recipe: Path) -> None:
    done = amigo(tmp_path, "plan", str(recipe), "--model", "gema-3-12b", "--set", "ollama.use=false")
    assert done.returncode == 2 and "our own library has no gema-3-12b" in done.stderr
    assert "gemma-3-12b, gemma-3-1b" in done.stderr


def test_how_long_a_model_answers_is_told_by_its_size_and_not_where_a_card_would(tmp_path: Path, recipe: Path) -> None:
    on_card = planned(tmp_path, recipe, "--model", "gemma-3-12b", *LAPTOP)[1]
    alone = [planned(tmp_path, recipe, "--model", name)[1] for name in ("gemma-3-1b", "gemma-3-4b")]
    evaluate = [{s.stage: s.needs for s in plan.stages}["evaluate"].seconds for plan in (on_card, *alone)]
    assert evaluate[0] is None
    assert evaluate[1] is not None and evaluate[2] is not None
    assert evaluate[2] / evaluate[1] == pytest.approx(3.9, abs=0.1)  # 3.88 and 1.0 G weights


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"{", "is no JSON object"),
        (b"[1]", "is no JSON object"),
        (b"{}", "num_attention_heads is missing"),
        (b'{"text_config": 3}', "text_config is no object"),
        (
            b'{"architectures": ["BertForMaskedLM"], "model_type": "bert", "hidden_size": 768}',
            "is of no decoder-only language model, but of BertForMaskedLM",
        ),
        (
            b'{"architectures": ["T5ForConditionalGeneration"], "is_encoder_decoder": true}',
            "is of no decoder-only language model, but of T5ForConditionalGeneration",
        ),
        (b'{"model_type": "mixtral", "num_local_experts": 8}', "a mixture of 8 experts"),
    ],
)
def test_a_config_of_something_else_is_refused(tmp_path: Path, content: bytes, said: str) -> None:
    path = tmp_path / "config.json"
    path.write_bytes(content)
    with pytest.raises(InputError, match=said) as refused:
        config_shape(path)
    assert str(path) in refused.value.message
    with pytest.raises(InputError, match="can't be read"):
        checkpoint_shape(tmp_path / "missing")


@pytest.mark.parametrize("key", ["hidden_size", "num_hidden_layers", "vocab_size", "intermediate_size"])
@pytest.mark.parametrize("value", [0, -1, 1.5, "4096", None, True, 1 << 40])
def test_absurd_sizes_are_refused_by_name(key: str, value: object) -> None:
    config = shipped_config("llama-3.1-8b") | {key: value}
    with pytest.raises(InputError, match=f"x: {key} is "):
        shape_of_config(json.dumps(config).encode(), "x")


def test_shipped_shapes_are_what_transformers_reads_of_them() -> None:
    """Published configs leave out what their class fills in."""
    from transformers import CONFIG_MAPPING

    shapes = named_shapes()
    assert list(shapes) == NAMES
    for name, shape in shapes.items():
        config = shipped_config(name)
        text = CONFIG_MAPPING[config["model_type"]].from_dict(config).get_text_config()
        kinds = getattr(text, "layer_types", None) or []
        assert (
            *(shape.hidden_size, shape.intermediate_size, shape.layers, shape.heads, shape.kv_heads),
            *(shape.vocabulary, shape.context_length, shape.tied_embeddings, shape.sliding_layers),
        ) == (
            *(text.hidden_size, text.intermediate_size, text.num_hidden_layers, text.num_attention_heads),
            *(text.num_key_value_heads, text.vocab_size, text.max_position_embeddings),
            *(text.tie_word_embeddings, kinds.count("sliding_attention")),
        ), name
        assert shape.head_dim == (getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads)
        assert shape.sliding_window == (text.sliding_window if shape.sliding_layers else None)


def test_norms_and_biases_of_a_shape_are_those_of_transformers_modules() -> None:
    import torch
    from transformers import CONFIG_MAPPING, AutoModelForCausalLM

    for name, shape in named_shapes().items():
        config = shipped_config(name)
        text = CONFIG_MAPPING[config["model_type"]].from_dict(config).get_text_config()
        text.num_hidden_layers = 1
        if getattr(text, "layer_types", None):
            text.layer_types = text.layer_types[:1]
        with torch.device("meta"):
            layer = AutoModelForCausalLM.from_config(text).model.layers[0]
        assert hasattr(layer.self_attn, "q_norm") == shape.qk_norms, name
        assert hasattr(layer, "post_feedforward_layernorm") == shape.post_norms, name
        assert (layer.self_attn.q_proj.bias is not None) == shape.attention_bias, name
        linears = {
            found.rsplit(".", 1)[-1]: (module.in_features, module.out_features)
            for found, module in layer.named_modules()
            if isinstance(module, torch.nn.Linear)
        }
        assert linears == shape.linears, name


@pytest.mark.parametrize(
    ("gguf", "shipped"),
    [
        ("gemma3-1b", "gemma-3-1b"),
        ("gemma3-4b", "gemma-3-4b"),
        ("gemma3-12b", "gemma-3-12b"),
        ("gemma3-27b", "gemma-3-27b"),
        ("llama3.1-8b", "llama-3.1-8b"),
        ("qwen3-8b", "qwen3-8b"),
        ("mistral-7b", "mistral-7b-v0.3"),
    ],
)
def test_a_gguf_and_a_config_of_one_model_give_one_shape(gguf: str, shipped: str) -> None:
    numbers: NamedShape = NAMED_SHAPES[gguf]
    metadata, tensors = model_of(numbers)
    shape, expected = model_shape(header_of(metadata, tensors)), named_shapes()[shipped]
    ignored = {"architecture"} | ({"sliding_window"} if gguf == "gemma3-1b" else set())  # the support shape says 1024
    for field in ModelShape.__struct_fields__:
        if field not in ignored:
            assert getattr(shape, field) == getattr(expected, field), field


def test_older_models_planned_from_a_real_gguf_still_say_what_is_there(tmp_path: Path, recipe: Path) -> None:
    from tests.support.tiny_gguf import write_tiny_llama

    model = write_tiny_llama(tmp_path / "tiny.gguf")
    _, records = amigo_records(tmp_path / "home", "plan", str(recipe), "--model", str(model), *LAPTOP)
    (made,) = events(records, PlanMade)
    assert made.plan.memory is not None and made.plan.memory.streamed_layers == 0
    assert {stage.status for stage in made.plan.stages} == {"to do"}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (("train.keep_best=true",), "train.evaluate_every_steps is not set"),
        (("train.evaluate_every_steps=5", "data.held_out_fraction=0"), "there is nothing to evaluate on"),
        (("train.report_to=[trackio]",), "trackio, which is not installed"),
    ],
)
def test_what_training_would_refuse_is_refused_before_anything_is_made(
    tmp_path: Path, recipe: Path, changes: tuple[str, ...], said: str
) -> None:
    settings = [part for change in changes for part in ("--set", change)]
    done = amigo(tmp_path, "plan", str(recipe), "--model", "gemma-3-12b", *LAPTOP, *settings)
    assert done.returncode == 2 and said in done.stderr and "hint: " in done.stderr


def test_a_size_without_a_unit_is_not_taken_for_bytes(tmp_path: Path, recipe: Path) -> None:
    done = amigo(tmp_path, "plan", str(recipe), "--model", "gemma-3-12b", "--vram", "6")
    assert done.returncode == 2
    assert "--vram 6 is 6 bytes" in done.stderr and "hint: with a unit: --vram 6GiB" in done.stderr


def test_a_plan_is_of_the_model_as_it_was_named(tmp_path: Path, recipe: Path) -> None:
    _, plan, _ = planned(tmp_path, recipe, "--model", "Gemma-3-12B", *LAPTOP)
    assert plan.model == "Gemma-3-12B"
    assert plan.memory is not None and plan.memory.resident_layers == 27

"""The verb `quantize`: a GGUF or a checkpoint in; out, a store that opens for that source only, and is found again."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
import torch

from amigo_local.domain.artifact import Artifact
from amigo_local.domain.errors import InputError
from amigo_local.domain.events import Note
from amigo_local.domain.model_ref import parse_model_ref
from amigo_local.domain.settings import OllamaSettings, ProgramSettings
from amigo_local.engine.contract import StageContext
from amigo_local.engine.fingerprint import digest_file, size_of
from amigo_local.engine.machine import measure_machine
from amigo_local.engine.workspace import Workspace
from amigo_local.stages import load_stage, quantize
from amigo_local.stages._shapes import named_shape
from amigo_local.training.layer_pack import linears_4bit, pack_layer
from amigo_local.training.nf4_index import LAYERS_FILE
from amigo_local.training.nf4_model import build_model
from amigo_local.training.nf4_store import open_store
from amigo_local.weights.unpack import unpack
from tests.support.quantized_model import decoder_layers, load_nf4
from tests.support.tiny_families import write_family
from tests.support.tiny_gguf import write_tiny_gemma3
from tests.weights.conftest import Events


@pytest.fixture(scope="module")
def gguf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_gemma3(tmp_path_factory.mktemp("quantize") / "model.gguf")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_family(tmp_path_factory.mktemp("quantize") / "checkpoint", "qwen2")


@pytest.fixture
def context(tmp_path: Path) -> StageContext:
    settings = ProgramSettings(ollama=OllamaSettings(use=False))
    workspace = Workspace(tmp_path / "home")
    workspace.prepare()
    build = tmp_path / "store"
    build.mkdir()
    machine = measure_machine(tmp_path, settings.machine)
    return StageContext(workspace, settings, machine, "run", Events(), build)


def asked(path: Path) -> quantize.QuantizeParams:
    return quantize.QuantizeParams(ref=str(path))


def artifact(context: StageContext) -> Artifact:
    return Artifact("nf4", str(context.build_dir()), "", 0, "quantize", "")


def test_a_gguf_becomes_the_store_of_its_unpacked_checkpoint(gguf: Path, context: StageContext, tmp_path: Path) -> None:
    result = quantize.run(asked(gguf), context)
    inputs = quantize.inputs(asked(gguf), context)
    assert inputs == {"model": digest_file(gguf), "bitsandbytes": result.figures["bitsandbytes"]}
    store = open_store(context.build_dir(), source_digest=inputs["model"], source=gguf)
    unpack(gguf, tmp_path / "unpacked", "bf16", Events())
    config = (tmp_path / "unpacked" / "config.json").read_bytes()
    assert (context.build_dir() / "config.json").read_bytes() == config
    reference = load_nf4(tmp_path / "unpacked")
    for layer, pack in zip(decoder_layers(reference), store.packs, strict=True):
        assert torch.equal(pack_layer(layer).flat, pack.flat)
    model, ids = build_model(store, torch.bfloat16), torch.arange(3, 60).view(1, -1)
    with torch.no_grad():
        assert torch.equal(model(ids).logits, reference(ids).logits)
    notes = [event.text for event in context.emit if isinstance(event, Note)]  # type: ignore[attr-defined]
    assert any(note.startswith("NF4 changes the weights by 9.") and "most, by 9." in note for note in notes)


def test_a_checkpoint_becomes_its_own_store(checkpoint: Path, context: StageContext) -> None:
    quantize.run(asked(checkpoint), context)
    digest = quantize.inputs(asked(checkpoint), context)["model"]
    store = open_store(context.build_dir(), source_digest=digest)
    assert [table.type_name for table in store.tables.values()] == ["BF16"]
    linears = dict(linears_4bit(build_model(store, torch.bfloat16)))
    assert linears["model.layers.1.self_attn.k_proj"].bias is not None


@pytest.mark.parametrize("which", ["gguf", "checkpoint"])
def test_what_is_needed_is_predicted_from_the_header_or_config(
    which: str, context: StageContext, request: pytest.FixtureRequest
) -> None:
    params = asked(request.getfixturevalue(which))
    predicted = quantize.needs(params, context)
    quantize.run(params, context)
    written = size_of(context.build_dir())
    assert written < predicted.disk_bytes < written + (8 << 20)
    assert 5 < (predicted.seconds or 0) < 6 and predicted.vram_bytes == 0


def test_the_disk_predicted_for_12b_is_what_was_measured(context: StageContext, gguf: Path) -> None:
    """5,555,257,368 bytes of store at Gemma-3-12B's shape (docs/measurements.md)."""
    predicted = quantize.outlook(asked(gguf), named_shape("gemma-3-12b"), context).disk_bytes
    assert 5_555_257_368 < predicted < 5_555_257_368 * 1.01


def test_a_store_is_found_again_while_it_and_its_source_hold(gguf: Path, context: StageContext, tmp_path: Path) -> None:
    quantize.run(asked(gguf), context)
    assert quantize.still_holds(asked(gguf), artifact(context), context)
    moved = tmp_path / "moved.gguf"
    moved.write_bytes(gguf.read_bytes())
    assert quantize.still_holds(asked(moved), artifact(context), context)
    with moved.open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"\x55")
    assert not quantize.still_holds(asked(moved), artifact(context), context)
    os.truncate(context.build_dir() / LAYERS_FILE, 10)
    assert not quantize.still_holds(asked(gguf), artifact(context), context)


def test_weights_that_are_not_finite_are_refused_without_an_option_that_there_is_not(
    context: StageContext, tmp_path: Path
) -> None:
    from amigo_local.weights.gguf_header import read_header

    gguf = write_tiny_gemma3(tmp_path / "nan.gguf")
    tensor = read_header(gguf).tensor("blk.2.ffn_up.weight")
    with gguf.open("r+b") as file:
        file.seek(tensor.offset)
        file.write(b"\x00\x7e")  # the scale of the first block: an f16 NaN
    with pytest.raises(InputError, match=r"model\.layers\.2\.mlp\.up_proj\.weight holds at least 32 values") as refused:
        quantize.run(asked(gguf), context)
    assert "allow" not in refused.value.hint


def _quantized(config: dict[str, object]) -> dict[str, object]:
    return config | {"quantization_config": {"quant_method": "bitsandbytes"}}


def _multimodal(config: dict[str, object]) -> dict[str, object]:
    return {"model_type": "gemma3", "text_config": config | {"model_type": "gemma3_text"}, "vision_config": {}}


@pytest.mark.parametrize(
    ("change", "message"),
    [(_quantized, "is quantized already"), (_multimodal, "Gemma3ForConditionalGeneration has a linear")],
)
def test_checkpoints_that_hold_something_else_are_refused(
    change: Callable[[dict[str, object]], dict[str, object]], message: str, context: StageContext, tmp_path: Path
) -> None:
    checkpoint = write_family(tmp_path / "checkpoint", "qwen2")
    config = json.loads((checkpoint / "config.json").read_text())
    (checkpoint / "config.json").write_text(json.dumps(change(config)))
    with pytest.raises(InputError, match=message):
        quantize.run(asked(checkpoint), context)


def test_the_summary_says_that_it_is_no_gguf_type() -> None:
    assert "no GGUF type" in quantize.STAGE.summary and quantize.STAGE.resumable


@pytest.mark.parametrize("verb", ["tokenizer", "quantize", "unpack", "imatrix"])
def test_however_a_model_is_named_the_loop_finds_what_was_made_by_hand(
    verb: str, gguf: Path, context: StageContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage = load_stage(verb)

    def asked_for(ref: str) -> object:
        given = {"ref": ref} | ({"texts": "texts"} if verb == "imatrix" else {})
        assert stage.steps is not None
        (step,) = stage.steps(msgspec.convert(given, stage.params), context)
        assert step.stage == verb
        return step.params

    monkeypatch.chdir(gguf.parent)
    assert asked_for(gguf.name) == asked_for(f"./{gguf.name}") == asked_for(str(parse_model_ref(str(gguf))))
    assert asked_for("gemma3:12b") == asked_for(str(parse_model_ref("gemma3:12b")))

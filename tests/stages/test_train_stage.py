"""The loop over the NF4 store, with the real runner: its steps, what it writes, where adapters and bases come from."""

from __future__ import annotations

import copy
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
from gguf import GGUFReader

from amigo_local.domain.artifact import Artifact
from amigo_local.engine.workspace import Workspace
from amigo_local.stages._serving import library
from amigo_local.weights.unpack import unpack
from tests.support.altered_checkpoint import altered, low_rank
from tests.support.threads import one_thread
from tests.support.tiny_home import LOOP, Home


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Home]:
    with one_thread():
        yield Home(tmp_path_factory.mktemp("train-stage"))


@pytest.fixture(scope="module")
def sft(home: Home) -> dict[str, Artifact]:
    """What the loop has made."""
    artifacts = home.done()
    assert home.made() == list(artifacts) == LOOP
    return artifacts


def weight_files(folder: Path) -> dict[str, int]:
    """Name -> elements of the largest matrix, of every .safetensors below."""
    return {
        str(path.relative_to(folder)): max(
            (tensor.size for tensor in safetensors.numpy.load_file(path).values() if tensor.ndim > 1), default=0
        )
        for path in folder.rglob("*.safetensors")
    }


def test_no_weights_are_written_but_nf4_the_adapter_and_the_result(home: Home, sft: dict[str, Artifact]) -> None:
    found = weight_files(home.workspace.root)
    adapter = Path(sft["train"].path).relative_to(home.workspace.root)
    store = Path(sft["quantize"].path).relative_to(home.workspace.root)
    assert set(found) == {f"{adapter}/adapter_model.safetensors", f"{store}/small.safetensors"}
    assert found[f"{store}/small.safetensors"] == 0  # vectors
    assert found[f"{adapter}/adapter_model.safetensors"] == 4 * 512  # rank x the widest linear
    # The embedding stays where it is, as Q8_0: 1024 x 256 numbers take 278,528 bytes.
    index = json.loads((Path(sft["quantize"].path) / "index.json").read_text())
    assert [(t["type_name"], t["nbytes"], t["file"]) for t in index["tables"]] == [("Q8_0", 278_528, 0)]
    assert index["files"][0]["path"] == str(home.gguf)
    assert sft["train"].figures["device"] == "cpu" and sft["train"].figures["steps"] == 2
    assert not list(home.workspace.root.rglob("*.partial")) and not list(home.workspace.root.rglob("checkpoint-*"))


def test_an_adapter_belongs_to_the_gguf_and_says_what_it_was_made_from(home: Home, sft: dict[str, Artifact]) -> None:
    train = sft["train"]
    config = json.loads((Path(train.path) / "adapter_config.json").read_text())
    model = sft["quantize"].sources["model"]
    assert config["base_model_name_or_path"] == model == sft["export"].sources["base"]
    assert train.sources == {"base": sft["quantize"].digest, "dataset": sft["prepare"].digest}


def test_a_second_run_skips_everything_and_a_removed_tag_is_registered_again(
    home: Home, sft: dict[str, Artifact]
) -> None:
    again = home.done()
    assert home.skipped() == LOOP and home.made() == []
    assert {stage: a.digest for stage, a in again.items()} == {stage: a.digest for stage, a in sft.items()}
    library(home.runner().context("register")).remove("tiny-refined:latest")
    home.done()
    assert home.made() == ["register"]


def test_an_export_that_was_forgotten_is_made_and_registered_again(home: Home, sft: dict[str, Artifact]) -> None:
    """The library refuses a file that was replaced beneath its tag, so a new file needs a new entry."""
    home.workspace.forget(sft["export"])
    home.done()
    assert home.made()[:2] == ["export", "register"]
    assert library(home.runner().context("register")).get("tiny-refined:latest").usable_gguf().is_file()


def test_a_store_that_was_cut_short_is_made_again_and_what_follows_still_holds(
    home: Home, sft: dict[str, Artifact]
) -> None:
    layers = Path(sft["quantize"].path) / "layers.nf4"
    os.truncate(layers, layers.stat().st_size // 2)
    again = home.done()
    assert home.made() == ["quantize"] and again["quantize"].digest == sft["quantize"].digest


def test_a_source_that_was_moved_away_is_told_before_anything_is_done(home: Home, sft: dict[str, Artifact]) -> None:
    away = home.gguf.rename(home.gguf.with_suffix(".away"))
    try:
        for verb in ("run", "train"):
            error = home.refused(verb=verb)
            assert f"there is no file {home.gguf}" in error.message
            assert home.made() == home.skipped() == []
    finally:
        away.rename(home.gguf)


def preferences(home: Home) -> str:
    rows = [
        {"prompt": f"Add {i}.", "chosen": f"```python\nx += {i}\n```", "rejected": f"Sure! Here you go: {i} …"}
        for i in range(24)
    ]
    path = home.folder / "preferences.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return f"[{{jsonl: {path}, chosen: chosen, rejected: rejected}}]"


def test_dpo_goes_on_from_the_adapter_of_a_run_to_a_registered_tag(home: Home, sft: dict[str, Artifact]) -> None:
    dpo = ["train.method=dpo", f"data.sources={preferences(home)}", "register.tag=tiny-preferred"]
    artifacts = home.done(*dpo, f"train.adapter=run:{sft['train'].run_id}")
    assert home.skipped() == ["tokenizer", "quantize"] and home.made() == [s for s in LOOP if s not in home.skipped()]
    train = artifacts["train"]
    assert train.sources["start_adapter"] == sft["train"].digest
    assert train.params["start_adapter"] == sft["train"].path
    assert train.figures["first_loss"] == pytest.approx(np.log(2), abs=1e-6)  # the reference is where it started
    assert train.digest != sft["train"].digest and train.figures["pairs_too_long"] == 0
    assert artifacts["register"].figures["tag"] == "tiny-preferred:latest"
    assert Path(str(artifacts["register"].figures["gguf"])) == Path(artifacts["export"].path)
    # The same adapter as a folder is the same start.
    again = home.done(*dpo, f"train.adapter={sft['train'].path}", verb="train")
    assert home.made() == [] and again["train"].path == train.path
    # And without one the run begins at the bare base.
    bare = home.done(*dpo, verb="train")["train"]
    assert "start_adapter" not in bare.sources and bare.digest != train.digest


def test_without_quantization_it_trains_on_an_unpacked_checkpoint(home: Home, sft: dict[str, Artifact]) -> None:
    artifacts = home.done("train.quantization=none", verb="train")
    assert list(artifacts) == ["unpack", "prepare", "train"]
    assert artifacts["train"].sources["base"] == artifacts["unpack"].digest
    assert artifacts["prepare"].sources["checkpoint"] == artifacts["unpack"].digest
    assert (Path(artifacts["unpack"].path) / "model.safetensors").is_file()


def test_a_checkpoint_of_ones_own_is_quantized_and_exported_from(home: Home, sft: dict[str, Artifact]) -> None:
    """Its weights differ from the GGUF's, so what the result holds says where it came from."""
    unpack(home.gguf, home.folder / "unpacked", "f32", lambda event: None)

    def change(weights: dict[str, np.ndarray]) -> None:
        for name in weights:
            if name.endswith("up_proj.weight"):
                weights[name] = low_rank(weights[name], 1.0)

    own = altered(home.folder / "unpacked", home.folder / "own", change)
    artifacts = home.done(f"model.base={own}", "export.quant=f16", "register.tag=own")
    assert list(artifacts) == [stage for stage in LOOP if stage != "tokenizer"]
    assert artifacts["quantize"].params["ref"] == str(own)
    index = json.loads((Path(artifacts["quantize"].path) / "index.json").read_text())
    assert [(t["type_name"], index["files"][t["file"]]["path"]) for t in index["tables"]] == [
        ("F32", str(own / "model.safetensors"))
    ]
    (exported,) = (t for t in GGUFReader(artifacts["export"].path).tensors if t.name == "blk.0.ffn_up.weight")
    wanted = safetensors.numpy.load_file(own / "model.safetensors")["model.layers.0.mlp.up_proj.weight"]
    theirs = safetensors.numpy.load_file(home.folder / "unpacked" / "model.safetensors")[
        "model.layers.0.mlp.up_proj.weight"
    ]
    got = exported.data.astype(np.float32)
    assert np.linalg.norm(got - wanted) < 0.05 * np.linalg.norm(wanted) < np.linalg.norm(got - theirs)
    assert float(str(artifacts["export"].figures["kl_mean"])) < 0.1


def test_the_run_is_the_same_in_another_home(home: Home, sft: dict[str, Artifact], tmp_path: Path) -> None:
    """Nothing of a place gets into what is made."""
    shutil.copyfile(home.recipe, tmp_path / "tiny.yaml")
    shutil.copyfile(home.folder / "pairs.jsonl", tmp_path / "pairs.jsonl")
    other = copy.copy(home)
    other.recipe, other.workspace = tmp_path / "tiny.yaml", Workspace(tmp_path / "home")
    artifacts = other.done(verb="train")
    for stage in ("tokenizer", "prepare", "quantize", "train"):
        assert artifacts[stage].digest == sft[stage].digest, stage

"""What training can't do, through the runner as a person meets it: a clear message, a hint, nothing half-made."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch

from amigo_local.domain.artifact import Artifact
from amigo_local.domain.errors import InputError
from amigo_local.domain.settings import MachineBudget
from amigo_local.stages import train
from amigo_local.training import device
from amigo_local.training.device import Card, Libraries
from tests.support.threads import one_thread
from tests.support.tiny_gguf import write_tiny_llama
from tests.support.tiny_home import Home

LIBRARIES = Libraries(torch_version="2.13.0+cu130", torch_cuda="13.0", card_usable=True, bitsandbytes_cuda=True)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Home]:
    with one_thread():
        yield Home(tmp_path_factory.mktemp("refusals"))


@pytest.fixture(scope="module")
def done(home: Home) -> dict[str, Artifact]:
    return home.done(verb="train")


def trained_again(home: Home, done: dict[str, Artifact], **changes: Any) -> InputError:
    """What the stage says to parts that the loop wouldn't have put together."""
    params = msgspec.convert(done["train"].params | changes, train.TrainParams)
    build = home.folder / "build"
    shutil.rmtree(build, ignore_errors=True)
    build.mkdir()
    context = home.runner().context("train")
    with pytest.raises(InputError) as refused:
        train.run(params, replace(context, partial=build))
    assert refused.value.hint and list(build.iterdir()) == []
    return refused.value


# -- Stores


def test_a_store_of_another_model_is_refused_by_training_and_made_again_by_the_loop(
    home: Home, done: dict[str, Artifact]
) -> None:
    other = write_tiny_llama(home.folder / "other.gguf", seed=1)
    error = trained_again(home, done, source=str(other))
    assert "is the NF4 store of another model: made from sha256:" in error.message and "quantize" in error.hint

    strangers = home.done(f"model.source={other}", verb="train")["quantize"]
    mine = Path(done["quantize"].path)
    shutil.rmtree(mine)
    shutil.copytree(strangers.path, mine)  # as large to the byte
    again = home.done(verb="train")
    assert home.made() == ["quantize"] and again["quantize"].digest == done["quantize"].digest


def test_a_truncated_store_is_refused_by_training(home: Home, done: dict[str, Artifact], tmp_path: Path) -> None:
    store = shutil.copytree(done["quantize"].path, tmp_path / "store")
    os.truncate(store / "layers.nf4", 5000)
    error = trained_again(home, done, base=str(store))
    assert "layers.nf4: truncated or incomplete NF4 store: 5000 bytes, expected" in error.message
    (store / "index.json").unlink()
    assert "is no NF4 store: index.json" in trained_again(home, done, base=str(store)).message


def test_a_source_gone_between_quantize_and_train_is_named(home: Home, done: dict[str, Artifact]) -> None:
    away = home.gguf.rename(home.gguf.with_suffix(".away"))
    try:
        assert f"there is no file {home.gguf}" in trained_again(home, done).message
    finally:
        away.rename(home.gguf)


# -- Adapters and targets


def test_an_adapter_of_another_base_or_rank_is_refused_before_anything_is_made(
    home: Home, done: dict[str, Artifact], tmp_path: Path
) -> None:
    """With another model, whose store would have to be made first."""
    start = f"train.adapter={done['train'].path}"
    other = write_tiny_llama(tmp_path / "another.gguf", seed=2)
    error = home.refused(start, f"model.source={other}")
    assert f"of another base: it has {done['quantize'].sources['model']}, the base is sha256:" in error.message
    assert home.made() == []
    error = home.refused(start, "train.lora.rank=8", "data.seed=5")
    assert "of another rank: it has 4, train.lora.rank is 8" in error.message and "train.lora.rank" in error.hint
    assert home.made() == []


def test_what_is_no_adapter_is_refused_before_anything_is_made(home: Home, done: dict[str, Artifact]) -> None:
    assert "holds no adapter_config.json" in home.refused(f"train.adapter={home.folder}", "data.seed=5").message
    assert "there is no run nonsense" in home.refused("train.adapter=run:nonsense", "data.seed=5").message
    prepared = home.run(verb="prepare").run_id
    assert "has trained no adapter" in home.refused(f"train.adapter=run:{prepared}", "data.seed=5").message
    assert home.made() == []


def test_an_unknown_target_module_is_refused_with_those_there_are(home: Home, done: dict[str, Artifact]) -> None:
    error = home.refused("train.lora.targets=[q_proj, w_qkv]")
    assert "train.lora.targets: w_qkv names no linear layer of" in error.message
    assert "down_proj, gate_proj, k_proj, o_proj, q_proj, up_proj, v_proj" in error.hint and "lm_head" not in error.hint


# -- Data


def dataset(home: Home, name: str, *answers: str) -> str:
    path = home.folder / f"{name}.jsonl"
    rows = [{"prompt": f"Say {i}.", "completion": answer} for i, answer in enumerate(answers)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return f"data.sources=[{{jsonl: {path}}}]"


def test_a_set_without_a_token_to_train_on_is_refused(home: Home, done: dict[str, Artifact], tmp_path: Path) -> None:
    error = home.refused(dataset(home, "empty", "", "  ", ""))
    assert "empty.jsonl: none of 3 rows gives a pair" in error.message
    assert home.made() == []
    # And by the stage itself, of a file that something else wrote.
    folder = tmp_path / "set"
    folder.mkdir()
    (folder / "train.jsonl").write_text('{"input_ids": [5, 6, 7], "completion_start": 3}\n')
    error = trained_again(home, done, dataset=str(folder))
    assert "holds nothing to train on: 0 samples are longer than 256 tokens, 1 have no token after" in error.message


def test_samples_longer_than_the_limit_are_left_out_and_counted(home: Home, done: dict[str, Artifact]) -> None:
    long = "x = 1\n" * 200
    sources = dataset(home, "long", *(f"y = {i}" for i in range(8)), long, long + "z")
    made = home.done(sources, "data.held_out_fraction=0.25", verb="prepare")["prepare"]
    counts = json.loads((Path(made.path) / "stats.json").read_text())["counts"]
    assert ["jsonl long.jsonl", "left out: longer than 256 tokens", 2] in counts
    assert int(str(made.figures["train_samples"])) + int(str(made.figures["held_out_samples"])) == 8
    error = home.refused(sources, "data.max_length_tokens=8")
    eaten = "all 10 of jsonl long.jsonl were left out: 10 by 'longer than 8 tokens'"
    assert f"nothing is left to train on; {eaten}" in error.message
    assert "data.max_length_tokens" in error.hint


# -- Training


def test_a_loss_that_is_no_number_stops_and_names_the_batch_and_the_last_good_checkpoint(
    home: Home, done: dict[str, Artifact], monkeypatch: pytest.MonkeyPatch
) -> None:
    from amigo_local.training.adapter_trainer import AdapterTrainer

    loss_sum = AdapterTrainer.loss_sum

    def spoilt(self: Any, model: Any, micro_batch: Any) -> torch.Tensor:
        return loss_sum(self, model, micro_batch) * (float("nan") if self.state.global_step == 1 else 1.0)

    home.workspace.forget(done["train"])
    with monkeypatch.context() as patch:
        patch.setattr(AdapterTrainer, "loss_sum", spoilt)
        error = home.refused(exit_code=1)
    assert "the loss became NaN at step 2, in micro-batch 1 of 1: lines " in error.message
    assert "train.jsonl" in error.message and "train.learning_rate" in error.hint
    good = Path(error.hint.partition("train.adapter=")[2])
    assert good.name == "checkpoint-1" and (good / "adapter_model.safetensors").is_file()
    # From there one can go on, with other settings or, once the reason is gone, with the same.
    assert home.done(f"train.adapter={good}", "train.learning_rate=1e-5", verb="train")["train"].digest
    again = home.done(verb="train")["train"]
    assert again.figures["resumed_after_step"] == 1 and again.digest == done["train"].digest


# -- The machine


@pytest.mark.parametrize(
    ("libraries", "card", "says"),
    [
        (LIBRARIES, Card(name="Tesla T4", capability=(7, 5)), "Tesla T4 (compute capability 7.5) has no bf16"),
        (
            msgspec.structs.replace(LIBRARIES, bitsandbytes_cuda=False, bitsandbytes_error="\nlibcudart.so.13: gone"),
            Card(name="RTX 4050", capability=(8, 9)),
            "bitsandbytes has loaded no CUDA build, so that NF4 can't run on RTX 4050: libcudart.so.13: gone",
        ),
    ],
    ids=["no bf16", "bitsandbytes without CUDA"],
)
def test_a_card_that_cannot_train_is_refused(
    libraries: Libraries, card: Card, says: str, home: Home, done: dict[str, Artifact], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(device, "installed_libraries", lambda: libraries)
    monkeypatch.setattr(device, "visible_card", lambda index=0: card)
    assert says in home.refused("train.seed=5").message
    assert home.made() == []


def test_a_card_that_torch_does_not_reach_is_told_and_training_is_planned_for_the_processor(
    home: Home, done: dict[str, Artifact], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A torch built without CUDA beside a driver that works: the budget stands for what nvidia-smi says."""
    monkeypatch.setattr(home, "machine", MachineBudget(vram="6GiB"))
    artifact = home.done("train.seed=6", verb="train")["train"]
    assert artifact.figures["device"] == "cpu"
    assert any("is a build without CUDA: training would run on the processor" in note for note in home.notes())


def test_too_little_memory_for_the_plan_is_refused_with_the_nearest_that_fits(
    home: Home, done: dict[str, Artifact], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(home, "machine", MachineBudget(ram="660MiB"))
    error = home.refused("train.seed=7")
    assert error.message.startswith("RAM: training needs ") and "there are 613.8 MiB" in error.message  # 93 %
    assert "train.micro_batch=1 would fit" in error.hint
    assert home.made() == []

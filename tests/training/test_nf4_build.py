"""Building a store: from a GGUF or a checkpoint the same bytes, cut and resumed the same bytes, bad weights by name."""

from __future__ import annotations

import functools
import os
import random
import resource
import shutil
import signal
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import safetensors.torch
import torch

from amigo_local.domain.errors import AmigoError, InputError
from amigo_local.domain.events import AnyEvent, Note, Progress
from amigo_local.training.nf4_build import build_store
from amigo_local.training.nf4_index import LAYERS_FILE, TABLES_FILE, LayerSegment, read_index
from amigo_local.training.nf4_layers import JOURNAL_FILE
from amigo_local.training.nf4_store import open_store
from amigo_local.weights.gguf_header import read_header
from amigo_local.weights.unpack import unpack, write_config
from amigo_local.weights.weight_source import CheckpointWeights, GgufWeights, RawTable
from tests.support.tiny_families import write_family
from tests.support.tiny_gguf import write_tiny_gemma3, write_tiny_llama
from tests.training.conftest import files

DIGEST = "sha256:of-the-source"


def nothing(event: AnyEvent) -> None:
    pass


class Arrays:
    """A source in memory, without ggml: its kernels' threads would not survive a fork."""

    def __init__(self, checkpoint: Path, table_type: str = "BF16") -> None:
        self.checkpoint, self._table_type = checkpoint, table_type
        tensors = safetensors.torch.load_file(checkpoint / "model.safetensors")
        self.values = {name: tensor.float().numpy().copy() for name, tensor in tensors.items()}
        self._tables = CheckpointWeights(checkpoint)

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        return {name: value.shape for name, value in self.values.items()}

    def tiles(self, name: str) -> Iterator[tuple[int, np.ndarray]]:
        rows = self.values[name].reshape(-1, self.values[name].shape[-1])
        for start in range(0, len(rows), 5):
            yield start, rows[start : start + 5]

    def raw_table(self, name: str) -> RawTable:
        return msgspec.structs.replace(self._tables.raw_table(name), type_name=self._table_type)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_family(tmp_path_factory.mktemp("checkpoint"), "llama-untied-biased-odd", num_hidden_layers=9)


@pytest.fixture
def source(checkpoint: Path) -> Arrays:
    return Arrays(checkpoint)


def build(source: Arrays, out: Path, emit: Callable[[AnyEvent], None] = nothing) -> dict[str, Any]:
    out.mkdir(exist_ok=True)
    shutil.copyfile(source.checkpoint / "config.json", out / "config.json")
    return build_store(source, DIGEST, out, emit)


@pytest.fixture(scope="module")
def uninterrupted(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    out = tmp_path_factory.mktemp("uninterrupted")
    build(Arrays(checkpoint), out)
    assert sorted(files(out)) == ["config.json", "index.json", LAYERS_FILE, "small.safetensors"]
    return files(out)


@pytest.mark.parametrize("write", [functools.partial(write_tiny_llama, tokenizer="spm"), write_tiny_gemma3])
def test_a_gguf_and_its_unpacked_checkpoint_give_the_same_store(write: Callable[..., Path], tmp_path: Path) -> None:
    """Permuted query rows, norms with an offset, quantized types: nothing of it is left."""
    gguf = write(tmp_path / "model.gguf")
    unpack(gguf, tmp_path / "unpacked", "bf16", nothing)
    header = read_header(gguf)
    weights = GgufWeights(header)
    stores = tmp_path / "of-gguf", tmp_path / "of-checkpoint"
    stores[0].mkdir()
    write_config(weights.header, stores[0], "bf16")
    build_store(weights, DIGEST, stores[0], nothing)
    stores[1].mkdir()
    shutil.copyfile(tmp_path / "unpacked" / "config.json", stores[1] / "config.json")
    build_store(CheckpointWeights(tmp_path / "unpacked"), DIGEST, stores[1], nothing)
    of_gguf, of_checkpoint = (files(store) for store in stores)
    assert of_gguf[LAYERS_FILE] == of_checkpoint[LAYERS_FILE]
    assert of_gguf["config.json"] == of_checkpoint["config.json"]
    opened = [open_store(store) for store in stores]
    small = [store.small() for store in opened]
    assert small[0].keys() == small[1].keys()
    assert all(torch.equal(small[0][name].bfloat16(), small[1][name].bfloat16()) for name in small[0])
    table = opened[0].tables["model.embed_tokens.weight"]
    embedding = header.tensor("token_embd.weight")
    assert (table.type_name, table.columns, table.raw.shape[0]) == ("Q8_0", 256, embedding.shape[0])
    start = embedding.offset
    assert table.raw.numpy().tobytes() == gguf.read_bytes()[start : start + embedding.nbytes]


def test_progress_and_figures(source: Arrays, tmp_path: Path) -> None:
    """One tensor has a single large weight in each block, which leaves little for the others."""
    values = source.values["model.layers.4.mlp.up_proj.weight"]
    values.reshape(-1)[::64] = 5
    events: list[AnyEvent] = []
    figures = build(source, tmp_path / "store", events.append)
    done = [event for event in events if isinstance(event, Progress) and event.label.startswith("quantizing")]
    assert done[-1].done == done[-1].total and [event.done for event in done] == sorted(event.done for event in done)
    assert (figures["layers"], figures["linears"], figures["embedding_type"]) == (9, 63, "BF16")
    assert figures["parameters"] == 9 * (4 * 24 * 24 - 2 * 12 * 24 + 3 * 24 * 40)
    assert figures["worst_tensor"] == "model.layers.4.mlp.up_proj" and float(figures["worst_error"]) > 0.105
    assert 0.088 < float(figures["mean_error"]) < 0.097  # of Gaussian weights


def test_kills_at_any_instant_cost_at_most_a_layer_and_no_byte(
    source: Arrays, uninterrupted: dict[str, bytes], tmp_path: Path
) -> None:
    out, done = tmp_path / "store", []
    delays = random.Random(0)
    for _ in range(6):
        _build_and_kill(source, out, events=delays.randrange(8, 16), delay=delays.uniform(0, 2e-3))
        journal = (out / JOURNAL_FILE).read_bytes() if (out / JOURNAL_FILE).exists() else b""
        done.append(max(0, journal.count(b"\n") - 1))
    assert done == sorted(done) and 3 < done[-1] < 9, done
    events: list[AnyEvent] = []
    build(source, out, events.append)
    assert any(isinstance(event, Note) and f"after layer {done[-1]} of 9" in event.text for event in events)
    assert files(out) == uninterrupted


def _build_and_kill(source: Arrays, out: Path, events: int, delay: float) -> None:
    """SIGKILL to a process of its own, `delay` seconds after its n-th word about quantizing and before the next."""
    here, there = socket.socketpair()
    child = os.fork()
    if child == 0:
        here.close()
        try:
            build(source, out, lambda event: _tell(there, event))
        finally:
            os._exit(0)
    there.close()
    with here:
        for _ in range(events):
            assert here.recv(1), "it ended before it was killed"
            here.send(b".")
        time.sleep(delay)
        os.kill(child, signal.SIGKILL)
    assert os.waitpid(child, 0)[1] == signal.SIGKILL, "it ended before it was killed"


def _tell(other: socket.socket, event: AnyEvent) -> None:
    """Returns once it has been heard."""
    if isinstance(event, Progress) and event.label.startswith("quantizing"):
        other.send(b".")
        other.recv(1)


def test_whatever_a_kill_left_behind_is_cut_to_whole_layers(
    source: Arrays, uninterrupted: dict[str, bytes], tmp_path: Path
) -> None:
    """Both files at every length that they can have: bytes of a layer without its line, half of a line."""
    begun = tmp_path / "begun"
    with pytest.raises(KeyboardInterrupt):
        build(source, begun, _stop_after(5 * 7 + 3))
    layers, journal = (begun / LAYERS_FILE).read_bytes(), (begun / JOURNAL_FILE).read_bytes()
    choices = random.Random(1)
    for case in range(6):
        out = tmp_path / str(case)
        shutil.copytree(begun, out)
        (out / JOURNAL_FILE).write_bytes(journal[: choices.randrange(len(journal))])
        (out / LAYERS_FILE).write_bytes(layers + choices.randbytes(choices.randrange(9000)))
        if case % 2:  # the file system kept the line and lost the bytes
            os.truncate(out / LAYERS_FILE, choices.randrange(len(layers)))
        with pytest.raises(KeyboardInterrupt):
            build(source, out, _stop_after(2 * 7 + 3))
        _, *lines = (out / JOURNAL_FILE).read_bytes().splitlines()
        assert len([msgspec.json.decode(line, type=LayerSegment) for line in lines]) >= 2, "a layer would be lost again"
        build(source, out)
        assert files(out) == uninterrupted, case


def _stop_after(count: int) -> Callable[[AnyEvent], None]:
    left = count

    def emit(event: AnyEvent) -> None:
        nonlocal left
        left -= isinstance(event, Progress) and event.label.startswith("quantizing")
        if left == 0:
            raise KeyboardInterrupt

    return emit


def test_a_store_that_was_finished_is_not_made_again(source: Arrays, tmp_path: Path) -> None:
    """As after a kill between its last word and the rename that commits it."""
    first = build(source, tmp_path / "store")
    written = (tmp_path / "store" / LAYERS_FILE).stat().st_mtime_ns
    assert build(source, tmp_path / "store", pytest.fail) == first
    assert (tmp_path / "store" / LAYERS_FILE).stat().st_mtime_ns == written


def test_nothing_begun_for_another_source_is_kept(
    source: Arrays, uninterrupted: dict[str, bytes], tmp_path: Path
) -> None:
    out = tmp_path / "store"
    other = {name: value.copy() for name, value in source.values.items()}
    source.values = {name: value * 2 for name, value in other.items()}
    with pytest.raises(KeyboardInterrupt):
        build(source, out, _stop_after(30))
    lines = (out / JOURNAL_FILE).read_bytes().replace(DIGEST.encode(), b"sha256:of-another-one")
    (out / JOURNAL_FILE).write_bytes(lines)
    source.values = other
    build(source, out)
    assert files(out) == uninterrupted


@pytest.mark.parametrize(
    "name", ["model.layers.3.mlp.down_proj.weight", "model.embed_tokens.weight", "model.layers.8.self_attn.q_proj.bias"]
)
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_weights_that_are_not_finite_are_refused_by_name(source: Arrays, tmp_path: Path, name: str, bad: float) -> None:
    source.values[name].reshape(-1)[-1] = bad
    with pytest.raises(InputError, match=rf"tensor {name} holds at least 1 values that are NaN, infinite") as refused:
        build(source, tmp_path / "store")
    assert "pull or download" in refused.value.hint


def test_a_source_with_other_tensors_than_its_config_is_refused(source: Arrays, tmp_path: Path) -> None:
    weight = source.values.pop("model.layers.2.mlp.up_proj.weight")
    with pytest.raises(InputError, match=r"lacks 1 tensors of its config, first model\.layers\.2\.mlp\.up_proj"):
        build(source, tmp_path / "store")
    source.values["model.layers.2.mlp.up_proj.weight"] = weight[:, :-1]
    with pytest.raises(InputError, match=r"up_proj\.weight is \[40, 23\], its config says \[40, 24\]"):
        build(source, tmp_path / "store")
    source.values["model.layers.2.mlp.up_proj.weight"] = weight
    embedding = source.values.pop("model.embed_tokens.weight")
    source.values["model.embed_tokens.weight"] = embedding[:-1]
    with pytest.raises(InputError, match=r"embed_tokens\.weight is \[383, 24\], its config says \[384, 24\]"):
        build(source, tmp_path / "store")
    source.values["model.embed_tokens.weight"] = embedding
    source.values["model.vision.weight"] = weight
    with pytest.raises(InputError, match=r"has 1 tensors that its config doesn't, first model\.vision\.weight"):
        build(source, tmp_path / "store")


def test_a_model_with_weights_in_other_places_is_refused(source: Arrays, tmp_path: Path) -> None:
    config = msgspec.json.decode((source.checkpoint / "config.json").read_bytes())
    experts = config | {"model_type": "mixtral", "num_local_experts": 2}
    for changed, message in (
        (experts, r"weights at model\.layers\.0\.mlp\.gate\.weight"),
        ({"model_type": "x"}, "no causal LM"),
    ):
        out = tmp_path / changed["model_type"]
        out.mkdir()
        (out / "config.json").write_bytes(msgspec.json.encode(changed))
        with pytest.raises(InputError, match=message):
            build_store(source, DIGEST, out, nothing)


def test_a_table_in_a_type_that_only_llama_cpp_decodes_is_kept_as_bfloat16(checkpoint: Path, tmp_path: Path) -> None:
    source = Arrays(checkpoint, table_type="TQ2_0")
    events: list[AnyEvent] = []
    build(source, tmp_path / "store", events.append)
    store = open_store(tmp_path / "store")
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        table = store.tables[name]
        expected = torch.from_numpy(source.values[name]).bfloat16()
        assert table.type_name == "BF16" and torch.equal(table.raw.view(torch.bfloat16), expected)
        assert any(isinstance(event, Note) and event.text.startswith(f"{name} is TQ2_0") for event in events)
    assert store.index.files == () and store.index.sizes[TABLES_FILE] == 2 * 2 * 384 * 24


def test_a_full_disk_says_so_and_keeps_what_is_there(
    source: Arrays, uninterrupted: dict[str, bytes], tmp_path: Path
) -> None:
    """A limit on the size of files stands for the disk: writing fails in the middle of the fifth layer."""
    out, before = tmp_path / "store", resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, ((4 << 16) + 1000, before[1]))
    try:
        with pytest.raises(AmigoError, match=r"the disk is full, after .*; the layers that are there are kept"):
            build(source, out)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert (out / JOURNAL_FILE).read_bytes().count(b"\n") == 1 + 4
    build(source, out)
    assert files(out) == uninterrupted
    assert len(read_index(out).layers) == 9

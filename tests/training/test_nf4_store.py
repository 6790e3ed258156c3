"""Opening a store: without reading it, and never one that isn't whole or isn't of this source."""

from __future__ import annotations

import os
import resource
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
import torch

from amigo_local.domain.errors import InputError
from amigo_local.training.layer_pack import pack_layer
from amigo_local.training.nf4_build import build_store
from amigo_local.training.nf4_index import (
    INDEX_FILE,
    LAYERS_FILE,
    SEGMENT_ALIGNMENT,
    SMALL_FILE,
    LayerSegment,
    Nf4Linear,
    SourceFile,
    StoreIndex,
    located,
    read_index,
)
from amigo_local.training.nf4_store import layer_layout, open_store
from amigo_local.weights.weight_source import CheckpointWeights
from tests.support.quantized_model import decoder_layers, load_nf4
from tests.support.tiny_families import write_family

DIGEST = "sha256:of-the-source"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """checkpoint/ and the store of it."""
    folder = tmp_path_factory.mktemp("made")
    checkpoint = write_family(folder / "checkpoint", "llama-untied-biased-odd")
    (folder / "store").mkdir()
    shutil.copyfile(checkpoint / "config.json", folder / "store" / "config.json")
    build_store(CheckpointWeights(checkpoint), DIGEST, folder / "store", lambda event: None)
    return folder


@pytest.fixture
def folder(made: Path, tmp_path: Path) -> Path:
    """A copy that may be spoilt; its store still points to the original checkpoint."""
    shutil.copytree(made, tmp_path / "copy")
    return tmp_path / "copy"


def test_segments_are_what_a_quantized_layer_is_packed_into(made: Path) -> None:
    store = open_store(made / "store")
    layers = decoder_layers(load_nf4(made / "checkpoint"))
    assert [layer.offset % SEGMENT_ALIGNMENT for layer in store.index.layers] == [0, 0]
    for layer, pack in zip(layers, store.packs, strict=True):
        expected = pack_layer(layer)
        assert pack.tensors == expected.tensors
        assert torch.equal(pack.flat, expected.flat)


def test_what_is_written_to_a_mapped_layer_stays_in_memory(folder: Path) -> None:
    before = (folder / "store" / LAYERS_FILE).read_bytes()
    store = open_store(folder / "store")
    store.packs[0].flat.fill_(7)
    assert bool((store.packs[0].flat == 7).all())
    assert (folder / "store" / LAYERS_FILE).read_bytes() == before


def test_a_store_of_12b_shape_is_opened_without_reading_it(tmp_path: Path) -> None:
    """48 layers of Gemma-3-12B in a sparse file: a look at a fiftieth of its pages would show in the faults."""
    shapes = {"q_proj": (4096, 3840), "k_proj": (2048, 3840), "v_proj": (2048, 3840), "o_proj": (3840, 4096)}
    shapes |= {"gate_proj": (15360, 3840), "up_proj": (15360, 3840), "down_proj": (3840, 15360)}
    linears = tuple(Nf4Linear(module, *shape, 0.1, 0.1) for module, shape in shapes.items())
    _, nbytes = layer_layout((module, *shape) for module, shape in shapes.items())
    assert nbytes / 2**20 == pytest.approx(110.3, abs=0.1)
    step = -(-nbytes // SEGMENT_ALIGNMENT) * SEGMENT_ALIGNMENT
    layers = tuple(LayerSegment(i * step, nbytes, linears) for i in range(48))
    size = 47 * step + nbytes
    index = StoreIndex(
        source_digest=DIGEST, bitsandbytes="", files=(), tables=(), layers=layers, sizes={LAYERS_FILE: size}
    )
    (tmp_path / INDEX_FILE).write_bytes(msgspec.json.encode(index))
    with (tmp_path / LAYERS_FILE).open("wb") as file:
        file.truncate(size)
    open_store(tmp_path)
    before, started = resource.getrusage(resource.RUSAGE_SELF), time.perf_counter()
    store = open_store(tmp_path)
    seconds, after = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_SELF)
    faults = after.ru_minflt + after.ru_majflt - before.ru_minflt - before.ru_majflt
    assert faults < 2000, "of 1.4 million pages"
    assert seconds < 0.5  # 3 ms on an idle machine
    assert sum(pack.nbytes for pack in store.packs) == 48 * nbytes


def shorten(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 1)


SPOILT: dict[str, tuple[Callable[[Path], object], str]] = {
    "truncated": (lambda store: shorten(store / LAYERS_FILE), r"layers\.nf4: truncated or incomplete NF4 store: \d+"),
    "without norms": (lambda store: (store / SMALL_FILE).unlink(), r"small\.safetensors: truncated or incomplete"),
    "not finished": (lambda store: (store / INDEX_FILE).unlink(), r"is no NF4 store: index\.json: No such file"),
    "damaged": (lambda store: shorten(store / INDEX_FILE), r"damaged index of an NF4 store"),
    "no index": (lambda store: (store / INDEX_FILE).write_text("{}"), r"damaged index of an NF4 store"),
    "of other blocks": (
        lambda store: (store / INDEX_FILE).write_bytes(
            msgspec.json.encode(msgspec.structs.replace(read_index(store), blocksize=128))
        ),
        r"blocks of 128 and 256, expected 64 and 256",
    ),
    "of a later version": (
        lambda store: (store / INDEX_FILE).write_text('{"version": 2, "new": true}'),
        r"NF4 store of version 2, expected 1",
    ),
}


@pytest.mark.parametrize("how", SPOILT)
def test_a_store_that_is_not_whole_is_refused_before_it_is_mapped(folder: Path, how: str) -> None:
    spoil, message = SPOILT[how]
    # The index is text that ends in a newline: without it, it is still whole.
    spoil(folder / "store")
    if how == "damaged":
        spoil(folder / "store")
    with pytest.raises(InputError, match=message) as refused:
        open_store(folder / "store")
    assert "amigo-local quantize" in refused.value.hint


def test_an_index_that_points_beyond_its_files_is_refused(folder: Path) -> None:
    index = read_index(folder / "store")
    longer = msgspec.structs.replace(index.layers[1], offset=index.layers[1].offset + SEGMENT_ALIGNMENT)
    for changed in (
        msgspec.structs.replace(index, layers=(index.layers[0], longer)),
        msgspec.structs.replace(index, tables=(msgspec.structs.replace(index.tables[0], offset=1 << 40),)),
    ):
        (folder / "store" / INDEX_FILE).write_bytes(msgspec.json.encode(changed))
        with pytest.raises(InputError, match=r"damaged: .* ends at \d+ of \d+ bytes"):
            open_store(folder / "store")


def test_the_store_of_another_source_is_refused(made: Path) -> None:
    open_store(made / "store", source_digest=DIGEST)
    with pytest.raises(InputError, match=f"the NF4 store of another model: made from {DIGEST}, expected sha256:x"):
        open_store(made / "store", source_digest="sha256:x")


def test_a_source_that_is_gone_or_changed_is_refused(folder: Path) -> None:
    build = folder / "own"
    build.mkdir()
    shutil.copyfile(folder / "checkpoint" / "config.json", build / "config.json")
    build_store(CheckpointWeights(folder / "checkpoint"), DIGEST, build, lambda event: None)
    weights = folder / "checkpoint" / "model.safetensors"
    open_store(build)
    os.utime(weights, ns=(0, 0))
    with pytest.raises(InputError, match=r"model\.safetensors: written to after the NF4 store"):
        open_store(build)
    open_store(build, source_digest=DIGEST)  # who has just digested it knows better than its clock
    with weights.open("ab") as file:
        file.write(b"x")
    with pytest.raises(InputError, match=r"holds the embedding of the NF4 store .* changed since: \d+ bytes, expected"):
        open_store(build, source_digest=DIGEST)
    weights.unlink()
    with pytest.raises(InputError, match=r"changed since: No such file"):
        open_store(build, source_digest=DIGEST)


def test_a_part_of_a_split_model_keeps_its_name_and_a_single_file_may_bear_any() -> None:
    part, single = (SourceFile(f"/then/{name}", 1, 1) for name in ("model-00002-of-00003.gguf", "model.gguf"))
    assert located(part, Path("/now/model-00001-of-00003.gguf")) == Path("/now/model-00002-of-00003.gguf")
    assert located(single, Path("/now/renamed.gguf")) == Path("/now/renamed.gguf")


def test_a_source_that_moved_is_found_where_it_is_now(made: Path, folder: Path) -> None:
    (folder / "checkpoint").rename(folder / "elsewhere")
    moved = open_store(made / "store", source_digest=DIGEST, source=folder / "elsewhere")
    stayed = open_store(made / "store")
    for name, table in stayed.tables.items():
        assert torch.equal(moved.tables[name].raw, table.raw)
    with pytest.raises(InputError, match="No such file"):
        open_store(made / "store", source_digest=DIGEST, source=folder / "nowhere" / "model.gguf")

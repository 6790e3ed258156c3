from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from amigo_local.domain.errors import InputError
from amigo_local.weights.checkpoint_outline import fetch_outline, fetch_rows
from amigo_local.weights.compare_base import compare, pair_tensors, probe
from amigo_local.weights.gguf_header import read_header
from amigo_local.weights.unpack import unpack
from tests.support.altered_checkpoint import Weights, altered, low_rank
from tests.support.tiny_gguf import write_tiny_llama
from tests.weights.conftest import Events


@pytest.fixture(scope="module")
def original(unpacked: Callable[[Path], Path], exact_llama: Path) -> Path:
    return unpacked(exact_llama)


class Range:
    """Reads ranges of a directory's files and counts them."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.read_bytes = 0

    def sizes(self) -> dict[str, int]:
        return {path.name: path.stat().st_size for path in self.directory.iterdir()}

    def __call__(self, name: str, start: int, stop: int) -> bytes:
        self.read_bytes += stop - start
        with (self.directory / name).open("rb") as file:
            file.seek(start)
            return file.read(stop - start)


@pytest.mark.parametrize("shard_bytes", [1 << 30, 2 << 20], ids=["one file", "shards"])
def test_tables_and_a_few_rows_are_enough_to_tell(
    shard_bytes: int, tmp_path: Path, exact_llama: Path, original: Path, events: Events
) -> None:
    checkpoint = tmp_path / "checkpoint"
    unpack(exact_llama, checkpoint, "f32", events, shard_bytes)
    header = read_header(exact_llama)
    other = write_tiny_llama(tmp_path / "other.gguf", weight_type="f32", seed=3)

    def tune(weights: Weights) -> None:
        for name, weight in weights.items():
            if "proj" in name:
                weights[name] = low_rank(weight, 0.02)

    verdicts = []
    for source in (checkpoint, altered(original, tmp_path / "tuned", tune)):
        read = Range(source)
        whole = sum(size for name, size in read.sizes().items() if name.endswith(".safetensors"))
        stored = fetch_outline(tmp_path / f"outline of {source.name}", "org/name", read.sizes(), read)
        parts = probe(pair_tensors(header, stored, "org/name"))
        assert {pair.mapped.name.split(".")[2] for pair, _ in parts if "layers" in pair.mapped.name} == {"0", "2", "3"}
        for pair, rows in parts:
            fetch_rows(pair.stored, rows, read)
        assert read.read_bytes < 0.06 * whole
        verdicts.append(compare(header, parts, events, "").verdict)
        verdicts.append(compare(read_header(other), [(p, r) for p, r in parts], events, "").verdict)
    assert verdicts == ["identical", "another", "fine-tuned", "another"]


@pytest.mark.parametrize("missing", ["config.json", "model.safetensors"])
def test_a_repository_without_a_checkpoint_is_refused(missing: str, tmp_path: Path, original: Path) -> None:
    read = Range(original)
    sizes = {name: size for name, size in read.sizes().items() if name != missing}
    with pytest.raises(InputError, match=f"org/name holds no {missing}"):
        fetch_outline(tmp_path, "org/name", sizes, read)


def test_an_index_that_leads_out_of_the_directory_is_refused(tmp_path: Path, original: Path) -> None:
    shutil.copytree(original, tmp_path / "evil")
    (tmp_path / "evil" / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "../x"}}))
    read = Range(tmp_path / "evil")
    with pytest.raises(InputError, match="holds no"):
        fetch_outline(tmp_path / "out", "org/name", read.sizes() | {"../x": 5}, read)
    assert not (tmp_path / "x").exists()

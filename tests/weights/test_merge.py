from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Callable
from pathlib import Path

import peft
import pytest
import safetensors.torch
import torch
import transformers

from amigo_local.domain.errors import Cancelled, InputError
from amigo_local.domain.events import Progress
from amigo_local.weights.merge import merge, merge_disk_needed
from amigo_local.weights.safetensors_file import read_checkpoint
from amigo_local.weights.unpack import unpack
from tests.weights.conftest import Events, write_adapter


def _peft_merged(checkpoint: Path, adapter: Path, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    model = transformers.AutoModelForCausalLM.from_pretrained(checkpoint, dtype=dtype)
    return peft.PeftModel.from_pretrained(model, str(adapter)).merge_and_unload().state_dict()


@pytest.mark.parametrize(("dtype", "name"), [(torch.float32, "f32"), (torch.bfloat16, "bf16"), (torch.float16, "f16")])
@pytest.mark.parametrize("model", ["exact_llama", "exact_gemma"])
def test_the_merge_is_pefts(
    model: str, dtype: torch.dtype, name: str, request: pytest.FixtureRequest, tmp_path: Path, events: Events
) -> None:
    unpack(request.getfixturevalue(model), tmp_path / "base", name, events)  # type: ignore[arg-type]
    adapter = request.getfixturevalue("llama_adapter" if "llama" in model else "gemma_adapter")
    figures = merge(tmp_path / "base", adapter, tmp_path / "out", events)
    expected = _peft_merged(tmp_path / "base", adapter, dtype)
    ours = safetensors.torch.load_file(tmp_path / "out/model.safetensors")
    assert set(ours) == set(expected) - {"lm_head.weight"}
    before = safetensors.torch.load_file(tmp_path / "base/model.safetensors")
    changed = 0
    for key, tensor in ours.items():
        assert tensor.dtype == dtype
        if dtype == torch.float32:  # two matrix products may add up in another order
            torch.testing.assert_close(tensor, expected[key], rtol=0, atol=2e-6)
        else:
            assert (tensor != expected[key]).float().mean() < 1e-4, key
            torch.testing.assert_close(tensor, expected[key], rtol=0.01, atol=1e-6)
        changed += not torch.equal(tensor, before[key])
    assert changed == figures["merged_tensors"] == {"exact_llama": 28, "exact_gemma": 42}[model]


def test_rslora_is_merged_as_peft_does(
    exact_llama: Path, unpacked: Callable[[Path], Path], tmp_path: Path, events: Events
) -> None:
    base = unpacked(exact_llama)
    adapter = write_adapter(base, tmp_path / "adapter", use_rslora=True, rank_pattern={"o_proj": 3})
    merge(base, adapter, tmp_path / "out", events)
    expected = _peft_merged(base, adapter, torch.float32)
    for key, tensor in safetensors.torch.load_file(tmp_path / "out/model.safetensors").items():
        torch.testing.assert_close(tensor, expected[key], rtol=0, atol=5e-6)


def test_config_and_tokenizer_come_along_and_bytes_are_the_same_twice(
    exact_llama: Path, unpacked: Callable[[Path], Path], llama_adapter: Path, tmp_path: Path, events: Events
) -> None:
    base = unpacked(exact_llama)
    (base / "unrelated.bin").write_bytes(b"old weights")
    for out in ("a", "b"):
        merge(base, llama_adapter, tmp_path / out, events, shard_bytes=3 << 20)
    names = [path.name for path in sorted((tmp_path / "a").iterdir())]
    assert "unrelated.bin" not in names
    assert {"config.json", "tokenizer.json", "chat_template.jinja", "model.safetensors.index.json"} < set(names)
    assert (tmp_path / "a/config.json").read_bytes() == (base / "config.json").read_bytes()
    for name in names:
        first, second = ((tmp_path / out / name).read_bytes() for out in ("a", "b"))
        assert hashlib.sha256(first).digest() == hashlib.sha256(second).digest()
    again = merge(tmp_path / "a", llama_adapter, tmp_path / "c", events)  # reads shards, writes one file
    assert (again["shards"], again["tensors"]) == (1, 38)
    (base / "unrelated.bin").unlink()
    written = sum(path.stat().st_size for path in (tmp_path / "c").iterdir())
    assert abs(merge_disk_needed(base) - written) < 8192


def test_an_adapter_for_another_base_writes_nothing(
    exact_gemma: Path, unpacked: Callable[[Path], Path], llama_adapter: Path, tmp_path: Path, events: Events
) -> None:
    with pytest.raises(InputError, match="adapter for another base"):
        merge(unpacked(exact_gemma), llama_adapter, tmp_path / "out", events)
    assert not (tmp_path / "out").exists()


def test_what_is_no_checkpoint_is_refused(
    exact_llama: Path, unpacked: Callable[[Path], Path], llama_adapter: Path, tmp_path: Path, events: Events
) -> None:
    with pytest.raises(InputError, match=r"holds neither model\.safetensors nor"):
        merge(tmp_path, llama_adapter, tmp_path / "out", events)
    base = unpacked(exact_llama)
    with pytest.raises(InputError, match="is the base itself"):
        merge(base, llama_adapter, base, events)
    index = {"weight_map": {"model.norm.weight": "model-00001-of-00001.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(InputError, match=r"shard model-00001-of-00001\.safetensors is missing"):
        merge(tmp_path, llama_adapter, tmp_path / "out", events)


@pytest.mark.parametrize(
    "table",
    [
        [],
        {"a": 1},
        {"a": {"dtype": "F32"}},
        {"a": {"dtype": "F32", "shape": ["x"], "data_offsets": [0, 4]}},
        {"a": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}},
        {"a": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}},
        {"a": {"dtype": "F32", "shape": [1], "data_offsets": [-4, 0]}},
        {"a": {"dtype": "F8_E4M3", "shape": [4], "data_offsets": [0, 4]}},
    ],
)
def test_a_damaged_checkpoint_is_refused(table: object, tmp_path: Path) -> None:
    header = json.dumps(table).encode()
    (tmp_path / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + bytes(4))
    with pytest.raises(InputError, match=r"model\.safetensors: "):
        read_checkpoint(tmp_path)
    (tmp_path / "model.safetensors.index.json").write_text("[1]")
    with pytest.raises(InputError, match=r"index\.json: can't be read"):
        read_checkpoint(tmp_path)


def test_cancelling_comes_through(
    exact_llama: Path, unpacked: Callable[[Path], Path], llama_adapter: Path, tmp_path: Path
) -> None:
    def stop(event: object) -> None:
        if isinstance(event, Progress):
            raise Cancelled

    with pytest.raises(Cancelled):
        merge(unpacked(exact_llama), llama_adapter, tmp_path / "out", Events(stop))

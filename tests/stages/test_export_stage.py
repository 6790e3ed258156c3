"""export by hand, without a run and without a server: from parts, from a checkpoint, and what is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import gguf
import numpy as np
import pytest

from amigo_local.domain.events import StageFinished
from amigo_local.weights.gguf_header import read_header
from tests.support.command_here import amigo_here, amigo_records_here
from tests.support.command_line import events
from tests.support.tiny_gguf import write_tiny_llama
from tests.support.tiny_run import write_tiny_run
from tests.weights.conftest import write_adapter


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_llama(tmp_path_factory.mktemp("model") / "tiny.gguf")


@pytest.fixture(scope="module")
def checkpoint(model: Path) -> Path:
    out = model.with_name("checkpoint")
    done = amigo_here(model.parent / "home", "unpack", str(model), "--out", str(out))
    assert done.returncode == 0, done.stderr
    return out


@pytest.fixture(scope="module")
def adapter(model: Path, checkpoint: Path) -> Path:
    return write_adapter(checkpoint, model.with_name("adapter"))


def _tensors(path: Path) -> dict[str, bytes]:
    return {tensor.name: tensor.data.tobytes() for tensor in gguf.GGUFReader(path).tensors}


def _split(source: Path, folder: Path) -> list[Path]:
    """Two parts by gguf-py, as gguf-split makes them."""
    reader = gguf.GGUFReader(source)
    folder.mkdir()
    writer = gguf.GGUFWriter(folder / "parts", "llama", split_max_tensors=(len(reader.tensors) + 1) // 2)
    for field in reader.fields.values():
        if field.name.startswith("GGUF.") or field.name == "general.architecture":
            continue
        kind = field.types[0]
        item = field.types[-1] if kind == gguf.GGUFValueType.ARRAY else None
        writer.add_key_value(field.name, field.contents(), kind, sub_type=item)
    for tensor in reader.tensors:
        writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
    writer.write_header_to_file(folder / "parts.gguf")
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return sorted(folder.glob("*.gguf"))


def test_parts_are_refined_into_one_file_and_refused_where_one_is_needed(
    model: Path, adapter: Path, tmp_path: Path
) -> None:
    parts = _split(model, tmp_path / "parts")
    assert len(parts) == 2
    refused = amigo_here(tmp_path / "home", "register", str(parts[0]), "--tag", "parts")
    assert refused.returncode == 2 and "is the first of 2 parts, a tag takes one file" in refused.stderr
    assert f"hint: join them: amigo-local export --base {parts[0]}" in refused.stderr
    joined = tmp_path / "joined.gguf"
    done = amigo_here(tmp_path / "home", "export", "--base", str(parts[1]), "--out", str(joined))
    assert done.returncode == 0, done.stderr
    assert _tensors(joined) == _tensors(model)
    assert not any(key.startswith("split.") for key in gguf.GGUFReader(joined).fields)
    refined, direct = tmp_path / "refined.gguf", tmp_path / "direct.gguf"
    for base, out in ((parts[0], refined), (model, direct)):
        done = amigo_here(
            tmp_path / "home", "export", "--base", str(base), "--adapter", str(adapter), "--out", str(out)
        )
        assert done.returncode == 0, done.stderr
    assert _tensors(refined) == _tensors(direct) != _tensors(model)


def test_a_checkpoint_is_exported_like_the_file_it_is_the_original_of(
    model: Path, checkpoint: Path, adapter: Path, tmp_path: Path
) -> None:
    ask = ["export", "--base", str(checkpoint), "--adapter", str(adapter), "--quant", "q8_0"]
    refused = amigo_here(tmp_path / "home", *ask)
    assert refused.returncode == 2 and "add --like TAG" in refused.stderr
    code, records = amigo_records_here(
        tmp_path / "home", *ask, "--like", str(model), "--out", str(tmp_path / "out.gguf")
    )
    assert code == 0
    (done,) = events(records, StageFinished)
    assert isinstance(done, StageFinished) and done.figures["kl_checked"] is True
    assert done.figures["differing_texts"] == 0 and done.figures["texts"] == 1000
    assert float(done.figures["kl_mean"] or 0) < 0.1
    assert read_header(tmp_path / "out.gguf").chat_template == read_header(model).chat_template


def test_the_options_that_need_another_say_so(model: Path, adapter: Path, tmp_path: Path) -> None:
    done = amigo_here(tmp_path / "home", "export", "--adapter", str(adapter))
    assert done.returncode == 2 and "--adapter needs its base" in done.stderr and "hint: add --base" in done.stderr
    done = amigo_here(tmp_path / "home", "export", "--base", str(model), "--imatrix", "auto")
    assert done.returncode == 2 and "amigo-local imatrix" in done.stderr
    done = amigo_here(tmp_path / "home", "export", "--base", str(model), "--quant", "iq2_xxs")
    assert done.returncode == 2 and "importance matrix" in done.stderr and "--imatrix" in done.stderr


def test_what_excludes_or_lacks_another_is_refused(model: Path, adapter: Path, tmp_path: Path) -> None:
    done = amigo_here(tmp_path / "home", "export", "--run", "x", "--base", str(model))
    assert done.returncode == 2 and "--run and --base exclude each other" in done.stderr
    done = amigo_here(tmp_path / "home", "export", "--base", str(model), "--adapter", "")  # an unset shell variable
    assert done.returncode == 2 and "--adapter is empty" in done.stderr
    done = amigo_here(tmp_path / "home", "export", "--base", str(model), "--like", str(model))
    assert done.returncode == 2 and "--like is for a checkpoint" in done.stderr
    done = amigo_here(tmp_path / "home", "export", "--like", str(model))
    assert done.returncode == 2 and "--like needs the checkpoint" in done.stderr
    asked = ["--base", str(model), "--adapter", str(tmp_path / "none"), "--out", str(tmp_path / "merged")]
    done = amigo_here(tmp_path / "home", "merge", *asked)
    assert done.returncode == 2 and "is no adapter" in done.stderr
    assert "unpack" not in done.stderr  # which for a 12B writes 24 GB first
    bad = tmp_path / "adapter"
    shutil.copytree(adapter, bad)
    config = json.loads((bad / "adapter_config.json").read_text())
    (bad / "adapter_config.json").write_text(json.dumps(config | {"lora_alpha": None}))
    done = amigo_here(tmp_path / "home", "export", "--base", str(model), "--adapter", str(bad))
    assert done.returncode == 2 and "the rank or alpha of" in done.stderr


def test_a_mix_that_llama_cpp_is_asked_for_can_be_planned_on_a_fresh_home(tmp_path: Path) -> None:
    recipe = write_tiny_run(tmp_path / "run")
    ask = ["plan", str(recipe), "--set", "export.quant=iq4_xs", "--set", "ollama.use=false"]
    done = amigo_here(tmp_path / "fresh", *ask)
    assert done.returncode == 0, done.stderr
    assert "export" in done.stdout + done.stderr
    assert not (tmp_path / "fresh").exists()


def test_weights_that_are_not_finite_are_refused_unless_told_otherwise(tmp_path: Path) -> None:
    source = write_tiny_llama(tmp_path / "bad.gguf", weight_type="f32")
    tensor = read_header(source).tensor("blk.1.attn_v.weight")
    data = bytearray(source.read_bytes())
    data[tensor.offset : tensor.offset + 4] = np.float32(np.nan).tobytes()
    source.write_bytes(data)
    for verb in (["export", "--base"], ["unpack"]):
        done = amigo_here(tmp_path / "home", *verb, str(source))
        assert done.returncode == 2, done.stderr
        assert "blk.1.attn_v.weight holds 1 values that are NaN or infinite" in done.stderr
        assert "--allow-nonfinite" in done.stderr
    assert not list((tmp_path / "home/artifacts").glob("*.gguf"))
    out = tmp_path / "taken.gguf"
    done = amigo_here(tmp_path / "home", "export", "--base", str(source), "--allow-nonfinite", "--out", str(out))
    assert done.returncode == 0 and "1 values are NaN or infinite and were taken" in done.stderr, done.stderr
    assert _tensors(out) == _tensors(source)
    done = amigo_here(
        tmp_path / "home", "unpack", str(source), "--allow-nonfinite", "--out", str(tmp_path / "checkpoint")
    )
    assert done.returncode == 0 and "holds 1 values that are NaN or infinite" in done.stderr, done.stderr

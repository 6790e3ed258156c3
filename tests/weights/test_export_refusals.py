"""What an export refuses, and that it leaves nothing behind when it is stopped."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy

from amigo_local.domain.errors import Cancelled, InputError
from amigo_local.domain.events import Note, Progress
from amigo_local.domain.recipe import Quant
from amigo_local.weights import tensor_rows
from amigo_local.weights.export import export
from amigo_local.weights.export_plan import plan_export
from amigo_local.weights.gguf_header import read_header
from tests.support.exporting import decoded, run
from tests.weights.conftest import Events, write_adapter


def _with_value(source: Path, out: Path, tensor: str, value: float, place: int = 0) -> Path:
    data = bytearray(source.read_bytes())
    offset = read_header(source).tensor(tensor).offset + 4 * place
    data[offset : offset + 4] = np.float32(value).tobytes()
    out.write_bytes(data)
    return out


def test_a_weight_beyond_float16_is_refused_by_name_in_f16_only(
    exact_llama: Path, tmp_path: Path, events: Events
) -> None:
    source = _with_value(exact_llama, tmp_path / "large.gguf", "blk.1.ffn_gate.weight", 1e5)
    with pytest.raises(InputError, match=r"blk\.1\.ffn_gate\.weight holds 100000, float16 ends at 65504") as caught:
        run(source, None, tmp_path / "out.gguf", "f16", events)
    assert "--quant bf16" in caught.value.hint
    run(source, None, tmp_path / "out.gguf", "q8_0", events)
    values = decoded(tmp_path / "out.gguf")["blk.1.ffn_gate.weight"]
    assert values[0, 0] == pytest.approx(1e5, rel=0.01)  # Q8_0's scale is a half: 1e5 / 127 fits
    assert np.isfinite(values).all()


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("quant", ["keep", "q4_k_m", "f32"])
def test_values_that_are_not_finite_are_named_counted_and_refused_unless_allowed(
    quant: Quant, value: float, exact_llama: Path, llama_adapter: Path, tmp_path: Path, events: Events
) -> None:
    source = exact_llama
    for place in (5, 700):
        source = _with_value(source, tmp_path / f"bad{place}.gguf", "blk.2.ffn_up.weight", value, place)
    for adapter in (None, llama_adapter):  # copied and made anew
        with pytest.raises(InputError, match=r"tensor blk\.2\.ffn_up\.weight holds 2 values that are NaN or infinite"):
            run(source, adapter, tmp_path / "out.gguf", quant, events)
    assert not (tmp_path / "out.gguf").exists() and not list(tmp_path.glob("*.partial"))
    figures = run(source, llama_adapter, tmp_path / "out.gguf", "f32", events, allow_nonfinite=True)
    assert figures["nonfinite_values"] == 2
    assert any(isinstance(event, Note) and event.text.startswith("2 values are NaN") for event in events)


@pytest.mark.parametrize("quant", ["q6_k", "iq3_s"])
def test_a_type_without_a_code_for_nan_is_refused_rather_than_written_or_aborted(
    quant: Quant, exact_llama: Path, tmp_path: Path, events: Events
) -> None:
    source = _with_value(exact_llama, tmp_path / "bad.gguf", "blk.2.ffn_up.weight", np.nan)
    with pytest.raises(InputError, match=r"blk\.2\.ffn_up\.weight holds 1 values .*, for which \w+ has no code"):
        run(source, None, tmp_path / "out.gguf", quant, events, allow_nonfinite=True)


def test_a_nan_hides_no_other_value_that_is_too_large(exact_llama: Path, tmp_path: Path, events: Events) -> None:
    source = _with_value(exact_llama, tmp_path / "nan.gguf", "blk.2.ffn_up.weight", np.nan)
    source = _with_value(source, tmp_path / "both.gguf", "blk.2.ffn_up.weight", 1e5, 3)
    with pytest.raises(InputError, match="holds 100000, float16 ends at 65504"):
        run(source, None, tmp_path / "out.gguf", "f16", events, allow_nonfinite=True)


def test_cancelling_is_possible_within_a_tensor(
    tiny_llama: Path, tmp_path: Path, events: Events, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tensor_rows, "CHUNK_ELEMENTS", 1 << 14)
    run(tiny_llama, None, tmp_path / "out.gguf", "q4_k_m", events)
    progress = [event.done for event in events if isinstance(event, Progress)]
    assert len(progress) > 3 * 38 and progress == sorted(progress)


def test_an_adapter_that_is_not_finite_is_refused_by_the_tensor_it_spoils(
    tiny_llama: Path, llama_adapter: Path, tmp_path: Path, events: Events
) -> None:
    bad = tmp_path / "adapter"
    bad.mkdir()
    (bad / "adapter_config.json").write_bytes((llama_adapter / "adapter_config.json").read_bytes())
    weights = safetensors.numpy.load_file(llama_adapter / "adapter_model.safetensors")
    weights["base_model.model.model.layers.3.mlp.down_proj.lora_B.weight"][9, 0] = np.nan
    safetensors.numpy.save_file(weights, bad / "adapter_model.safetensors")
    with pytest.raises(InputError, match=r"tensor blk\.3\.ffn_down\.weight holds 512 values"):
        run(tiny_llama, bad, tmp_path / "out.gguf", "keep", events)


def test_cancelling_leaves_nothing_behind_and_an_older_file_stays(
    tiny_llama: Path, llama_adapter: Path, tmp_path: Path
) -> None:
    (tmp_path / "out.gguf").write_bytes(b"older")

    def stop(event: object) -> None:
        if isinstance(event, Progress) and event.total and event.done > event.total / 3:
            raise Cancelled

    with pytest.raises(Cancelled):
        run(tiny_llama, llama_adapter, tmp_path / "out.gguf", "q4_k_m", Events(stop))
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("out.gguf", b"older")]


def test_nothing_is_printed_and_progress_ends_at_the_whole(
    tiny_llama: Path, tmp_path: Path, events: Events, capfd: pytest.CaptureFixture[str]
) -> None:
    run(tiny_llama, None, tmp_path / "out.gguf", "q4_k_m", events)
    assert capfd.readouterr() == ("", "")
    progress = [event for event in events if isinstance(event, Progress)]
    assert [event.label for event in progress] == ["exporting"] * 38
    assert progress[-1].done == progress[-1].total == read_header(tiny_llama).parameters


def test_bad_input_is_refused_before_anything_is_written(
    tiny_llama: Path, tiny_gemma: Path, llama_adapter: Path, tmp_path: Path, events: Events
) -> None:
    out = tmp_path / "out.gguf"
    with pytest.raises(InputError, match="adapter for another base"):
        run(tiny_gemma, llama_adapter, out, "q8_0", events)
    with pytest.raises(InputError, match="is the base itself"):
        export(plan_export(tiny_llama, llama_adapter, "q8_0", tmp_path), tiny_llama, events)
    assert list(tmp_path.iterdir()) == []


def test_a_change_of_one_side_of_a_tied_embedding_is_refused(
    exact_llama: Path, unpacked: Callable[[Path], Path], tmp_path: Path, events: Events
) -> None:
    adapter = write_adapter(unpacked(exact_llama), tmp_path / "adapter", target_modules=["q_proj"])
    path = adapter / "adapter_model.safetensors"
    plain = safetensors.numpy.load_file(path)
    head = {"lm_head.lora_A.weight": np.zeros((8, 256)), "lm_head.lora_B.weight": np.zeros((1024, 8))}
    tokens = {"model.embed_tokens.weight": np.ones((1024, 256))}
    for extra, side in ((head, "lm_head"), (tokens, "embed_tokens")):
        named = {f"base_model.model.{name}": values.astype(np.float32) for name, values in extra.items()}
        safetensors.numpy.save_file(plain | named, path)
        with pytest.raises(InputError, match=f"it changes {side}, the base's output is tied"):
            run(exact_llama, adapter, tmp_path / "out.gguf", "q8_0", events)
    both = {f"base_model.model.{name}": np.ones((1024, 256), np.float32) for name in (*tokens, "lm_head.weight")}
    safetensors.numpy.save_file(plain | both, path)  # what ensure_weight_tying saves
    assert run(exact_llama, adapter, tmp_path / "out.gguf", "q8_0", events)["merged_tensors"] == 5

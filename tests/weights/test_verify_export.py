from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import gguf
import pytest

from amigo_local.domain.artifact import Figure
from amigo_local.domain.errors import AmigoError
from amigo_local.domain.events import Note
from amigo_local.domain.recipe import Quant
from amigo_local.weights import export as export_module
from amigo_local.weights.check_texts import check_texts
from amigo_local.weights.export import export
from amigo_local.weights.export_plan import ExportPlan, plan_export
from amigo_local.weights.gguf_header import read_header
from amigo_local.weights.gguf_writer import GgufWriter, PlannedTensor, carried_fields
from amigo_local.weights.probe import comparison_bytes
from amigo_local.weights.tensor_rows import TensorFile
from amigo_local.weights.unpack import unpack
from amigo_local.weights.verify_export import check_exported
from tests.support.tiny_gguf import write_tiny_llama
from tests.weights.conftest import TEXTS, Events, write_adapter

Unpacked = Callable[[Path], Path]


class Exported:
    """An export to check, as made or after something happened to it."""

    def __init__(
        self,
        donor: Path,
        adapter: Path | None,
        quant: Quant,
        directory: Path,
        checkpoint_dir: Path | None = None,
        **planning: Any,
    ) -> None:
        self.donor, self.path, self.events = donor, directory / "out.gguf", Events()
        self.plan: ExportPlan = plan_export(donor, adapter, quant, directory, checkpoint_dir=checkpoint_dir, **planning)
        self.path.unlink(missing_ok=True)
        export(self.plan, self.path, self.events)

    def check(
        self,
        adapter: Path | None,
        checkpoint: Path | None = None,
        *,
        prompts: Sequence[str] = TEXTS,
        texts: Sequence[str] = TEXTS,
        **changed: Any,
    ) -> dict[str, Figure]:
        asked: dict[str, Any] = {"expected_types": self.plan.types, "verbatim": self.plan.copied} | changed
        return check_exported(
            self.path,
            self.donor,
            adapter,
            self.events,
            token_texts=texts,
            prompts=prompts,
            checkpoint_dir=checkpoint,
            **asked,
        )


def number(figures: dict[str, Figure], name: str) -> float:
    value = figures[name]
    assert isinstance(value, float | int)
    return float(value)


def rewritten(gguf: Path, out: Path, changed: dict[str, Any]) -> Path:
    """The same file with other metadata."""
    header = read_header(gguf)
    plan = [PlannedTensor(tensor.name, tensor.dimensions, tensor.type_id) for tensor in header.tensors]
    with TensorFile(header) as source, GgufWriter(out, carried_fields(header, changed), plan) as writer:
        for tensor in header.tensors:
            for piece in source.raw(tensor):
                writer.write(tensor.name, piece)
    return out


@pytest.mark.parametrize("model", ["exact_llama", "ollama_gemma"])
def test_a_right_export_passes_with_and_without_a_checkpoint_and_says_how_close_it_is(
    model: str, request: pytest.FixtureRequest, unpacked: Unpacked, tmp_path: Path
) -> None:
    source: Path = request.getfixturevalue(model)
    adapter = request.getfixturevalue("gemma_adapter" if "gemma" in model else "llama_adapter")
    made = Exported(source, adapter, "f16", tmp_path)
    figures = made.check(adapter, unpacked(source), texts=check_texts(1000))
    assert (figures["texts"], figures["differing_texts"], figures["kl_checked"]) == (1000, 0, True)
    assert (figures["chat_template"], figures["chats"], figures["refused_chats"]) == (True, 12, 0)
    assert 0 <= number(figures, "kl_mean") < 0.005
    assert number(figures, "same_top_share") > 0.95
    assert number(figures, "kl_of_base") < 1e-5  # float32 on both sides
    assert number(figures, "adapter_effect") > 0.3  # the adapter changes the model
    assert number(figures, "kl_without_adapter") == pytest.approx(number(figures, "adapter_effect"), rel=0.05)
    assert number(figures, "adapter_share") == pytest.approx(1, abs=0.001)
    # The same weights, read from the GGUF: the same figures.
    assert made.check(adapter, texts=check_texts(1000)) == pytest.approx(figures, rel=1e-3, abs=1e-9)
    assert not [path for path in tmp_path.iterdir() if path != made.path]


def test_keep_counts_what_was_left_and_what_was_made_anew(tiny_llama: Path, unpacked: Unpacked, tmp_path: Path) -> None:
    adapter = write_adapter(unpacked(tiny_llama), tmp_path / "adapter", target_modules=["q_proj", "down_proj"])
    figures = Exported(tiny_llama, adapter, "keep", tmp_path).check(adapter)
    assert {
        name: figures[name] for name in ("tensors", "identical_tensors", "requantized_tensors", "metadata_keys")
    } == {
        "tensors": 38,
        "identical_tensors": 30,
        "requantized_tensors": 8,
        "metadata_keys": 25,
    }
    # 8 matrices of 256 x 256 and 256 x 512 in Q8_0.
    assert 0.5 < number(figures, "changed_bytes") / (4 * 3 * 65536 * 34 / 32) < 1
    assert number(figures, "kl_of_base") < number(figures, "kl_mean") < 0.05
    assert number(figures, "adapter_share") > 0.95


def test_one_flipped_byte_in_a_tensor_that_nothing_touches_is_found(
    ollama_gemma: Path, unpacked: Unpacked, tmp_path: Path
) -> None:
    adapter = write_adapter(unpacked(ollama_gemma), tmp_path / "adapter", target_modules=["q_proj"])
    made = Exported(ollama_gemma, adapter, "keep", tmp_path)
    for name in ("blk.3.ffn_down.weight", "output_norm.weight", "v.blk.0.attn_q.weight"):
        place = read_header(made.path).tensor(name).offset + 7
        with made.path.open("rb+") as file:
            file.seek(place)
            right = file.read(1)
            file.seek(place)
            file.write(bytes([right[0] ^ 1]))
        with pytest.raises(AmigoError, match=f"tensor {name} should be .* byte for byte, 1 of"):
            made.check(adapter)
        with made.path.open("rb+") as file:
            file.seek(place)
            file.write(right)
    # A vision tower must be as it was, whatever the plan says.
    header = read_header(made.path)
    with made.path.open("rb+") as file:
        file.seek(header.tensor("v.post_layernorm.weight").offset)
        file.write(b"\xff")
    with pytest.raises(AmigoError, match=r"v\.post_layernorm\.weight should be"):
        made.check(adapter, verbatim=frozenset())


def test_a_wrong_type_and_a_wrong_table_are_found(exact_llama: Path, tmp_path: Path) -> None:
    made = Exported(exact_llama, None, "q8_0", tmp_path)
    wrong = made.plan.types | {"blk.2.attn_v.weight": 1}
    with pytest.raises(AmigoError, match=r"blk\.2\.attn_v\.weight is Q8_0 \[256, 128\], expected F16 \[256, 128\]"):
        made.check(None, expected_types=wrong)
    made.donor = write_tiny_llama(tmp_path / "untied.gguf", tied=False)
    with pytest.raises(AmigoError, match=r"output\.weight is not there, expected of type None \[256, 1024\]"):
        made.check(None)


def test_other_metadata_is_found(exact_llama: Path, tmp_path: Path) -> None:
    made = Exported(exact_llama, None, "f16", tmp_path)
    made.donor = write_tiny_llama(tmp_path / "other.gguf", weight_type="f32", chat_template="{{ messages }}")
    with pytest.raises(AmigoError, match=r"tokenizer\.chat_template differs"):
        made.check(None)
    made.donor = exact_llama
    wrong = rewritten(made.path, tmp_path / "wrong.gguf", {"llama.rope.freq_base": 5e5})
    made.path = wrong
    with pytest.raises(AmigoError, match=r"llama\.rope\.freq_base differs"):
        made.check(None)
    # Keys that an export sets are its own.
    own = {"general.file_type": 7, "quantize.imatrix.file": "some.gguf"}
    made.path = rewritten(Exported(exact_llama, None, "f16", tmp_path).path, tmp_path / "own.gguf", own)
    assert made.check(None, prompts=())["metadata_keys"] == 27


def test_a_rotary_base_that_the_checkpoint_has_otherwise_is_found(
    exact_llama: Path, unpacked: Unpacked, tmp_path: Path
) -> None:
    wrong = rewritten(exact_llama, tmp_path / "wrong.gguf", {"llama.rope.freq_base": 5e5})
    # Even at a quantization with a limit as wide as this error.
    made = Exported(wrong, None, "q4_0", tmp_path)
    with pytest.raises(AmigoError, match="the base itself isn't understood"):
        made.check(None, unpacked(exact_llama))


@pytest.mark.parametrize("quant", ["f16", "q4_k_m"])
def test_rows_in_the_wrong_order_are_found(
    quant: Quant, exact_llama: Path, llama_adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(export_module, "to_gguf_rows", lambda rows, head_dim: rows)
    made = Exported(exact_llama, llama_adapter, quant, tmp_path)
    with pytest.raises(AmigoError, match="is not base plus adapter: next-token KL mean"):
        made.check(llama_adapter)


@pytest.mark.parametrize(
    ("quant", "scale"),
    [("f16", 0.0003), ("q8_0", 0.002), ("q4_k_m", 0.02), ("q4_k_m", 0.00003), ("q3_k_m", 0.0003), ("keep", 0.00003)],
)
def test_a_lost_adapter_is_found_however_weak_it_is(
    quant: Quant, scale: float, tiny_llama: Path, unpacked: Unpacked, tmp_path: Path
) -> None:
    adapter = write_adapter(unpacked(tiny_llama), tmp_path / "adapter", scale=scale)
    right = Exported(tiny_llama, adapter, quant, tmp_path).check(adapter)
    assert number(right, "adapter_in_weights") > 10 * number(right, "adapter_in_weights_error")
    lost = Exported(tiny_llama, None, quant, tmp_path)
    with pytest.raises(AmigoError, match="the adapter is not in it"):
        lost.check(adapter, verbatim=(), prompts=())


def test_an_adapter_of_twice_the_strength_is_found(tiny_llama: Path, unpacked: Unpacked, tmp_path: Path) -> None:
    # So weak that the file is near enough to base plus adapter.
    asked = write_adapter(unpacked(tiny_llama), tmp_path / "asked", scale=0.0005)
    twice = write_adapter(unpacked(tiny_llama), tmp_path / "twice", scale=0.0005, lora_alpha=32)
    made = Exported(tiny_llama, twice, "q8_0", tmp_path)
    with pytest.raises(AmigoError, match=r"is not base plus adapter: 1\.[5-9]\d+ ± .* of the adapter's effect"):
        made.check(asked)


def test_an_adapter_that_rounding_takes_away_is_told(tmp_path: Path) -> None:
    # The base's weights lie on the very grid that rounding to nearest takes them back to.
    base = write_tiny_llama(tmp_path / "base.gguf", weight_type="q4_1")
    unpack(base, tmp_path / "checkpoint", "f32", Events())
    weak = write_adapter(tmp_path / "checkpoint", tmp_path / "weak", scale=0.001)
    kept = Exported(base, weak, "keep", tmp_path, like_llama_cpp=True)
    figures = kept.check(weak)
    assert 0.1 < number(figures, "adapter_share") < 0.5  # 0.31 measured
    assert number(figures, "kl_mean") > number(figures, "adapter_effect")
    told = [event.text for event in kept.events if isinstance(event, Note)]
    assert len(told) == 1 and "the adapter is weak against rounding to Q4_1" in told[0]

    wide = Exported(base, weak, "q8_0", tmp_path)
    assert number(wide.check(weak), "adapter_share") == pytest.approx(1, abs=0.05)
    assert not [event for event in wide.events if isinstance(event, Note)]


@pytest.mark.slow
def test_smollm2_keeps_little_of_a_weak_adapter_rounded_to_nearest_and_most_on_its_grid(
    smollm2: Path, unpacked: Unpacked, tmp_path: Path
) -> None:
    weak = write_adapter(unpacked(smollm2), tmp_path / "weak", scale=0.002)
    made = {
        "nearest": Exported(smollm2, weak, "keep", tmp_path, like_llama_cpp=True).check(weak),
        "on grid": Exported(smollm2, weak, "keep", tmp_path).check(weak),
        "wide": Exported(smollm2, weak, "q8_0", tmp_path).check(weak),
    }
    assert number(made["nearest"], "adapter_share") == pytest.approx(0.31, abs=0.15)
    assert number(made["on grid"], "adapter_in_weights") == pytest.approx(1, abs=0.06)
    assert number(made["wide"], "adapter_share") == pytest.approx(1, abs=0.05)
    assert number(made["nearest"], "kl_of_base") < 0.008


def test_an_adapter_without_effect_is_no_lost_one(tiny_llama: Path, unpacked: Unpacked, tmp_path: Path) -> None:
    nothing = write_adapter(unpacked(tiny_llama), tmp_path / "adapter", scale=0.0)
    figures = Exported(tiny_llama, nothing, "keep", tmp_path).check(nothing)
    assert figures["adapter_effect"] == 0.0
    assert figures["adapter_share"] is None
    assert figures["requantized_tensors"] == 0


def test_another_tokenizer_and_another_template_are_found(
    exact_llama: Path, unpacked: Unpacked, tmp_path: Path
) -> None:
    tokens = list(read_header(exact_llama).array("tokenizer.ggml.tokens"))
    a, b = tokens.index("Ġthe"), tokens.index("Ġto")
    tokens[a], tokens[b] = tokens[b], tokens[a]
    one_changed = rewritten(exact_llama, tmp_path / "tokens.gguf", {"tokenizer.ggml.tokens": tuple(tokens)})
    with pytest.raises(AmigoError, match=r"of 1000 texts get other tokens in transformers than in llama\.cpp"):
        Exported(one_changed, None, "f16", tmp_path).check(None, unpacked(exact_llama), texts=check_texts(1000))
    template = str(read_header(exact_llama).chat_template).replace("assistant\\n", "assistant")
    swapped = rewritten(exact_llama, tmp_path / "template.gguf", {"tokenizer.chat_template": template + " "})
    with pytest.raises(AmigoError, match=r"its chat template makes .* of a chat, that of"):
        Exported(swapped, None, "f16", tmp_path).check(None, unpacked(exact_llama))


def test_without_prompts_all_but_the_predictions_is_checked(exact_llama: Path, tmp_path: Path) -> None:
    made = Exported(exact_llama, None, "f16", tmp_path)
    figures = made.check(None, prompts=())
    assert figures == {
        "tensors": 38,
        "metadata_keys": 26,
        "structure_checked": True,
        "identical_tensors": 9,
        "requantized_tensors": 0,
        "retyped_tensors": 29,
        "changed_bytes": 5242880,
        "texts": 5,
        "differing_texts": 0,
        "chat_template": True,
        "chats": 12,
        "refused_chats": 0,
        "kl_checked": False,
    }
    assert any(isinstance(event, Note) and "no prompts" in event.text for event in made.events)


def test_memory_is_bounded_by_a_layer(smollm2: Path) -> None:
    # Of SmolLM2's 135 M parameters a layer has 3.5; four times 128 MiB of logits and 768 MiB for torch itself.
    assert comparison_bytes(read_header(smollm2)) == 4 * 3540096 + (4 * 128 + 768) * 2**20


def test_weights_of_another_checkpoint_are_judged_by_it(
    tiny_llama: Path, exact_llama: Path, unpacked: Unpacked, llama_adapter: Path, tmp_path: Path
) -> None:
    # As from the original of a base: the donor is the same model in Q8_0 and gives types and metadata only.
    original = unpacked(exact_llama)
    made = Exported(tiny_llama, llama_adapter, "keep", tmp_path, checkpoint_dir=original)
    figures = made.check(llama_adapter, original, checkpoint_is_donor=False)
    assert number(figures, "adapter_share") > 0.95
    assert number(figures, "kl_of_base") < 0.05
    shifted = rewritten(tiny_llama, tmp_path / "shifted.gguf", {"llama.rope.freq_base": 5e5})
    made = Exported(shifted, llama_adapter, "q8_0", tmp_path, checkpoint_dir=original)
    with pytest.raises(AmigoError, match="is not base plus adapter: next-token KL mean"):
        made.check(llama_adapter, original, checkpoint_is_donor=False)


def test_a_base_in_parts_is_compared_as_a_whole(
    llama_adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(gguf, "GGUFWriter", functools.partial(gguf.GGUFWriter, split_max_tensors=16))
        write_tiny_llama(tmp_path / "tiny.gguf", weight_type="f32")
    parts = sorted(tmp_path.glob("tiny-*.gguf"))
    assert len(parts) == 3
    figures = Exported(parts[0], llama_adapter, "keep", tmp_path).check(llama_adapter)
    assert (figures["identical_tensors"], figures["requantized_tensors"]) == (10, 28)
    assert number(figures, "adapter_share") == pytest.approx(1, abs=0.001)

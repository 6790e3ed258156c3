from __future__ import annotations

import ctypes
import json
import random
from collections.abc import Callable
from pathlib import Path

import gguf
import llama_cpp
import numpy as np
import pytest
import torch
import transformers

from amigo_local.domain.errors import AmigoError, Cancelled, InputError
from amigo_local.domain.events import Progress, StageFinished
from amigo_local.stages import imatrix as stage
from amigo_local.weights import graph_reader, imatrix_collection
from amigo_local.weights.gguf_header import read_header
from amigo_local.weights.imatrix import (
    ImportanceMatrix,
    read_importance_matrix,
    write_importance_matrix,
)
from amigo_local.weights.imatrix_collection import collect, imatrix_disk_needed
from amigo_local.weights.kernels import load_kernels
from amigo_local.weights.llama_cpp_model import QuietLog
from tests.support.command_line import amigo_records
from tests.support.command_line import events as events_of
from tests.support.tiny_gguf import HIDDEN, _add_bpe, _finish, _Tensors, write_tiny_llama
from tests.weights.conftest import TEXTS, Events

PARTS = {
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


def _samples(seed: int = 0, lengths: tuple[int, ...] = (90, 1, 70, 60)) -> list[list[int]]:
    chance = random.Random(seed)
    return [[chance.randrange(10, 1000) for _ in range(length)] for length in lengths]


class HalfGelu(torch.nn.Module):
    """As llama.cpp computes it: from a table of half floats (ggml_table_gelu_f16)."""

    def forward(self, gate: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.gelu(gate.half().float(), approximate="tanh").half().float()


def _by_hooks(checkpoint: Path, chunks: list[list[int]]) -> dict[str, np.ndarray]:
    """Means of the squared inputs of every linear layer, as PyTorch computes them in float32."""
    model = transformers.AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32)
    sums: dict[str, torch.Tensor] = {}

    def hook(name: str) -> Callable[..., None]:
        def add(module: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
            sums[name] = sums.get(name, torch.zeros(())) + inputs[0].double().square().sum(dim=(0, 1))

        return add

    for layer, block in enumerate(model.model.layers):
        if model.config.model_type.startswith("gemma"):
            block.mlp.act_fn = HalfGelu()
        for part, place in PARTS.items():
            block.get_submodule(place).register_forward_pre_hook(hook(f"blk.{layer}.{part}.weight"))
    with torch.no_grad():
        for chunk in chunks:
            model(torch.tensor([chunk]))
    return {name: (total / sum(map(len, chunks))).numpy() for name, total in sums.items()}


@pytest.mark.parametrize(("model", "layers", "first"), [("exact_llama", 4, None), ("exact_gemma", 6, 2)])
def test_it_is_what_pytorch_measures(
    model: str,
    layers: int,
    first: int | None,
    request: pytest.FixtureRequest,
    unpacked: Callable[[Path], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Chunks of 64 of 221 tokens: three, the rest left out, each beginning with BOS where the model is used to it."""
    source: Path = request.getfixturevalue(model)
    flat = [token for sample in _samples() for token in sample]
    chunks = [flat[start : start + 64] for start in (0, 64, 128)]
    if first is not None:
        chunks = [[first, *chunk[1:]] for chunk in chunks]
    expected = _by_hooks(unpacked(source), chunks)
    assert len(expected) == 7 * layers
    for logit_bytes in (1 << 30, 40 * 4 * 1024):  # whole chunks at once; in pieces of 40 and 24
        monkeypatch.setattr(imatrix_collection, "_LOGIT_BYTES", logit_bytes)
        found = collect(source, _samples(), Events(), scratch_dir=tmp_path, context_tokens=64)
        assert (found.chunk_count, found.chunk_size) == (3, 64)
        assert set(found.entries) == set(expected)
        for name, means in expected.items():
            assert found.entries[name].counts.tolist() == [192], name
            weights = found.row_weights(name, len(means))
            assert weights is not None and weights.dtype == np.float32
            # A last bit's difference may round to another half in gemma's gelu, which later layers pass on.
            tolerance = 1e-4 if first is None or name.startswith("blk.0.") else 2e-3
            np.testing.assert_allclose(weights, means, rtol=tolerance, err_msg=name)


def test_text_is_tokenized_as_llama_cpp_does_and_no_more_is_taken_than_asked(
    exact_llama: Path, unpacked: Callable[[Path], Path], tmp_path: Path
) -> None:
    tokenizer = transformers.AutoTokenizer.from_pretrained(unpacked(exact_llama))
    texts = [text for text in TEXTS if "<" not in text]  # markers of special tokens stay text here
    ids = [token for text in texts * 3 for token in tokenizer(text, add_special_tokens=False)["input_ids"]]

    def endless() -> object:
        while True:
            yield from texts

    found = collect(exact_llama, endless(), Events(), scratch_dir=tmp_path, context_tokens=48, max_chunks=2)  # type: ignore[arg-type]
    same = collect(exact_llama, [ids[:96]], Events(), scratch_dir=tmp_path, context_tokens=48)
    assert found.chunk_count == same.chunk_count == 2
    for name, entry in same.entries.items():
        assert np.array_equal(found.entries[name].sums, entry.sums), name
    marked = collect(exact_llama, ["<|im_start|>" * 40], Events(), scratch_dir=tmp_path)
    assert marked.chunk_size > 100  # one token each if they were parsed


def test_a_library_blob_with_a_vision_tower_is_measured_too(
    ollama_gemma: Path, exact_gemma: Path, tmp_path: Path
) -> None:
    found = collect(ollama_gemma, _samples(), Events(), scratch_dir=tmp_path, context_tokens=64)
    plain = collect(exact_gemma, _samples(), Events(), scratch_dir=tmp_path, context_tokens=64)
    assert list(found.entries) == list(plain.entries)
    for name, entry in plain.entries.items():
        np.testing.assert_allclose(found.entries[name].means, entry.means, rtol=1e-5, err_msg=name)
    assert list(tmp_path.iterdir()) == []


def _write_experts(path: Path, experts: int, used: int) -> tuple[Path, dict[str, np.ndarray]]:
    """One layer whose attention adds nothing, so that every expert's input can be computed by hand."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(1)
    writer.add_context_length(512)
    writer.add_embedding_length(HIDDEN)
    writer.add_feed_forward_length(64)
    writer.add_head_count(4)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_expert_count(experts)
    writer.add_expert_used_count(used)
    vocabulary = _add_bpe(writer)
    writer.add_vocab_size(vocabulary)
    chance = np.random.default_rng(0)

    def random_tensor(*shape: int) -> np.ndarray:
        return (chance.standard_normal(shape) / shape[-1] ** 0.5).astype(np.float32)

    tensors = _Tensors(writer, 0, "f32")
    made = {
        "token_embd": random_tensor(vocabulary, HIDDEN),
        "blk.0.ffn_norm": 1 + random_tensor(HIDDEN),
        "blk.0.ffn_gate_inp": random_tensor(experts, HIDDEN),
        "blk.0.ffn_gate_exps": random_tensor(experts, 64, HIDDEN),
        "blk.0.ffn_up_exps": random_tensor(experts, 64, HIDDEN),
        "blk.0.ffn_down_exps": random_tensor(experts, HIDDEN, 64),
        "blk.0.attn_output": np.zeros((HIDDEN, HIDDEN), np.float32),
    }
    for name, values in made.items():
        writer.add_tensor(f"{name}.weight", values)
    for name in ("output_norm", "blk.0.attn_norm"):
        tensors.vector(f"{name}.weight", HIDDEN, mean=1.0)
    for name in ("attn_q", "attn_k", "attn_v"):
        tensors.matrix(f"blk.0.{name}.weight", HIDDEN, HIDDEN)
    _finish(writer)
    return path, made


def test_each_expert_of_a_mixture_gets_what_the_router_sends_it(tmp_path: Path) -> None:
    source, weights = _write_experts(tmp_path / "experts.gguf", experts=8, used=2)
    (tmp_path / "scratch").mkdir()
    sample = _samples(1, (64,))[0]
    found = collect(source, [sample], Events(), scratch_dir=tmp_path / "scratch")

    hidden = weights["token_embd"][sample].astype(np.float64)
    normed = hidden / np.sqrt((hidden**2).mean(axis=1, keepdims=True) + 1e-5) * weights["blk.0.ffn_norm"]
    chosen = np.argsort(-(normed @ weights["blk.0.ffn_gate_inp"].T), axis=1)[:, :2]
    assert np.bincount(chosen.reshape(-1), minlength=8).min() > 0
    router = found.row_weights("blk.0.ffn_gate_inp.weight", HIDDEN)
    np.testing.assert_allclose(router, (normed**2).mean(axis=0), rtol=1e-4)
    into = found.row_weights("blk.0.ffn_up_exps.weight", HIDDEN, 8)
    down = found.row_weights("blk.0.ffn_down_exps.weight", 64, 8)
    assert into is not None and down is not None
    for expert in range(8):
        rows = normed[(chosen == expert).any(axis=1)]
        assert found.entries["blk.0.ffn_gate_exps.weight"].counts[expert] == len(rows)
        np.testing.assert_allclose(into[expert], (rows**2).mean(axis=0), rtol=1e-4)
        gate, up = (rows @ weights[f"blk.0.ffn_{part}_exps"][expert].T for part in ("gate", "up"))
        np.testing.assert_allclose(down[expert], ((gate / (1 + np.exp(-gate)) * up) ** 2).mean(axis=0), rtol=1e-3)


def _quantize(source: Path, target: Path, matrix: ImportanceMatrix | None) -> dict[str, gguf.ReaderTensor]:
    settings = llama_cpp.llama_model_quantize_default_params()
    settings.ftype = 15  # LLAMA_FTYPE_MOSTLY_Q4_K_M
    settings.nthread = 1
    if matrix:
        given = (llama_cpp.llama_model_imatrix_data * (len(matrix.entries) + 1))()
        kept = []
        for item, (name, entry) in zip(given, matrix.entries.items(), strict=False):
            kept.append(entry.means)
            item.name, item.size = name.encode(), entry.means.size
            item.data = kept[-1].ctypes.data_as(ctypes.POINTER(ctypes.c_float))
        settings.imatrix = given
    with QuietLog():
        assert llama_cpp.llama_model_quantize(str(source).encode(), str(target).encode(), ctypes.byref(settings)) == 0
    return {tensor.name: tensor for tensor in gguf.GGUFReader(target).tensors}


def test_quantizing_with_it_gives_the_bytes_of_llama_model_quantize(exact_llama: Path, tmp_path: Path) -> None:
    matrix = collect(exact_llama, _samples(), Events(), scratch_dir=tmp_path, context_tokens=64)
    write_importance_matrix(matrix, tmp_path / "imatrix.gguf")
    matrix = read_importance_matrix(tmp_path / "imatrix.gguf")
    without = _quantize(exact_llama, tmp_path / "without.gguf", None)
    expected = _quantize(exact_llama, tmp_path / "with.gguf", matrix)
    kernels = load_kernels(1)
    weighted = 0
    for tensor in gguf.GGUFReader(exact_llama).tensors:
        kind = expected[tensor.name].tensor_type
        if kind == gguf.GGMLQuantizationType.F32:
            continue
        rows = np.array(tensor.data)
        weights = matrix.row_weights(tensor.name, rows.shape[1])
        assert np.array_equal(kernels.quantize(int(kind), rows, weights), expected[tensor.name].data), tensor.name
        if weights is None:
            assert tensor.name == "token_embd.weight"
        else:
            weighted += not np.array_equal(expected[tensor.name].data, without[tensor.name].data)
    assert weighted == 28


def test_cancelling_comes_through_from_within_llama_cpp(exact_llama: Path, tmp_path: Path) -> None:
    class Stopped(Events):
        def __call__(self, event: object) -> None:
            super().__call__(event)  # type: ignore[arg-type]
            if len(self) == 2:
                raise Cancelled

    events = Stopped()
    with pytest.raises(Cancelled):
        collect(exact_llama, _samples(), events, scratch_dir=tmp_path, context_tokens=64)
    progress = [event for event in events if isinstance(event, Progress)]
    assert [(event.done, event.total, event.unit) for event in progress] == [(0, 192, "tokens"), (16, 192, "tokens")]


def test_progress_counts_every_token(exact_llama: Path, tmp_path: Path, events: Events) -> None:
    collect(exact_llama, _samples(), events, scratch_dir=tmp_path, context_tokens=64)
    done = [event.done for event in events if isinstance(event, Progress)]
    assert done == sorted(done) and done[-1] == 192
    assert len(done) == 3 * 4 + 1


def test_the_head_is_computed_only_until_the_last_weight_is_known(
    exact_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is 62 % of Gemma 3 270M, and nobody reads its logits."""
    asked: list[str] = []
    name_of = imatrix_collection._weight_name
    monkeypatch.setattr(imatrix_collection, "_weight_name", lambda raw: asked.append(name_of(raw)) or asked[-1])
    collect(exact_llama, _samples(), Events(), scratch_dir=tmp_path, context_tokens=64)
    assert asked.count("blk.3.ffn_down.weight") == 2 * 3  # asked for and given, in three chunks
    assert asked.count("token_embd.weight") == 1


def test_what_the_model_cannot_be_measured_on_is_refused(exact_llama: Path, tmp_path: Path) -> None:
    for samples, reason in (
        ([[1] * 31], "31 tokens long, an importance matrix takes at least 32"),
        ([], "0 tokens long"),
        ([[1] * 40, [1024]], "the token 1024, this model has 1024"),
        ([[1] * 40, [5, -1]], "the token -1"),
    ):
        with pytest.raises(InputError, match=reason):
            collect(exact_llama, samples, Events(), scratch_dir=tmp_path)


def test_numbers_that_are_none_are_refused_by_the_tensor_they_reach(tmp_path: Path) -> None:
    source = write_tiny_llama(tmp_path / "damaged.gguf", weight_type="f32")
    with source.open("rb+") as file:
        file.seek(read_header(source).tensor("blk.2.ffn_up.weight").offset)
        file.write(np.float32(np.nan).tobytes())
    with pytest.raises(AmigoError, match=r"the inputs of blk\.2\.ffn_down\.weight are not finite"):
        collect(source, _samples(), Events(), scratch_dir=tmp_path)


def test_a_library_with_other_structs_is_refused(
    exact_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fields = list(graph_reader.Tensor._fields_)
    ne, nb = fields[2], fields[3]

    class Swapped(ctypes.Structure):
        _fields_ = [*fields[:2], nb, ne, *fields[4:]]

    monkeypatch.setattr(graph_reader, "Tensor", Swapped)
    with pytest.raises(AmigoError, match="laid out otherwise"):
        collect(exact_llama, _samples(), Events(), scratch_dir=tmp_path)


def _row(ids: list[int]) -> str:
    words = dict.fromkeys(("prompt", "completion", "source", "module", "name", "license"), "")
    return json.dumps(words | {"input_ids": ids, "completion_start": 1}) + "\n"


def test_the_verb_measures_on_a_text_and_on_what_prepare_wrote(exact_llama: Path, tmp_path: Path) -> None:
    (tmp_path / "texts.txt").write_text("".join(TEXTS) * 20)
    code, records = amigo_records(
        tmp_path / "home", "imatrix", str(exact_llama), "--texts", str(tmp_path / "texts.txt"), "--chunks", "2"
    )
    assert code == 0
    code, _ = amigo_records(
        tmp_path / "home", "imatrix", str(exact_llama), "--texts", str(tmp_path / "texts.txt"), "--chunks", "0"
    )
    assert code == 2
    artifact = events_of(records, StageFinished)[0].artifact
    assert artifact is not None and artifact.kind == "imatrix"
    assert artifact.figures == {"chunks": 2, "tokens": 1024, "tensors": 28}
    found = read_importance_matrix(Path(artifact.path))
    assert found.datasets == ("texts.txt",)
    assert Path(artifact.path).stat().st_size <= imatrix_disk_needed(read_header(exact_llama))

    dataset = tmp_path / "dataset"
    dataset.mkdir()
    (dataset / "train.jsonl").write_text("".join(map(_row, _samples())))
    for texts in (dataset, dataset / "train.jsonl"):
        assert list(stage._samples(stage._file(str(texts)))) == _samples()
    (tmp_path / "other.jsonl").write_text('{"text": "a"}\n')
    with pytest.raises(InputError, match=r"other\.jsonl: holds other rows than `prepare` writes"):
        list(stage._samples(tmp_path / "other.jsonl"))
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9 au lait")
    with pytest.raises(InputError, match=r"latin\.txt: is no UTF-8 text"):
        list(stage._samples(tmp_path / "latin.txt"))
    with pytest.raises(InputError, match="there is no file"):
        stage._file(str(tmp_path / "none.txt"))

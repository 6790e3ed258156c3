"""Tiny random models of every architecture -> llama.cpp's own converter -> unpack: the same model comes back."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import llama_cpp
import msgspec
import numpy as np
import pytest
import sentencepiece
import tokenizers
import torch
import transformers

from amigo_local.domain.errors import InputError
from amigo_local.weights.architecture import architecture_of, map_tensors, supported
from amigo_local.weights.check_texts import check_texts
from amigo_local.weights.gguf_header import GgufHeader, TensorInfo, read_header
from amigo_local.weights.tokenizer import write_tokenizer
from amigo_local.weights.unpack import unpack
from tests.conftest import CACHE
from tests.support.llama_cpp_converter import Conversion, ConverterMissing, convert, prepare_converter
from tests.support.tiny_gguf import SPM_USER_DEFINED, _bpe, spm_model
from tests.weights.conftest import TEXTS, Events

HIDDEN, VOCABULARY = 64, 1024
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
YARN = {"rope_type": "yarn", "rope_theta": 1e6, "factor": 4.0, "original_max_position_embeddings": 128}
GEMMA3_ROPE = {
    "full_attention": {"rope_type": "default", "rope_theta": 1e6},
    "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
}
GEMMA3_LINEAR = GEMMA3_ROPE | {"full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6}}
LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "short_factor": [1.0, 1.05, 1.1, 1.2, 1.4, 1.7],
    "long_factor": [1.0, 1.5, 2.5, 4.0, 8.0, 16.25],
    "original_max_position_embeddings": 256,
    "partial_rotary_factor": 0.75,
}
SOFTCAPS = {"attn_logit_softcapping": 2.0, "final_logit_softcapping": 3.0}
ALL_SWITCHES = {"head_dim": 32, "attention_bias": True, "mlp_bias": True, "tie_word_embeddings": False}


@dataclass(frozen=True)
class Variant:
    model_type: str
    settings: dict[str, Any] = field(default_factory=dict)
    pre: str | None = None
    """Byte-level BPE with this pre-tokenizer; None: sentencepiece."""
    layers: int = 2


VARIANTS = {
    "llama-tied": Variant("llama", {"tie_word_embeddings": True}, "smollm"),
    "llama-all-switches": Variant("llama", ALL_SWITCHES),
    "llama-3": Variant(
        "llama", {"rope_parameters": LLAMA3, "num_attention_heads": 1, "num_key_value_heads": 1}, "llama-bpe"
    ),
    "llama-linear": Variant("llama", {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 2.5}}),
    "llama-yarn": Variant("llama", {"rope_parameters": YARN | {"beta_fast": 16.0, "beta_slow": 2.0}}, "tekken"),
    "mistral": Variant("mistral", {"sliding_window": None}),
    "qwen2-padded": Variant("qwen2", {"vocab_size": VOCABULARY + 16, "tie_word_embeddings": True}, "qwen2"),
    "qwen2-yarn": Variant("qwen2", {"rope_parameters": YARN}, "qwen2"),
    "qwen3-wide-heads": Variant("qwen3", {"head_dim": 32}, "qwen2"),
    "qwen3-yarn": Variant("qwen3", {"head_dim": 16, "rope_parameters": YARN}, "qwen2"),
    "gemma2": Variant("gemma2", {"query_pre_attn_scalar": 32, "sliding_window": 16, **SOFTCAPS}),
    "gemma2-27b": Variant("gemma2", {"query_pre_attn_scalar": 16, "sliding_window": 512}, layers=46),
    "gemma3-270m": Variant(
        "gemma3_text", {"rope_parameters": GEMMA3_ROPE, "query_pre_attn_scalar": 32, "sliding_window": 16}, layers=7
    ),
    "gemma3-linear": Variant(
        "gemma3_text",
        {"rope_parameters": GEMMA3_LINEAR, "query_pre_attn_scalar": 32, "final_logit_softcapping": 30.0},
        layers=6,
    ),
    "phi-3": Variant("phi3", {"sliding_window": 2047, "original_max_position_embeddings": 512}),
    "phi-4-longrope": Variant(
        "phi3", {"rope_parameters": LONGROPE, "original_max_position_embeddings": 256, "tie_word_embeddings": True}
    ),
}


def _config(variant: Variant) -> transformers.PreTrainedConfig:
    common: dict[str, Any] = {
        "vocab_size": VOCABULARY,
        "hidden_size": HIDDEN,
        "intermediate_size": 96,
        "num_hidden_layers": variant.layers,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "rms_norm_eps": 1e-5,
        "bos_token_id": 1 if variant.pre else 2,
        "eos_token_id": 2 if variant.pre else 1,
        "pad_token_id": 0,
    }
    if variant.model_type.startswith("gemma"):
        common |= {"head_dim": 32}
    return transformers.AutoConfig.for_model(variant.model_type, **(common | variant.settings))


def _write_tokenizer(folder: Path, variant: Variant) -> None:
    """With the tokenizers and sentencepiece libraries, from the vocabularies that other tests use."""
    if variant.pre is None:
        model = sentencepiece.SentencePieceProcessor(model_proto=spm_model())
        (folder / "tokenizer.model").write_bytes(spm_model())
        # Gemma's space runs only for Gemma: released models that put a space before the text have none.
        own = SPM_USER_DEFINED if variant.model_type.startswith("gemma") else []
        pieces = {i: model.id_to_piece(i) for i in range(model.vocab_size())}
        added = {
            str(i): {"content": text, "special": text not in own}
            for i, text in pieces.items()
            if model.is_control(i) or text in own
        }
        settings = {
            "tokenizer_class": "LlamaTokenizer",
            "added_tokens_decoder": added,
            "add_bos_token": True,
            "bos_token": "<s>",
            "eos_token": "</s>",
        }
        (folder / "tokenizer_config.json").write_text(json.dumps(settings))
        return
    tokens, merges = _bpe()
    bpe = tokenizers.models.BPE(
        {text: i for i, text in enumerate(tokens)}, [tuple(merge.split(" ")) for merge in merges]
    )
    tokenizer = tokenizers.Tokenizer(bpe)
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    tokenizer.add_special_tokens(tokens[:3])
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=tokens[1], eos_token=tokens[2], pad_token=tokens[0]
    )
    fast.save_pretrained(folder)


def _write_model(folder: Path, variant: Variant) -> None:
    torch.manual_seed(len(folder.name))
    model = transformers.AutoModelForCausalLM.from_config(_config(variant), dtype=torch.float32)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:
                # Gemma's go through w + 1 - 1 in float32, which loses nothing of a bfloat16, as released ones are.
                parameter.copy_((torch.randn_like(parameter) * 0.1 + 0.5).bfloat16())
            elif name.endswith("bias"):
                parameter.copy_(torch.randn_like(parameter) * 0.2)
            else:
                parameter.copy_(torch.randn_like(parameter) / parameter.shape[1] ** 0.5)
    model.save_pretrained(folder)
    _write_tokenizer(folder, variant)


@dataclass(frozen=True)
class Trip:
    original: Path
    gguf: Path
    unpacked: Path


@pytest.fixture(scope="module")
def trips(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Trip]:
    """Every variant converted, in one process of the converter, and unpacked."""
    try:
        converter = prepare_converter(CACHE / "converter")
    except ConverterMissing as missing:
        pytest.skip(f"no llama.cpp converter to compare with: {missing}")
    folder = tmp_path_factory.mktemp("architectures")
    made = {name: Trip(folder / name, folder / f"{name}.gguf", folder / f"{name}-unpacked") for name in VARIANTS}
    for name, trip in made.items():
        _write_model(trip.original, VARIANTS[name])
    convert(converter, [Conversion(trip.original, trip.gguf, VARIANTS[name].pre) for name, trip in made.items()])
    for trip in made.values():
        unpack(trip.gguf, trip.unpacked, "f32", Events())
    return made


@pytest.mark.parametrize("name", VARIANTS)
def test_the_weights_come_back_bit_for_bit(name: str, trips: dict[str, Trip]) -> None:
    trip = trips[name]
    original = transformers.AutoModelForCausalLM.from_pretrained(trip.original, dtype=torch.float32)
    unpacked, report = transformers.AutoModelForCausalLM.from_pretrained(
        trip.unpacked, dtype=torch.float32, output_loading_info=True
    )
    assert not any(report.values()), report
    ours, theirs = unpacked.state_dict(), original.state_dict()
    assert ours.keys() == theirs.keys()
    assert [key for key in theirs if not torch.equal(ours[key], theirs[key])] == []


# What a config says about files, training and its own history, not about what the model computes.
BOOKKEEPING = {"architectures", "dtype", "transformers_version", "_name_or_path", "initializer_range", "pretraining_tp"}
BOOKKEEPING |= {"max_window_layers"}  # Qwen's, read only with use_sliding_window


@pytest.mark.parametrize("name", VARIANTS)
def test_the_config_computes_the_same(name: str, trips: dict[str, Trip]) -> None:
    paths = (trips[name].original, trips[name].unpacked)
    theirs, ours = (transformers.AutoConfig.from_pretrained(path).to_dict() for path in paths)
    # What the two classes have apart.
    expected: dict[str, Any] = {}
    if name.startswith("qwen2"):
        expected = {"head_dim": (None, HIDDEN // 4)}  # ours states what the class would compute
    if name == "mistral":  # as a llama, which has switches that mistral hasn't
        expected = {"model_type": ("mistral", "llama"), "attention_bias": (None, False), "mlp_bias": (None, False)}
    differing = {
        key: (theirs.get(key), ours.get(key))
        for key in (theirs.keys() | ours.keys()) - BOOKKEEPING
        if theirs.get(key) != ours.get(key)
    }
    assert differing == expected


def _log_softmax(logits: np.ndarray) -> np.ndarray:
    shifted = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))


@pytest.mark.parametrize("name", VARIANTS)
def test_tokens_and_logits_are_llama_cpps(name: str, trips: dict[str, Trip]) -> None:
    trip = trips[name]
    served = llama_cpp.Llama(
        str(trip.gguf),
        **{"n_ctx": 256, "n_batch": 256, "n_threads": 1, "n_threads_batch": 1, "logits_all": True, "verbose": False},
        **{"type_k": 0, "type_v": 0},  # float32 keys and values
    )
    tokenizer = transformers.AutoTokenizer.from_pretrained(trip.unpacked)
    model = transformers.AutoModelForCausalLM.from_pretrained(
        trip.unpacked, dtype=torch.float32, attn_implementation="eager"
    )
    for text in TEXTS:
        ids = tokenizer(text)["input_ids"]
        assert ids == served.tokenize(text.encode(), special=True)
    tokens = [token for text in TEXTS for token in tokenizer(text)["input_ids"]][:64]
    served.eval(tokens)
    with torch.inference_mode():
        logits = model(torch.tensor([tokens])).logits[0].numpy()
    p, q = _log_softmax(logits), _log_softmax(served.scores[: len(tokens)])
    divergence = (np.exp(p) * (p - q)).sum(axis=1)
    # llama.cpp looks up gemma's gelu in a table of halves.
    assert 0 <= np.abs(divergence).max() < (1e-3 if name.startswith("gemma") else 1e-8)
    served.close()


def _changed(trip: Trip, **values: Any) -> GgufHeader:
    """The file's header with other values of its architecture; a dot in a key is spelled __."""
    header = read_header(trip.gguf)
    changed = {f"{header.architecture}.{key.replace('__', '.')}": value for key, value in values.items()}
    metadata = {key: value for key, value in (header.metadata | changed).items() if value is not None}
    return msgspec.structs.replace(header, metadata=metadata)


def _config_of(header: GgufHeader) -> dict[str, Any]:
    family = architecture_of(header)
    return family.config(family.normalize(header))


def test_rotary_scaling_is_read_as_llama_cpp_reads_it(trips: dict[str, Trip]) -> None:
    linear = trips["llama-linear"]
    theirs = {"rope_theta": 10000.0, "rope_type": "linear", "factor": 2.5}
    assert _config_of(_changed(linear))["rope_parameters"] == theirs
    # Files from before 2024 state the factor alone, the oldest under another name; "none" switches it off.
    assert _config_of(_changed(linear, rope__scaling__type=None))["rope_parameters"] == theirs
    old = _changed(linear, rope__scaling__type=None, rope__scaling__factor=None, rope__scale_linear=2.5)
    assert _config_of(old)["rope_parameters"] == theirs
    off = _config_of(_changed(linear, rope__scaling__type="none"))["rope_parameters"]
    assert off == {"rope_theta": 10000.0, "rope_type": "default"}
    yarn = _changed(trips["qwen2-yarn"], rope__scaling__yarn_attn_factor=1.25, rope__scaling__yarn_log_multiplier=0.5)
    assert _config_of(yarn)["rope_parameters"] == YARN | {
        "attention_factor": 1.25,
        "mscale": 1.0,
        "mscale_all_dim": 0.5,
    }
    longrope = _changed(trips["phi-4-longrope"], rope__scaling__attn_factor=1.5)
    assert _config_of(longrope)["rope_parameters"]["attention_factor"] == 1.5


def test_gemma_3s_layers_windows_and_query_scale(trips: dict[str, Trip]) -> None:
    plain = trips["gemma3-270m"]
    local, full = "sliding_attention", "full_attention"
    pattern = "attention__sliding_window_pattern"
    assert _config_of(_changed(plain, **{pattern: 3}))["layer_types"] == [local, local, full] * 2 + [local]
    assert _config_of(_changed(plain, **{pattern: 0}))["layer_types"] == [local] * 7
    listed = tuple(i == 4 for i in range(7))
    assert _config_of(_changed(plain, **{pattern: listed}))["layer_types"] == [full] * 4 + [local] + [full] * 2
    with pytest.raises(InputError, match="has 3 entries for 7 layers"):
        _config_of(_changed(plain, **{pattern: listed[:3]}))
    windowless = _config_of(_changed(plain, attention__sliding_window=None))  # Rnj-1
    assert (windowless["layer_types"], windowless["sliding_window"]) == ([full] * 7, None)
    # gemma3.cpp knows the 27B by its 62 layers.
    assert _config_of(_changed(plain, block_count=62))["query_pre_attn_scalar"] == HIDDEN // 4
    assert _config_of(_changed(plain))["query_pre_attn_scalar"] == 32


REFUSED = {
    "longrope in llama": (
        "llama-linear",
        {"rope__scaling__type": "longrope"},
        "rotary scaling 'longrope'",
    ),
    "half of yarn": ("llama-yarn", {"rope__scaling__yarn_ext_factor": 0.5}, "yarn_ext_factor is 0.5"),
    "scaled rotations": ("qwen2-yarn", {"rope__scaling__attn_factor": 1.5}, "attn_factor is 1.5"),
    "yarn beside Llama 3's": ("llama-3", {"rope__scaling__type": "yarn", "rope__scaling__factor": 4.0}, "has both"),
    "yarn in phi3": ("phi-3", {"rope__scaling__type": "yarn", "rope__scaling__factor": 4.0}, "not supported for phi3"),
    "partly rotated": ("llama-tied", {"rope__dimension_count": 8}, "rope.dimension_count is 8"),
    "narrow values": ("qwen3-yarn", {"attention__value_length": 8}, "value_length is 8"),
    "layers of several sizes": ("gemma2", {"attention__head_count_kv": (2, 1)}, r"head_count_kv differs .*\[2, 1\]"),
    "an encoder": ("gemma3-270m", {"attention__causal": False}, "attention.causal is False"),
    "no epsilon": ("qwen2-yarn", {"attention__layer_norm_rms_epsilon": None}, "epsilon is missing"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_the_checkpoint_could_not_say_is_refused_by_name(what: str, trips: dict[str, Trip]) -> None:
    name, values, message = REFUSED[what]
    with pytest.raises(InputError, match=message):
        _config_of(_changed(trips[name], **values))


def _with_tensors(header: GgufHeader, renamed: dict[str, str | None]) -> GgufHeader:
    tensors: list[TensorInfo] = []
    for tensor in header.tensors:
        name = renamed.get(tensor.name, tensor.name)
        if name is not None:
            tensors.append(msgspec.structs.replace(tensor, name=name))
    return msgspec.structs.replace(header, tensors=tuple(tensors))


@pytest.mark.parametrize(
    ("name", "renamed", "message"),
    [
        ("llama-tied", {"blk.1.ffn_up.weight": None}, r"1 tensors .* are missing, first blk\.1\.ffn_up\.weight"),
        ("llama-tied", {"blk.1.ffn_up.weight": "blk.2.ffn_up.weight"}, r"blk\.2\.ffn_up\.weight is unknown"),
        ("llama-all-switches", {"blk.0.attn_output.bias": None}, r"first blk\.0\.attn_output\.bias"),
        ("qwen2-padded", {"blk.0.attn_q.bias": None}, r"first blk\.0\.attn_q\.bias"),
        ("qwen3-yarn", {"blk.0.attn_q_norm.weight": "blk.0.attn_q.bias"}, r"blk\.0\.attn_q\.bias is unknown"),
        ("phi-3", {"blk.0.attn_qkv.weight": "blk.0.attn_q.weight"}, r"blk\.0\.attn_q\.weight is unknown"),
        ("gemma2", {"output_norm.weight": "output.bias"}, r"output\.bias is unknown"),
    ],
)
def test_tensors_that_would_be_random_or_lost_are_refused(
    name: str, renamed: dict[str, str | None], message: str, trips: dict[str, Trip]
) -> None:
    header = read_header(trips[name].gguf)
    map_tensors(header, architecture_of(header))
    with pytest.raises(InputError, match=message):
        map_tensors(_with_tensors(header, renamed), architecture_of(header))


def test_heads_stated_layer_by_layer_are_read_when_they_are_alike(trips: dict[str, Trip]) -> None:
    header = _changed(trips["llama-tied"], attention__head_count_kv=(2, 2))
    mapped, _ = map_tensors(header, architecture_of(header))
    heads = {tensor.source.name: tensor.heads for tensor in mapped}
    assert (heads["blk.1.attn_k.weight"], heads["blk.1.attn_q.weight"], heads["blk.1.attn_v.weight"]) == (2, 4, None)
    assert _config_of(header)["num_key_value_heads"] == 2


def test_phi_3s_special_tokens_take_the_spaces_after_them(trips: dict[str, Trip], tmp_path: Path) -> None:
    """As llama.cpp decides by the model's name; `<s>` doesn't."""
    source = tmp_path / "phi-3.gguf"
    data = trips["phi-3"].gguf.read_bytes().replace(b"Phi 3", b"phi-3")
    source.write_bytes(data.replace(b"<end_of_turn>", b"<|endoftext|>"))  # llama.cpp insists on it by that name
    write_tokenizer(read_header(source), tmp_path)
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path)
    served = llama_cpp.Llama(str(source), vocab_only=True, verbose=False)
    for text in ("<start_of_turn>  x", "a<start_of_turn> \n x<s>  y", "</s>\tb<|endoftext|>  ", *check_texts(500)):
        assert tokenizer(text)["input_ids"] == served.tokenize(text.encode(), special=True), text
    assert tokenizer("<start_of_turn>  x")["input_ids"] == tokenizer("<start_of_turn>x")["input_ids"]
    assert tokenizer("<s>  x")["input_ids"] != tokenizer("<s>x")["input_ids"]


def test_every_architecture_is_tried_here() -> None:
    assert {trip.partition("-")[0] for trip in VARIANTS} - {"phi", "mistral"} | {"phi3"} == set(supported())

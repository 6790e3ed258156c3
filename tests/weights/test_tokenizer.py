from __future__ import annotations

import functools
import json
import os
import unicodedata
from collections.abc import Sequence
from pathlib import Path

import gguf
import numpy as np
import pytest
import sentencepiece
import tokenizers
import transformers
from transformers.convert_slow_tokenizer import generate_merges

from amigo_local.domain.errors import InputError
from amigo_local.weights.architecture import architecture_of
from amigo_local.weights.check_texts import check_texts
from amigo_local.weights.gguf_header import read_header
from amigo_local.weights.llama_cpp_model import LlamaCppModel
from amigo_local.weights.tokenizer import stop_token_ids, write_tokenizer
from amigo_local.weights.tokenizer_bpe import PRE_TOKENIZERS, byte_alphabet
from tests.conftest import CACHE
from tests.support.llama_cpp_converter import Conversion, ConverterMissing, convert, prepare_converter
from tests.support.tiny_gguf import CHATML, SPM_USER_DEFINED, spm_model, write_tiny_gemma3, write_tiny_llama

TEXTS = [
    "",
    " ",
    "a",
    "Hello, world!  Two  spaces,   three, and a tab\there.",
    "def f(x: int) -> str:\n    return f'{x:>10}'  # comment\n\n\n\nclass A:\n\tpass\r\n",
    "I'm, you'RE, we'll, they'd, it'S, don't",
    "1 12 123 1234 12345678 3.14159 0xFF 1e-10 ½ ² ٣٤ 一二三",
    "Grüße, naïve façade — “quotes” … 東京タワー, привет, مرحبا, שלום, हिन्दी, ไทย",
    "🙂 👩‍👩‍👧‍👦 🇩🇪 e\u0301 \u00a0 \u3000 \u200b \ufeff",
    "<|im_start|>system\nYou help.<|im_end|>\n<|im_start|>user\n<|im_end|>",
    "<start_of_turn>user\n hi <end_of_turn>\n\n<bos><eos><unk><pad>",
    "x" * 70 + "\n" * 9 + " " * 17 + "end",
    "$$ +=<>^~| `code` != == === ** // \\ \\n {}[]()@#%&*_-;:'\"?.,/",
    # Runs of a literal U+2581 are left out: there llama.cpp differs from sentencepiece, and we side with the latter.
    "\u2581underline",
    "mixedCASEWords snake_case_words SCREAMING kebab-case a.b.c http://example.org/path?q=1&r=2",
    "".join(chr(code) for code in range(1, 128)),
    "".join(unicodedata.normalize("NFD", "äöüéèñ")) + "äöüéèñ",
]


def _differing(gguf_path: Path, out: Path, texts: Sequence[str] = TEXTS) -> list[str]:
    out.mkdir(exist_ok=True)
    header = read_header(gguf_path)
    write_tokenizer(architecture_of(header).normalize(header), out)
    tokenizer = transformers.AutoTokenizer.from_pretrained(out)
    with LlamaCppModel(gguf_path, vocabulary_only=True) as served:
        return [text for text in texts if served.tokenize(text) != tokenizer(text)["input_ids"]]


@functools.cache
def _telling_vocabulary() -> tuple[list[str], list[str]]:
    """(tokens, merges) learned from unsplit texts: a merge joins across any border, so each pre-tokenizer shows."""
    learned = tokenizers.Tokenizer(tokenizers.models.BPE())
    learned.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=6000,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        max_token_length=12,
        show_progress=False,
    )
    learned.train_from_iterator(check_texts(2000), trainer)
    model = json.loads(learned.to_str())["model"]
    return sorted(model["vocab"], key=model["vocab"].__getitem__), [" ".join(merge) for merge in model["merges"]]


def _write_vocabulary(path: Path, pre: str) -> Path:
    tokens, merges = _telling_vocabulary()
    writer = gguf.GGUFWriter(path, "llama")
    for add in (writer.add_block_count, writer.add_head_count):
        add(1)
    for add in (writer.add_embedding_length, writer.add_feed_forward_length, writer.add_context_length):
        add(32)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokens)
    # The three special ones and a type that llama.cpp corrects: `</s>` and others are learned as plain tokens.
    writer.add_token_types([3 if i < 3 else 1 for i in range(len(tokens))])
    writer.add_token_merges(merges)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_tensor("token_embd.weight", np.zeros((len(tokens), 32), np.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


REPRESENTATIVES = {patterns: pre for pre, patterns in reversed(PRE_TOKENIZERS.items())}


@pytest.mark.parametrize("patterns", REPRESENTATIVES, ids=REPRESENTATIVES.values())
def test_byte_level_ids_are_llama_cpps_for_every_pre_tokenizer(patterns: tuple[str, ...], tmp_path: Path) -> None:
    """One of those that share their patterns on 1,000 texts, the others on enough to tell the patterns apart."""
    assert "</s>" in _telling_vocabulary()[0]
    for number, pre in enumerate(pre for pre, its in PRE_TOKENIZERS.items() if its == patterns):
        source = _write_vocabulary(tmp_path / "a.gguf", pre)
        assert _differing(source, tmp_path / "out", check_texts(60 if number else 1000)) == [], pre


def test_sentencepiece_ids_are_llama_cpps_and_sentencepieces(tmp_path: Path) -> None:
    for write in (write_tiny_gemma3, lambda path: write_tiny_llama(path, tokenizer="spm")):
        source = write(tmp_path / "a.gguf")
        assert _differing(source, tmp_path / "out") == []
        ours = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "out/tokenizer.model"))
        theirs = sentencepiece.SentencePieceProcessor(model_proto=spm_model())
        assert ours.vocab_size() == theirs.vocab_size()
        for text in TEXTS:
            assert ours.encode(text) == theirs.encode(text), text
            assert ours.decode(ours.encode(text)) == theirs.decode(theirs.encode(text))


def test_smollm2s_ids_are_llama_cpps_on_1800_texts(smollm2: Path, tmp_path: Path) -> None:
    assert _differing(smollm2, tmp_path / "out", [*TEXTS, *check_texts(1800)]) == []


@pytest.fixture(scope="session")
def gemma_270m() -> Path:
    source = os.environ.get("AMIGO_GEMMA_GGUF")
    if not source:
        pytest.skip("no Gemma 3: set AMIGO_GEMMA_GGUF to a GGUF file of it")
    return Path(source)


@pytest.mark.slow
def test_gemmas_ids_are_llama_cpps_on_1800_texts(gemma_270m: Path, tmp_path: Path) -> None:
    assert _differing(gemma_270m, tmp_path / "out", [*TEXTS, *check_texts(1800)]) == []


@pytest.mark.slow
@pytest.mark.parametrize("model", ["smollm2", "gemma_270m"])
def test_llama_cpps_converter_makes_the_same_arrays_of_it_again(
    model: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    """It also knows SmolLM2's pre-tokenizer by what ours makes of its test text."""
    try:
        converter = prepare_converter(CACHE / "converter")
    except ConverterMissing as missing:
        pytest.skip(f"no llama.cpp converter to compare with: {missing}")
    header = read_header(request.getfixturevalue(model))
    family = architecture_of(header)
    write_tokenizer(family.normalize(header), tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(family.config(family.normalize(header))))
    convert(converter, [Conversion(tmp_path, tmp_path / "again.gguf", vocabulary_only=True)])
    again = read_header(tmp_path / "again.gguf")
    for key in ("model", "pre", "tokens", "token_type", "scores", "merges", "bos_token_id", "eos_token_id"):
        assert list(again.array(f"tokenizer.ggml.{key}")) == list(header.array(f"tokenizer.ggml.{key}")), key
    assert len(again.array("tokenizer.ggml.tokens")) in (49152, 262144)


@pytest.mark.parametrize("model", ["tiny_llama", "tiny_gemma"])
def test_what_is_written_in_pieces_is_one_json_of_the_library(
    model: str, request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("amigo_local.weights.tokenizer_json._BATCH", 7)
    monkeypatch.setattr("amigo_local.weights.tokenizer_spm._BATCH", 7)
    write_tokenizer(read_header(request.getfixturevalue(model)), tmp_path)
    raw = (tmp_path / "tokenizer.json").read_text()
    assert raw == json.dumps(json.loads(raw), ensure_ascii=False, separators=(",", ":"))
    # What the tokenizers library itself writes after reading it.
    assert json.loads(tokenizers.Tokenizer.from_str(raw).to_str()) == json.loads(raw)


def test_sentencepiece_merges_are_transformers(tiny_gemma: Path, tmp_path: Path) -> None:
    for gemma in (True, False):
        source = tiny_gemma if gemma else write_tiny_llama(tmp_path / "a.gguf", tokenizer="spm")
        header = read_header(source)
        write_tokenizer(header, tmp_path)
        model = json.loads((tmp_path / "tokenizer.json").read_text())["model"]
        vocab = model["vocab"]
        scores = None if gemma else dict(zip(vocab, header.array("tokenizer.ggml.scores"), strict=True))
        theirs = generate_merges(vocab, scores, [text for text in vocab if text.startswith("<0x")])
        assert len(theirs) > 500
        assert {tuple(merge) for merge in model["merges"]} == set(theirs)
        # Which way to a piece comes first is another matter, as is the order of pieces whose scores are the same.
        ours, its = (["".join(merge) for merge in merges] for merges in (model["merges"], theirs))
        assert [text for text in ours if text not in SPM_USER_DEFINED] == [t for t in its if t not in SPM_USER_DEFINED]


def test_bos_is_added_where_llama_cpp_adds_it(tmp_path: Path) -> None:
    write_tokenizer(read_header(write_tiny_gemma3(tmp_path / "a.gguf")), tmp_path)
    assert transformers.AutoTokenizer.from_pretrained(tmp_path)("a")["input_ids"][0] == 2
    data = write_tiny_llama(tmp_path / "b.gguf", pre="llama-bpe").read_bytes()
    # Without the key llama.cpp goes by the pre-tokenizer's name.
    source = tmp_path / "c.gguf"
    source.write_bytes(data.replace(b"tokenizer.ggml.add_bos_token", b"tokenizer.ggml.add_box_token"))
    assert _differing(source, tmp_path / "out") == []
    assert transformers.AutoTokenizer.from_pretrained(tmp_path / "out")("a")["input_ids"][0] == 1


def test_text_comes_back_from_its_ids(tmp_path: Path) -> None:
    for write in (write_tiny_gemma3, write_tiny_llama):
        write_tokenizer(read_header(write(tmp_path / "a.gguf")), tmp_path)
        tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path)
        for text in TEXTS[:8]:
            assert tokenizer.decode(tokenizer(text, add_special_tokens=False)["input_ids"]) == text


def test_the_chat_template_and_the_special_tokens_are_carried_over(tiny_llama: Path, tmp_path: Path) -> None:
    write_tokenizer(read_header(tiny_llama), tmp_path)
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert tokenizer.chat_template == CHATML
    assert (tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token, tokenizer.unk_token) == (
        "<|im_start|>",
        "<|im_end|>",
        "<|im_end|>",
        "<|endoftext|>",
    )
    assert tokenizer.model_max_length == 512


def test_without_a_chat_template_none_is_written(tmp_path: Path) -> None:
    write_tokenizer(read_header(write_tiny_llama(tmp_path / "a.gguf", chat_template=None)), tmp_path)
    assert not (tmp_path / "chat_template.jinja").exists()
    assert transformers.AutoTokenizer.from_pretrained(tmp_path).chat_template is None


def test_the_end_of_a_turn_is_a_stop(tiny_gemma: Path, smollm2: Path) -> None:
    assert stop_token_ids(read_header(tiny_gemma)) == [1, 5]  # <eos>, <end_of_turn>
    assert stop_token_ids(read_header(smollm2)) == [2, 0]  # <|im_end|>, <|endoftext|>


def test_an_unknown_pre_tokenizer_is_refused_by_name(tmp_path: Path) -> None:
    source = write_tiny_llama(tmp_path / "a.gguf", pre="surprise")
    with pytest.raises(InputError, match="pre-tokenizer 'surprise' is not supported") as caught:
        write_tokenizer(read_header(source), tmp_path)
    assert "llama-bpe" in caught.value.hint


def test_an_unknown_tokenizer_model_is_refused_by_name(tmp_path: Path) -> None:
    data = write_tiny_llama(tmp_path / "a.gguf").read_bytes()
    (tmp_path / "b.gguf").write_bytes(data.replace(b"\x04\0\0\0\0\0\0\0gpt2", b"\x04\0\0\0\0\0\0\0bert"))
    with pytest.raises(InputError, match="tokenizer model 'bert' is not supported"):
        write_tokenizer(read_header(tmp_path / "b.gguf"), tmp_path)


def test_a_damaged_vocabulary_is_refused(tmp_path: Path) -> None:
    data = write_tiny_llama(tmp_path / "a.gguf").read_bytes()
    (tmp_path / "b.gguf").write_bytes(data.replace(b"tokenizer.ggml.tokens", b"tokenizer.ggml.tokenz"))
    with pytest.raises(InputError, match="holds no tokenizer"):
        write_tokenizer(read_header(tmp_path / "b.gguf"), tmp_path)


def test_the_byte_alphabet_is_gpt2s() -> None:
    from tokenizers.pre_tokenizers import ByteLevel

    assert byte_alphabet() == set(ByteLevel.alphabet())


def test_tokenizer_json_is_utf8_without_escapes(tiny_llama: Path, tmp_path: Path) -> None:
    write_tokenizer(read_header(tiny_llama), tmp_path)
    raw = (tmp_path / "tokenizer.json").read_bytes()
    assert b"\\u" not in raw
    assert json.loads(raw)["model"]["vocab"]["Ġself"] > 258

from __future__ import annotations

import json
import unicodedata
from pathlib import Path

import pytest
import sentencepiece
import transformers

from amigo_local.domain.errors import InputError
from amigo_local.weights.gguf_header import read_header
from amigo_local.weights.llama_cpp_model import LlamaCppModel
from amigo_local.weights.tokenizer import stop_token_ids, write_tokenizer
from amigo_local.weights.tokenizer_bpe import PRE_TOKENIZERS, byte_alphabet
from tests.support.tiny_gguf import CHATML, spm_model, write_tiny_gemma3, write_tiny_llama

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


def _differing(gguf: Path, out: Path) -> list[str]:
    out.mkdir(exist_ok=True)
    write_tokenizer(read_header(gguf), out)
    tokenizer = transformers.AutoTokenizer.from_pretrained(out)
    with LlamaCppModel(gguf, vocabulary_only=True) as served:
        return [text for text in TEXTS if served.tokenize(text) != tokenizer(text)["input_ids"]]


@pytest.mark.parametrize("pre", sorted(PRE_TOKENIZERS))
def test_byte_level_ids_are_llama_cpps_for_every_pre_tokenizer(pre: str, tmp_path: Path) -> None:
    assert _differing(write_tiny_llama(tmp_path / "a.gguf", pre=pre), tmp_path / "out") == []


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


def test_smollm2s_ids_are_llama_cpps(smollm2: Path, tmp_path: Path) -> None:
    assert _differing(smollm2, tmp_path / "out") == []


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

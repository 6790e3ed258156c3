from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from amigo_local.domain.artifact import Figure
from amigo_local.domain.errors import AmigoError
from amigo_local.weights.check_texts import check_texts
from amigo_local.weights.gguf_header import read_header
from amigo_local.weights.llama_cpp_model import LlamaCppModel
from amigo_local.weights.torch_model import load_tokenizer
from amigo_local.weights.unpack import unpack
from amigo_local.weights.verify_tokens import check_chats, check_tokens
from tests.support.tiny_gguf import CHATML, GEMMA, write_tiny_gemma3, write_tiny_llama

# As in Gemma 1 and 2, Mistral and others: no system role, roles that alternate.
STRICT = (
    "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for message in messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate') }}{% endif %}{% endfor %}" + GEMMA
)
TOOLS = (
    "{% if tools %}{{ '<|im_start|>system\n' }}{% for tool in tools %}{{ tool | tojson(indent=2) }}{% endfor %}"
    "{{ '<|im_end|>\n' }}{% endif %}{% for message in messages %}{% if message.tool_calls %}"
    "{% for call in message.tool_calls %}{{ '<tool_call>' + call.function | tojson + '</tool_call>' }}{% endfor %}"
    "{% endif %}{% endfor %}" + CHATML
)


@pytest.fixture
def chats(tmp_path: Path) -> Callable[..., dict[str, Figure]]:
    """The checks of a tiny model with a chat template, unpacked; `other` is put into the checkpoint instead."""

    def run(template: str | None, other: str | None = None, *, gemma: bool = False) -> dict[str, Figure]:
        gguf, checkpoint = tmp_path / "model.gguf", tmp_path / "checkpoint"
        shutil.rmtree(checkpoint, ignore_errors=True)
        (write_tiny_gemma3 if gemma else write_tiny_llama)(gguf, chat_template=template)
        unpack(gguf, checkpoint, "f16", lambda event: None)
        if other is not None:
            (checkpoint / "chat_template.jinja").write_text(other, "utf-8")
        with LlamaCppModel(gguf, vocabulary_only=True) as served:
            return check_chats(load_tokenizer(checkpoint), read_header(gguf), served, checkpoint)

    return run


def test_chats_render_the_same_with_and_without_tools(chats: Callable[..., dict[str, Figure]]) -> None:
    assert chats(CHATML) == {"chat_template": True, "chats": 12, "refused_chats": 0}
    assert chats(TOOLS) == {"chat_template": True, "chats": 15, "refused_chats": 0}


def test_a_template_may_refuse_a_system_role_and_none_may_be_there(chats: Callable[..., dict[str, Figure]]) -> None:
    assert chats(STRICT, gemma=True) == {"chat_template": True, "chats": 12, "refused_chats": 6}
    assert chats(None) == {"chat_template": False, "chats": 0, "refused_chats": 0}


@pytest.mark.parametrize(
    ("template", "other"),
    [
        (CHATML, CHATML.replace("'<|im_end|>' + '\n'", "'<|im_end|>'")),
        (CHATML, CHATML.replace("assistant\n", "assistant")),  # seen in the generation prompt only
        (CHATML, "{{ bos_token }}" + CHATML),
        (TOOLS, TOOLS.replace("tojson(indent=2)", "tojson")),
        (GEMMA, STRICT),
        (CHATML, "{{ raise_exception('no') }}"),
    ],
    ids=["line-end", "prompt", "bos", "tools", "refusing", "always-refusing"],
)
def test_another_template_is_found(template: str, other: str, chats: Callable[..., dict[str, Figure]]) -> None:
    with pytest.raises(AmigoError, match=r"its chat template makes .* of a chat, that of .*checkpoint"):
        chats(template, other)


def test_a_template_on_one_side_only_and_one_that_refuses_all_are_found(
    chats: Callable[..., dict[str, Figure]],
) -> None:
    with pytest.raises(AmigoError, match=r"model\.gguf: has no chat template, .*checkpoint has one"):
        chats(None, CHATML)
    with pytest.raises(AmigoError, match="refuses every chat: TemplateError: never"):
        chats("{{ raise_exception('never') }}")


def test_special_tokens_come_from_each_side(tiny_llama: Path, unpacked: Callable[[Path], Path], tmp_path: Path) -> None:
    template = CHATML + "{{ eos_token }}"
    gguf = write_tiny_llama(tmp_path / "eos.gguf", chat_template=template)
    checkpoint = Path(shutil.copytree(unpacked(tiny_llama), tmp_path / "checkpoint"))
    (checkpoint / "chat_template.jinja").write_text(template, "utf-8")
    tokenizer: Any = load_tokenizer(checkpoint)
    with LlamaCppModel(gguf, vocabulary_only=True) as served:
        check_chats(tokenizer, read_header(gguf), served, checkpoint)
        tokenizer.eos_token = "<|im_start|>"
        with pytest.raises(AmigoError, match=r"makes .*<\|im_end\|>.* of a chat, that of .*<\|im_start\|>"):
            check_chats(tokenizer, read_header(gguf), served, checkpoint)


def test_a_thousand_texts_of_smollm2_are_tokenized_alike_and_missing_merges_are_found(
    smollm2: Path, unpacked: Callable[[Path], Path], tmp_path: Path
) -> None:
    checkpoint = unpacked(smollm2)
    texts = check_texts(1000)
    with LlamaCppModel(smollm2, vocabulary_only=True) as served:
        assert check_tokens(load_tokenizer(checkpoint), served, texts, checkpoint) == {
            "texts": 1000,
            "differing_texts": 0,
        }
        copy = Path(shutil.copytree(checkpoint, tmp_path / "copy", ignore=shutil.ignore_patterns("*.safetensors")))
        content = json.loads((copy / "tokenizer.json").read_text("utf-8"))
        del content["model"]["merges"][:20]
        (copy / "tokenizer.json").write_text(json.dumps(content), "utf-8")
        with pytest.raises(AmigoError, match=r"\d+ of 1000 texts get other tokens .* from token \d+ on \[\d+"):
            check_tokens(load_tokenizer(copy), served, texts, copy)

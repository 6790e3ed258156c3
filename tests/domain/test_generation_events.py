"""How an answer began goes from the backend into the journal, and journals from before are read."""

from __future__ import annotations

import msgspec
import pytest

from amigo_local.domain.events import GenerationFinished, Record, decode_record, encode_record
from amigo_local.domain.generation import Answer
from amigo_local.presentation.sentences import sentence


def answer(text: str, counted: int | None = None, first: float | None = None) -> Answer:
    return Answer(
        text=text,
        prompt_tokens=9,
        answer_tokens=40,
        load_seconds=1.0,
        prompt_seconds=0.5,
        answer_seconds=2.0,
        stop_reason="stop",
        tokens_before_code=counted,
        first_token_seconds=first,
    )


@pytest.mark.parametrize(
    ("text", "counted", "expected"),
    [
        ("```python\nx = 1\n```", None, 0),
        ("\n\n```python\nx = 1\n```", 2, 0),
        ("Sure, here it is:\n```python\nx = 1\n```", 6, 6),
        ("1234567890```90123456789012345", None, 13),  # a third of the text, of 40 tokens
        ("There is no code in this.", None, None),
    ],
)
def test_tokens_before_the_code(text: str, counted: int | None, expected: int | None) -> None:
    assert GenerationFinished.of(answer(text, counted), 0, 0, "m").tokens_before_code == expected


def test_a_journal_from_before_is_read_and_a_new_one_comes_back_whole() -> None:
    old = (
        b'{"run_id":"r","seq":3,"time":1.0,"stage":"chat","event":{"type":"generation","side":0,"prompt_index":0,'
        b'"model":"m","prompt_tokens":9,"answer_tokens":40,"load_seconds":1.0,"prompt_seconds":0.5,'
        b'"answer_seconds":2.0,"stop_reason":"stop"}}'
    )
    event = decode_record(old).event
    assert isinstance(event, GenerationFinished)
    assert (event.first_token_seconds, event.tokens_before_code) == (None, None)
    assert sentence(event) == "m: 40 tokens, 20.0 tok/s, prompt 9 tokens in 0.5 s, load 1.0 s"
    told = msgspec.structs.replace(event, first_token_seconds=0.3, tokens_before_code=41)
    record = Record("r", 4, 2.0, "chat", told)
    assert decode_record(encode_record(record)) == record
    assert sentence(told).endswith("load 1.0 s, first token after 0.3 s, 41 tokens before the code")
    assert sentence(msgspec.structs.replace(told, tokens_before_code=1)).endswith(", 1 token before the code")
    assert sentence(msgspec.structs.replace(told, tokens_before_code=0)).endswith(", code at once")

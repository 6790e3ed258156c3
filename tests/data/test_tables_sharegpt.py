from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from amigo_local.data.pair import Pair
from amigo_local.data.reading import Reading
from amigo_local.data.sources import jsonl
from amigo_local.domain.data_source import JsonlSource
from amigo_local.domain.errors import InputError
from amigo_local.domain.events import AnyEvent, Note

CODE = "Here:\n\n```js\nlet a = 1\n```"


def talk(*turns: tuple[str, str], **more: Any) -> dict[str, Any]:
    return {"conversations": [{"from": who, "value": text} for who, text in turns]} | more


def read(tmp_path: Path, *rows: dict[str, Any], emit: Any = lambda event: None) -> tuple[list[Pair], Reading]:
    path = tmp_path / "talk.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    reading = Reading(emit=emit)
    return list(jsonl.read(JsonlSource(jsonl=str(path), mapping="sharegpt"), reading)), reading


def test_the_first_exchange_is_the_pair_and_system_turns_are_counted(tmp_path: Path) -> None:
    events: list[AnyEvent] = []
    pairs, _ = read(
        tmp_path,
        talk(("system", "be nice"), ("human", " one? "), ("gpt", CODE), ("human", "two?"), ("gpt", "three")),
        {"messages": [{"role": "user", "content": "Python, please"}, {"role": "assistant", "content": "no block"}]},
        emit=events.append,
    )
    assert [(pair.prompt, pair.completion, pair.language) for pair in pairs] == [
        ("one?", CODE, "javascript"),
        ("Python, please", "no block", ""),
    ]
    assert [event.text for event in events if isinstance(event, Note)] == [
        "talk.jsonl: 1 system turns were left out of conversations"
    ]


def test_talk_about_anything_else_is_left_out(tmp_path: Path) -> None:
    pairs, reading = read(
        tmp_path,
        talk(("human", "Let f be a function with f(x) = x. What is f(2)?"), ("gpt", "It is 2.")),
        talk(("human", "What is a monad?"), ("gpt", "A burrito.")),
        talk(("human", "What does `zip` do?"), ("gpt", CODE)),
        talk(("human", "Write a C++ loop"), ("gpt", "for (;;);")),
        talk(("gpt", CODE), ("human", "code?")),
        talk(("human", "code?")),
        talk(("human", "code?"), ("gpt", " ")),
        talk(("human", "code?"), ("human", "code!"), ("gpt", CODE)),
        {"conversations": "code"},
        {"conversations": ["code"]},
    )
    assert [pair.name for pair in pairs] == ["line 3", "line 4"]
    assert reading.skipped == {"not about code": 2, "no request that is answered": 5, "no list of turns": 1}
    assert reading.places["no list of turns"] == ["talk.jsonl:9"]


def test_other_tables_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no column 'conversations' or 'messages'"):
        read(tmp_path, {"message": "code"})
    with pytest.raises(InputError, match=r"none of 1 rows gives a pair: 1 'not about code'"):
        read(tmp_path, talk(("human", "Hello"), ("gpt", "Hello")))

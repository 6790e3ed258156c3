from __future__ import annotations

import asyncio
import threading
import time

import pytest
from textual import events
from textual.pilot import Pilot

from amigo_local.domain.events import GenerationFinished
from amigo_local.tui.widgets import answer_view
from amigo_local.tui.widgets.answer_cutting import LONGEST_PART, AnswerCutting
from amigo_local.tui.widgets.answer_figures import AnswerFigures, figures
from amigo_local.tui.widgets.answer_markdown import AnswerMarkdown
from amigo_local.tui.widgets.answer_part import AnswerPart
from amigo_local.tui.widgets.answer_view import AnswerScroll, AnswerView
from tests.support.tui_driving import headless
from tests.support.widget_host import WidgetHost, hosted

MIXED = """Here is **how** with `add` and a [link](http://x.y), ![pic](a.png), [red]no markup[/], <b>html</b>:

1. First, *think*.
   - nested
10. Then write.

> quoted

```python
def add(left, right):
\treturn left + right
```

| name | value |
|------|------:|
| left [/] | 1 |

"""


def finished(**changes: object) -> GenerationFinished:
    values = {
        **{"side": 0, "prompt_index": 0, "model": "m", "prompt_tokens": 10, "answer_tokens": 1234, "load_seconds": 2.1},
        **{"prompt_seconds": 0.2, "answer_seconds": 30.0, "stop_reason": "stop", "first_token_seconds": 0.8},
    }
    return GenerationFinished(**values | {"tokens_before_code": 12} | changes)  # type: ignore[arg-type]


def lines(text: str, width: int = 60) -> list[str]:
    return [line.plain.rstrip() for line in AnswerMarkdown(text).lines(width)]


# -- Markdown as lines


def test_markdown_is_set_with_nothing_hidden_followed_or_taken_for_markup() -> None:
    assert lines(MIXED) == [
        "Here is how with add and a link (http://x.y), [pic] (a.png),",
        "[red]no markup[/], <b>html</b>:",
        "",
        "1. First, think.",
        "   - nested",
        "10. Then write.",
        "",
        "▌ quoted",
        "",
        " def add(left, right):",
        "     return left + right",
        "",
        "name     │ value",
        "─────────┼──────",
        "left [/] │ 1",
    ]


def test_no_line_is_wider_than_asked_and_no_character_of_code_is_lost() -> None:
    code = "value = " + "x" * 500
    text = (
        MIXED + f"> - 1. deep\n>   ```\n>   {code}\n>   ```\n\n{'w' * 300} 東京{'東' * 100}\n\n" + "| a " * 12 + "|\n"
    )
    text += "|--" * 12 + "|\n" + "| long cell text " * 12 + "|\n"
    for width in (24, 40, 77):
        set_ = AnswerMarkdown(text).lines(width)
        assert max(line.cell_length for line in set_) <= width
        assert "".join(line.plain for line in set_).count("x") >= 500
    assert AnswerMarkdown(text).lines(1)  # as wide as it must be, but no failure


def test_code_is_highlighted_also_where_no_language_is_told_and_while_the_fence_is_open() -> None:
    def styles(text: str) -> set[str]:
        return {str(span.style) for line in AnswerMarkdown(text).lines(60) for span in line.spans}

    keyword = styles("```python\ndef f():")
    assert "$text-accent" in keyword
    assert styles("```\ndef f():") == keyword
    assert styles("```\nnothing of the kind") < keyword
    assert "$text-accent" not in styles("```no-such-language\ndef f():")
    tabs = AnswerMarkdown("```python\n\tdef f():").lines(40)[0]
    assert next(tabs.plain[s.start : s.end] for s in tabs.spans if str(s.style) == "$text-accent") == "def"


@pytest.mark.parametrize(
    "text",
    [
        *("`" * 5000, "*" * 5000, "[" * 5000, "> " * 3000 + "x", "- " * 3000 + "x", "|" * 3000, "<" * 5000),
        *(
            "![](" * 1000,
            "```" * 999,
            "# \n" * 500,
            "- \n" * 500,
            "| a |\n|--",
            "|--|\n|--|\n",
            "1. " * 999,
            "\\" * 999,
        ),
        *(
            "***a**b*",
            "[/] [red",
            "[@click=app.quit]x[/]",
            "a\n===",
            "~~~\n```\n~~~",
            "&#0; &#x110000;",
            "\u202e\u200b",
        ),
    ],
    ids=lambda text: repr(text[:8]),
)
def test_whatever_a_model_writes_is_set(text: str) -> None:
    began = time.monotonic()
    assert AnswerMarkdown(text).lines(40) is not None
    assert time.monotonic() - began < 2


# -- Parts


def parts(text: str, step: int) -> list[str]:
    cutting, found = AnswerCutting(), list[str]()
    pieces = [piece for at in range(0, len(text), step) for piece in cutting.feed(text[at : at + step])]
    for piece in [*pieces, *cutting.finish()]:
        if piece.opens:
            found.append("")
        found[-1] += piece.text
    return found


@pytest.mark.parametrize("step", [1, 7, 100_000])
def test_parts_are_markdown_by_themselves_and_together_the_whole(step: int) -> None:
    long_code = "```python\n" + "".join(f"value_{n} = {n}\n" for n in range(400)) + "```\n\nend\n"
    text = MIXED * 12 + long_code + "- item\n" * 800 + "y" * 25_000
    found = parts(text, step)
    assert len(found) > 8 and max(map(len, found)) <= LONGEST_PART + 20
    assert sum(part.count("value_") for part in found) == 400
    for part in found:
        if "value_" in part and "value_0 " not in part:
            assert part.startswith("```python\n")  # the fence is opened anew
    assert "end" in [line for part in found for line in lines(part)]  # and closed for good
    assert "".join(found).count("y") >= 25_000 and "".join(found).count("- item") == 800


def test_a_fence_in_a_list_that_goes_on_in_another_part_is_closed_there() -> None:
    text = "- in a list:\n\n      ```python\n" + "      value = 1\n" * 200 + "      ```\n\nafter it\n"
    last = lines(parts(text, 9)[-1])
    assert last[-1] == "after it" and "```" not in last


# -- The view


def test_an_answer_streams_in_small_pieces_and_is_kept_whole() -> None:
    async def body(app: WidgetHost, pilot: Pilot[None]) -> None:
        view = app.query_one(AnswerView)
        view.show_model("amigo:12b")
        for character in "\x1b[31mred\x1b[0m\r\n\n" + MIXED:
            view.append(character)
        view.finish(finished())
        await view.drawn()
        text = app.screen_text()
        assert view.text == "\x1b[31mred\x1b[0m\r\n\n" + MIXED
        assert view.code() == ("def add(left, right):\n\treturn left + right\n",)
        assert "\x1b" not in text and "␛[31mred␛[0m" in text
        assert "amigo:12b" in text and "def add(left, right):" in text
        assert "41.1 tok/s · 1,234 tok · first 0.8 s · code after 12 tok · load 2.1 s" in text
        view.show_model("A", reserved=True)
        await pilot.pause()
        text = app.screen_text()
        assert "1,234 tok · code after 12 tok" in text and "amigo" not in text
        assert "tok/s" not in text and "load" not in text and "first" not in text
        view.clear()
        await pilot.pause()
        assert view.text == "" and "def add" not in app.screen_text() and "1,234" not in app.screen_text()

    hosted(AnswerView(), body=body, size=(80, 30))


def test_code_of_open_fences_several_blocks_and_bare_answers() -> None:
    async def body(app: WidgetHost, pilot: Pilot[None]) -> None:
        view = app.query_one(AnswerView)
        view.append("```py\nx = 1\n```\ntext\n```\ny = 2")
        assert view.code() == ("x = 1\n", "y = 2")
        view.clear()
        view.append("Sure:\nimport os\nprint(os)")
        assert view.code() == ("import os\nprint(os)",)
        view.clear()
        view.append("no code at all")
        assert view.code() == ()

    hosted(AnswerView(), body=body)


def test_it_follows_the_end_and_stays_put_when_scrolled_up() -> None:
    async def body(app: WidgetHost, pilot: Pilot[None]) -> None:
        view, scroll = app.query_one(AnswerView), app.query_one(AnswerScroll)
        view.append("short\n\n")
        await view.drawn()
        await pilot.pause()
        assert scroll.scroll_y == 0 and app.screen_text().splitlines()[1].strip("│ ") == "short"
        view.append(MIXED * 20 + "the end")
        await view.drawn()
        await pilot.pause()
        assert scroll.scroll_y == scroll.max_scroll_y > 100 and "the end" in app.screen_text()
        view.focus_text()
        await pilot.press("pageup", "pageup")
        await pilot.pause()
        await pilot.wait_for_animation()
        place, text = scroll.scroll_y, app.screen_text()
        view.append(MIXED * 5)
        await view.drawn()
        await pilot.pause()
        assert (
            scroll.scroll_y == place < scroll.max_scroll_y
            and app.screen_text().splitlines()[5:9] == text.splitlines()[5:9]
        )
        await pilot.press("end")
        await pilot.wait_for_animation()
        view.append("\n\nthe very end")
        await view.drawn()
        await pilot.pause()
        assert "the very end" in app.screen_text()

    hosted(AnswerView(), body=body, size=(60, 20))


def test_a_resize_while_it_streams_sets_it_anew() -> None:
    async def body(app: WidgetHost, pilot: Pilot[None]) -> None:
        view = app.query_one(AnswerView)
        for number, size in enumerate([(120, 40), (40, 10), (20, 6), (80, 24)] * 2):
            view.append(MIXED * 3)
            await pilot.resize_terminal(*size)
            view.append(f"\n\nround {number}\n\n")
            await pilot.pause()
        await view.drawn()
        await pilot.pause()
        assert "round 7" in app.screen_text()
        assert all(len(line) <= 80 for line in app.screen_text().splitlines())

    hosted(AnswerView(), body=body)


def test_what_is_too_long_to_be_drawn_is_said_and_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answer_view, "DRAWN_CHARACTERS", 20_000)

    async def body(app: WidgetHost, pilot: Pilot[None]) -> None:
        view = app.query_one(AnswerView)
        text = "".join(f"paragraph {number} of many more of its kind\n\n" for number in range(2000))
        view.append(text)
        view.finish()
        await view.drawn()
        assert view.text == text
        drawn = sum(len(part._text) for part in app.query(AnswerPart))
        assert 20_000 <= drawn < 20_000 + LONGEST_PART
        view.focus_text()
        await pilot.press("home")
        await pilot.wait_for_animation()
        assert f"about {len(text) - drawn:,} characters above are not drawn" in app.screen_text().replace("\n", " ")
        await pilot.press("end")
        await pilot.wait_for_animation()
        assert "paragraph 1999 of" in app.screen_text()

    hosted(AnswerView(), body=body, size=(100, 20))


def test_keys_are_answered_while_two_answers_flood_in() -> None:
    """5,000 pieces a second on each side. Keys come from a thread: one of the loop would wait with it."""
    waited: list[float] = []

    class TypedHost(WidgetHost):
        def on_key(self, event: events.Key) -> None:
            waited.append(time.monotonic() - event.time)

    async def body() -> None:
        app = TypedHost(AnswerView("left"), AnswerView("right"))
        async with headless(app, (120, 40)) as pilot:
            views, loop, over = list(app.query(AnswerView)), asyncio.get_running_loop(), threading.Event()
            await pilot.pause()

            def type_on() -> None:
                while not over.wait(0.04):
                    loop.call_soon_threadsafe(app.post_message, events.Key("x", "x"))

            typist = threading.Thread(target=type_on)
            typist.start()
            try:
                text, began, sent = MIXED * 140, time.monotonic(), 0
                while sent < len(text):
                    due = min(len(text), int((time.monotonic() - began) * 20_000))
                    for at in range(sent, due, 4):
                        for view in views:
                            view.append(text[at : min(due, at + 4)])
                    sent = due
                    await asyncio.sleep(0.01)
                for view in views:
                    view.finish()
                    await asyncio.wait_for(view.drawn(), 10)
            finally:
                over.set()
                typist.join()
            assert [view.text for view in views] == [text, text]

    asyncio.run(body())
    assert len(waited) > 30
    assert sorted(waited)[len(waited) * 3 // 4] < 0.05, sorted(waited)  # the rest is the test machine's


def test_figures_are_broken_only_between_them() -> None:
    async def body(app: WidgetHost, pilot: Pilot[None]) -> None:
        app.query_one(AnswerFigures).show(figures(finished()))
        await pilot.pause()
        shown = [line.strip() for line in app.screen_text().splitlines() if line.strip()]
        assert shown == ["41.1 tok/s · 1,234 tok", "first 0.8 s", "code after 12 tok", "load 2.1 s"]

    hosted(AnswerFigures(), body=body, size=(25, 10))
    assert figures(finished(tokens_before_code=0, stop_reason="length", first_token_seconds=None)) == [
        *("41.1 tok/s", "1,234 tok (cut off)", "code at once", "load 2.1 s"),
    ]

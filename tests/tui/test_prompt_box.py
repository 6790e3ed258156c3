from __future__ import annotations

import time

from textual import events
from textual.pilot import Pilot

from amigo_local.tui.widgets.prompt_box import PromptBox
from tests.support.widget_host import WidgetHost, hosted


def submitted(app: WidgetHost) -> list[str]:
    return [message.text for message in app.told if isinstance(message, PromptBox.Submitted)]


async def paste(box: PromptBox, pilot: Pilot[None], text: str) -> None:
    box.post_message(events.Paste(text))
    await pilot.pause()


def test_enter_sends_and_every_way_to_a_new_line_makes_one() -> None:
    async def body(app: WidgetHost, pilot: Pilot[None]) -> None:
        box = app.query_one(PromptBox)
        box.focus()
        await pilot.press("enter")
        await pilot.press("a", "ctrl+j", "b", "shift+enter", "c", "alt+enter", "d")
        box.post_message(events.Key("shift+\r", "\r"))  # xterm's modifyOtherKeys
        await pilot.press("enter")
        assert submitted(app) == ["a\nb\nc\nd\n"]
        assert box.text == "a\nb\nc\nd\n"  # until it is said that it was sent
        box.sent("a\nb\nc\nd\n")
        assert box.text == "" and box.prompts == ["a\nb\nc\nd\n"]

    hosted(PromptBox(), body=body)


def test_arrows_at_the_edge_walk_through_what_was_sent_and_the_draft_is_kept() -> None:
    async def body(app: WidgetHost, pilot: Pilot[None]) -> None:
        box = app.query_one(PromptBox)
        box.focus()
        await pilot.press(*"draft", "ctrl+j", *"two")
        await pilot.press("up")
        assert box.text == "draft\ntwo" and box.cursor_location[0] == 0  # within the text first
        await pilot.press("up")
        assert box.text == "second"
        await pilot.press("!", "up")
        assert box.text == "first"
        await pilot.press("up")
        assert box.text == "first"
        await pilot.press("down")
        assert box.text == "second!"  # also what was changed on the way
        await pilot.press("down")
        assert box.text == "draft\ntwo"
        await pilot.press("down")
        assert box.text == "draft\ntwo"
        box.replace_by("from a set")
        await pilot.press("up")
        assert box.text == "draft\ntwo"

    hosted(PromptBox(prompts=["first", "second"]), body=body)


def test_arrows_move_through_the_rows_of_a_wrapped_line() -> None:
    async def body(app: WidgetHost, pilot: Pilot[None]) -> None:
        box = app.query_one(PromptBox)
        box.focus()
        await pilot.press("up")
        assert box.text == "word " * 10
        await pilot.press("up")
        assert box.text == "older"

    hosted(PromptBox("word " * 10, prompts=["older"]), body=body, size=(34, 12))


def test_a_paste_of_200_000_characters_is_held_whole_and_keys_go_on() -> None:
    async def body(app: WidgetHost, pilot: Pilot[None]) -> None:
        box = app.query_one(PromptBox)
        box.focus()
        long = "".join(f"line {number} of a log \\ with [markup]\r\n" for number in range(5600))[:200_000]
        await pilot.press("s", "e", "e", ":")
        began = time.monotonic()
        await paste(box, pilot, long)
        await pilot.press("!")
        assert time.monotonic() - began < 1
        assert box.text == f"see:[pasted 1: {len(long) - long.count(chr(13)):,} characters]!"
        assert [message.word for message in app.told if isinstance(message, PromptBox.Held)] == [box.text[4:-1]]
        await pilot.press("enter")
        (sent,) = submitted(app)
        assert sent == f"see:{long.replace(chr(13), '')}!"
        box.sent(sent)
        await pilot.press("up")
        assert len(box.text) < 60 and box.full_text == sent

    hosted(PromptBox(), body=body)


def test_short_pastes_are_text_with_line_ends_of_any_kind_and_nothing_that_steers_a_terminal() -> None:
    async def body(app: WidgetHost, pilot: Pilot[None]) -> None:
        box = app.query_one(PromptBox)
        await paste(box, pilot, "a\r\nb\rc\x1b[31m\u202e")
        assert box.text == "a\nb\nc␛[31m\\u202e"

    hosted(PromptBox(), body=body)


def test_what_is_pasted_bit_by_bit_is_held_too_before_the_editor_gets_slow() -> None:
    async def body(app: WidgetHost, pilot: Pilot[None]) -> None:
        box = app.query_one(PromptBox)
        for number in range(30):
            await paste(box, pilot, f"{number:03d}" * 500)
        assert len(box.text) < 6000
        assert box.full_text == "".join(f"{number:03d}" * 500 for number in range(30))

    hosted(PromptBox(), body=body)


def test_it_grows_with_its_text_up_to_a_third_of_a_small_terminal() -> None:
    async def body(app: WidgetHost, pilot: Pilot[None]) -> None:
        box = app.query_one(PromptBox)
        box.focus()
        assert box.outer_size.height == 3
        await pilot.press("a", "ctrl+j", "b")
        await pilot.pause()
        assert box.outer_size.height == 4
        await paste(box, pilot, "x\n" * 40)
        assert box.outer_size.height == 8

    hosted(PromptBox(), body=body)

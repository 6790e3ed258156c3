"""AnswerPair: a question of an evaluation, and what each model answered, with the verdicts."""

from __future__ import annotations

from collections.abc import Sequence

from textual.app import ComposeResult
from textual.containers import Container, Vertical, VerticalScroll
from textual.content import Content
from textual.widgets import Static

from amigo_local.domain.artifact import Figure
from amigo_local.domain.events import AnswerShown, GenerationFinished
from amigo_local.presentation.visible_text import visible
from amigo_local.tui.widgets.answer_view import AnswerView


class AnswerPair(Vertical):
    """One answer takes all of the width."""

    DEFAULT_CSS = """
    AnswerPair {
        #question { height: auto; padding: 0 1; text-style: bold; }
        #prompt {
            height: auto; max-height: 34%; padding: 0 1; border: round $border; border-title-color: $text-muted;
            scrollbar-size-vertical: 1;
        }
        #prompt:focus { border: round $primary; }
        #prompt Static { height: auto; }
        #sides { layout: horizontal; height: 1fr; }
        AnswerView { width: 1fr; height: 1fr; }
        AnswerView .state { max-height: 6; }
    }
    """

    def compose(self) -> ComposeResult:
        yield Static(id="question", markup=False)
        with VerticalScroll(id="prompt") as prompt:
            prompt.border_title = "prompt"
            yield Static(markup=False)
        with Container(id="sides"):
            yield AnswerView()
            yield AnswerView()

    def show(self, question: str, answers: Sequence[AnswerShown]) -> None:
        """At most two answers, to the same question."""
        self.query_one("#question", Static).update(Content(visible(question)))
        self.query_one("#prompt Static", Static).update(Content(visible(answers[0].prompt) if answers else ""))
        self.query_one("#prompt", VerticalScroll).scroll_home(animate=False)
        for place, view in enumerate(self.query(AnswerView)):
            view.display = place < len(answers)
            if view.display:
                _show_answer(view, answers[place])

    def focus_text(self) -> None:
        self.query(AnswerView).first().focus_text()


def _show_answer(view: AnswerView, shown: AnswerShown) -> None:
    view.clear()
    view.show_model(f"{shown.label}: {shown.model}" if shown.label != shown.model else shown.model, reserved=True)
    view.append(shown.answer)
    view.finish(_figures(shown))
    verdict = visible(shown.verdict.strip())
    if shown.passed is None:
        view.say("its code was not run", "waiting")
    else:
        view.say(f"✓ {verdict}" if shown.passed else verdict, "" if shown.passed else "failed")


def _figures(shown: AnswerShown) -> GenerationFinished | None:
    """None where nothing was measured."""
    figures = shown.figures
    if "tokens" not in figures:
        return None
    before = figures.get("tokens_before_code")
    return GenerationFinished(
        side=shown.side,
        prompt_index=0,
        model=shown.model,
        prompt_tokens=int(_number(figures.get("prompt_tokens"))),
        answer_tokens=int(_number(figures["tokens"])),
        load_seconds=0.0,
        prompt_seconds=0.0,
        answer_seconds=_number(figures.get("seconds")),
        stop_reason=str(figures.get("stop_reason", "")),
        tokens_before_code=None if before is None else int(_number(before)),
    )


def _number(figure: Figure) -> float:
    return float(figure) if isinstance(figure, int | float) else 0.0

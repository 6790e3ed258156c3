"""PlanView: whether a recipe fits a machine, where the bytes go, how long it takes and what each lever buys."""

from __future__ import annotations

from textual.app import ComposeResult
from textual.containers import VerticalScroll
from textual.content import Content
from textual.widgets import Static

from amigo_local.domain.events import StageFailed
from amigo_local.domain.memory_plan import MemoryPlan
from amigo_local.domain.plan import Plan
from amigo_local.presentation.plan_sentence import fit_sentence, lever_sentence, time_sentence
from amigo_local.tui.widgets.memory_view import MemoryView


class PlanView(VerticalScroll):
    """The newest plan stays, dimmed, while another is made and where none can be."""

    DEFAULT_CSS = """
    PlanView {
        padding: 0 1; scrollbar-size-vertical: 1;
        Static { height: auto; }
        #verdict { margin-bottom: 1; }
        #verdict.-fits { color: $success; }
        #verdict.-not { color: $error; }
        #about { color: $text-muted; }
        MemoryView { height: auto; margin: 1 0; display: none; }
        &.-old #about, &.-old MemoryView, &.-old #levers { text-opacity: 50%; opacity: 60%; }
        &.-computing #verdict { text-opacity: 60%; }
    }
    """

    def __init__(self, *, id: str | None = None) -> None:
        super().__init__(id=id)
        self.plan: Plan | None = None
        self.suggestion = ""
        """The hint that came with what doesn't fit."""

    def compose(self) -> ComposeResult:
        yield Static("choose a recipe and a model to see what they need", id="verdict")
        yield Static(id="about")
        yield MemoryView()
        yield Static(id="levers")

    def show_computing(self) -> None:
        """What is shown is of other settings by now."""
        self.add_class("-old", "-computing")

    def show_plan(self, plan: Plan, failure: StageFailed | None = None) -> None:
        """failure: what stands in the way besides training's memory."""
        self.plan = plan
        self.remove_class("-old", "-computing")
        sentence = f"doesn't fit: {failure.message}" if failure and not plan.binding else fit_sentence(plan)
        fits = not (plan.binding or failure)
        self._say(sentence, fits, plan.nearest or (failure.hint if failure else ""), "nearest")
        time, batching = time_sentence(plan), _batching(plan.memory)
        lines = [f"{plan.recipe} on {plan.model}", time, batching]
        self.query_one("#about", Static).update(Content("\n".join(line for line in lines if line)))
        memory = self.query_one(MemoryView)
        memory.display = plan.memory is not None
        if plan.memory:
            memory.show(plan.memory)
        self.query_one("#levers", Static).update(_levers(plan.memory))

    def show_failure(self, failure: StageFailed) -> None:
        """No plan can be made of these settings; the one before stays."""
        self.add_class("-old")
        self.remove_class("-computing")
        self._say(failure.message, False, failure.hint, "hint")

    def say_unplanned(self, why: str) -> None:
        """There is no plan, and nothing is wrong."""
        self.add_class("-old")
        self.remove_class("-computing")
        self.suggestion = ""
        verdict = self.query_one("#verdict", Static)
        verdict.update(Content(f"○ {why}"))
        verdict.remove_class("-fits", "-not")

    def show_none(self) -> None:
        """There is nothing to plan."""
        self.add_class("-old")
        self.remove_class("-computing")
        self._say("no plan: the recipe has an error", False)

    def _say(self, text: str, fits: bool, hint: str = "", what: str = "hint") -> None:
        self.suggestion = hint
        mark = "✓" if fits else "✗"
        said = Content.from_markup("[b]$mark $text[/]", mark=mark, text=text)
        if hint and not fits:
            said = Content.assemble(
                said, "\n", Content.from_markup("[$warning]$what:[/] [$text]$hint[/]", what=what, hint=hint)
            )
        verdict = self.query_one("#verdict", Static)
        verdict.update(said)
        verdict.set_class(fits, "-fits").set_class(not fits, "-not")


def _batching(memory: MemoryPlan | None) -> str:
    if memory is None:
        return ""
    step = f", {memory.step_seconds:.1f} s a step" if memory.step_seconds else ""
    speed = f", {memory.tokens_per_second:,.0f} tok/s" if memory.tokens_per_second else ""
    batching = memory.batching
    return f"micro-batch {batching.micro_batch} × {batching.accumulation}{step}{speed}"


def _levers(memory: MemoryPlan | None) -> Content:
    if memory is None or not memory.levers:
        return Content("")
    lines = [Content("Levers of training").stylize("bold")]
    for lever in memory.levers:
        name = lever.name.removeprefix("train.")
        text = "$name [b]$chosen[/] [dim]instead of $other[/]"
        lines.append(Content.from_markup(text, name=name, chosen=lever.chosen, other=lever.other))
        if said := lever_sentence(lever):
            lines.append(Content.from_markup("  [$foreground 60%]$said[/]", said=said))
    return Content("\n").join(lines)

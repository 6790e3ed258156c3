"""TrainingCurves: loss over the steps, large; learning rate, speed and memory, small. Of a chain, one loss a recipe."""

from __future__ import annotations

from collections.abc import Sequence

from textual.app import ComposeResult
from textual.containers import Horizontal, Vertical

from amigo_local.domain.run_state import StageState
from amigo_local.domain.series import Series
from amigo_local.domain.units import GIB, MIB
from amigo_local.presentation.smoothing import smoothed
from amigo_local.tui.widgets.curves import Curve, Curves

_TRAIN, _EVALUATION, _SPEED, _MEMORY, _PEAK = 0, 1, 2, 3, 5
"""Places among the theme's colours."""


class TrainingCurves(Vertical):
    DEFAULT_CSS = """
    TrainingCurves {
        #loss { height: 2fr; }
        #small { height: 1fr; min-height: 4; }
        #small Curves { min-height: 4; margin-right: 1; }
    }
    """

    def __init__(self) -> None:
        super().__init__()
        self._shown: object = None

    def compose(self) -> ComposeResult:
        yield Curves("loss", "{:.3g}".format, id="loss", empty="none yet: it comes with the first step")
        with Horizontal(id="small"):
            yield Curves("lr", "{:.1e}".format, id="lr", empty="")
            yield Curves("tok/s", "{:,.0f}".format, from_zero=True, id="speed", empty="")
            yield Curves("memory", _amount, from_zero=True, id="memory", empty="")

    def show(self, trainings: Sequence[StageState], chosen: StageState | None) -> None:
        """Those of `chosen` in full, of the others the loss."""
        mark = [(stage is chosen, stage.of, [_end(series) for series in stage.metrics.values()]) for stage in trainings]
        if mark == self._shown:
            return
        self._shown = mark
        metrics = chosen.metrics if chosen else {}
        self.query_one("#loss", Curves).show(loss_curves(trainings, chosen))
        self.query_one("#lr", Curves).show(_one(metrics, "learning_rate", "", _TRAIN))
        self.query_one("#speed", Curves).show(_one(metrics, "tokens_per_second", "", _SPEED))
        self.query_one("#memory", Curves).show(memory_curves(metrics))


def loss_curves(trainings: Sequence[StageState], chosen: StageState | None) -> list[Curve]:
    told = [stage for stage in trainings if "loss" in stage.metrics or "eval_loss" in stage.metrics]
    curves = []
    for place, stage in enumerate(told):
        alone = len(told) == 1
        color, glyph = (_TRAIN, "") if alone else (place, str(place + 1))
        name = "train" if alone else stage.of or f"training {place + 1}"
        if loss := stage.metrics.get("loss"):
            if stage is chosen:
                curves.append(Curve("each step", loss.steps, loss.values, color, "dots"))
            curves.append(Curve(name, loss.steps, smoothed(loss.steps, loss.values), color, glyph=glyph))
        if stage is chosen and (evaluation := stage.metrics.get("eval_loss")):
            curves.append(
                Curve("evaluation", evaluation.steps, evaluation.values, _EVALUATION if alone else color, "marks")
            )
    return curves


def memory_curves(metrics: dict[str, Series]) -> list[Curve]:
    """Of the card where there is one, else of the machine."""
    kind, name = ("vram", "VRAM") if "vram_bytes" in metrics else ("ram", "RAM")
    return _one(metrics, f"{kind}_peak_bytes", "peak", _PEAK) + _one(metrics, f"{kind}_bytes", name, _MEMORY)


def _one(metrics: dict[str, Series], metric: str, name: str, color: int) -> list[Curve]:
    series = metrics.get(metric)
    if not series:
        return []
    values = [value / GIB for value in series.values] if metric.endswith("_bytes") else series.values
    return [Curve(name, series.steps, values, color)]


def _amount(gib: float) -> str:
    """`5.1G`: short, beside a small plot."""
    return f"{gib:.3g}G" if gib >= 1 or gib == 0 else f"{gib * GIB / MIB:.0f}M"


def _end(series: Series) -> object:
    return len(series), series.steps[-1:], series.values[-1:]

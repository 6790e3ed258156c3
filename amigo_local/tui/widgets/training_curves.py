"""TrainingCurves: loss over the steps, large; learning rate, speed and memory, small. Of a chain, one loss a recipe."""

from __future__ import annotations

from collections.abc import Sequence

from textual.app import ComposeResult
from textual.containers import Horizontal, Vertical
from textual.timer import Timer

from amigo_local.domain.run_state import StageState
from amigo_local.domain.series import Series
from amigo_local.domain.units import GIB, MIB
from amigo_local.presentation.smoothing import course, thinned
from amigo_local.tui.widgets.curves import Curve, Curves

_SECONDS = 0.5
"""Between two drawings of a training that goes on."""
_BACK_SECONDS = 0.08
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
        self._wanted: tuple[Sequence[StageState], StageState | None] | None = None
        self._chosen: StageState | None = None
        self._resting: Timer | None = None
        self._shown: object = None
        self._courses: dict[tuple[str, str], tuple[object, list[float], list[float]]] = {}
        """Recipe and fingerprint -> what its loss was smoothed from, by its end, and the course."""

    def compose(self) -> ComposeResult:
        yield Curves("loss", "{:.3g}".format, id="loss", empty="none yet: it comes with the first step")
        with Horizontal(id="small"):
            yield Curves("lr", "{:.1e}".format, from_zero=True, id="lr", empty="")
            yield Curves("tok/s", "{:,.0f}".format, from_zero=True, id="speed", empty="")
            yield Curves("memory", "{:.4g}".format, from_zero=True, id="memory", empty="")

    def show(self, trainings: Sequence[StageState], chosen: StageState | None, *, back: bool = False) -> None:
        """Those of `chosen` in full, of the others the loss. Drawn at once when another one is chosen, else some time
        after the last drawing. back: the screen has come back; it shows at once as it was, then with these."""
        self._wanted = trainings, chosen
        if chosen is self._chosen and (self._resting or back):
            self._resting = self._resting or self.set_timer(_BACK_SECONDS, self._rested)
        else:
            self._chosen = chosen
            self._draw()
            self._resting = self._resting or self.set_timer(_SECONDS, self._rested)

    def _rested(self) -> None:
        self._resting = None
        if self._wanted is not None:
            self.show(*self._wanted)

    def _draw(self) -> None:
        if self._wanted is None:
            return
        (trainings, chosen), self._wanted = self._wanted, None
        mark = [(stage is chosen, stage.of, [_end(series) for series in stage.metrics.values()]) for stage in trainings]
        if mark == self._shown:
            return
        self._shown = mark
        metrics = chosen.metrics if chosen else {}
        self.query_one("#loss", Curves).show(self._loss_curves(trainings, chosen))
        self.query_one("#lr", Curves).show(_one(metrics.get("learning_rate"), "", _TRAIN))
        self.query_one("#speed", Curves).show(_one(metrics.get("tokens_per_second"), "", _SPEED))
        self.query_one("#memory", Curves).show(*memory_curves(metrics))

    def _loss_curves(self, trainings: Sequence[StageState], chosen: StageState | None) -> list[Curve]:
        """The chosen one first, with its evaluations and each step."""
        told = [stage for stage in trainings if "loss" in stage.metrics or "eval_loss" in stage.metrics]
        alone = len(told) == 1
        curves: list[Curve] = []
        for place, stage in enumerate(told):
            color, glyph, name = (_TRAIN, "", "train") if alone else (place, str(place + 1), stage.of or "train")
            found = self._course(stage, color, glyph, name)
            if stage is not chosen:
                curves += found
                continue
            if evaluation := stage.metrics.get("eval_loss"):
                ink = _EVALUATION if alone else color
                found.append(Curve("evaluation", evaluation.steps, evaluation.values, ink, "marks"))
            if loss := stage.metrics.get("loss"):
                found.append(Curve("each step" if alone else "", loss.steps, loss.values, color, "dots"))
            curves = found + curves
        return curves

    def _course(self, stage: StageState, color: int, glyph: str, name: str) -> list[Curve]:
        loss = stage.metrics.get("loss")
        if not loss:
            return []
        key, end = (stage.of, stage.fingerprint), _end(loss)
        if key not in self._courses or self._courses[key][0] != end:
            self._courses[key] = end, *course(loss.steps, loss.values)
        _, steps, values = self._courses[key]
        return [Curve(name, steps, values, color, glyph=glyph)]


def memory_curves(metrics: dict[str, Series]) -> tuple[list[Curve], str]:
    """Of the card where there is one, else of the machine; with a title that names it and the unit."""
    kind = "vram" if "vram_bytes" in metrics else "ram"
    now, peak = metrics.get(f"{kind}_bytes"), metrics.get(f"{kind}_peak_bytes")
    most = max((max(series.values) for series in (now, peak) if series), default=0.0)
    unit, name = (GIB, "GiB") if most >= GIB else (MIB, "MiB")
    curves = _one(now, "now", _MEMORY, unit) + _one(peak, "peak", _PEAK, unit)
    return curves, f"{kind.upper()} {name}" if curves else ""


def _one(series: Series | None, name: str, color: int, unit: float = 1.0) -> list[Curve]:
    if not series:
        return []
    steps, values = thinned(series.steps, series.values)
    return [Curve(name, steps, [value / unit for value in values], color)]


def _end(series: Series) -> object:
    return len(series), series.steps[-1:], series.values[-1:]

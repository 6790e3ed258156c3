"""ChainProgress: what each stage of a chain moved, which earlier skill it cost, and whether its gate lets it pass."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from amigo_local.domain.artifact import Artifact
from amigo_local.domain.errors import AmigoError, InputError
from amigo_local.engine.contract import StageContext

if TYPE_CHECKING:
    from amigo_local.evaluation.results import EvaluationResult

BASE = "base"


class ChainProgress:
    """Told of every stage's measurement in turn. A plan has nothing measured: it is only walked through."""

    def __init__(self, context: StageContext, planning: bool) -> None:
        self._context, self._planning = context, planning
        self._history: list[tuple[str, EvaluationResult]] = []

    def check_gates(self, gates: Mapping[str, Mapping[str, str]]) -> None:
        """Raises InputError for what a gate asks for (stage -> its gate) and the first measurement couldn't show:
        every later one is asked the same, and would be stopped for it after its training."""
        if self._planning:
            return
        from amigo_local.evaluation.progress import metrics, unit_of

        measured = metrics(self._history[0][1])
        for name, gate in gates.items():
            # Of an answer without code no tokens before it can be counted; a later stage may write some.
            missing = [metric for metric in gate if metric not in measured and unit_of(metric) == "share"]
            if missing:
                raise InputError(
                    f"the gate of {name} asks for {', '.join(missing)}, which can't be measured here",
                    "the notes above say why; mend that, or take it out of the recipe's gate",
                )

    def add(self, name: str, report: Artifact, gate: Mapping[str, str]) -> None:
        """Says what moved. Raises AmigoError, with the evidence, where the stage's gate isn't met."""
        if self._planning:
            return
        from amigo_local.evaluation.gate import check_gate, parse_gate
        from amigo_local.evaluation.progress import compare, progress_table, regressions
        from amigo_local.evaluation.results import EvaluationResult

        result = msgspec.json.decode((Path(report.path) / "results.json").read_bytes(), type=EvaluationResult)
        self._history.append((name, result))
        self._context.emit(progress_table(self._history))
        if len(self._history) == 1:
            return
        before_name, before = self._history[-2]
        for change in compare(before, result):
            if change.direction != "unclear":
                better = change.direction == "better"
                text = f"{name} against {before_name}: {change.sentence}"
                self._context.note(text, "good" if better else "warning")
        for sentence in regressions(self._history):
            self._context.note(sentence, "warning")
        if breaches := check_gate(parse_gate(gate), before, result):
            evidence = "; ".join(breach.sentence for breach in breaches)
            raise AmigoError(
                f"the gate of {name} stops the chain: {evidence}",
                f"look at the answers: {report.path}/report.md; to go on all the same, loosen `gate` in the recipe and"
                " run again: what is done is kept",
            )

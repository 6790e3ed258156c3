"""Writes the short Markdown report of an evaluation: figures, where everything is, answers side by side."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from amigo_local.domain.artifact import Figure
from amigo_local.domain.events import Column, Table
from amigo_local.domain.units import format_seconds, format_size
from amigo_local.evaluation.progress import Change, compare, told
from amigo_local.evaluation.results import EvaluationResult, Judged, SuiteResult
from amigo_local.evaluation.statistics import PairedTest

EXAMPLES = 3
EXAMPLE_CHARACTERS = 1500


def write_report(
    result: EvaluationResult,
    path: Path,
    title: str = "Evaluation",
    sizes: Mapping[str, int] | None = None,
    places: Mapping[str, str] | None = None,
    notes: Mapping[str, str] | None = None,
) -> None:
    """Writes `path` whole or not at all.

    `sizes` are bytes by what they measure, `places` are paths by what lies there, `notes` anything
    else worth a line (KL of the export, training time).
    """
    partial = path.with_name(path.name + ".partial")
    with partial.open("w", encoding="utf-8", newline="\n") as file:
        file.write(report_text(result, title, sizes or {}, places or {}, notes or {}))
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


def report_text(
    result: EvaluationResult,
    title: str = "Evaluation",
    sizes: Mapping[str, int] | None = None,
    places: Mapping[str, str] | None = None,
    notes: Mapping[str, str] | None = None,
) -> str:
    lines = [f"# {title}", ""]
    lines += [f"- {label}: `{model}`" for label, model in zip(result.labels, result.models, strict=True)]
    lines += [f"- served by {result.backend}, greedy, one answer for each prompt"]
    lines += [f"- generated code: {result.sandbox}"]
    lines += [f"- {name}: {text}" for name, text in (notes or {}).items()]
    lines += ["", *findings(result), ""]
    for table in result.tables():
        lines += [f"## {table.title}", "", *_markdown(table), ""]
    if changes := _changes(result):
        lines += ["## What moved", "", *_markdown(_changes_table(changes, result.labels)), ""]
    if sizes:
        lines += ["## Sizes", "", *_markdown(_sizes_table(sizes)), ""]
    if places:
        lines += ["## Where everything is", "", *[f"- {name}: `{place}`" for name, place in places.items()], ""]
    lines += ["## Side by side", ""]
    for suite, index in _examples(result):
        lines += [f"**{suite.prompt_ids[index]}** ({suite.name})", "", *_fenced(suite.prompts[index]), ""]
        for side, label in enumerate(result.labels):
            answer = suite.answers[side][index]
            lines += [f"{label} ({_said(answer)}):", "", *_fenced(answer.text), ""]
    return "\n".join(lines)


def findings(result: EvaluationResult) -> list[str]:
    """One sentence for each comparison of two models; none for one."""
    if len(result.models) != 2:
        return []
    before, after = result.labels
    sentences = []
    for suite in result.suites:
        if not suite.is_plain:
            continue
        first, second = (suite.directness(side) for side in (0, 1))
        counts = [round(found.at_once.share * found.answers) for found in (first, second)]
        sentences.append(
            f"- {suite.name}: {after} begins with code in {counts[1]} of {second.answers} answers, "
            f"{before} in {counts[0]} ({_significance(suite.at_once_test())}); "
            f"fewer tokens before the code: {_significance(suite.tokens_test())}; "
            f"nothing but code: {_significance(suite.only_code_test())}."
        )
        passed, test = [suite.passed(side) for side in (0, 1)], suite.passed_test()
        if test and passed[0] and passed[1]:
            total = len(suite.verdicts(0))
            sentences.append(
                f"- {suite.name}: {after} passes {round(passed[1].share * total)} of {total} problems, "
                f"{before} {round(passed[0].share * total)} ({_significance(test)})."
            )
    skills = [change for change in _changes(result) if change.name in ("context", "debugging", "reasoning")]
    for change in skills:
        sentences.append(
            f"- {change.name}: {after} {told(change.after)}, {before} {told(change.before, short=True)}"
            f" ({change.evidence})."
        )
    return sentences


def _changes(result: EvaluationResult) -> tuple[Change, ...]:
    return compare(result, result, (0, 1)) if len(result.models) == 2 else ()


def _changes_table(changes: Sequence[Change], labels: Sequence[str]) -> Table:
    columns = (
        Column("metric"),
        *(Column(label) for label in labels),
        Column("better on", "count"),
        Column("worse on", "count"),
        Column("p"),
    )
    rows: list[tuple[Figure, ...]] = []
    for change in changes:
        sides = (told(change.before), told(change.after))
        rows.append((change.name, *sides, change.better, change.worse, f"{change.p_value:.2g}"))
    return Table("What moved", columns, tuple(rows))


def _significance(test: PairedTest) -> str:
    return f"better on {test.better}, worse on {test.worse}, p = {test.p_value:.2g}"


def _examples(result: EvaluationResult) -> list[tuple[SuiteResult, int]]:
    """Evenly spread over the first suite's prompts, and two of each skill's: nobody picked them."""
    if not result.suites:
        return []
    first = result.suites[0]
    count = min(EXAMPLES, len(first.prompts))
    examples = [(first, index * len(first.prompts) // count) for index in range(count)]
    for suite in result.suites[1:]:
        if not suite.is_plain:  # a quarter in and a quarter from the end: of reasoning a hard one and an easy one
            count = len(suite.prompts)
            examples += [(suite, index) for index in sorted({(count - 1) // 4, count * 3 // 4})]
    return examples


def _said(answer: Judged) -> str:
    tokens = answer.opening.tokens_before_code
    opening = "no code" if tokens is None else f"{tokens} tokens before code"
    opening = "code at once" if answer.opening.at_once else opening
    found = "" if answer.passed is None else ", passed" if answer.passed else ", failed"
    if answer.names_share is not None:
        found += f", {answer.names_share:.0%} of the supplied names used"
    if answer.unchanged:
        found += ", the bug as it was"
    if answer.chain is not None:
        found += ", thinks first" if answer.chain else ", direct"
    return f"{opening}{found}, {answer.answer_tokens} tokens"


def _fenced(text: str) -> list[str]:
    """Between tildes, for answers hold backquotes; longer than any run of tildes inside."""
    shown = text.strip()
    if len(shown) > EXAMPLE_CHARACTERS:
        shown = f"{shown[:EXAMPLE_CHARACTERS].rstrip()}\n… ({len(shown) - EXAMPLE_CHARACTERS} more characters)"
    fence = "~~~"
    while fence in shown:
        fence += "~"
    return [f"{fence}text", shown, fence]


def _sizes_table(sizes: Mapping[str, int]) -> Table:
    return Table("Sizes", (Column("what"), Column("size", "bytes")), tuple(sizes.items()))


def _markdown(table: Table) -> list[str]:
    header = [column.name for column in table.columns]
    lines = [_row(header), _row(["---" if column.format == "text" else "---:" for column in table.columns])]
    for row in table.rows:
        lines.append(_row([_cell(value, column) for value, column in zip(row, table.columns, strict=True)]))
    return lines


def _row(cells: list[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"


def _cell(value: Figure, column: Column) -> str:
    if value is None:
        return "–"
    if isinstance(value, str | bool):
        return str(value)
    match column.format:
        case "ratio":
            return f"{value:.0%}"
        case "bytes":
            return format_size(value)
        case "seconds":
            return format_seconds(value)
        case "count":
            return f"{value:,.0f}"
        case _:
            return f"{value:.1f}" if isinstance(value, float) else str(value)

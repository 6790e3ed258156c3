"""Mapping `bugs`: DebugBench's columns, as the hub and as its authors name them; a bug, what it is, the mended code."""

from __future__ import annotations

import html
import re

from amigo_local.data.answer_blocks import fenced
from amigo_local.data.pair import Pair
from amigo_local.data.tables.mapping import RowMapping, text_of
from amigo_local.data.tables.rows import Row
from amigo_local.domain.answer_check import AnswerCheck

NO_CODE, SAME, NO_DIAGNOSIS = "no code in one of its columns", "nothing is broken", "no diagnosis"
NOT_MENDED = "its fix failed the problem's tests"
_MOST_SENTENCES = 2
_EXAMPLES_SHOWN = 2
_LONGEST_DIAGNOSIS = 400  # characters
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+(?=[A-Z`'\"(])")
_TAG = re.compile(r"</?(?:code|pre|p|li|ul|ol|strong|em|b|i|font|sub|br)\b[^>]*>|<!--.*?-->", re.DOTALL)


class Bugs(RowMapping):
    columns = (
        ("buggy_code",),
        ("solution", "oracle_code", "fixed_code"),
        ("bug_explanation", "explanations", "fixing_exp"),
    )
    optional = ("slug", "question", "description", "examples", "test_result_bool")
    used = "question and buggy_code → request, bug_explanation and solution → answer"

    def pair(self, row: Row, name: str) -> Pair | str:
        language = self.language_of(row)
        broken = _code(row, "buggy_code")
        said, mended = _joined(row, "bug_explanation", "explanations"), _code(row, "solution", "oracle_code")
        if not said and "fixing_exp" in row:
            # Rows with several bugs say only what mended them, beside their own mended code.
            if row.get("test_result_bool") is not True:
                return NOT_MENDED
            said, mended = text_of(row, "fixing_exp"), _code(row, "fixed_code")
        if not broken.strip() or not mended.strip():
            return NO_CODE
        if _lines(broken) == _lines(mended):
            return SAME
        diagnosis = _first_sentences(said)
        if not diagnosis:
            return NO_DIAGNOSIS
        return Pair(
            prompt=_request(row, broken, language),
            completion=f"{diagnosis}\n\n{fenced(mended, language)}",
            source=self.label,
            module=text_of(row, "slug") or text_of(row, "module"),
            name=name,
            license=self.license_of(row),
            language=language,
            check=AnswerCheck(skill="debugging"),
        )


def _code(row: Row, *columns: str) -> str:
    return text_of(row, *columns).replace("\r\n", "\n").strip("\n")


def _lines(code: str) -> list[str]:
    """Spaces before a line may be the bug, those behind it not."""
    return [bare for line in code.splitlines() if (bare := line.rstrip())]


def _joined(row: Row, *columns: str) -> str:
    for column in columns:
        value = row.get(column)
        if isinstance(value, list):
            value = " ".join(part for part in value if isinstance(part, str))
        if isinstance(value, str) and value.strip():
            return value
    return ""


def _first_sentences(text: str) -> str:
    plain = " ".join(_plain(text).split())
    sentences = _SENTENCE_END.split(plain)
    told = " ".join(sentences[:_MOST_SENTENCES])
    if len(told) > _LONGEST_DIAGNOSIS:
        told = sentences[0]
    if not re.search(r"\w{3}", told) or len(told) > _LONGEST_DIAGNOSIS:
        return ""
    return told if told.endswith((".", "!", "?")) else told + "."


def _plain(text: str) -> str:
    return html.unescape(_TAG.sub("", text)).replace("\xa0", " ").strip()


def _request(row: Row, broken: str, language: str) -> str:
    problem = _plain(text_of(row, "question", "description"))
    examples = row.get("examples")
    shown = [each for each in examples if isinstance(each, str)] if isinstance(examples, list) else []
    parts = [problem] if problem else []
    parts += [_plain(example) for example in shown[:_EXAMPLES_SHOWN]]
    parts.append(
        "This solution is wrong. What is the bug? Mend it."
        if problem
        else "This code is wrong. What is the bug? Mend it."
    )
    parts.append(fenced(broken, language))
    return "\n\n".join(parts)


MAPPING = Bugs

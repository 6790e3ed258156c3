"""Gate: what a stage must bring or may cost at most, and the evidence when it doesn't."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence

import msgspec

from amigo_local.domain.errors import InputError
from amigo_local.evaluation.progress import METRICS, Metric, compare, metrics, paired_scores, told, unit_of
from amigo_local.evaluation.results import EvaluationResult

SHOWN_PROMPTS = 3
_SHOWN_CHARACTERS = 60
_AMOUNT = re.compile(r"\s*([+\-−])\s*(\d+(?:\.\d+)?)\s*(pt|tok)\s*(?:max)?\s*")
_UNITS = {"pt": "share", "tok": "tokens"}
_ROUNDING = 1e-9
_PASSES = ("humaneval", "writing", "debugging")


class Rule(msgspec.Struct, frozen=True):
    metric: str
    amount: float
    """The least change of a share (0.05 is five points); the greatest of tokens, of which fewer are better."""
    text: str
    """As the recipe says it."""

    @property
    def is_tokens(self) -> bool:
        return unit_of(self.metric) == "tokens"

    def allows(self, difference: float) -> bool:
        return difference <= self.amount + _ROUNDING if self.is_tokens else difference >= self.amount - _ROUNDING


class Breach(msgspec.Struct, frozen=True):
    rule: Rule
    sentence: str
    """What was found and what was allowed, with interval and paired test."""


def parse_gate(gate: Mapping[str, str]) -> tuple[Rule, ...]:
    """`{directness: +5pt, humaneval: -2pt max, tokens_before_code: +3tok}`: at least five points more, at most two
    points lost, at most three tokens more. Raises InputError for what isn't like that."""
    return tuple(_rule(metric, text) for metric, text in gate.items())


def _rule(metric: str, text: str) -> Rule:
    if metric not in METRICS:
        near = difflib.get_close_matches(metric, METRICS, n=1)
        meant = f"did you mean {near[0]}? " if near else ""
        raise InputError(f"gate: there is no metric {metric}", f"{meant}metrics are {', '.join(METRICS)}")
    unit = "tok" if unit_of(metric) == "tokens" else "pt"
    found = _AMOUNT.fullmatch(text)
    if not found:
        raise InputError(
            f"gate.{metric}: {text!r} is no amount with a sign and a unit",
            f"write `{metric}: +3{unit}` or `{metric}: -3{unit}`",
        )
    if _UNITS[found[3]] != unit_of(metric):
        kind = "tokens" if unit == "tok" else "points of a hundred"
        raise InputError(f"gate.{metric}: {text!r}, and {metric} is measured in {kind}", f"write it like +3{unit}")
    amount = float(found[2]) * (1 if found[1] == "+" else -1)
    return Rule(metric, amount if unit == "tok" else amount / 100, text.strip())


def check_gate(rules: Sequence[Rule], before: EvaluationResult, after: EvaluationResult) -> list[Breach]:
    """The rules that the last model of `after` breaks against that of `before`, in the rules' order.

    The measured change counts, not its interval: that, the paired test and a few lost prompts are told, so that a
    person can judge. What wasn't measured on both is a breach: a gate never lets pass unseen.
    """
    first, second = metrics(before), metrics(after)
    changes = {change.name: change for change in compare(before, after)}
    breaches = []
    for rule in rules:
        change = changes.get(rule.metric)
        if change is None:
            breaches.append(Breach(rule, _unmeasured(rule, first, second)))
        elif not rule.allows(change.difference):
            sentence = (
                f"{rule.metric}: {told(change.after)}, before {told(change.before)}:"
                f" {_amount(change.difference, rule)} where the gate asks for {_asked(rule)} ({change.evidence})"
            )
            if lost := _lost(rule, before, after):
                was = "passed before and fail now" if rule.metric in _PASSES else "better before"
                sentence += f"; {was}: {', '.join(lost)}"
            breaches.append(Breach(rule, sentence))
    return breaches


def _unmeasured(rule: Rule, before: Mapping[str, Metric], after: Mapping[str, Metric]) -> str:
    missing = [name for name, found in (("before", before), ("after", after)) if rule.metric not in found]
    return f"{rule.metric} was not measured {' and '.join(missing)}, and the gate asks for {_asked(rule)}"


def _asked(rule: Rule) -> str:
    return f"{_amount(rule.amount, rule)} at {'most' if rule.is_tokens else 'least'}"


def _amount(value: float, rule: Rule) -> str:
    return f"{value:+.1f} tokens" if rule.is_tokens else f"{value * 100:+.3g} pt"


def _lost(rule: Rule, before: EvaluationResult, after: EvaluationResult) -> list[str]:
    """The first few prompts that were better before, by id and beginning."""
    sign = -1.0 if rule.is_tokens else 1.0
    worst = float("-inf")
    lost = []
    for prompt, (one, two) in paired_scores(rule.metric, before, after).items():
        first, second = (worst if score is None else sign * score for score in (one, two))
        if second < first:
            lost.append(prompt)
    texts = {
        prompt: text for suite in after.suites for prompt, text in zip(suite.prompt_ids, suite.prompts, strict=True)
    }
    return [_shown(prompt, texts[prompt]) for prompt in lost[:SHOWN_PROMPTS]]


def _shown(prompt_id: str, text: str) -> str:
    """HumanEval's ids say all; others are digests, for which the beginning of the request is told."""
    if "/" in prompt_id:
        return prompt_id
    line = " ".join(text.split())
    return f"{prompt_id} ({line[:_SHOWN_CHARACTERS].rstrip()}{'…' if len(line) > _SHOWN_CHARACTERS else ''})"

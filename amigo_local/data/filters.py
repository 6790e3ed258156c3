"""What must not be trained on: rows of no use, broken code, secrets and addresses, evaluation problems."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from amigo_local.data.pair import Pair
from amigo_local.data.secrets import holding_secrets, holds_address
from amigo_local.data.syntax import language_name, valid_syntax
from amigo_local.domain.recipe import DataSettings

if TYPE_CHECKING:
    from amigo_local.data.decontamination import Decontamination

LANGUAGE = "another language"
LICENSE = "another licence"
EMPTY = "empty"
SYNTAX = "code doesn't parse"
SECRET = "holds a secret"
ADDRESS = "holds an e-mail address"
EVALUATION = "overlaps an evaluation"

_LICENSE_WORD = re.compile(r"[()]|[^\s()]+")


class Filters:
    """Made once for each process; asked in batches of some thousand pairs."""

    def __init__(self, settings: DataSettings, decontamination: Decontamination) -> None:
        self._most_characters = settings.max_characters
        self._languages = frozenset(map(language_name, settings.languages))
        self._licenses = frozenset(each.strip().lower() for each in settings.licenses)
        self._decontamination = decontamination
        self._allowed: dict[str, bool] = {}

    @property
    def steps(self) -> tuple[str, ...]:
        """Every reason, in the order in which they are applied: a pair gets the first that it meets."""
        return (self._too_long, LANGUAGE, LICENSE, EMPTY, SYNTAX, SECRET, ADDRESS, EVALUATION)

    @property
    def _too_long(self) -> str:
        return f"longer than {self._most_characters:,} characters"

    def refusals(self, pairs: Sequence[Pair]) -> list[str | None]:
        """One of `steps` for each pair that is left out; None: kept. Later steps see only what is left."""
        refused = [self._by_what_it_says(pair) for pair in pairs]
        left = [index for index, reason in enumerate(refused) if reason is None]
        left = _mark(refused, left, SYNTAX, [not valid for valid in valid_syntax([pairs[i].completion for i in left])])
        texts = ["\n".join((pairs[index].prompt, *pairs[index].answers)) for index in left]
        secret = holding_secrets(texts)
        address = [not found and holds_address(text) for text, found in zip(texts, secret, strict=True)]
        for index, has_secret, has_address in zip(left, secret, address, strict=True):
            refused[index] = SECRET if has_secret else ADDRESS if has_address else None
        left = [index for index in left if refused[index] is None]
        found = self._decontamination.found([(pairs[index].prompt, *pairs[index].answers) for index in left])
        _mark(refused, left, EVALUATION, [bool(name) for name in found])
        return refused

    def _by_what_it_says(self, pair: Pair) -> str | None:
        """The steps that need no look into the text."""
        if len(pair.prompt) + sum(map(len, pair.answers)) > self._most_characters:
            return self._too_long
        if self._languages and pair.language and language_name(pair.language) not in self._languages:
            return LANGUAGE
        if self._licenses and pair.license and not self._is_allowed(pair.license):
            return LICENSE
        if not pair.prompt.strip() or not pair.completion.strip():
            return EMPTY
        return None

    def _is_allowed(self, license_expression: str) -> bool:
        if license_expression not in self._allowed:
            self._allowed[license_expression] = allows(self._licenses, license_expression)
        return self._allowed[license_expression]


def _mark(refused: list[str | None], left: list[int], reason: str, hits: list[bool]) -> list[int]:
    """Writes `reason` for the hits among `left`; gives back the others."""
    for index, hit in zip(left, hits, strict=True):
        if hit:
            refused[index] = reason
    return [index for index, hit in zip(left, hits, strict=True) if not hit]


def allows(licenses: frozenset[str], expression: str) -> bool:
    """Whether an SPDX expression (specification 2.3, annex D) can be met by lower-case `licenses` alone.

    `MIT OR GPL-3.0-only` may be taken as either; `MIT AND X` asks for both; `X WITH exception` is X made milder.
    An expression that can't be read allows nothing.
    """
    words = [word.lower() for word in _LICENSE_WORD.findall(expression)]
    try:
        allowed = _any_of(words, licenses)
    except IndexError:
        return False
    return allowed and not words


def _any_of(words: list[str], licenses: frozenset[str]) -> bool:
    allowed = _all_of(words, licenses)
    while words and words[0] == "or":
        del words[0]
        allowed = _all_of(words, licenses) or allowed
    return allowed


def _all_of(words: list[str], licenses: frozenset[str]) -> bool:
    allowed = _one(words, licenses)
    while words and words[0] == "and":
        del words[0]
        allowed = _one(words, licenses) and allowed
    return allowed


def _one(words: list[str], licenses: frozenset[str]) -> bool:
    word = words.pop(0)
    if word == "(":
        allowed = _any_of(words, licenses)
        return words.pop(0) == ")" and allowed
    if words and words[0] == "with":
        del words[:2]
    return word in licenses

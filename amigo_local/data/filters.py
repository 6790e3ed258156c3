"""What must not be trained on: broken code, duplicates, evaluation problems, secrets and addresses."""

from __future__ import annotations

import ast
import re
import warnings
from collections import Counter
from collections.abc import Iterable, Sequence

from amigo_local.data.mined import Mined
from amigo_local.data.pair import Pair

NGRAM_WORDS = 13  # GPT-3 (Brown et al. 2020, appendix C) and most decontamination since

_FENCE = re.compile(r"```([^\n`]*)\n(.*?)(?:```|\Z)", re.DOTALL)
_WORD = re.compile(r"\w+")

# Published shapes of credentials; each begins with a prefix that its issuer chose to be searchable.
_SECRETS = re.compile(
    r"-----BEGIN [A-Z ]*PRIVATE KEY-----"
    r"|\b(?:AKIA|ASIA)[0-9A-Z]{16}\b"  # Amazon access key ids
    r"|\bgh[pousr]_[A-Za-z0-9]{36,}\b|\bgithub_pat_[A-Za-z0-9_]{60,}\b"
    r"|\bglpat-[A-Za-z0-9_-]{20,}\b"
    r"|\bhf_[A-Za-z0-9]{30,}\b"
    r"|\bsk-[A-Za-z0-9_-]{32,}\b"  # OpenAI, Anthropic
    r"|\bxox[abprs]-[A-Za-z0-9-]{10,}\b"  # Slack
    r"|\bAIza[A-Za-z0-9_-]{35}\b"  # Google
    r"|\beyJ[A-Za-z0-9_-]{10,}\.eyJ[A-Za-z0-9_-]{10,}\.[A-Za-z0-9_-]{10,}"  # JSON web tokens
)
_EMAIL = re.compile(r"\b[A-Za-z0-9._%+-]+@([A-Za-z0-9-]+(?:\.[A-Za-z0-9-]+)*\.[A-Za-z]{2,})\b")
# Names that RFC 2606 and RFC 6761 reserve for examples belong to nobody.
_RESERVED = re.compile(r"(?:^|\.)(?:example\.(?:com|net|org)|example|test|invalid|localhost)$", re.IGNORECASE)


def filter_pairs(pairs: Iterable[Pair], evaluation_texts: Sequence[str] = ()) -> Mined:
    """The pairs that pass every filter, in order, and how many each filter took.

    `evaluation_texts` are prompts that a model will be judged on: a pair that shares any 13 words
    in a row with one of them is left out.
    """
    forbidden = evaluation_ngrams(evaluation_texts)
    kept: list[Pair] = []
    reasons: Counter[str] = Counter()
    seen: set[tuple[str, ...]] = set()
    for pair in pairs:
        key = (_squeezed(pair.prompt), *map(_squeezed, pair.answers))
        reason = _refusal(pair, forbidden) or ("exact duplicate" if key in seen else None)
        if reason is None:
            seen.add(key)
            kept.append(pair)
        else:
            reasons[reason] += 1
    return Mined(pairs=tuple(kept), left_out=dict(reasons))


def _refusal(pair: Pair, forbidden: frozenset[str]) -> str | None:
    texts = (pair.prompt, *pair.answers)
    text = "\n".join(texts)
    if not has_valid_syntax(pair.completion):
        return "code doesn't parse"
    if _SECRETS.search(text):
        return "holds a secret"
    if any(not _RESERVED.search(match[1]) for match in _EMAIL.finditer(text)):
        return "holds an e-mail address"
    if forbidden and any(overlaps(each, forbidden) for each in texts):
        return "overlaps an evaluation"
    return None


def has_valid_syntax(completion: str) -> bool:
    """Whether every block fenced as Python parses; text without such a block has nothing to fail."""
    for match in _FENCE.finditer(completion):
        if match[1].strip().lower() in ("python", "py", "python3"):
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")  # an invalid escape in someone's string
                    ast.parse(match[2])
            except (SyntaxError, ValueError, RecursionError, MemoryError):
                return False
    return True


def overlaps(text: str, forbidden: frozenset[str]) -> bool:
    """Whether `text` holds any of the `forbidden` 13-grams."""
    return any(gram in forbidden for gram in _ngrams(text))


def evaluation_ngrams(texts: Iterable[str]) -> frozenset[str]:
    """Every 13-gram of `texts`, as `overlaps` wants them."""
    return frozenset(gram for text in texts for gram in _ngrams(text))


def _ngrams(text: str) -> Iterable[str]:
    """Lower-case runs of 13 words; letters, digits and underscores make words, all else divides them."""
    words = _WORD.findall(text.lower())
    return (" ".join(words[start : start + NGRAM_WORDS]) for start in range(len(words) - NGRAM_WORDS + 1))


def _squeezed(text: str) -> str:
    return " ".join(text.split())

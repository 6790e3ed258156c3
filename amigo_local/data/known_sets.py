"""Known sets: data sets that recipes name, how they are read, and what to take for those that aren't there."""

from __future__ import annotations

import difflib
from typing import NamedTuple


class KnownSet(NamedTuple):
    name: str
    license: str
    """SPDX identifier of its card; rows may say another. Empty: it doesn't say."""
    files: str
    """Pattern of its rows."""
    columns: str
    """How a source reads them."""


class Substitute(NamedTuple):
    name: str
    """As plans and tutorials call it."""
    why: str
    instead: str
    """What to write in a recipe."""


KNOWN_SETS = (
    KnownSet("bigcode/commitpackft", "MIT", "data/python/data.jsonl", "mapping: commits, or context"),
    KnownSet(
        "bigcode/self-oss-instruct-sc2-exec-filter-50k",
        "ODC-BY",
        "data/*.parquet",
        "prompt: instruction, completion: response",
    ),
    KnownSet("m-a-p/CodeFeedback-Filtered-Instruction", "Apache-2.0", "*.jsonl", "prompt: query, completion: answer"),
    KnownSet("Rtian/DebugBench", "Apache-2.0", "*.json*", "mapping: bugs"),
    KnownSet("WizardLMTeam/WizardLM_evol_instruct_V2_196k", "MIT", "*.json", "mapping: sharegpt"),
    KnownSet("open-thoughts/OpenThoughts-114k", "Apache-2.0", "data/train-*.parquet", "mapping: sharegpt"),
    KnownSet("open-r1/OpenR1-Math-220k", "Apache-2.0", "data/train-*.parquet", "mapping: sharegpt"),
    KnownSet("jondurbin/py-dpo-v0.1", "CC-BY-4.0", "*.parquet", "chosen: chosen, rejected: rejected"),
)
SUBSTITUTES = (
    Substitute(
        "bigcode/python_self_instruct",
        "it was never published",
        "hub: bigcode/self-oss-instruct-sc2-exec-filter-50k (prompt: instruction, completion: response)",
    ),
    Substitute(
        "WizardLM/WizardLM_evol_instruct_V2_196k",
        "it has moved",
        "hub: WizardLMTeam/WizardLM_evol_instruct_V2_196k (mapping: sharegpt)",
    ),
    Substitute(
        "microsoft/buglab", "it isn't on the hub", "bug_injection: stdlib, or hub: Rtian/DebugBench (mapping: bugs)"
    ),
    Substitute(
        "bigcode/python_bugs", "it isn't on the hub", "bug_injection: stdlib, or hub: Rtian/DebugBench (mapping: bugs)"
    ),
    Substitute(
        "bigcode/the-stack-v2",
        "it holds ids, and its texts are kept elsewhere",
        "repo: PATH, with your own repositories",
    ),
    Substitute(
        "reedmayhew/claude-3.7-sonnet-reasoning",
        "nothing confirms that it is there",
        "hub: open-thoughts/OpenThoughts-114k (mapping: sharegpt)",
    ),
)


def known_set(name: str) -> KnownSet | None:
    return next((known for known in KNOWN_SETS if known.name.lower() == name.lower()), None)


def substitute_for(name: str) -> Substitute | None:
    return next((known for known in SUBSTITUTES if known.name.lower() == name.lower()), None)


def nearest_set(name: str) -> str:
    """A known set that is spelled nearly so; empty: none is."""
    names = {known.name.lower(): known.name for known in KNOWN_SETS}
    close = difflib.get_close_matches(name.lower(), names, 1, 0.75)
    return names[close[0]] if close else ""

"""Sets of several sources: replayed shares, chains of thought, checks that evaluation needs, and previews of them."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import pytest

from amigo_local.data.funnel import SourceFunnel, labels_of, nothing_left
from amigo_local.data.prepare import prepare, read_rows
from amigo_local.data.reading import Reading
from amigo_local.data.set_preview import PAIRS_LOOKED_AT, preview
from amigo_local.data.split import spread_over_groups
from amigo_local.domain.answer_check import AnswerCheck
from amigo_local.domain.data_source import (
    CandidatesSource,
    HubSource,
    JsonlSource,
    ReplaySource,
    RepoSource,
    StdlibSource,
)
from amigo_local.domain.events import AnyEvent, Note, SampleShown, Table
from amigo_local.domain.recipe import DataSettings

CODE = "```python\ndef f(x):\n    return x\n```"
CHAIN = (
    "<think>\nOkay, so I need f. Wait, maybe a loop? No: dynamic programming over the graph, in O(n log n). "
    "Let me check again, hmm, actually that fails for n up to 10**5.\n</think>\n"
)


def silent() -> Reading:
    return Reading(emit=lambda event: None)


def write(path: Path, rows: list[dict[str, object]]) -> JsonlSource:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return JsonlSource(jsonl=str(path))


def numbered(name: str, count: int) -> list[dict[str, object]]:
    return [{"prompt": f"{name} question {n}?", "completion": f"{name} answer {n}"} for n in range(count)]


@pytest.fixture
def earlier(checkpoint: Path, tmp_path: Path) -> Path:
    """A set of an earlier stage: 100 samples, a third of them held out."""
    source = write(tmp_path / "earlier.jsonl", numbered("earlier", 100))
    settings = DataSettings(sources=(source,), held_out_fraction=0.3)
    prepare(settings, checkpoint, tmp_path / "earlier", silent, lambda event: None)
    return tmp_path / "earlier"


def replayed(earlier: Path, *shares: float, rows: int, folder: Path) -> DataSettings:
    new = write(folder / "new.jsonl", numbered("new", rows))
    replays = tuple(ReplaySource(replay=str(earlier), share=share) for share in shares)
    return DataSettings(sources=(*replays, new), held_out_fraction=0.3)


@pytest.mark.parametrize(("share", "rows", "expected"), [(0.2, 40, 10), (0.5, 30, 30), (0.9, 100, None)])
def test_replayed_samples_are_their_share_of_the_set_as_far_as_there_are_some(
    share: float, rows: int, expected: int | None, earlier: Path, checkpoint: Path, tmp_path: Path
) -> None:
    """30 new ones at a half want 30 earlier ones; 100 at nine tenths want 900, and get all there are."""
    settings = replayed(earlier, share, rows=rows, folder=tmp_path)

    def reading() -> Reading:
        return Reading(emit=lambda event: None, folders={str(earlier): earlier})

    prepare(settings, checkpoint, tmp_path / "set", reading, lambda event: None)
    train = read_rows(tmp_path / "set" / "train.jsonl")
    again = [row for row in train if row.source.startswith("replay of")]
    available = len(read_rows(earlier / "train.jsonl"))
    assert len(again) == (expected or available)
    held_out = read_rows(tmp_path / "set" / "held_out.jsonl")
    assert held_out and not [row for row in held_out if row.source.startswith("replay of")]
    assert len(train) + len(held_out) == rows + len(again)
    assert not {row.prompt for row in read_rows(earlier / "held_out.jsonl")} & {row.prompt for row in train}


def test_what_was_trained_on_is_never_held_out_later(earlier: Path, checkpoint: Path, tmp_path: Path) -> None:
    """Not even under another seed: its groups stay on the side of training."""
    settings = msgspec.structs.replace(replayed(earlier, 0.5, rows=60, folder=tmp_path), seed=5, held_out_fraction=0.9)

    def reading() -> Reading:
        return Reading(emit=lambda event: None, folders={str(earlier): earlier})

    prepare(settings, checkpoint, tmp_path / "set", reading, lambda event: None)
    train, held_out = read_rows(tmp_path / "set" / "train.jsonl"), read_rows(tmp_path / "set" / "held_out.jsonl")
    assert len([row for row in train if row.source.startswith("replay of")]) == 60
    assert {row.source for row in held_out} == {"new.jsonl"} and len(held_out) > 45


def chains(folder: Path) -> JsonlSource:
    hard = "Find the shortest path in a weighted graph of up to 10**5 nodes, optimally, using dynamic programming"
    rows: list[dict[str, object]] = [
        {"prompt": f"{hard}, version {n}." if n % 3 == 0 else f"Add {n}.", "completion": f"{CHAIN}{CODE}\n# {n}"}
        for n in range(30)
    ]
    return write(folder / "chains.jsonl", rows)


def test_chains_are_stripped_or_kept_for_hard_problems_and_every_verdict_is_written(
    checkpoint: Path, tmp_path: Path
) -> None:
    base = DataSettings(sources=(chains(tmp_path),), held_out_fraction=0.2, max_length_tokens=2048)
    thinking = {}
    events: list[AnyEvent] = []
    for reasoning in ("keep", "strip", "hard"):
        settings = msgspec.structs.replace(base, reasoning=reasoning)
        prepare(settings, checkpoint, tmp_path / reasoning, silent, events.append)
        rows = read_rows(tmp_path / reasoning / "train.jsonl") + read_rows(tmp_path / reasoning / "held_out.jsonl")
        assert len(rows) == 30 and all("def f(x)" in row.completion for row in rows)
        thinking[reasoning] = sorted(int(row.name.split()[1]) - 1 for row in rows if "</think>" in row.completion)
    assert (len(thinking["keep"]), thinking["strip"]) == (30, [])
    assert thinking["hard"] == [n for n in range(30) if n % 3 == 0]
    assert not (tmp_path / "strip" / "difficulty.jsonl").exists()
    verdicts = [json.loads(line) for line in (tmp_path / "hard" / "difficulty.jsonl").read_text().splitlines()]
    assert len(verdicts) == 30 and sum(verdict["hard"] for verdict in verdicts) == 10
    assert all(verdict["signs"] for verdict in verdicts if verdict["hard"])
    (table,) = [event for event in events if isinstance(event, Table) and event.title == "Difficulty"]
    assert table.rows == (("chains.jsonl", "easy, by its signs", 20), ("chains.jsonl", "hard, by its signs", 10))
    checks = [row.check for row in read_rows(tmp_path / "hard" / "train.jsonl")]
    assert {check.skill for check in checks if check} == {"reasoning"} and None not in checks


def test_a_broken_draft_in_a_chain_that_is_stripped_costs_nothing(checkpoint: Path, tmp_path: Path) -> None:
    draft = "<think>\nFirst try:\n```python\ndef f(x:\n```\nNo.\n</think>\n"
    rows: list[dict[str, object]] = [{"prompt": f"Add {n}.", "completion": f"{draft}{CODE}\n# {n}"} for n in range(6)]
    settings = DataSettings(sources=(write(tmp_path / "drafts.jsonl", rows),), reasoning="strip")
    figures = prepare(settings, checkpoint, tmp_path / "set", silent, lambda event: None)
    assert int(str(figures["train_samples"])) + int(str(figures["held_out_samples"])) == 6


def test_only_code_keeps_the_one_block_and_leaves_answers_of_several_as_they_are(
    checkpoint: Path, tmp_path: Path
) -> None:
    code = "```python\ndef f():\n    return 1\n```"
    answers = [f"Sure! Here it is:\n\n{code}\n\nHope this helps!", code, f"First:\n\n{code}\n\nor:\n\n{code}"]
    rows = [{"prompt": f"Write f, way {n}.", "completion": answer} for n, answer in enumerate(answers)]
    settings = DataSettings(sources=(write(tmp_path / "words.jsonl", rows),), only_code=True, held_out_fraction=0)
    prepare(settings, checkpoint, tmp_path / "set", silent, lambda event: None)
    assert [row.completion for row in read_rows(tmp_path / "set" / "train.jsonl")] == [code, code, answers[2]]


def test_rows_carry_how_an_answer_is_judged(checkpoint: Path, tmp_path: Path) -> None:
    source = StdlibSource(stdlib=("statistics", "textwrap", "shutil"), take="context")
    settings = DataSettings(sources=(source,), held_out_fraction=0.3, max_length_tokens=8192)
    prepare(settings, checkpoint, tmp_path, silent, lambda event: None)
    (held_out, *_) = read_rows(tmp_path / "held_out.jsonl")
    assert isinstance(held_out.check, AnswerCheck) and held_out.check.skill == "context" and held_out.check.names
    assert held_out.language == "python" and held_out.name and held_out.source == "stdlib"


def test_a_preview_shows_what_is_masked_and_what_is_trained(checkpoint: Path, tmp_path: Path) -> None:
    short = write(tmp_path / "short.jsonl", numbered("short", 300))
    long = write(tmp_path / "long.jsonl", [{"prompt": "long?", "completion": "word " * 99}])
    settings = DataSettings(sources=(short, long, StdlibSource(stdlib=("bisect",))), max_length_tokens=100)
    shown = list(preview(settings, checkpoint, 4, silent))
    assert [sample.source for sample in shown] == [
        "jsonl short.jsonl",
        "jsonl long.jsonl",
        "stdlib bisect",
        "jsonl short.jsonl",
    ]
    assert [sample.is_too_long for sample in shown][:2] == [False, True]
    first = shown[0]
    number = first.name.removeprefix("line ")
    masked, trained = first.parts
    assert (masked.trained, trained.trained) == (False, True)
    question = f"short question {int(number) - 1}?"
    assert masked.text == f"<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n"
    assert trained.text == f"short answer {int(number) - 1}<|im_end|>"
    assert first.length_tokens == masked.tokens + trained.tokens and first.limit_tokens == 100


def test_a_preview_is_what_prepare_makes_first_of_a_limited_source(checkpoint: Path, tmp_path: Path) -> None:
    source = msgspec.structs.replace(write(tmp_path / "rows.jsonl", numbered("row", 60)), limit=3)
    settings = DataSettings(sources=(source,), held_out_fraction=0.3)
    shown = {sample.name for sample in preview(settings, checkpoint, 3, silent)}
    prepare(settings, checkpoint, tmp_path / "set", silent, lambda event: None)
    rows = read_rows(tmp_path / "set" / "train.jsonl") + read_rows(tmp_path / "set" / "held_out.jsonl")
    assert {row.name for row in rows} == shown


def test_a_preview_of_preferences_shows_both_answers(checkpoint: Path, tmp_path: Path) -> None:
    rows: list[dict[str, object]] = [{"prompt": f"q{n}?", "good": f"yes {n}", "bad": f"no, {n}"} for n in range(9)]
    path = write(tmp_path / "votes.jsonl", rows)
    source = msgspec.structs.replace(path, chosen="good", rejected="bad")
    (sample,) = preview(DataSettings(sources=(source,)), checkpoint, 1, silent)
    assert [(part.label, part.trained) for part in sample.parts] == [("", False), ("chosen", True), ("rejected", True)]
    assert sample.parts[1].text.startswith("yes ") and sample.parts[2].text.startswith("no, ")
    assert sample.length_tokens == sample.parts[0].tokens + max(part.tokens for part in sample.parts[1:])


def test_a_preview_reads_no_more_than_it_needs_and_says_what_is_not_made_yet(checkpoint: Path, tmp_path: Path) -> None:
    events: list[AnyEvent] = []
    readings: list[Reading] = []

    def reading() -> Reading:
        readings.append(Reading(emit=events.append))
        return readings[-1]

    many = write(tmp_path / "many.jsonl", numbered("many", 5000))
    made_later = CandidatesSource(candidates=(StdlibSource(stdlib="all"),))
    settings = DataSettings(sources=(made_later, many, ReplaySource(replay="earlier")))
    shown = list(preview(settings, checkpoint, 2, reading))
    assert len(shown) == 2 and all(isinstance(sample, SampleShown) for sample in shown)
    assert PAIRS_LOOKED_AT <= max(each.rows for each in readings) < 1000
    assert [event.text for event in events if isinstance(event, Note)] == [
        "candidates (answers): made in the run, so there is nothing to show yet",
        "replay earlier: made in the run, so there is nothing to show yet",
    ]


def test_sources_are_called_by_names_that_differ_and_hold_no_path() -> None:
    table = JsonlSource(jsonl="/home/someone/data/rows.jsonl")
    sources = (table, table, RepoSource(repo="/home/someone/mine"), StdlibSource(stdlib="all", take="context"))
    hub = HubSource(hub="org/set", files="*.jsonl")
    many = StdlibSource(stdlib=tuple(f"module{n}" for n in range(20)))
    assert labels_of([*sources, hub, many]) == [
        "jsonl rows.jsonl",
        "jsonl rows.jsonl (2)",
        "repo mine",
        "stdlib all (context)",
        "hub org/set",
        "stdlib module0, module1, module2, module3, mod…",
    ]


def test_an_empty_set_says_of_every_source_what_ate_it() -> None:
    first, second = SourceFunnel("jsonl a.jsonl", read=412), SourceFunnel("stdlib all")
    first.unread = {"column isn't text": 2}
    first.refuse("code doesn't parse", 400)
    first.drop("longer than 1024 tokens", 10)
    error = nothing_left([first, second], ["code doesn't parse"])
    assert error.message == (
        'nothing is left to train on; all 412 of jsonl a.jsonl were left out: 400 by "code doesn\'t parse", '
        "10 by 'longer than 1024 tokens', 2 by \"column isn't text\"; stdlib all gave nothing"
    )
    assert error.hint.startswith("look at the answers")
    mined = SourceFunnel("stdlib all", read=13283)
    mined.unread = {"method of a class": 10374, "no docstring": 2509}
    mined.refuse("another language", 400)
    error = nothing_left([mined], ["another language"])
    assert "all 13,283 of stdlib all were left out: 400 by 'another language', 10,374 by 'meth" in error.message
    assert error.hint == "widen data.languages"  # not what the source never took


def test_spreading_agrees_with_taking_one_of_each_group_in_turn() -> None:
    """The vectorised order against the plain one."""
    import hashlib

    from amigo_local.data.pair import Pair

    def place(text: str) -> int:
        return int.from_bytes(hashlib.sha256(f"3\n{text}".encode()).digest()[:8], "big")

    pairs = [
        Pair(prompt=f"p{n}", completion="x", source="t", name=f"n{n % 50}", module=f"m{n % 7}" if n % 5 else "")
        for n in range(400)
    ]
    waiting: dict[str, list[int]] = {}
    for index, pair in enumerate(pairs):
        waiting.setdefault(pair.group, []).append(index)
    for indices in waiting.values():
        indices.sort(key=lambda index: place(f"{pairs[index].name}\n{pairs[index].prompt}"))
    expected: list[int] = []
    for turn in range(400):
        for group in sorted(waiting, key=place):
            expected += waiting[group][turn : turn + 1]
    assert list(spread_over_groups(pairs, 3)) == expected
    assert list(spread_over_groups([], 3)) == []

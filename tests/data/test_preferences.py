"""A preference set: prompt, chosen and rejected columns become rows that DPO trains on."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from amigo_local.data.decontamination import load_decontamination
from amigo_local.data.filters import Filters
from amigo_local.data.preferences import Preference, PreferenceRow
from amigo_local.data.prepare import prepare, read_rows
from amigo_local.data.reading import Reading
from amigo_local.domain.data_source import JsonlSource
from amigo_local.domain.errors import InputError
from amigo_local.domain.events import AnyEvent, Table
from amigo_local.domain.recipe import DataSettings

CODE, BROKEN = "```python\nx = 1\n```", "```python\nx = = 1\n```"


def write(path: Path, rows: list[dict[str, object]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def rows(count: int) -> list[dict[str, object]]:
    return [{"ask": f"question {n}?", "good": f"answer {n}", "bad": f"no, {n} words"} for n in range(count)]


def settings(path: Path, **changes: object) -> DataSettings:
    source = JsonlSource(jsonl=str(path), prompt="ask", chosen="good", rejected="bad")
    return msgspec.structs.replace(DataSettings(sources=(source,), held_out_fraction=0.3), **changes)


def silent() -> Reading:
    return Reading(emit=lambda event: None)


def counts(folder: Path) -> dict[str, int]:
    return {what: count for _, what, count in json.loads((folder / "stats.json").read_bytes())["counts"]}


def test_both_sides_are_rendered_as_transformers_renders_them(checkpoint: Path, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    events: list[AnyEvent] = []
    figures = prepare(
        settings(write(tmp_path / "p.jsonl", rows(20))), checkpoint, tmp_path / "set", silent, events.append
    )
    train, held_out = read_rows(tmp_path / "set" / "train.jsonl"), read_rows(tmp_path / "set" / "held_out.jsonl")
    assert (figures["train_samples"], figures["held_out_samples"]) == (len(train), len(held_out))
    assert len(train) + len(held_out) == 20 and held_out
    assert not {row.prompt for row in train} & {row.prompt for row in held_out}
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    for row in [*train, *held_out]:
        assert isinstance(row, PreferenceRow)
        for answer, ids in ((row.chosen, row.chosen_ids), (row.rejected, row.rejected_ids)):
            chat = [{"role": "user", "content": row.prompt}, {"role": "assistant", "content": answer}]
            whole = tokenizer.apply_chat_template(chat, return_dict=False)
            assert whole[: len(row.prompt_ids) + len(ids)] == row.prompt_ids + ids
            assert tokenizer.decode(ids) == answer + "<|im_end|>"
    assert figures["trained_tokens"] == sum(len(row.chosen_ids) + len(row.rejected_ids) for row in train)
    preview = next(event for event in events if isinstance(event, Table) and event.title.startswith("Loss mask"))
    assert [row[0] for row in preview.rows] == ["masked", "chosen", "rejected"]


def test_what_is_prepared_is_what_training_reads(checkpoint: Path, tmp_path: Path) -> None:
    from amigo_local.training.preferences import PreferenceFile

    prepare(settings(write(tmp_path / "p.jsonl", rows(9))), checkpoint, tmp_path / "set", silent, lambda event: None)
    prepared = read_rows(tmp_path / "set" / "train.jsonl")
    for row, pair in zip(prepared, PreferenceFile(tmp_path / "set" / "train.jsonl", 600, 60), strict=True):
        assert isinstance(row, PreferenceRow)
        assert [side.input_ids for side in pair.sequences] == [
            row.prompt_ids + row.chosen_ids,
            row.prompt_ids + row.rejected_ids,
        ]


def test_held_out_preferences_serve_whoever_reads_prompt_and_completion(checkpoint: Path, tmp_path: Path) -> None:
    """The check prompts of `export`, the prompts of `evaluate` and the texts of `imatrix` read so."""
    prepare(settings(write(tmp_path / "p.jsonl", rows(9))), checkpoint, tmp_path / "set", silent, lambda event: None)
    for row in read_rows(tmp_path / "set" / "held_out.jsonl"):
        assert (row.prompt, row.completion) in {(r["ask"], r["good"]) for r in rows(9)}
        assert row.input_ids[len(row.parts["masked"]) :] == row.parts["chosen"]


def test_equal_long_and_repeated_pairs_are_left_out_and_counted(checkpoint: Path, tmp_path: Path) -> None:
    given = rows(6)
    given += [
        {"ask": "same?", "good": "yes", "bad": " yes\n"},
        {"ask": "long?", "good": "yes", "bad": "never " * 60},
        {"ask": "long, too?", "good": "always " * 60, "bad": "no"},
        {**given[0], "bad": "another bad answer"},  # one better answer over two worse ones: two pairs
        given[1],
    ]
    path = write(tmp_path / "p.jsonl", given)
    prepare(settings(path, max_length_tokens=60), checkpoint, tmp_path / "set", silent, lambda event: None)
    assert counts(tmp_path / "set") == {
        "left out: chosen and rejected are the same": 1,
        "left out: longer than 60 tokens": 2,
        "left out: exact duplicate": 1,
        "read": 11,
        "taken": 7,
    }


def test_sides_that_the_template_makes_equal_are_left_out(checkpoint_with: Callable[..., Path], tmp_path: Path) -> None:
    """A template may cut answers; what is equal then has no gradient."""
    from tests.data.conftest import CHATML

    cutting = checkpoint_with(CHATML.replace("message['content']", "message['content'].split('#')[0]"))
    path = write(tmp_path / "p.jsonl", [*rows(2), {"ask": "x", "good": "same # a", "bad": "same # b"}])
    prepare(settings(path), cutting, tmp_path / "set", silent, lambda event: None)
    assert counts(tmp_path / "set")["left out: chosen and rejected are the same"] == 1


def test_the_worse_answer_may_be_broken_but_holds_no_secret_and_no_evaluation() -> None:
    problem = " ".join(f"unusual{n}" for n in range(16))
    made = [
        Preference(prompt="p", completion=CODE, rejected=BROKEN, source="s"),
        Preference(prompt="p", completion=BROKEN, rejected=CODE, source="s"),
        Preference(prompt="p", completion=CODE, rejected="mail someone@gmail.com", source="s"),
        Preference(prompt="p", completion=CODE, rejected=problem, source="s"),
    ]
    filters = Filters(DataSettings(), load_decontamination(texts=[problem]))
    assert filters.refusals(made) == [
        None,
        "code doesn't parse",
        "holds an e-mail address",
        "overlaps an evaluation",
    ]


def test_a_wrong_column_is_named_with_those_found(checkpoint: Path, tmp_path: Path) -> None:
    path = write(tmp_path / "p.jsonl", [{"ask": "a", "good": "b", "worse": "c"}])
    with pytest.raises(InputError, match=r"no column 'bad' \(columns found: ask, good, worse\)") as error:
        prepare(settings(path), checkpoint, tmp_path / "set", silent, lambda event: None)
    assert error.value.hint.endswith("name the columns in the source's prompt, chosen and rejected")


def test_preferences_and_completions_do_not_mix(checkpoint: Path, tmp_path: Path) -> None:
    path = write(tmp_path / "p.jsonl", rows(3))
    both = (*settings(path).sources, JsonlSource(jsonl=str(path), prompt="ask", completion="good"))
    with pytest.raises(InputError, match="mixes pairs of answers"):
        prepare(settings(path, sources=both), checkpoint, tmp_path / "set", silent, lambda event: None)


@pytest.mark.parametrize(
    ("given", "complaint"),
    [
        ({"jsonl": "a", "chosen": "c"}, "names both columns"),
        ({"jsonl": "a", "chosen": "c", "rejected": "r", "completion": "x"}, "in the place of completion"),
        ({"jsonl": "a", "mapping": "bugs", "chosen": "c", "rejected": "r"}, "mapping: bugs knows its columns"),
    ],
)
def test_half_a_preference_source_is_refused(given: dict[str, str], complaint: str) -> None:
    with pytest.raises(msgspec.ValidationError, match=complaint):
        msgspec.convert({"kind": "jsonl", **given}, JsonlSource)

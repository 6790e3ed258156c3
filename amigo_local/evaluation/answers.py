"""The answers already given, one JSON line each: what lets a killed evaluation go on where it was."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import msgspec

from amigo_local.domain.generation import Answer, GenerationOptions, Message

ANSWERS_FILE = "answers.jsonl"


class AnswerLine(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    key: str
    side: int
    model: str
    suite: str
    prompt_id: str
    answer: Answer


def answer_key(
    side: int, model: str, suite: str, prompt_id: str, messages: tuple[Message, ...], options: GenerationOptions
) -> str:
    """Equal only for the same question to the same model name with the same options."""
    told = msgspec.json.encode((side, model, suite, prompt_id, messages, options))
    return hashlib.sha256(told).hexdigest()[:32]


class AnswerJournal:
    """answers.jsonl in a work folder.

    The folder belongs to one set of model files: names alone don't tell two versions of a tag apart.
    """

    def __init__(self, work_dir: Path) -> None:
        work_dir.mkdir(parents=True, exist_ok=True)
        self._path = work_dir / ANSWERS_FILE
        self._answers = self._read()

    def __len__(self) -> int:
        return len(self._answers)

    def get(self, key: str) -> Answer | None:
        return self._answers.get(key)

    def append(self, line: AnswerLine) -> None:
        """On disk when this returns."""
        with self._path.open("ab") as file:
            file.write(msgspec.json.encode(line) + b"\n")
            file.flush()
            os.fsync(file.fileno())
        self._answers[line.key] = line.answer

    def _read(self) -> dict[str, Answer]:
        """Drops a last line that a kill has torn, and lines of another version."""
        if not self._path.exists():
            return {}
        content = self._path.read_bytes()
        whole = content[: content.rfind(b"\n") + 1]
        if whole != content:
            with self._path.open("r+b") as file:
                file.truncate(len(whole))
        answers: dict[str, Answer] = {}
        decoder = msgspec.json.Decoder(AnswerLine)
        for line in whole.splitlines():
            try:
                found = decoder.decode(line)
            except msgspec.DecodeError:
                continue
            answers[found.key] = found.answer
        return answers

"""Held-out requests: what a set keeps away from training, and which of it each suite asks."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path

import msgspec

from amigo_local.domain.answer_check import AnswerCheck
from amigo_local.domain.errors import InputError
from amigo_local.domain.recipe import Suite
from amigo_local.evaluation.humaneval import evenly_spread

TRAIN_FILE = "train.jsonl"
HELD_OUT_FILE = "held_out.jsonl"


class Request(msgspec.Struct, frozen=True, kw_only=True):
    """One line of a held_out.jsonl, of single answers or of pairs; other columns are ignored."""

    prompt: str
    name: str = ""
    source: str = ""
    module: str = ""
    check: AnswerCheck | None = None
    completion: str = ""
    chosen: str = ""
    completion_start: int = 0
    """Tokens of the rendered prompt in a set of single answers."""
    prompt_ids: tuple[int, ...] = ()
    """The same tokens themselves in a set of pairs."""

    @property
    def id(self) -> str:
        """Equal for equal requests of any set."""
        return hashlib.sha256(self.prompt.encode()).hexdigest()[:12]

    @property
    def reference(self) -> str:
        """The answer that the set holds to be good; empty where it has none."""
        return self.chosen or self.completion

    @property
    def prompt_tokens(self) -> int:
        """0 when that wasn't counted."""
        return self.completion_start or len(self.prompt_ids)

    @property
    def can_run(self) -> bool:
        return self.check is not None and bool(self.check.program and self.check.entry_point)


class _PromptOnly(msgspec.Struct, frozen=True):
    prompt: str


class _Trained(msgspec.Struct, frozen=True):
    prompt: str
    module: str = ""


def prompt_file(dataset: str) -> Path:
    """Raises InputError when there is none."""
    path = Path(dataset).expanduser().absolute()
    path = path / HELD_OUT_FILE if path.is_dir() else path
    if not path.is_file():
        raise InputError(f"there is no prompt file {path}", "give --prompts FILE, JSON lines with a `prompt` column")
    return path


def read_requests(dataset: str) -> tuple[Request, ...]:
    """The held-out requests of a set's folder, or the prompts of any JSON-lines file. Raises InputError."""
    path = prompt_file(dataset)
    # Somebody's own file may have columns of our names that mean something else.
    is_set = path.name == HELD_OUT_FILE
    rows = msgspec.json.Decoder(Request)
    prompts = msgspec.json.Decoder(_PromptOnly)
    found = []
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            try:
                found.append(rows.decode(line) if is_set else Request(prompt=prompts.decode(line).prompt))
            except msgspec.MsgspecError as error:
                raise InputError(f"{path}:{number}: no JSON object with a `prompt` ({error})", "one a line") from error
    return tuple(found)


def trained_prompts(datasets: Iterable[str]) -> frozenset[bytes]:
    """Marks of the requests, and of their modules, that are in the training part of any of those folders; files have
    none."""
    decoder = msgspec.json.Decoder(_Trained)
    marks = set()
    for dataset in datasets:
        path = Path(dataset).expanduser() / TRAIN_FILE
        if path.is_file():
            with path.open("rb") as file:
                for number, line in enumerate(file, 1):
                    try:
                        row = decoder.decode(line)
                    except msgspec.MsgspecError as error:
                        raise InputError(f"{path}:{number}: no row of a set ({error})", "prepare it again") from error
                    marks |= {_mark(row.prompt), _mark(f"module\n{row.module}")} if row.module else {_mark(row.prompt)}
    return frozenset(marks)


def is_trained(request: Request, marks: frozenset[bytes]) -> bool:
    """Also by another request about the same module: the answer to one may be the other's context."""
    by_module = bool(request.module) and _mark(f"module\n{request.module}") in marks
    return by_module or _mark(request.prompt) in marks


def _mark(prompt: str) -> bytes:
    return hashlib.blake2b(prompt.encode(), digest_size=16).digest()


def plain_requests(held_out: Sequence[Request], count: int) -> tuple[Request, ...]:
    """What directness is asked on, evenly spread: not problems that deserve thought, nor bugs, which deserve a
    diagnosis, where there is anything else."""
    plain = [request for request in held_out if not (check := request.check) or not _deserves_words(check)]
    return _spread(plain or held_out, count)


def _deserves_words(check: AnswerCheck) -> bool:
    return bool(check.hard) or check.skill == "debugging"


def requests_for(suite: Suite, pool: Sequence[Request], count: int) -> tuple[Request, ...]:
    """Those of the pool that can show the suite's skill, evenly spread; of reasoning half of them hard, if there are
    so many. For `directness`: those whose code can be run."""
    known = [(request, request.check) for request in pool if request.check]
    if suite == "context":
        return _spread([request for request, check in known if check.skill == "context" and check.names], count)
    if suite == "debugging":
        return _spread([request for request, check in known if check.skill == "debugging" and request.can_run], count)
    if suite == "reasoning":
        hard = _once([request for request, check in known if check.hard])
        easy = _spread([request for request, check in known if check.hard is False], max(count // 2, count - len(hard)))
        return _spread(hard, count - len(easy)) + easy
    writing = [request for request, check in known if check.skill == "writing" and not check.hard]
    return _spread([request for request in writing if request.can_run], count)


def _spread(requests: Sequence[Request], count: int) -> tuple[Request, ...]:
    return evenly_spread(_once(requests), count)


def _once(requests: Sequence[Request]) -> list[Request]:
    """The first of equal requests."""
    first: dict[str, Request] = {}
    for request in requests:
        first.setdefault(request.prompt, request)
    return list(first.values())

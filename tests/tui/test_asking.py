"""Verbs asked of real runner processes."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from amigo_local.domain.events import Note, Record, Table
from amigo_local.domain.settings import OllamaSettings, ProgramSettings
from amigo_local.engine.runner_process import RunRequest
from amigo_local.tui.asking import Asked, Reply, RunnerPool
from tests.support.tui_driving import runner_processes

pytestmark = pytest.mark.usefixtures("garbage_of_others_stays")

OFFLINE = ProgramSettings(ollama=OllamaSettings(use=False))


def request(home: Path, verb: str, **params: object) -> RunRequest:
    return RunRequest(verb=verb, params=params, settings=OFFLINE, home=str(home))


async def reply_to(pool: RunnerPool, asked: RunRequest) -> Reply:
    answer = Asked(pool, asked)
    records: list[Record] = []
    async for batch in answer:
        records += batch
    answer.reply.records = records
    return answer.reply


def with_pool(home: Path, body: Callable[[RunnerPool], Awaitable[None]], *command: str) -> None:
    async def run() -> None:
        pool = RunnerPool(home / "runners.log", *([command] if command else []))
        try:
            await body(pool)
        finally:
            await pool.close()

    asyncio.run(run())


def test_one_process_answers_one_verb_after_the_other(tmp_path: Path) -> None:
    async def body(pool: RunnerPool) -> None:
        for _ in range(2):
            reply = await reply_to(pool, request(tmp_path, "runs", action="ls"))
            assert reply.exit_code == 0
            assert [table.title for table in reply.tables] == ["Runs"]
            assert reply.first(Note) is not None
        failed = await reply_to(pool, request(tmp_path, "plan", recipe=["nothing"]))
        assert failed.exit_code == 2
        assert failed.error and "no recipe at nothing" in failed.error.message and failed.error.hint
        wrong = await reply_to(pool, request(tmp_path, "runs", action="fly"))
        assert wrong.exit_code == 2 and wrong.error and "fly" in wrong.error.message
        assert (await reply_to(pool, request(tmp_path, "runs", action="ls"))).first(Table)
        assert len(runner_processes()) == 1

    with_pool(tmp_path, body)
    assert runner_processes() == []


def test_verbs_are_answered_at_once_beside_each_other(tmp_path: Path) -> None:
    async def body(pool: RunnerPool) -> None:
        replies = await asyncio.gather(*(reply_to(pool, request(tmp_path, "runs", action="ls")) for _ in range(4)))
        assert [reply.exit_code for reply in replies] == [0, 0, 0, 0]

    with_pool(tmp_path, body)


@pytest.mark.skipif(os.name != "posix", reason="needs POSIX signals")
def test_a_process_that_dies_in_the_middle_is_a_failure_with_a_hint_and_the_next_question_is_answered(
    tmp_path: Path,
) -> None:
    async def body(pool: RunnerPool) -> None:
        await reply_to(pool, request(tmp_path, "runs", action="ls"))
        (child,) = runner_processes()
        child.send_signal(signal.SIGSTOP)
        asked = asyncio.ensure_future(reply_to(pool, request(tmp_path, "runs", action="ls")))
        await asyncio.sleep(0)
        child.send_signal(signal.SIGKILL)
        reply = await asked
        assert reply.exit_code == 1
        assert reply.error and "ended without a word" in reply.error.message and "runners.log" in reply.error.hint
        assert (await reply_to(pool, request(tmp_path, "runs", action="ls"))).exit_code == 0

    with_pool(tmp_path, body)


def test_a_flood_is_handed_over_in_batches_and_the_loop_goes_on(tmp_path: Path) -> None:
    """20,000 records as fast as a process can write them."""
    flood = (
        "import sys; from amigo_local.domain.events import *\n"
        "sys.stdin.readline()\n"
        "for n in range(20000):\n"
        "    record = Record('r', n, 0.0, 'x', Progress('p', n, 20000, 'steps'))\n"
        "    sys.stdout.buffer.write(encode_record(record) + b'\\n')\n"
        'print(\'{"exit_code":0,"run_id":"r","error":null}\', flush=True)\n'
        "sys.stdin.read()\n"
    )

    async def body(pool: RunnerPool) -> None:
        asked = Asked(pool, request(tmp_path, "x"))
        sizes: list[int] = []
        longest = 0.0

        async def beat() -> None:
            nonlocal longest
            loop = asyncio.get_running_loop()
            while True:
                before = loop.time()
                await asyncio.sleep(0.001)
                longest = max(longest, loop.time() - before)

        beating = asyncio.ensure_future(beat())
        async for batch in asked:
            sizes.append(len(batch))
        beating.cancel()
        assert sum(sizes) == 20_000
        assert len(sizes) < 1000
        assert asked.reply.exit_code == 0
        assert longest < 0.25  # a slice is 8 ms; the rest is what a busy machine takes

    with_pool(tmp_path, body, sys.executable, "-c", flood)

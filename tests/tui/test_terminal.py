"""The app in a real terminal: a person types through the loop on a tiny real model, leaves, and comes back."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import psutil
import pytest

from amigo_local.data.votes import VOTES_FILE, read_votes
from amigo_local.domain.events import RunFinished
from amigo_local.engine.journal import read_journal
from tests.support.command_line import SCRIPT, environment
from tests.support.terminal import Terminal
from tests.support.tiny_home import Home


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Home:
    """Up to the adapter, in this process: what each stage does is tested elsewhere."""
    home = Home(tmp_path_factory.mktemp("trained"))
    home.done(verb="train")
    return home


@pytest.fixture
def home(trained: Home, tmp_path: Path) -> Path:
    """A copy of it, for one test."""
    return Path(shutil.copytree(trained.workspace.root, tmp_path / "home"))


def app(home: Path, size: tuple[int, int] = (100, 30)) -> Terminal:
    return Terminal([str(SCRIPT)], size, environment(home))


def test_the_loop_is_typed_through_left_twice_and_its_models_compared(trained: Home, home: Path) -> None:
    with app(home) as terminal:
        terminal.wait_for("Recipe: choose one")
        terminal.keys("3")
        terminal.wait_for("Choose a recipe")
        terminal.keys("o")
        terminal.wait_for("Open a recipe")
        terminal.text(str(trained.recipe))
        terminal.wait_for("tiny.yaml")
        terminal.keys("Enter")
        terminal.wait_for("what it trains is made already", 30)
        terminal.keys("1")
        terminal.wait_for(re.compile("✓ train +done(.*\n)+.*● export +next"), 30)
        terminal.keys("a")
        terminal.wait_for(re.compile("▶ export +running"), 30)
        terminal.keys("C-q")
        terminal.wait_for("It can go on without this window")
        terminal.keys("l")
        assert terminal.exit_code() == 0

    with app(home) as terminal:
        terminal.wait_for(re.compile("✓ train +done"))
        own = [psutil.Process(terminal.pid), *psutil.Process(terminal.pid).children(recursive=True)]
        terminal.close_window()
        assert psutil.wait_procs(own, timeout=10)[1] == []

    with app(home) as terminal:
        terminal.wait_for(re.compile("✓ evaluate +done(.*\n)+.*finished in"), 60)
        (journal,) = (home / "runs").glob("*-run/journal.jsonl")
        assert [r.event.exit_code for r in read_journal(journal) if isinstance(r.event, RunFinished)] == [0]

        terminal.keys("5")
        terminal.wait_for("Ask both models")
        terminal.wait_for(re.compile("─ tiny.gguf .*─ tiny-refined"))  # what the loop began and ended with
        terminal.wait_for("Send")
        terminal.text("Write a function")
        terminal.keys("Enter")
        terminal.wait_for(re.compile(r"tok/s · \d+ tok .*tok/s · \d+ tok"), 60)
        terminal.wait_for("which is better?")
        terminal.keys("r")
        terminal.wait_until(lambda lines: "which is better?" not in "\n".join(lines))
        terminal.keys("C-q")
        assert terminal.exit_code() == 0
    ((_, vote),), _ = read_votes(home / VOTES_FILE)
    assert vote.prompt == "Write a function"
    assert vote.chosen_model.endswith("tiny-refined") and vote.rejected_model.endswith("tiny.gguf")

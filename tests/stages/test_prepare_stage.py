"""prepare as a step: what goes in pins what comes out, and a cut step is gone on with."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from amigo_local.data.source_files import file_of
from amigo_local.domain.data_source import (
    BugInjectionSource,
    CandidatesSource,
    DataSource,
    DoctestSource,
    HubSource,
    JsonlSource,
    JsonSource,
    PackageSource,
    RepoSource,
    StdlibSource,
    VotesSource,
)
from amigo_local.domain.errors import Cancelled, InputError
from amigo_local.domain.events import AnyEvent, Note, Progress
from amigo_local.domain.recipe import DataSettings
from amigo_local.domain.settings import OllamaSettings, ProgramSettings
from amigo_local.engine.contract import StageContext
from amigo_local.engine.machine import measure_machine
from amigo_local.engine.workspace import Workspace
from amigo_local.stages import prepare
from amigo_local.stages._data_sources import ABSENT, pinned, reading_of, source_digests
from tests.support.hub_server import HubServer
from tests.support.tiny_home import Home

ROWS = [{"prompt": f"Write a function number {n}.", "completion": f"answer {n}"} for n in range(30)]


@pytest.fixture
def events() -> list[AnyEvent]:
    return []


@pytest.fixture
def context(tmp_path: Path, events: list[AnyEvent]) -> StageContext:
    settings = ProgramSettings(ollama=OllamaSettings(use=False))
    workspace = Workspace(tmp_path / "home")
    workspace.prepare()
    build = tmp_path / "set.partial"
    build.mkdir()
    return StageContext(workspace, settings, measure_machine(tmp_path, settings.machine), "run", events.append, build)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[HubServer]:
    with HubServer() as server:
        ask(server.url, monkeypatch, tmp_path)
        yield server


def ask(endpoint: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The client reads its environment when it is imported, which may be long ago."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", endpoint)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hf"))


def write(path: Path, rows: list[dict[str, str]]) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def git(folder: Path, *arguments: str) -> None:
    who = {"GIT_AUTHOR_NAME": "a", "GIT_AUTHOR_EMAIL": "a@example.com"}
    who |= {"GIT_COMMITTER_NAME": "a", "GIT_COMMITTER_EMAIL": "a@example.com", "GIT_CONFIG_GLOBAL": os.devnull}
    command = ["git", "-C", str(folder), *arguments]
    subprocess.run(command, check=True, capture_output=True, env={**os.environ, **who})


def digest(source: DataSource, context: StageContext) -> str:
    (found,) = source_digests([source], context).values()
    return found


def test_a_prepared_set_is_found_again_until_its_rows_change(tmp_path: Path) -> None:
    home = Home(tmp_path / "tiny")
    made = home.done(verb="prepare")["prepare"]
    assert made.figures["train_samples"] and not (Path(made.path) / "building").exists()
    assert set(made.sources) == {"checkpoint", "jsonl:pairs.jsonl", "grammars"}
    home.done(verb="prepare")
    assert "prepare" in home.skipped()
    with (tmp_path / "tiny" / "pairs.jsonl").open("a") as file:
        file.write(json.dumps({"prompt": "One more?", "completion": "Yes."}) + "\n")
    again = home.done(verb="prepare")["prepare"]
    assert again.path != made.path
    both = [made, again]
    before, after = (int(str(a.figures["train_samples"])) + int(str(a.figures["held_out_samples"])) for a in both)
    assert (before, after) == (24, 25)


def test_a_cancelled_step_goes_on_with_what_it_had(context: StageContext, tmp_path: Path) -> None:
    home = Home(tmp_path / "tiny")
    checkpoint = home.done(verb="prepare")["tokenizer"].path
    source = JsonlSource(jsonl=write(tmp_path / "rows.jsonl", ROWS))
    params = prepare.PrepareParams(checkpoint=checkpoint, data=DataSettings(sources=(source,)))

    def cut(event: AnyEvent) -> None:
        if isinstance(event, Progress) and event.label.startswith("rendering"):
            raise Cancelled

    with pytest.raises(Cancelled):
        prepare.run(params, dataclasses.replace(context, emit=cut))
    state = json.loads((context.build_dir() / "building" / "state.json").read_bytes())
    assert (state["source"], state["kept"]) == (1, 30)
    result = prepare.run(params, context)
    assert int(str(result.figures["train_samples"])) + int(str(result.figures["held_out_samples"])) == 30
    assert sorted(path.name for path in context.build_dir().iterdir()) == [
        "held_out.jsonl",
        "stats.json",
        "train.jsonl",
    ]


def test_a_file_that_changes_while_it_is_read_makes_no_set(context: StageContext, tmp_path: Path) -> None:
    home = Home(tmp_path / "tiny")
    checkpoint = home.done(verb="prepare")["tokenizer"].path
    rows = Path(write(tmp_path / "rows.jsonl", ROWS))
    params = prepare.PrepareParams(checkpoint=checkpoint, data=DataSettings(sources=(JsonlSource(jsonl=str(rows)),)))

    def grow(event: AnyEvent) -> None:
        if isinstance(event, Progress) and event.label.startswith("rendering"):
            rows.write_text(rows.read_text() + rows.read_text())

    with pytest.raises(InputError, match=r"rows\.jsonl changed while it was read") as error:
        prepare.run(params, dataclasses.replace(context, emit=grow))
    assert "same command again" in error.value.hint
    prepare.run(params, context)


@pytest.mark.skipif(os.name != "posix", reason="names of files are bytes on POSIX alone")
def test_names_that_arent_utf8_are_pinned_too(context: StageContext, tmp_path: Path) -> None:
    repo = tmp_path / "repo"
    repo.mkdir()
    name = os.fsdecode(b"caf\xe9.py")
    (repo / name).write_text("x = 1\n")
    loose = digest(RepoSource(repo=str(repo)), context)
    git(repo, "init", "-q")
    git(repo, "add", ".")
    git(repo, "commit", "-qm", "first")
    (repo / name).write_text("x = 22\n")
    assert loose.startswith("sha256:") and " sha256:" in digest(RepoSource(repo=str(repo)), context)


def test_a_table_is_pinned_by_the_bytes_of_every_file(context: StageContext, tmp_path: Path) -> None:
    write(tmp_path / "data" / "a.jsonl", ROWS[:3])
    write(tmp_path / "data" / "b.jsonl", ROWS[3:6])
    source = JsonlSource(jsonl=str(tmp_path / "data" / "*.jsonl"))
    first = digest(source, context)
    assert digest(source, context) == first
    write(tmp_path / "data" / "b.jsonl", ROWS[3:7])
    second = digest(source, context)
    write(tmp_path / "data" / "c.jsonl", ROWS[:1])
    assert len({first, second, digest(source, context)}) == 3
    with pytest.raises(InputError, match=r"none\*.json: no file matches"):
        digest(JsonSource(json=str(tmp_path / "none*.json")), context)


def test_a_repository_is_pinned_by_its_commit_and_what_differs_from_it(context: StageContext, tmp_path: Path) -> None:
    repo = tmp_path / "repo"
    repo.mkdir()
    (repo / "a.py").write_text("x = 1\n")
    unversioned = digest(RepoSource(repo=str(repo)), context)
    git(repo, "init", "-q")
    git(repo, "add", ".")
    git(repo, "commit", "-qm", "first")
    clean = digest(RepoSource(repo=str(repo)), context)
    assert len(clean) == 40 and unversioned.startswith("sha256:")
    (repo / "a.py").write_text("x = 22\n")
    dirty = digest(RepoSource(repo=str(repo)), context)
    assert dirty.startswith(f"{clean} sha256:")
    commits = RepoSource(repo=str(repo), take=("commits",))
    assert digest(commits, context) == clean
    (repo / "b.py").write_text("y = 1\n")
    (repo / "notes.txt").write_text("todo\n")
    assert digest(RepoSource(repo=str(repo)), context) == dirty  # what git doesn't track isn't read
    git(repo, "add", ".")
    assert digest(RepoSource(repo=str(repo)), context).startswith(f"{clean} sha256:") and clean in dirty
    assert digest(RepoSource(repo=str(repo)), context) != dirty
    git(repo, "commit", "-qm", "second")
    second = digest(RepoSource(repo=str(repo)), context)
    assert len(second) == 40 and second != clean
    assert digest(msgspec.structs.replace(commits, revision="HEAD~1"), context) == clean
    both = RepoSource(repo=str(repo), take=("commits", "docstrings"), revision="HEAD~1")
    assert digest(both, context) == f"{second}, history of {clean}"
    (repo / "a.py").write_text("x = 333\n")
    assert digest(both, context).startswith(f"{second} sha256:")
    git(repo, "checkout", "-q", "a.py")
    assert digest(DoctestSource(doctest=str(repo)), context) == second


def test_a_folder_without_git_is_pinned_by_its_code_alone(context: StageContext, tmp_path: Path) -> None:
    folder = tmp_path / "plain"
    (folder / "__pycache__").mkdir(parents=True)
    (folder / "a.py").write_text("x = 1\n")
    before = digest(RepoSource(repo=str(folder)), context)
    (folder / "__pycache__" / "a.cpython-311.pyc").write_bytes(b"compiled")
    assert digest(RepoSource(repo=str(folder)), context) == before
    (folder / "LICENSE").write_text("MIT License")
    assert digest(RepoSource(repo=str(folder)), context) != before


def test_files_of_one_name_in_two_folders_are_both_pinned(context: StageContext, tmp_path: Path) -> None:
    sources = [JsonlSource(jsonl=write(tmp_path / name / "rows.jsonl", ROWS[:3])) for name in ("a", "b")]
    found = []
    for name in ("none", "a", "b"):
        if name != "none":
            write(tmp_path / name / "rows.jsonl", ROWS[: 4 + len(found)])
        found.append(source_digests(sources, context))
    assert list(found[0]) == ["jsonl:rows.jsonl"] and list(found[2]) == ["jsonl:rows.jsonl", "jsonl:rows.jsonl (2)"]
    assert found[0] != found[1] != found[2] != found[0]


def test_an_optional_set_that_was_reached_may_not_be_missing_later(
    context: StageContext, hub: HubServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    write(tmp_path / "set" / "rows.jsonl", ROWS)
    hub.publish_set("org/set", tmp_path / "set", license="mit")
    source = HubSource(hub="org/set", files="*.jsonl", optional=True)
    (found,) = pinned(DataSettings(sources=(source,)), context).sources
    ask("http://127.0.0.1:9", monkeypatch, tmp_path)  # where nothing listens
    with pytest.raises(InputError, match="org/set"):
        list(file_of(found).read(found, reading_of(context)))
    assert list(file_of(source).read(source, reading_of(context))) == []


def test_code_that_is_installed_is_pinned_by_its_version(context: StageContext) -> None:
    import platform
    from importlib.metadata import version

    assert digest(StdlibSource(stdlib="all"), context) == platform.python_version()
    assert digest(BugInjectionSource(bug_injection="stdlib"), context) == platform.python_version()
    assert digest(PackageSource(package="numpy"), context) == f"numpy {version('numpy')}"


def test_votes_and_the_problems_of_candidates_are_pinned_too(context: StageContext, tmp_path: Path) -> None:
    assert digest(VotesSource(votes="mine"), context) == ABSENT
    write(context.workspace.root / "votes.jsonl", [{"prompt": "p"}])
    assert digest(VotesSource(votes="mine"), context).startswith("sha256:")
    problems = JsonlSource(jsonl=write(tmp_path / "problems.jsonl", ROWS))
    assert list(source_digests([CandidatesSource(candidates=(problems,))], context)) == ["jsonl:problems.jsonl"]


def test_a_branch_of_a_hub_set_becomes_its_commit(
    context: StageContext, hub: HubServer, tmp_path: Path, events: list[AnyEvent]
) -> None:
    write(tmp_path / "set" / "rows.jsonl", ROWS)
    commit = hub.publish_set("org/set", tmp_path / "set", license="mit")
    source = HubSource(hub="org/set", files="*.jsonl")
    (found,) = pinned(DataSettings(sources=(source,)), context).sources
    assert isinstance(found, HubSource) and found.revision == commit
    assert [e.text for e in events if isinstance(e, Note)] == [f"org/set is at {commit}"]
    assert source_digests([found], context) == {"hub:org/set": commit}
    inner = CandidatesSource(candidates=(source,))
    (outer,) = pinned(DataSettings(sources=(inner,)), context).sources
    assert isinstance(outer, CandidatesSource) and outer.candidates[0] == found


def test_an_optional_set_without_a_hub_is_recorded_as_absent(
    context: StageContext, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, events: list[AnyEvent]
) -> None:
    ask("http://127.0.0.1:9", monkeypatch, tmp_path)  # where nothing listens
    needed = HubSource(hub="org/set", files="*.jsonl")
    optional = msgspec.structs.replace(needed, optional=True)
    with pytest.raises(InputError, match="org/set"):
        pinned(DataSettings(sources=(needed,)), context)
    assert pinned(DataSettings(sources=(optional,)), context).sources == (optional,)
    assert [e.text for e in events if isinstance(e, Note)] == ["org/set can't be reached, and is left out"]
    assert source_digests([optional], context) == {"hub:org/set": ABSENT}


def test_folders_and_evaluation_sets_are_inputs(context: StageContext, tmp_path: Path) -> None:
    checkpoint = tmp_path / "checkpoint"
    write(checkpoint / "tokenizer.json", [])
    write(tmp_path / "earlier" / "train.jsonl", ROWS[:1])
    own = write(tmp_path / "own.jsonl", ROWS[:2])
    data = DataSettings(sources=(StdlibSource(stdlib="all"),), evaluation_sets=(own,))
    params = prepare.PrepareParams(
        checkpoint=str(checkpoint), data=data, folders={"earlier": str(tmp_path / "earlier")}
    )
    found = prepare.inputs(params, context)
    assert set(found) == {"checkpoint", "stdlib:python", "folder:earlier", "evaluation 0:own.jsonl", "grammars"}
    write(tmp_path / "earlier" / "train.jsonl", ROWS[1:2])
    assert prepare.inputs(params, context)["folder:earlier"] != found["folder:earlier"]
    lost = msgspec.structs.replace(params, data=DataSettings(evaluation_sets=(str(tmp_path / "lost.jsonl"),)))
    with pytest.raises(InputError, match=r"lost\.jsonl isn't there"):
        prepare.inputs(lost, context)


def test_a_reading_has_all_that_this_machine_can_give(context: StageContext, tmp_path: Path) -> None:
    from amigo_local.evaluation.sandbox import open_sandbox

    reading = reading_of(context, {"earlier": str(tmp_path)}, seed=3)
    assert (reading.home, reading.folders, reading.seed) == (context.workspace.root, {"earlier": tmp_path}, 3)
    assert reading.judge is not None and reading.open_hub is not None
    sandbox = open_sandbox()
    if not sandbox.can_run:
        pytest.skip(f"{sandbox.statement}: {sandbox.fix}")
    assert reading.judge("assert 1 + 1 == 2").passed
    assert not reading.judge("assert 1 + 1 == 3").passed

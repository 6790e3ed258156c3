"""Hub sets: the source `hub` over the real client, against a hub on loopback and without one."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from amigo_local.data.pair import Pair
from amigo_local.data.reading import HubAbsent, Reading, SourceFacts
from amigo_local.data.sources import hub as hub_source
from amigo_local.domain.data_source import HubSource
from amigo_local.domain.errors import InputError
from amigo_local.domain.events import AnyEvent, Note, Progress
from amigo_local.domain.settings import ProgramSettings
from amigo_local.engine.contract import StageContext
from amigo_local.engine.machine import measure_machine
from amigo_local.engine.workspace import Workspace
from amigo_local.stages._hub_sets import open_hub
from tests.support.hub_server import HubServer
from tests.support.ollama_server import free_port

ROWS = [{"instruction": f"ask {n}", "response": f"say {n}"} for n in range(30)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "set"
    (folder / "data").mkdir(parents=True)
    for part in range(3):
        rows = pa.Table.from_pylist(ROWS[part * 10 : part * 10 + 10])
        pq.write_table(rows, folder / "data" / f"train-0000{part}-of-00003.parquet")
    (folder / "set.py").write_text("raise SystemExit('run')")
    (folder / "extra.jsonl").write_text(json.dumps(ROWS[0]) + "\n{\n" + json.dumps(ROWS[1]))
    (folder / "README.md").write_text("---\nlicense: odc-by\n---\n")
    return folder


@pytest.fixture
def server(folder: Path) -> Iterator[HubServer]:
    with HubServer() as server:
        server.publish_set("org/set", folder, license="odc-by")
        server.publish_set("org/gated", folder, gated=True)
        yield server


class Reader:
    """One home, and a hub that may go away."""

    def __init__(self, home: Path, endpoint: str) -> None:
        settings = ProgramSettings()
        self.home, self.endpoint, self.events = home, endpoint, list[AnyEvent]()
        machine = measure_machine(home.parent, settings.machine)
        self.context = StageContext(Workspace(home), settings, machine, "run", self.events.append)

    def reading(self) -> Reading:
        return Reading(emit=self.events.append, open_hub=open_hub(self.context, self.endpoint))

    def read(self, source: HubSource) -> list[Pair]:
        self.last = self.reading()
        return list(hub_source.read(source, self.last))

    def look(self, source: HubSource) -> SourceFacts:
        return hub_source.look(source, self.reading())

    def notes(self, level: str) -> list[str]:
        return [event.text for event in self.events if isinstance(event, Note) and event.level == level]

    def offline(self) -> None:
        self.endpoint = f"http://127.0.0.1:{free_port()}"
        self.events.clear()


@pytest.fixture
def reader(server: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Reader:
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "no-token"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "client-cache"))
    return Reader(tmp_path / "home", server.url)


def source(**more: Any) -> HubSource:
    given = {"hub": "org/set", "files": "data/*.parquet", "prompt": "instruction", "completion": "response"}
    return HubSource(**(given | more))


def test_a_set_is_fetched_once_and_read_in_the_order_of_its_files(reader: Reader, server: HubServer) -> None:
    pairs = reader.read(source())
    assert [pair.prompt for pair in pairs] == [row["instruction"] for row in ROWS]
    assert pairs[10] == Pair(
        prompt="ask 10",
        completion="say 10",
        source="org/set",
        name="data/train-00001-of-00003.parquet row 1",
        license="odc-by",
    )
    fetched = {event.label for event in reader.events if isinstance(event, Progress) and event.unit == "bytes"}
    assert fetched == {f"fetching org/set train-0000{n}-of-00003.parquet" for n in range(3)}
    assert not any(name.endswith(".py") for name in server.sent_bytes)
    server.forget()
    assert reader.read(source()) == pairs and server.sent_bytes == {}


def test_only_files_that_are_needed_are_fetched(reader: Reader, server: HubServer) -> None:
    assert len(reader.read(source(rows=15))) == 15
    assert "train-00002-of-00003.parquet" not in server.sent_bytes


def test_a_corrupt_row_is_named_by_file_and_line(reader: Reader) -> None:
    assert [pair.name for pair in reader.read(source(files="extra.jsonl"))] == ["line 1", "line 3"]
    assert reader.last.places == {"not JSON": ["extra.jsonl:2"]}


def test_a_pinned_commit_that_is_here_needs_no_hub(reader: Reader, server: HubServer, tmp_path: Path) -> None:
    pairs = reader.read(source())
    commit = open_hub(reader.context, server.url)(source()).revision
    newer = tmp_path / "newer"
    newer.mkdir()
    (newer / "other.jsonl").write_text("{}")
    server.publish_set("org/set", newer)
    server.forget()
    assert reader.read(source(revision=commit)) == pairs and server.requests == []
    reader.offline()
    assert reader.read(source(revision=commit)) == pairs and reader.notes("warning") == []


def test_a_branch_is_read_as_it_was_when_no_hub_answers_and_that_is_said(reader: Reader) -> None:
    pairs = reader.read(source())
    reader.offline()
    assert reader.read(source()) == pairs
    [note] = reader.notes("info")
    assert "read from this disk" in note and "whether there is a newer commit" in note
    facts = reader.look(source())
    assert facts.reachable and facts.license == "odc-by" and facts.columns == ("instruction", "response")


def test_a_branch_that_was_pinned_before_it_was_fetched_is_found_without_a_hub(
    reader: Reader, server: HubServer
) -> None:
    commit = open_hub(reader.context, server.url)(source()).revision  # as `prepare` does: pinned, then read elsewhere
    pairs = reader.read(source(revision=commit))
    reader.offline()
    assert open_hub(reader.context, reader.endpoint)(source()).revision == commit
    assert reader.read(source()) == pairs


def test_what_the_hubs_own_client_fetched_is_read_without_a_hub(reader: Reader, tmp_path: Path) -> None:
    from huggingface_hub import hf_hub_download

    cache = tmp_path / "client-cache"
    for name in ("README.md", *(f"data/train-0000{part}-of-00003.parquet" for part in range(3))):
        hf_hub_download("org/set", name, repo_type="dataset", endpoint=reader.endpoint, cache_dir=cache)
    reader.offline()
    pairs = reader.read(source())
    assert len(pairs) == 30 and {pair.license for pair in pairs} == {"odc-by"}
    assert not (reader.home / "datasets").exists()
    next(cache.rglob("train-00001-of-00003.parquet")).unlink()
    with pytest.raises(HubAbsent, match=r"train-00001-of-00003\.parquet aren't here"):
        reader.read(source())


def test_an_unreachable_hub_stops_unless_the_source_is_optional(reader: Reader) -> None:
    reader.offline()
    with pytest.raises(HubAbsent, match=r"org/set: the hub at .* can't be reached") as raised:
        reader.read(source())
    assert "hf download org/set --repo-type dataset --include 'data/*.parquet'" in raised.value.hint
    assert reader.read(source(optional=True)) == []
    assert reader.last.skipped == {"hub not reached": 1}
    [warning] = reader.notes("warning")
    assert warning.startswith("org/set is left out: ")
    facts = reader.look(source(hub="bigcode/commitpackft"))
    assert not facts.reachable and "can't be reached" in facts.problem and facts.license == "MIT" and facts.fix
    assert facts.used == "instruction → request, response → answer"


def test_a_hub_that_is_down_is_as_absent_as_one_that_cant_be_reached(reader: Reader, server: HubServer) -> None:
    assert len(reader.read(source(rows=10))) == 10  # its first file alone
    server.is_down = True
    assert reader.read(source(hub="org/gated", optional=True)) == []
    with pytest.raises(HubAbsent, match="answers 503"):
        reader.read(source(hub="org/gated"))
    with pytest.raises(HubAbsent, match=r"train-00001-of-00003\.parquet, data/train-00002-of-00003\.parquet aren't"):
        reader.read(source())


def test_without_the_hubs_client_an_optional_set_is_gone_on_without(
    reader: Reader, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    assert reader.read(source(optional=True)) == []
    with pytest.raises(HubAbsent, match="needs its client") as raised:
        reader.read(source())
    assert "pip install" in raised.value.hint


def test_a_hub_that_didnt_answer_isnt_asked_for_every_set(reader: Reader, server: HubServer) -> None:
    server.is_down = True
    opened = open_hub(reader.context, server.url)
    for name in ("org/set", "org/gated", "org/other"):
        with pytest.raises(HubAbsent, match=f"{name}: .* answers 503"):
            opened(source(hub=name))
    assert len({request.path for request in server.requests}) == 1


def test_an_optional_set_that_breaks_off_in_the_middle_is_an_error(reader: Reader, server: HubServer) -> None:
    """Else the same recipe would give another set each time."""
    reading = reader.reading()
    pairs = hub_source.read(source(optional=True), reading)
    assert next(pairs).prompt == "ask 0"
    server.is_down = True
    with pytest.raises(HubAbsent, match=r"train-00001-of-00003\.parquet can't be fetched"):
        list(pairs)


@pytest.mark.parametrize("optional", [False, True])
def test_a_gated_set_without_a_token_says_what_to_do(reader: Reader, optional: bool) -> None:
    gated = source(hub="org/gated", optional=optional)
    with pytest.raises(InputError, match="org/gated is gated") as raised:
        reader.read(gated)
    assert f"{reader.endpoint}/datasets/org/gated" in raised.value.hint and "hf auth login" in raised.value.hint
    facts = reader.look(gated)
    assert not facts.reachable and facts.fix == raised.value.hint


def test_a_gated_set_opens_with_a_token(reader: Reader, server: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", server.token)
    assert len(reader.read(source(hub="org/gated", license="MIT"))) == 30


@pytest.mark.parametrize(
    ("name", "message", "hint"),
    [
        ("bigcode/python_self_instruct", "never published", "bigcode/self-oss-instruct-sc2-exec-filter-50k"),
        ("microsoft/buglab", "isn't on the hub", "bug_injection: stdlib"),
        ("bigcode/comitpackft", "shows no data set", "did you mean bigcode/commitpackft?"),
        ("org/none", "shows no data set org/none", "check its name"),
        ("none", "names no repository", ""),
    ],
)
def test_an_unknown_set_comes_with_its_substitute(reader: Reader, name: str, message: str, hint: str) -> None:
    unknown = source(hub=name)
    facts = reader.look(unknown)
    with pytest.raises(InputError, match=message if name != "none" else "none") as raised:
        reader.read(unknown)
    assert hint in raised.value.hint
    assert not facts.reachable and (facts.problem, facts.fix) == (raised.value.message, raised.value.hint)


@pytest.mark.parametrize("name", ["bigcode/humanevalpack", "openai/gsm8k", "google-research-datasets/mbpp"])
def test_an_evaluation_set_is_refused_before_anything_is_asked(reader: Reader, server: HubServer, name: str) -> None:
    with pytest.raises(InputError, match=f"{name} is an evaluation set"):
        reader.read(source(hub=name, optional=True))
    assert not reader.look(source(hub=name)).reachable
    assert server.requests == []


def test_a_set_whose_rows_are_an_evaluation_is_refused(reader: Reader, server: HubServer, tmp_path: Path) -> None:
    (tmp_path / "copy").mkdir()
    (tmp_path / "copy" / "data.jsonl").write_text(json.dumps(ROWS[0] | {"task_id": "HumanEval/0"}))
    server.publish_set("org/innocent", tmp_path / "copy")
    with pytest.raises(InputError, match=r"data.jsonl is an evaluation set \(HumanEval\)"):
        reader.read(source(hub="org/innocent", files="*.jsonl"))


def test_a_pattern_without_a_file_lists_what_there_is(reader: Reader) -> None:
    with pytest.raises(InputError, match=r"org/set has no file data/\*\.json at [0-9a-f]{12}") as raised:
        reader.read(source(files="data/*.json"))
    assert "data/train-00000-of-00003.parquet" in raised.value.message and ".py" not in raised.value.message
    with pytest.raises(InputError, match=r"set\.py can't be read"):
        reader.read(source(files="*.py"))


def test_a_renamed_column_is_told_with_those_that_are_there(reader: Reader) -> None:
    with pytest.raises(InputError, match=r"no column 'query' \(columns found: instruction, response\)"):
        reader.read(source(prompt="query"))
    facts = reader.look(source(prompt="query"))
    assert not facts.reachable and "no column 'query'" in facts.problem


def test_a_look_fetches_nothing(reader: Reader, server: HubServer) -> None:
    facts = reader.look(source())
    assert facts.reachable and facts.license == "odc-by" and len(facts.revision) == 40
    assert facts.columns == ("instruction", "response") and facts.used == "instruction → request, response → answer"
    assert facts.size_bytes == sum(path.stat().st_size for path in server_files(server))
    assert not reader.home.exists()


def server_files(server: HubServer) -> list[Path]:
    repository = server.repositories["datasets/org/set"]
    return sorted(repository.commits[repository.main].glob("data/*.parquet"))


def test_a_path_that_leaves_the_home_is_never_written(reader: Reader, server: HubServer, folder: Path) -> None:
    from amigo_local.serving.hub import Hub, HubFile, HubSnapshot
    from amigo_local.stages._hub_sets import _matching

    told = Hub(server.url).snapshot("org/set", repo_type="dataset")
    bad = HubSnapshot("org/set", told.revision, False, (HubFile("../../x.jsonl", 3), *told.files), "dataset")
    assert [file.path for file in _matching(bad, source(files="*.jsonl"))] == ["extra.jsonl"]


def test_without_a_hub_to_ask_the_source_is_absent() -> None:
    with pytest.raises(HubAbsent, match="no hub can be asked"):
        list(hub_source.read(source(), Reading(emit=lambda event: None)))

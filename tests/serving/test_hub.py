from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from amigo_local.domain.errors import AmigoError, Cancelled, InputError
from amigo_local.serving.hub import Hub, HubSnapshot, HubUnreachable
from tests.support.hub_server import HubServer
from tests.support.ollama_server import free_port

WEIGHTS = "model.safetensors"


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "llama"}')
    (folder / WEIGHTS).write_bytes(bytes(range(256)) * 8192)  # 2 MiB
    return folder


@pytest.fixture
def server(checkpoint: Path) -> Iterator[HubServer]:
    with HubServer() as server:
        server.publish("org/open", checkpoint)
        server.publish("org/gated", checkpoint, gated=True)
        yield server


@pytest.fixture
def hub(server: HubServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Hub:
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "no-token"))
    return Hub(server.url)


def fetch(hub: Hub, snapshot: HubSnapshot, out: Path, name: str = WEIGHTS) -> list[int]:
    """What on_bytes was told."""
    told: list[int] = []
    [file] = [file for file in snapshot.files if file.path == name]
    out.mkdir(exist_ok=True)
    hub.download(snapshot, file, out, told.append)
    return told


def test_a_snapshot_is_one_commit_whatever_main_becomes(server: HubServer, hub: Hub, tmp_path: Path) -> None:
    first = hub.snapshot("org/open")
    assert len(first.revision) == 40 and not first.gated
    assert first.sizes() == {"config.json": 23, WEIGHTS: 2 << 20}
    newer = tmp_path / "newer"
    newer.mkdir()
    (newer / "config.json").write_text("{}")
    second = server.publish("org/open", newer)
    assert hub.snapshot("org/open").revision == second
    assert hub.snapshot("org/open", first.revision) == first
    assert hub.read(first, "config.json", 0, 23) == b'{"model_type": "llama"}'


def test_ranges_bring_what_is_asked_for_and_no_more(server: HubServer, hub: Hub) -> None:
    snapshot = hub.snapshot("org/open")
    assert hub.read(snapshot, WEIGHTS, 1000, 1003) == bytes([232, 233, 234])
    assert hub.read(snapshot, WEIGHTS, 5, 5) == b""
    assert server.weight_bytes == 3


def test_a_dropped_connection_goes_on_where_it_broke_off(
    server: HubServer, hub: Hub, checkpoint: Path, tmp_path: Path
) -> None:
    server.drop_after = 500_000
    told = fetch(hub, hub.snapshot("org/open"), tmp_path / "out")
    assert server.dropped == {WEIGHTS}
    assert (tmp_path / "out" / WEIGHTS).read_bytes() == (checkpoint / WEIGHTS).read_bytes()
    assert sum(told) == 2 << 20
    assert [r.range for r in server.requests if r.path.startswith("/cdn")] == ["bytes=0-", "bytes=524288-"]
    assert server.weight_bytes == 2 << 20


DOWNLOAD = """
import sys
from pathlib import Path
from amigo_local.serving.hub import Hub
hub = Hub(sys.argv[1])
snapshot = hub.snapshot("org/open")
hub.download(snapshot, next(f for f in snapshot.files if f.path == "model.safetensors"), Path(sys.argv[2]), print)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="SIGKILL needs a POSIX system")
def test_a_killed_download_goes_on_where_it_ended(
    server: HubServer, hub: Hub, checkpoint: Path, tmp_path: Path
) -> None:
    """What huggingface_hub's own download would begin anew."""
    server.rate = 1e6
    out = tmp_path / "out"
    out.mkdir()
    partial = out / f"{WEIGHTS}.partial"
    environment = os.environ | {"HF_HUB_OFFLINE": "0", "PYTHONPATH": str(Path.cwd())}
    process = subprocess.Popen(
        [sys.executable, "-c", DOWNLOAD, server.url, str(out)], env=environment, stdout=subprocess.DEVNULL
    )
    while not partial.exists() or partial.stat().st_size < 300_000:
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    have = partial.stat().st_size
    assert 300_000 <= have < 1_500_000
    server.rate = 0.0
    server.forget()
    told = fetch(hub, hub.snapshot("org/open"), out)
    assert told[0] == have and sum(told) == 2 << 20
    assert [request.range for request in server.requests if request.path.startswith("/cdn")] == [f"bytes={have}-"]
    assert (out / WEIGHTS).read_bytes() == (checkpoint / WEIGHTS).read_bytes()
    server.forget()
    assert fetch(hub, hub.snapshot("org/open"), out) == [2 << 20]
    assert [request.path for request in server.requests if "/api/" not in request.path] == []


def test_what_arrives_damaged_is_refused_and_fetched_anew(server: HubServer, hub: Hub, tmp_path: Path) -> None:
    server.damaged.add(WEIGHTS)
    with pytest.raises(AmigoError, match="arrived damaged"):
        fetch(hub, hub.snapshot("org/open"), tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []
    fetch(hub, hub.snapshot("org/open"), tmp_path / "out")
    assert (tmp_path / "out" / WEIGHTS).exists()


def test_cancelling_keeps_what_has_come(server: HubServer, hub: Hub, tmp_path: Path) -> None:
    snapshot = hub.snapshot("org/open")
    [file] = [file for file in snapshot.files if file.path == WEIGHTS]
    (tmp_path / "out").mkdir()

    def cancel(count: int) -> None:
        if count:
            raise Cancelled

    with pytest.raises(Cancelled):
        hub.download(snapshot, file, tmp_path / "out", cancel)
    assert (tmp_path / "out" / f"{WEIGHTS}.partial").stat().st_size > 0
    told = fetch(hub, snapshot, tmp_path / "out")
    assert told[0] > 0 and sum(told) == 2 << 20


def test_a_gated_repository_says_how_to_get_in(
    server: HubServer, hub: Hub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    snapshot = hub.snapshot("org/gated")
    assert snapshot.gated
    with pytest.raises(InputError, match="org/gated is gated") as raised:
        hub.read(snapshot, "config.json", 0, 5)
    assert f"{server.url}/org/gated" in raised.value.hint and "hf auth login" in raised.value.hint
    with pytest.raises(InputError, match="is gated"):
        fetch(hub, snapshot, tmp_path / "out")

    monkeypatch.setenv("HF_TOKEN", server.token)
    server.forget()
    assert hub.read(snapshot, WEIGHTS, 0, 2) == b"\x00\x01"
    # The host that serves large files is another: the token must not go there.
    assert [(request.path.startswith("/cdn"), request.authorized) for request in server.requests] == [
        (False, True),
        (True, False),
    ]


@pytest.mark.parametrize(
    ("repo", "revision", "says"),
    [
        ("org/nothing", None, "shows no repository org/nothing"),
        ("org/open", "v9", "has no such revision"),
        ("no name at all", None, "names no repository"),
    ],
)
def test_what_isnt_there_is_named(repo: str, revision: str | None, says: str, hub: Hub) -> None:
    with pytest.raises(InputError, match=says) as raised:
        hub.snapshot(repo, revision)
    assert raised.value.hint


def test_a_file_that_isnt_there_is_an_error(hub: Hub) -> None:
    with pytest.raises(InputError, match="lost a file"):
        hub.read(hub.snapshot("org/open"), "nothing.json", 0, 1)


def test_a_hub_that_isnt_there_is_said_to_be_unreachable(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(HubUnreachable, match="can't be reached") as raised:
        Hub(f"http://127.0.0.1:{free_port()}").snapshot("org/open")
    assert "network" in raised.value.hint


def test_offline_mode_is_obeyed(server: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    from huggingface_hub import close_session

    close_session()
    try:
        with pytest.raises(HubUnreachable, match="HF_HUB_OFFLINE"):
            Hub(server.url).snapshot("org/open")
    finally:
        close_session()
    assert server.requests == []

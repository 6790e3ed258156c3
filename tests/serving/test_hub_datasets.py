from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from amigo_local.domain.errors import InputError
from amigo_local.serving.hub import Hub, HubFile, HubSnapshot, NotShown
from amigo_local.serving.set_cache import SetCache, client_snapshot, is_safe, missing_shards
from tests.support.hub_server import HubServer

PATH = "data/python/data.jsonl"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "set"
    (folder / PATH).parent.mkdir(parents=True)
    (folder / PATH).write_text('{"prompt": "a"}\n' * 1000)
    (folder / "train-0.parquet").write_bytes(b"PAR1" * 1000)
    (folder / "README.md").write_text("---\nlicense: mit\n---\n# A set\n")
    return folder


@pytest.fixture
def server(folder: Path) -> Iterator[HubServer]:
    with HubServer() as server:
        server.publish_set("org/set", folder, license="mit")
        server.publish_set("org/gated", folder, gated=True)
        yield server


@pytest.fixture
def hub(server: HubServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Hub:
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "no-token"))
    return Hub(server.url)


def test_a_data_set_is_told_with_its_licence_and_the_files_in_its_folders(hub: Hub, folder: Path) -> None:
    snapshot = hub.snapshot("org/set", repo_type="dataset")
    assert (snapshot.repo_type, snapshot.license, snapshot.gated) == ("dataset", "mit", False)
    assert snapshot.sizes() == {PATH: 16_000, "train-0.parquet": 4000, "README.md": 29}
    assert [file.path for file in snapshot.files if file.sha256] == ["train-0.parquet"]
    assert hub.read(snapshot, PATH, 3, 9) == b'rompt"'


def test_models_and_data_sets_of_one_name_are_two_things(hub: Hub) -> None:
    with pytest.raises(NotShown, match="shows no repository org/set"):
        hub.snapshot("org/set")


def test_its_files_arrive_whole_in_their_folders(hub: Hub, folder: Path, tmp_path: Path) -> None:
    snapshot = hub.snapshot("org/set", repo_type="dataset")
    for file in snapshot.files:
        (tmp_path / "out" / file.path).parent.mkdir(parents=True, exist_ok=True)
        hub.download(snapshot, file, tmp_path / "out", lambda count: None)
        assert (tmp_path / "out" / file.path).read_bytes() == (folder / file.path).read_bytes()


def test_a_gated_set_names_the_page_where_it_is_opened(hub: Hub, server: HubServer) -> None:
    snapshot = hub.snapshot("org/gated", repo_type="dataset")
    assert snapshot.gated
    with pytest.raises(NotShown, match="org/gated is gated") as raised:
        hub.read(snapshot, PATH, 0, 5)
    assert f"{server.url}/datasets/org/gated" in raised.value.hint and "hf auth login" in raised.value.hint


def test_a_kept_listing_is_found_by_its_commit_and_by_the_branch_that_was_at_it(hub: Hub, tmp_path: Path) -> None:
    snapshot = hub.snapshot("org/set", repo_type="dataset")
    cache = SetCache(tmp_path / "datasets")
    assert cache.listing("org/set", "main") is None
    cache.keep(snapshot, "main")
    assert cache.listing("org/set", "main") == cache.listing("org/set", snapshot.revision) == snapshot
    assert cache.listing("org/set", "0" * 40) is None and cache.listing("org/other", "main") is None


def test_a_file_counts_as_here_only_when_it_is_whole(hub: Hub, folder: Path, tmp_path: Path) -> None:
    snapshot = hub.snapshot("org/set", repo_type="dataset")
    cache = SetCache(tmp_path / "datasets")
    [file] = [file for file in snapshot.files if file.path == PATH]
    target = cache.directory(snapshot) / PATH
    target.parent.mkdir(parents=True)
    target.write_bytes((folder / PATH).read_bytes()[:-1])
    assert cache.file(snapshot, file) is None
    target.write_bytes((folder / PATH).read_bytes())
    assert cache.file(snapshot, file) == target


def test_what_the_hubs_own_client_has_fetched_is_found(
    server: HubServer, hub: Hub, folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Written by the real client, in its own layout."""
    from huggingface_hub import hf_hub_download

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    for name in (PATH, "README.md"):
        hf_hub_download("org/set", name, repo_type="dataset", endpoint=server.url, cache_dir=tmp_path / "hub")
    found = client_snapshot("org/set", "main")
    asked = hub.snapshot("org/set", repo_type="dataset")
    assert found is not None and found.revision == asked.revision and found.license == "mit"
    assert found.sizes() == {PATH: 16_000, "README.md": 29}
    [file] = [file for file in asked.files if file.path == PATH]
    there = SetCache(tmp_path / "datasets").file(asked, file)
    assert there is not None and there.read_bytes() == (folder / PATH).read_bytes()
    assert client_snapshot("org/set", "v2") is None and client_snapshot("org/other", "main") is None


def test_missing_shards_are_named() -> None:
    paths = ["data/train-00000-of-00003.parquet", "data/train-00002-of-00003.parquet", "data/other.parquet"]
    assert list(missing_shards(paths)) == ["data/train-00001-of-00003.parquet"]


@pytest.mark.parametrize("path", ["../a", "a/../../b", "/etc/passwd", "a\\..\\b", "C:/x", ""])
def test_a_path_that_leaves_its_folder_isnt_safe(path: str) -> None:
    assert not is_safe(path)
    assert is_safe("data/train-0.parquet")


def test_a_home_that_cant_be_written_is_a_plain_error(tmp_path: Path) -> None:
    (tmp_path / "datasets").write_text("")
    snapshot = HubSnapshot("org/set", "0" * 40, False, (HubFile("a.jsonl", 1),), "dataset")
    with pytest.raises(InputError, match="can't be written"):
        SetCache(tmp_path / "datasets").keep(snapshot, "main")

from __future__ import annotations

from pathlib import Path

import pytest

from amigo_local.domain.artifact import Artifact
from amigo_local.engine.fingerprint import DigestCache, digest_path, fingerprint, size_of
from amigo_local.engine.workspace import Workspace

MARK = "f" * 64


def build(workspace: Workspace, text: str = "weights") -> tuple[Artifact, Path, Path]:
    workspace.prepare()
    target = workspace.default_path("train", MARK)
    built = target.with_name(f"{target.name}.partial")
    (built / "deep").mkdir(parents=True)
    (built / "deep" / "adapter.bin").write_text(text)
    artifact = Artifact("adapter", str(target), digest_path(built), size_of(built), "train", MARK)
    return artifact, built, target


def test_a_commit_is_found_again_and_a_changed_artifact_is_not(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path)
    artifact, built, target = build(workspace)
    assert workspace.committed("train", MARK) is None
    workspace.commit(artifact, built, target)
    assert workspace.committed("train", MARK) == artifact
    assert not built.exists() and workspace.unfinished() == []
    (target / "deep" / "adapter.bin").write_text("cut")
    assert workspace.committed("train", MARK) is None


def test_a_kill_between_the_two_renames_of_a_commit_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    workspace = Workspace(tmp_path)
    artifact, built, target = build(workspace)
    real = Path.replace

    def killed(path: Path, to: Path) -> Path:
        if path.name.endswith(".json.partial"):
            raise KeyboardInterrupt
        return real(path, to)

    monkeypatch.setattr(Path, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        workspace.commit(artifact, built, target)
    monkeypatch.undo()
    assert not workspace.record_path("train", MARK).exists()
    assert Workspace(tmp_path).committed("train", MARK) == artifact


def test_a_kill_before_the_first_rename_commits_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    workspace = Workspace(tmp_path)
    artifact, built, target = build(workspace)
    monkeypatch.setattr(Path, "replace", lambda path, to: (_ for _ in ()).throw(KeyboardInterrupt()))
    with pytest.raises(KeyboardInterrupt):
        workspace.commit(artifact, built, target)
    monkeypatch.undo()
    assert Workspace(tmp_path).committed("train", MARK) is None
    assert built in Workspace(tmp_path).unfinished()


def test_a_fingerprint_depends_on_stage_version_params_and_inputs_but_not_on_order() -> None:
    mark = fingerprint("train", 1, {"a": 1, "b": 2}, {"x": "sha256:1"})
    assert mark == fingerprint("train", 1, {"b": 2, "a": 1}, {"x": "sha256:1"})
    others = [
        fingerprint("merge", 1, {"a": 1, "b": 2}, {"x": "sha256:1"}),
        fingerprint("train", 2, {"a": 1, "b": 2}, {"x": "sha256:1"}),
        fingerprint("train", 1, {"a": 1, "b": 3}, {"x": "sha256:1"}),
        fingerprint("train", 1, {"a": 1, "b": 2}, {"x": "sha256:2"}),
    ]
    assert len({mark, *others}) == 5


def test_the_digest_cache_sees_a_changed_file_and_survives_a_torn_cache(tmp_path: Path) -> None:
    file = tmp_path / "model.gguf"
    file.write_bytes(b"one")
    cache_path = tmp_path / "digests.json"
    first = DigestCache(cache_path).digest(file)
    assert DigestCache(cache_path).digest(file) == first == digest_path(file)
    file.write_bytes(b"twoo")
    assert DigestCache(cache_path).digest(file) == digest_path(file) != first
    cache_path.write_bytes(b'{"torn')
    assert DigestCache(cache_path).digest(file) == digest_path(file)


def test_a_directory_digest_covers_names_and_bytes(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "x").write_text("1")
    before = digest_path(tmp_path / "a")
    (tmp_path / "a" / "x").rename(tmp_path / "a" / "y")
    renamed = digest_path(tmp_path / "a")
    (tmp_path / "a" / "y").write_text("2")
    assert len({before, renamed, digest_path(tmp_path / "a")}) == 3

"""models ls, show and rm with a real Ollama server and a home whose artifacts say what they were made from."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from amigo_local.domain.artifact import Artifact
from amigo_local.domain.events import AnyEvent, LineageShown, Note, StageFailed, Table
from amigo_local.engine.fingerprint import digest_path, size_of
from amigo_local.engine.lock import hold_home
from amigo_local.engine.workspace import Workspace
from amigo_local.serving.ollama_server import OllamaServer
from tests.support.command_here import amigo_here
from tests.support.made_home import TAG, MadeHome
from tests.support.ollama_server import RealOllama
from tests.support.tiny_gguf import write_tiny_llama


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory, ollama_server: RealOllama) -> MadeHome:
    return MadeHome(tmp_path_factory.mktemp("verbs"), ollama_server)


def table(events: list[AnyEvent], title: str) -> Table:
    return next(event for event in events if isinstance(event, Table) and event.title == title)


def test_every_listed_ref_can_be_shown(home: MadeHome) -> None:
    listed = table(home.ask("models"), "Models")
    own = [row for row in listed.rows if "verbs-" in str(row[0]) or row[1] in ("adapter", "gguf")]
    assert sorted(str(row[1]) for row in own) == ["Ollama", "Ollama", "adapter", "gguf"]
    assert {row[5] for row in own if row[1] == "Ollama"} == {512}
    for row in own:
        assert table(home.ask("models", "show", str(row[-1])), str(row[-1])).rows


def test_context_lengths_are_asked_once_and_a_tag_that_cannot_be_shown_is_a_row(home: MadeHome) -> None:
    home.ask("models")
    known = msgspec.json.decode((home.workspace.cache_dir / "context_lengths.json").read_bytes())
    assert home.server.log.read_text(errors="replace").count("/api/show") > 0
    before = home.server.log.read_text(errors="replace").count("/api/show")
    home.ask("models")
    assert home.server.log.read_text(errors="replace").count("/api/show") == before
    assert set(known.values()) >= {512}
    # A manifest that names a layer which is gone: listed by the server, and can't be described.
    manifests = home.server.models / "manifests" / "registry.ollama.ai" / "library"
    broken = manifests / "verbs-broken" / "latest"
    broken.parent.mkdir()
    text = (manifests / "verbs-source" / "latest").read_text()
    model = home.base_digest.removeprefix("sha256:")
    assert model in text
    broken.write_text(text.replace(model, "0" * 64))
    try:
        rows = {row[0]: row for row in table(home.ask("models"), "Models").rows}
        assert rows["verbs-broken:latest"][5] is None and rows["verbs-source:latest"][5] == 512
    finally:
        broken.unlink()
        broken.parent.rmdir()


def test_lineage_tells_which_recipe_made_the_tag_and_from_what(home: MadeHome) -> None:
    (shown,) = [event for event in home.ask("models", "show", TAG) if isinstance(event, LineageShown)]
    registered = shown.origin
    assert (registered.stage, registered.name) == ("register", TAG)
    (export,) = [source for source in registered.sources if source.stage == "export"]
    assert (export.digest, export.tags, export.recipe) == (home.export.digest, (TAG,), "direct")
    base, adapter = export.sources
    assert (base.role, base.name, base.tags) == ("base", "ollama:verbs-source", ("verbs-source:latest",))
    assert (adapter.stage, adapter.recipe, adapter.run_id) == ("train", "direct", "r1")
    assert adapter.sources[0].digest == home.base_digest
    (from_base,) = [e for e in home.ask("models", "show", "verbs-source") if isinstance(e, LineageShown)]
    assert {child.stage for child in from_base.made_from_it} == {"register", "train", "export"}


def test_tensors_by_type_add_up_to_what_the_gguf_library_reads(home: MadeHome) -> None:
    from gguf import GGUFReader

    tensors = GGUFReader(home.export.path).tensors
    rows = table(home.ask("models", "show", home.export.path), "Tensors by type").rows
    assert {row[0] for row in rows} == {tensor.tensor_type.name for tensor in tensors}
    assert sum(int(row[1] or 0) for row in rows) == len(tensors)
    assert sum(int(row[2] or 0) for row in rows) == sum(int(tensor.n_elements) for tensor in tensors)
    assert sum(int(row[3] or 0) for row in rows) == sum(int(tensor.n_bytes) for tensor in tensors)
    assert sum(float(row[4] or 0) for row in rows) == pytest.approx(1)


def test_rm_removes_a_tag_of_the_server_only_with_yes_and_not_while_a_run_holds_the_home(home: MadeHome) -> None:
    server = OllamaServer(home.server.host)
    home.ask("register", str(home.folder / "base.gguf"), "--tag", "verbs-gone")
    asked = home.ask("models", "rm", "verbs-gone")
    assert table(asked, "Would be removed").rows[0][0] == "verbs-gone:latest"
    assert any(isinstance(e, Note) and e.fix == "amigo-local models rm verbs-gone --yes" for e in asked)
    assert server.has("verbs-gone")
    with hold_home(home.workspace.root, "amigo-local run x"):
        refused = home.ask("models", "rm", "verbs-gone", "--yes", exit_code=2)
    assert any(isinstance(e, StageFailed) and "in use by `amigo-local run x`" in e.message for e in refused)
    assert server.has("verbs-gone")
    home.ask("models", "rm", "verbs-gone", "--yes")
    assert not server.has("verbs-gone") and server.has("verbs-source")
    home.ask("models", "rm", "verbs-gone", exit_code=2)


def test_rm_tells_what_depends_on_an_artifact_and_refuses_what_is_not_of_this_home(home: MadeHome) -> None:
    shown = table(home.ask("models", "rm", home.adapter.path), "Depends on it")
    assert [row[0] for row in shown.rows] == [home.export.path]
    assert Path(home.adapter.path).exists()
    outside = str(home.folder / "base.gguf")
    refused = home.ask("models", "rm", outside, "--yes", exit_code=2)
    assert any(isinstance(e, StageFailed) and "no artifact of" in e.message for e in refused)
    assert Path(outside).exists()


def test_rm_keeps_a_file_that_our_library_serves_until_its_tag_is_gone(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path / "home")
    workspace.prepare()
    target = workspace.default_path("export", "lib".ljust(64, "0")) / "m.gguf"
    built = write_tiny_llama(tmp_path / "m.gguf", seed=13)
    artifact = Artifact("gguf", str(target), digest_path(built), size_of(built), "export", "lib".ljust(64, "0"))
    workspace.commit(artifact, built, target)
    off = ("--set", "ollama.use=false")
    assert amigo_here(tmp_path / "home", "register", str(target), "--tag", "lib", *off).returncode == 0
    refused = amigo_here(tmp_path / "home", "models", "rm", str(target), "--yes", *off)
    assert refused.returncode == 2 and "models rm lib:latest --yes" in refused.stderr and target.exists()
    assert amigo_here(tmp_path / "home", "models", "rm", "lib", "--yes", *off).returncode == 0
    assert amigo_here(tmp_path / "home", "models", "rm", str(target), "--yes", *off).returncode == 0
    assert not target.exists() and not workspace.record_path("export", artifact.fingerprint).exists()
    assert amigo_here(tmp_path / "home", "models", "rm", str(target), *off).returncode == 2

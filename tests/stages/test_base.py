"""The verb `base` against a hub on loopback: what it refuses before it downloads, what it proves, what it leaves."""

from __future__ import annotations

import functools
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import transformers

from amigo_local.domain.artifact import Artifact
from amigo_local.domain.errors import AmigoError, InputError
from amigo_local.domain.events import Note, StageFinished, StageSkipped
from amigo_local.domain.settings import OllamaSettings, ProgramSettings
from amigo_local.engine.contract import StageContext, StageResult
from amigo_local.engine.machine import measure_machine
from amigo_local.engine.workspace import Workspace
from amigo_local.serving.hub import Hub
from amigo_local.stages import base
from amigo_local.stages._models import resolve
from amigo_local.weights.unpack import unpack
from tests.support.command_line import SCRIPT, environment
from tests.support.hub_server import HubServer
from tests.support.ollama_server import free_port
from tests.support.tiny_gguf import write_tiny_gemma3, write_tiny_llama
from tests.weights.conftest import Events
from tests.weights.test_compare_base import Weights, altered, low_rank, multimodal, quantized_by_llama_cpp

COUNT = "model.safetensors"


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """original/ (f32), tuned/, other/ of the same shape, wide/ of another, and model.gguf: the original in Q4_K_M."""
    folder = tmp_path_factory.mktemp("models")
    exact = write_tiny_llama(folder / "exact.gguf", weight_type="f32")
    unpack(exact, folder / "original", "f32", Events())
    quantized_by_llama_cpp(exact, folder / "model.gguf", "Q4_K_M")
    unpack(write_tiny_llama(folder / "o.gguf", weight_type="f32", seed=5), folder / "other", "f32", Events())
    unpack(write_tiny_gemma3(folder / "g.gguf", weight_type="f32"), folder / "wide", "f32", Events())

    def tune(weights: Weights) -> None:
        for name in weights:
            if "layers.2." in name:
                weights[name] = low_rank(weights[name], 0.02) if weights[name].ndim == 2 else weights[name] * 1.02

    altered(folder / "original", folder / "tuned", tune)
    return folder


@pytest.fixture(scope="module")
def server(models: Path) -> Iterator[HubServer]:
    with HubServer() as server:
        for name in ("original", "tuned", "other", "wide"):
            server.publish(f"org/{name}", models / name)
        server.publish("org/gated", models / "original", gated=True)
        yield server


@pytest.fixture(autouse=True)
def hub(server: HubServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The client is pointed at the server, and has no token."""
    monkeypatch.setattr("amigo_local.serving.hub.Hub", functools.partial(Hub, server.url))
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "no-token"))
    server.forget()


class Fetch:
    """The step of the verb in this process, with a build directory of its own."""

    def __init__(self, folder: Path, server: HubServer) -> None:
        self._server = server
        self.events = Events()
        self.build = folder / "build.partial"
        settings = ProgramSettings(ollama=OllamaSettings(use=False))
        workspace = Workspace(folder / "home")
        workspace.prepare()
        machine = measure_machine(folder, settings.machine)
        self.context = StageContext(workspace, settings, machine, "run", self.events, self.build)

    def __call__(self, gguf: Path, repo: str, accept: bool = False) -> StageResult:
        self.build.mkdir(exist_ok=True)
        revision = self._server.repositories[repo].main
        return base.run(base.BaseParams(ref=str(gguf), repo=repo, revision=revision, accept=accept), self.context)

    def notes(self) -> str:
        return "\n".join(f"{event.text} [{event.fix}]" for event in self.events if isinstance(event, Note))

    def list(self, gguf: Path) -> str:
        """What the verb says without --repo."""
        assert list(base.steps(base.BaseRequest(ref=str(gguf)), self.context)) == []
        return self.notes()


@pytest.fixture
def fetch(tmp_path: Path, server: HubServer) -> Fetch:
    return Fetch(tmp_path, server)


def test_the_original_is_fetched_pinned_and_proven(fetch: Fetch, models: Path, server: HubServer) -> None:
    result = fetch(models / "model.gguf", "org/original")
    assert result.payload == "checkpoint"
    assert result.figures["repo"] == "org/original" and result.figures["verdict"] == "identical"
    assert result.figures["revision"] == server.repositories["org/original"].main
    assert result.figures["tensors"] == 38 and result.figures["changed_tensors"] == 0
    assert 0.05 < float(result.figures["worst_error"] or 0) < 0.1  # Q4_K on Gaussian weights
    checkpoint = fetch.build / "checkpoint"
    assert (checkpoint / COUNT).read_bytes() == (models / "original" / COUNT).read_bytes()
    report = json.loads((checkpoint / base.REPORT).read_text())
    assert len(report["tensors"]) == 38 and report["figures"] == result.figures
    assert [path.name for path in fetch.build.iterdir()] == ["checkpoint"]
    assert "is what model.gguf was made from: all 38 tensors" in fetch.notes()
    transformers.AutoModelForCausalLM.from_pretrained(checkpoint)
    transformers.AutoTokenizer.from_pretrained(checkpoint)


def test_a_tuned_original_is_told_with_the_layer_that_was_tuned(fetch: Fetch, models: Path) -> None:
    result = fetch(models / "model.gguf", "org/tuned")
    assert result.figures["verdict"] == "fine-tuned" and result.figures["changed_tensors"] == 9
    assert "9 of 38 tensors compared differ by more than quantization explains" in fetch.notes()
    assert "most: layer 2 by" in fetch.notes()


def test_another_shape_is_refused_without_a_byte_of_weights(fetch: Fetch, models: Path, server: HubServer) -> None:
    with pytest.raises(InputError, match=r"org/wide is another model than model\.gguf"):
        fetch(models / "model.gguf", "org/wide")
    # The table of the file, which is shorter than the first read.
    assert server.weight_bytes <= 64 << 10
    assert not fetch.build.exists()


def test_another_model_of_the_same_shape_is_refused_after_a_few_rows(
    fetch: Fetch, models: Path, server: HubServer
) -> None:
    with pytest.raises(
        AmigoError, match=r"org/other is not what model\.gguf was made from: its weights differ by 1[34]\d%"
    ) as raised:
        fetch(models / "model.gguf", "org/other")
    assert "--accept" in raised.value.hint
    assert server.weight_bytes < 0.04 * (models / "other" / COUNT).stat().st_size
    assert not fetch.build.exists()


def test_another_model_is_taken_when_it_is_accepted(fetch: Fetch, models: Path) -> None:
    result = fetch(models / "model.gguf", "org/other", accept=True)
    assert result.figures["verdict"] == "another"
    assert "is not what model.gguf was made from" in fetch.notes()


def test_a_gated_repository_without_a_token_is_refused_with_the_way_in(
    fetch: Fetch, models: Path, monkeypatch: pytest.MonkeyPatch, server: HubServer
) -> None:
    with pytest.raises(InputError, match="org/gated is gated") as raised:
        fetch(models / "model.gguf", "org/gated")
    assert "hf auth login" in raised.value.hint and not fetch.build.exists()
    monkeypatch.setenv("HF_TOKEN", server.token)
    assert fetch(models / "model.gguf", "org/gated").figures["verdict"] == "identical"


def test_a_multimodal_original_becomes_a_checkpoint_of_its_language_model(
    fetch: Fetch, tmp_path: Path, models: Path, server: HubServer
) -> None:
    unpack(models / "g.gguf", tmp_path / "plain", "f32", Events())
    server.publish("org/multimodal", multimodal(tmp_path / "plain", tmp_path / "m", "language_model.model."))
    result = fetch(models / "g.gguf", "org/multimodal")
    assert result.figures["verdict"] == "identical"
    assert "vision tower was left out" in fetch.notes()
    model = transformers.AutoModelForCausalLM.from_pretrained(fetch.build / "checkpoint")
    assert type(model).__name__ == "Gemma3ForCausalLM"
    assert sorted(path.name for path in fetch.build.iterdir()) == ["checkpoint"]


def test_only_what_belongs_to_the_checkpoint_is_fetched(
    fetch: Fetch, tmp_path: Path, models: Path, server: HubServer
) -> None:
    full = shutil.copytree(models / "original", tmp_path / "full")
    for name in ("consolidated.safetensors", "pytorch_model.bin", "README.md", "training_args.bin", "model.gguf"):
        (full / name).write_bytes(b"x" * 100)
    server.publish("org/full", full)
    fetch(models / "model.gguf", "org/full")
    fetched = {path.name for path in (fetch.build / "checkpoint").iterdir()}
    assert fetched == {path.name for path in (models / "original").iterdir()} | {base.REPORT}


def test_a_finished_checkpoint_is_not_fetched_again(fetch: Fetch, models: Path, server: HubServer) -> None:
    """A kill between the last rename and the commit."""
    first = fetch(models / "model.gguf", "org/original")
    server.forget()
    assert fetch(models / "model.gguf", "org/original") == first
    assert server.weight_bytes == 0


def known_shape(models: Path, **names: str) -> Path:
    """The tiny model with names in its metadata, as converters write them."""
    import gguf

    target = models / "named.gguf"
    reader = gguf.GGUFReader(models / "model.gguf")
    writer = gguf.GGUFWriter(target, "llama")
    for key, field in reader.fields.items():
        if not key.startswith("GGUF.") and key not in ("general.architecture", "general.name"):
            inner = field.types[-1] if len(field.types) > 1 else None
            writer.add_key_value(key, field.contents(), field.types[0], inner)
    for key, value in names.items():
        writer.add_string(f"general.{key.replace('__', '.')}", value)
    for tensor in reader.tensors:
        writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return target


def test_candidates_are_looked_at_and_the_original_is_the_one_to_fetch(
    fetch: Fetch, models: Path, server: HubServer
) -> None:
    named = known_shape(
        models,
        source__repo_url="https://huggingface.co/org/other",
        base_model__0__repo_url="https://huggingface.co/org/gated",
        base_model__1__repo_url="https://huggingface.co/org/tuned",
        base_model__2__repo_url="https://huggingface.co/org/original",
    )
    said = fetch.list(named)
    assert "org/other (may be gated): the file says that it was converted from it" in said
    assert "at a glance, org/other is not what named.gguf was made from" in said
    assert "org/gated is gated" in said and "hf auth login" in said
    assert "at a glance, named.gguf was tuned from org/tuned" in said
    assert "at a glance, org/original is what named.gguf was made from" in said
    assert said.endswith(f"[amigo-local base {named} --repo org/original]")
    assert server.weight_bytes < 0.15 * (models / "original" / COUNT).stat().st_size


def test_without_a_hub_candidates_are_listed_all_the_same(
    fetch: Fetch, models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nowhere = f"http://127.0.0.1:{free_port()}"
    monkeypatch.setattr("amigo_local.serving.hub.Hub", functools.partial(Hub, nowhere))
    named = known_shape(models, source__repo_url="https://huggingface.co/org/original")
    said = fetch.list(named)
    assert f"not looked at: the hub at {nowhere} can't be reached" in said
    assert said.endswith(f"[amigo-local base {named} --repo org/original]")
    with pytest.raises(InputError, match="can't be reached"):
        next(base.steps(base.BaseRequest(ref=str(named), repo="org/original"), fetch.context))


def test_a_model_that_nobody_knows_says_so(fetch: Fetch, models: Path) -> None:
    assert "no well-known model has its shape [amigo-local base" in fetch.list(models / "model.gguf")


def online(home: Path, server: HubServer) -> dict[str, str]:
    return environment(home) | {"HF_ENDPOINT": server.url, "HF_HUB_OFFLINE": "0", "HF_HOME": str(home / "hf")}


@pytest.mark.skipif(sys.platform == "win32", reason="SIGKILL needs a POSIX system")
def test_the_command_survives_a_kill_in_its_download_and_its_result_is_a_recipes_base(
    tmp_path: Path, models: Path, server: HubServer
) -> None:
    command = [str(SCRIPT), "base", str(models / "model.gguf"), "--repo", "org/original", "--json"]
    whole = (models / "original" / COUNT).stat().st_size
    server.rate = 3e6
    first = subprocess.Popen(command, env=online(tmp_path, server), stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while server.weight_bytes < 0.3 * whole:
        assert first.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    workers = psutil.Process(first.pid).children(recursive=True)
    first.kill()
    first.wait()
    _, alive = psutil.wait_procs(workers, timeout=20)
    assert workers and not alive
    server.rate = 0.0
    [partial] = (tmp_path / "artifacts").glob(f"base-*.partial/fetched/{COUNT}.partial")
    have = partial.stat().st_size
    assert 0 < have < whole
    server.forget()

    done = subprocess.run(command, env=online(tmp_path, server), capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    downloads = [request.range for request in server.requests if "/cdn/" in request.path]
    assert downloads == [f"bytes={have}-"], "neither looked at again nor fetched from its beginning"
    artifact = finished(done.stdout)
    assert artifact.kind == "checkpoint" and artifact.figures["verdict"] == "identical"
    recipe = f"model.base: {artifact.path}"
    assert recipe in done.stdout

    server.forget()
    pinned = [*command, "--revision", str(artifact.figures["revision"])]
    again = subprocess.run(pinned, env=online(tmp_path, server), capture_output=True, text=True, timeout=120)
    assert again.returncode == 0 and finished(again.stdout).path == artifact.path
    assert server.requests == [], "a pinned base that is here needs no hub"
    settings = ProgramSettings(ollama=OllamaSettings(use=False))
    context = StageContext(Workspace(tmp_path), settings, measure_machine(tmp_path, settings.machine), "", Events())
    usable = resolve(artifact.path, context)
    assert usable.digest == artifact.digest and usable.shape().layers == 4


def finished(stdout: str) -> Artifact:
    from amigo_local.domain.events import decode_record

    events = [decode_record(line).event for line in stdout.splitlines()]
    found = [event.artifact for event in events if isinstance(event, StageFinished | StageSkipped) and event.artifact]
    assert len(found) == 1
    return found[0]

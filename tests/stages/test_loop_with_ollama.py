"""The contract of the command line, on one finished loop: an Ollama tag in, a refined tag out.

The loop, and a verb that nothing else starts as a process, are processes of their own; the rest runs here.
"""

from __future__ import annotations

import json
from pathlib import Path

import httpx
import pytest

from amigo_local.domain.events import GenerationFinished, Note, StageFinished, StageSkipped, Table, TokenGenerated
from tests.support.command_here import amigo_here, amigo_records_here
from tests.support.command_line import amigo, amigo_records, events
from tests.support.ollama_server import RealOllama
from tests.support.tiny_run import write_tiny_run

SOURCE, REFINED = "loop-source", "loop-refined"
SYSTEM = 'You answer "at once".\tNo prose.'


class FinishedLoop:
    def __init__(self, home: Path, recipe: Path, server: RealOllama) -> None:
        self.home, self.recipe, self.url = home, recipe, server.url
        self.code, self.records = amigo_records(
            home, "run", str(recipe), "--model", SOURCE, "--set", f"ollama.store={server.models}", ollama=server.url
        )
        self.store = ["--set", f"ollama.store={server.models}"]

    def amigo(self, *arguments: str) -> str:
        done = amigo_here(self.home, *arguments, *self.store, ollama=self.url)
        assert done.returncode == 0, done.stderr
        return done.stdout + done.stderr

    def finished(self, stage: str) -> StageFinished:
        return next(r.event for r in self.records if r.stage == stage and isinstance(r.event, StageFinished))


@pytest.fixture(scope="module")
def loop(tmp_path_factory: pytest.TempPathFactory, ollama_server: RealOllama) -> FinishedLoop:
    """The tag is made by the server's own API, with a system text and parameters to carry over."""
    folder = tmp_path_factory.mktemp("loop")
    recipe = write_tiny_run(folder, REFINED)
    home = folder / "home"
    made = amigo_here(home, "register", str(folder / "tiny.gguf"), "--tag", "loop-plain", ollama=ollama_server.url)
    assert made.returncode == 0, made.stderr
    parameters = {"temperature": 0.25, "num_ctx": 512}
    request = {"model": SOURCE, "from": "loop-plain", "system": SYSTEM, "parameters": parameters}
    httpx.post(f"{ollama_server.url}/api/create", json=request | {"stream": False}, timeout=60).raise_for_status()
    finished = FinishedLoop(home, recipe, ollama_server)
    assert finished.code == 0, [r.event for r in finished.records][-3:]
    return finished


def shown(url: str, tag: str) -> dict[str, object]:
    return dict(httpx.post(f"{url}/api/show", json={"model": tag}).raise_for_status().json())


def test_the_refined_tag_has_the_template_system_and_parameters_of_the_source(loop: FinishedLoop) -> None:
    before, after = shown(loop.url, SOURCE), shown(loop.url, REFINED)
    assert after["system"] == before["system"] == SYSTEM
    assert after["template"] == before["template"]
    assert sorted(str(after["parameters"]).split()) == sorted(str(before["parameters"]).split())
    modelfile = Path(loop.finished("register").artifact.path) / "Modelfile"  # type: ignore[union-attr]
    assert modelfile.read_text().startswith("FROM ")


def test_both_answered_through_the_server(loop: FinishedLoop) -> None:
    answers = [r.event for r in loop.records if r.stage == "evaluate" and isinstance(r.event, GenerationFinished)]
    assert {answer.side for answer in answers} == {0, 1}
    assert str(loop.finished("evaluate").figures["backend"]).startswith("Ollama 0.")
    report = Path(loop.finished("evaluate").artifact.path) / "report.md"  # type: ignore[union-attr]
    text = report.read_text()
    assert "Ollama" in text and REFINED in text and "Side by side" in text


def test_the_checks_are_stored_with_what_they_were_made_on(loop: FinishedLoop) -> None:
    tokenizer, quantized, exported = (loop.finished(name).figures for name in ("tokenizer", "quantize", "export"))
    assert tokenizer["differing_texts"] == 0 and int(tokenizer["texts"] or 0) > 500
    assert 0.08 < float(quantized["mean_error"] or 0) < 0.1 and quantized["linears"] == 28  # NF4 of normal weights
    assert 0 < float(exported["kl_mean"] or 0) < 0.1  # q8_0
    stored = json.loads(next((loop.home / "artifacts").glob("export-*.json")).read_text())
    assert stored["figures"]["kl_mean"] == exported["kl_mean"]


def test_the_export_keeps_metadata_and_changes_the_weights(loop: FinishedLoop) -> None:
    from gguf import GGUFReader

    before = GGUFReader(loop.recipe.with_name("tiny.gguf"))
    after = GGUFReader(loop.finished("export").artifact.path)  # type: ignore[union-attr]
    assert [t.name for t in before.tensors] and {t.name for t in before.tensors} == {t.name for t in after.tensors}
    key = "tokenizer.ggml.tokens"
    assert before.fields[key].contents() == after.fields[key].contents()
    old, new = ({t.name: t.data.tobytes() for t in reader.tensors} for reader in (before, after))
    assert old["blk.0.attn_q.weight"] != new["blk.0.attn_q.weight"]


def test_a_second_run_skips_everything_and_a_removed_tag_is_registered_again(loop: FinishedLoop) -> None:
    code, records = amigo_records_here(
        loop.home, "run", str(loop.recipe), "--model", SOURCE, *loop.store, ollama=loop.url
    )
    assert code == 0 and len(events(records, StageSkipped)) == 7 and not events(records, StageFinished)
    httpx.request("DELETE", f"{loop.url}/api/delete", json={"model": REFINED}).raise_for_status()
    code, records = amigo_records_here(
        loop.home, "run", str(loop.recipe), "--model", SOURCE, *loop.store, ollama=loop.url
    )
    assert code == 0
    assert [r.stage for r in records if isinstance(r.event, StageFinished)] == ["register"]


def test_plan_says_what_is_done(loop: FinishedLoop) -> None:
    code, records = amigo_records_here(
        loop.home, "plan", str(loop.recipe), "--model", SOURCE, *loop.store, ollama=loop.url
    )
    (table,) = events(records, Table)
    assert code == 0
    assert [row[:2] for row in table.rows] == [  # type: ignore[union-attr]
        (stage, "done") for stage in ("tokenizer", "prepare", "quantize", "train", "export", "register", "evaluate")
    ]
    other = ["--set", "train.learning_rate=5e-4", *loop.store]
    _, records = amigo_records_here(loop.home, "plan", str(loop.recipe), "--model", SOURCE, *other, ollama=loop.url)
    table, levers = events(records, Table)
    assert table.title == "Plan of tiny" and levers.title == "Levers of training"  # type: ignore[union-attr]
    states = {row[0]: row[1] for row in table.rows}  # type: ignore[union-attr]
    assert states["prepare"] == states["quantize"] == "done" and states["train"] == states["evaluate"] == "to do"


def test_memory_that_is_too_small_for_training_is_refused_with_the_nearest_that_fits(loop: FinishedLoop) -> None:
    small = ["--set", "machine.ram=580MiB", "--set", "train.learning_rate=6e-4", *loop.store]
    done = amigo_here(loop.home, "train", str(loop.recipe), "--model", SOURCE, *small, ollama=loop.url)
    assert done.returncode == 2 and "RAM: training needs" in done.stderr and "hint: " in done.stderr


def test_chat_with_one_and_with_two(loop: FinishedLoop) -> None:
    ask = ["--prompt", "Write a function.", "--max-tokens", "4"]
    code, records = amigo_records(loop.home, "chat", SOURCE, REFINED, *ask, *loop.store, ollama=loop.url)
    done = events(records, GenerationFinished)
    assert code == 0 and [event.side for event in done] == [0, 1]  # type: ignore[union-attr]
    assert {event.side for event in events(records, TokenGenerated)} == {0, 1}  # type: ignore[union-attr]
    said = loop.amigo("chat", *ask)
    assert "the newest run that made a model" in said and "tok/s" in said


def test_a_tag_beside_a_file_is_compared_in_the_embedded_llama_cpp(loop: FinishedLoop) -> None:
    file = str(loop.recipe.with_name("tiny.gguf"))
    said = loop.amigo("chat", SOURCE, file, "--prompt", "Write a function.", "--max-tokens", "3")
    assert "served by embedded llama.cpp" in said


def test_a_tag_whose_weights_cant_be_read_still_talks_but_isnt_unpacked(loop: FinishedLoop, tmp_path: Path) -> None:
    """A remote server, or the folder of another user: `ollama.store` names one that isn't the server's."""
    elsewhere = ["--set", f"ollama.store={tmp_path}"]
    ask = ["chat", SOURCE, "--prompt", "Write a function.", "--max-tokens", "3"]
    assert amigo_here(loop.home, *ask, *elsewhere, ollama=loop.url).returncode == 0
    refused = amigo_here(loop.home, "unpack", SOURCE, *elsewhere, ollama=loop.url)
    assert refused.returncode == 2 and str(tmp_path) in refused.stderr and "hint: " in refused.stderr


def test_export_and_merge_by_hand(loop: FinishedLoop, tmp_path: Path) -> None:
    out = tmp_path / "mine.gguf"
    said = loop.amigo("export", "--quant", "f16", "--out", str(out))
    assert "exporting the newest run" in said and out.read_bytes()[:4] == b"GGUF"
    assert list(tmp_path.iterdir()) == [out]
    adapter = loop.finished("train").artifact.path  # type: ignore[union-attr]
    merge = ["merge", "--base", SOURCE, "--adapter", adapter, "--out", str(tmp_path / "merged")]
    done = amigo(loop.home, *merge, *loop.store, ollama=loop.url)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "merged" / "model.safetensors").is_file() and (tmp_path / "merged" / "tokenizer.json").is_file()


def test_export_keeps_types_or_measures_what_matters_on_the_training_data(loop: FinishedLoop, tmp_path: Path) -> None:
    from gguf import GGUFReader

    kept, measured = tmp_path / "kept.gguf", tmp_path / "measured.gguf"
    loop.amigo("export", "--out", str(kept))
    before = {t.name: t.tensor_type for t in GGUFReader(loop.recipe.with_name("tiny.gguf")).tensors}
    assert {t.name: t.tensor_type for t in GGUFReader(kept).tensors} == before
    loop.amigo("export", "--quant", "q4_k_m", "--imatrix", "auto", "--out", str(measured))
    plain = tmp_path / "plain.gguf"
    loop.amigo("export", "--quant", "q4_k_m", "--out", str(plain))
    old, new = ({t.name: t.data.tobytes() for t in GGUFReader(path).tensors} for path in (plain, measured))
    changed = {name for name in old if old[name] != new[name]}
    assert changed == {name for name in old if name.startswith("blk.") and "norm" not in name}
    fields = GGUFReader(measured).fields
    assert fields["quantize.imatrix.entries_count"].contents() == 28
    assert fields["quantize.imatrix.dataset"].contents() == "train.jsonl"


def test_models_lists_tags_and_artifacts_and_shows_lineage(loop: FinishedLoop) -> None:
    listed = loop.amigo("models")
    assert SOURCE in listed and REFINED in listed and "adapter" in listed
    text = loop.amigo("models", "show", REFINED)
    assert "llama" in text and SYSTEM.split("\t")[0] in text
    made = [line.split()[0] for line in text.partition("Lineage")[2].splitlines() if line.strip()]
    assert made[1:3] == ["register", "export"] and {"train", "quantize", "prepare", "tokenizer"} < set(made)


def test_runs_lists_shows_and_cleans_only_when_told(loop: FinishedLoop) -> None:
    assert "done" in loop.amigo("runs")
    text = loop.amigo("runs", "show", loop.records[0].run_id)
    assert "tokenizer" in text and "quantize" in text and "kl_mean" in text
    junk = loop.home / "artifacts" / "train-dead.partial"
    junk.mkdir()
    (junk / "half").write_bytes(b"x" * 1000)
    assert "nothing was removed" in loop.amigo("runs", "clean") and junk.exists()
    assert "freed 1000 B" in loop.amigo("runs", "clean", "--yes") and not junk.exists()
    code, records = amigo_records_here(
        loop.home, "run", str(loop.recipe), "--model", SOURCE, *loop.store, ollama=loop.url
    )
    assert code == 0 and len(events(records, StageSkipped)) == 7, "clean took something that was needed"


def test_evaluate_by_hand_uses_the_held_out_prompts_of_the_newest_run(loop: FinishedLoop) -> None:
    code, records = amigo_records_here(
        loop.home, "evaluate", REFINED, "--suite", "directness", "--max-tokens", "2", *loop.store, ollama=loop.url
    )
    notes = [event.text for event in events(records, Note)]  # type: ignore[union-attr]
    assert code == 0 and any("held-out" in text for text in notes)


def test_doctor_finds_the_server_and_its_store(loop: FinishedLoop) -> None:
    done = amigo(loop.home, "doctor", *loop.store, ollama=loop.url)
    text = done.stdout + done.stderr
    assert done.returncode == 0 and "Ollama 0." in text and "can be read in place" in text and "What fits" in text

"""tokenizer: what `prepare` needs of a model, without its weights."""

from __future__ import annotations

from pathlib import Path

from amigo_local.domain.events import Note
from amigo_local.stages.tokenizer import TokenizerParams
from tests.support.tiny_gguf import write_tiny_llama
from tests.support.tiny_home import Home


def test_it_is_proven_and_a_model_without_a_chat_template_is_told_at_once(tmp_path: Path) -> None:
    home = Home(tmp_path)
    plain = write_tiny_llama(tmp_path / "plain.gguf", chat_template=None)
    for gguf, has_one in ((home.gguf, True), (plain, False)):
        home.records = []
        outcome = home.runner().run("tokenizer", TokenizerParams(ref=str(gguf)))
        assert outcome.artifact is not None, outcome.error
        figures = outcome.artifact.figures
        assert (figures["texts"], figures["differing_texts"], figures["chat_template"]) == (1000, 0, has_one)
        names = {path.name for path in Path(outcome.artifact.path).iterdir()}
        assert {"config.json", "tokenizer.json"} <= names and not any(name.endswith(".safetensors") for name in names)
        warnings = [r.event.text for r in home.records if isinstance(r.event, Note) and r.event.level == "warning"]
        assert [text for text in warnings if "no chat template" in text] == ([] if has_one else warnings)
        assert bool(warnings) is not has_one

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import psutil
import pytest

from amigo_local.domain.errors import AmigoError
from amigo_local.weights.gguf_header import read_header
from amigo_local.weights.language_model import copy_bytes, loadable
from amigo_local.weights.llama_cpp_model import LlamaCppModel
from amigo_local.weights.probe import Probe
from tests.support.tiny_gguf import write_tiny_gemma3

PROBE = Probe((2, 50, 60, 70), (1, 3))


def test_llama_cpp_itself_refuses_a_vision_tower(ollama_gemma: Path) -> None:
    with pytest.raises(AmigoError, match=r"wrong number of tensors|key not found"):
        LlamaCppModel(ollama_gemma)


@pytest.mark.skipif(not hasattr(os, "memfd_create"), reason="a file in memory needs Linux")
@pytest.mark.parametrize("available", [1 << 40, 0])
def test_a_copy_is_in_memory_where_that_is_free_and_else_on_disk(
    available: int, ollama_gemma: Path, exact_gemma: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=available))
    header = read_header(ollama_gemma)
    with LlamaCppModel(exact_gemma) as plain, loadable(header, tmp_path) as path:
        assert bool(list(tmp_path.iterdir())) is not bool(available)
        assert path.stat().st_size <= copy_bytes(header)
        with LlamaCppModel(path) as copied:
            np.testing.assert_array_equal(copied.logits([PROBE]), plain.logits([PROBE]))
    assert not list(tmp_path.iterdir())
    assert not path.exists()


def test_a_plain_file_is_loaded_where_it_lies(exact_gemma: Path, tmp_path: Path) -> None:
    header = read_header(exact_gemma)
    assert copy_bytes(header) == 0
    with loadable(header, tmp_path) as path:
        assert path == exact_gemma


def test_a_copy_for_its_vocabulary_holds_no_tensors(tmp_path: Path) -> None:
    header = read_header(write_tiny_gemma3(tmp_path / "library.gguf", ollama_style=True))
    with loadable(header, tmp_path, vocabulary_only=True) as path:
        assert read_header(path).tensors == ()
        with LlamaCppModel(path, vocabulary_only=True) as served:
            assert served.vocabulary_size == header.tensor("token_embd.weight").dimensions[1]


def test_only_the_wanted_positions_are_returned(exact_gemma: Path) -> None:
    every = Probe(PROBE.tokens, (0, 1, 2, 3))
    with LlamaCppModel(exact_gemma) as model:
        whole, two = model.logits([every]), model.logits([PROBE, every])
    np.testing.assert_array_equal(two, np.concatenate([whole[[1, 3]], whole]))

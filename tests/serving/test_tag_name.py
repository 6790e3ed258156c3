import pytest

from amigo_local.domain.errors import InputError
from amigo_local.serving.tag_name import parse_tag_name


@pytest.mark.parametrize(
    ("text", "shown", "manifest"),
    [
        ("gemma3", "gemma3:latest", "registry.ollama.ai/library/gemma3/latest"),
        ("gemma3:", "gemma3:latest", "registry.ollama.ai/library/gemma3/latest"),
        ("gemma3:12b-it-qat", "gemma3:12b-it-qat", "registry.ollama.ai/library/gemma3/12b-it-qat"),
        ("me/model", "me/model:latest", "registry.ollama.ai/me/model/latest"),
        ("library/model:a", "model:a", "registry.ollama.ai/library/model/a"),
        ("localhost:5000/me/model", "localhost:5000/me/model:latest", "localhost:5000/me/model/latest"),
        ("hf.co/org/repo:Q4_K_M", "hf.co/org/repo:Q4_K_M", "hf.co/org/repo/Q4_K_M"),
    ],
)
def test_names_in_full_and_as_the_server_lists_them(text: str, shown: str, manifest: str) -> None:
    name = parse_tag_name(text)
    assert str(name) == shown
    assert str(name.manifest) == f"manifests/{manifest}"
    assert parse_tag_name(shown) == name


@pytest.mark.parametrize("text", ["", "a b", "../x", "a/b/c/d", "x:y:z", "a//b", ":tag", "/model", "a/b:c/d"])
def test_what_is_no_name(text: str) -> None:
    with pytest.raises(InputError, match="is no Ollama model name"):
        parse_tag_name(text)

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from amigo_local.data.pair import Pair
from amigo_local.data.rendering import load_tokenizer, render
from amigo_local.domain.errors import AmigoError, InputError

PAIR = Pair(prompt="Sum é 日本 x?", completion="```python\ndef f(x):\n    return x\n```", source="test")
FRESH_ANSWER = (  # writes the finished answer under another header than the one it asks for
    "{% for m in messages %}{{ '<|im_start|>' + ('bot' if m['role'] == 'assistant' else m['role']) + '\n' "
    "+ m['content'] + '<|im_end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
BARE = (
    "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)
NO_SYSTEM = (
    "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for m in messages %}{{ m['content'] + '<|im_end|>' }}{% endfor %}"
)


def test_the_mask_covers_the_request_and_leaves_the_answer_with_its_end(checkpoint: Path) -> None:
    """Against the text written by hand from the ChatML format, tokenized in one go."""
    tokenizer = load_tokenizer(checkpoint)
    rendered = render(tokenizer, PAIR, "Be brief.")
    before = (
        f"<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n{PAIR.prompt}<|im_end|>\n<|im_start|>assistant\n"
    )
    whole = f"{before}{PAIR.completion}<|im_end|>"
    assert rendered.input_ids == tokenizer(whole, add_special_tokens=False)["input_ids"]
    assert rendered.completion_start == len(tokenizer(before, add_special_tokens=False)["input_ids"])
    assert tokenizer.decode(rendered.input_ids[rendered.completion_start :]) == PAIR.completion + "<|im_end|>"
    assert rendered.input_ids[-1] == tokenizer.convert_tokens_to_ids("<|im_end|>")


def test_without_a_system_message_none_is_written(checkpoint: Path) -> None:
    tokenizer = load_tokenizer(checkpoint)
    assert "system" not in tokenizer.decode(render(tokenizer, PAIR).input_ids)


def test_a_template_that_renders_the_answer_differently_is_refused(checkpoint_with: Callable[..., Path]) -> None:
    tokenizer = load_tokenizer(checkpoint_with(FRESH_ANSWER))
    with pytest.raises(AmigoError, match="renders a request differently once it has an answer") as error:
        render(tokenizer, PAIR)
    assert "chat_template" in error.value.hint


def test_a_template_without_an_end_of_turn_gets_the_end_of_sequence(checkpoint_with: Callable[..., Path]) -> None:
    tokenizer = load_tokenizer(checkpoint_with(BARE, "<|endoftext|>"))
    rendered = render(tokenizer, PAIR)
    assert tokenizer.decode(rendered.input_ids[rendered.completion_start :]) == PAIR.completion + "\n<|endoftext|>"
    tokenizer = load_tokenizer(checkpoint_with(BARE, None))
    with pytest.raises(AmigoError, match="could not learn to stop"):
        render(tokenizer, PAIR)


def test_a_template_that_refuses_the_system_role_says_so(checkpoint_with: Callable[..., Path]) -> None:
    tokenizer = load_tokenizer(checkpoint_with(NO_SYSTEM))
    with pytest.raises(AmigoError, match=r"refuses the messages \(system, user\): System role not supported"):
        render(tokenizer, PAIR, "Be brief.")


def test_a_checkpoint_without_template_or_tokenizer_is_a_plain_error(
    checkpoint_with: Callable[..., Path], tmp_path: Path
) -> None:
    with pytest.raises(InputError, match="no chat template"):
        load_tokenizer(checkpoint_with(None))
    with pytest.raises(InputError, match="no such checkpoint"):
        load_tokenizer(tmp_path / "none")
    with pytest.raises(InputError, match="tokenizer can't be loaded"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(InputError, match="tokenizer can't be loaded"):
        load_tokenizer(tmp_path)

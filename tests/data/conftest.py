from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

CHATML = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


@pytest.fixture(scope="session")
def checkpoint_with(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Makes a checkpoint folder that holds a real byte-level BPE tokenizer with the chat template given."""

    def make(template: str | None = CHATML, eos: str | None = "<|im_end|>") -> Path:
        from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
        from transformers import PreTrainedTokenizerFast

        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=600,
            special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
        tokenizer.train_from_iterator(
            ["Write a Python function that returns the sum.\ndef f(x):\n    return x\n"] * 9, trainer
        )
        fast = PreTrainedTokenizerFast(
            tokenizer_object=tokenizer, eos_token=eos, additional_special_tokens=["<|im_start|>", "<|im_end|>"]
        )
        fast.chat_template = template
        folder = tmp_path_factory.mktemp("checkpoint")
        fast.save_pretrained(folder)
        return folder

    return make


@pytest.fixture(scope="session")
def checkpoint(checkpoint_with: Callable[..., Path]) -> Path:
    return checkpoint_with()

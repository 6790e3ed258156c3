"""A random tiny Llama with its own BPE tokenizer and ChatML template, and a training set for it."""

from __future__ import annotations

import json
from pathlib import Path

CHATML = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)

_VERBS = ("add", "count", "find", "join", "keep", "list", "merge", "pick", "read", "sort", "split", "sum")
_NOUNS = ("bytes", "dates", "files", "keys", "lines", "names", "numbers", "paths", "rows", "tokens", "values", "words")


def pairs(count: int) -> list[tuple[str, str]]:
    """Distinct (request, answer) pairs of varied length."""
    made = []
    for index in range(count):
        verb, noun = _VERBS[index % len(_VERBS)], _NOUNS[(index // len(_VERBS) + index) % len(_NOUNS)]
        body = "".join(f"    {noun}.append({step})\n" for step in range(index % 4))
        answer = f"```python\ndef {verb}_{noun}({noun}, limit={index}):\n{body}    return {noun}[:limit]\n```"
        made.append((f"Write a function that can {verb} {noun}, at most {index}.", answer))
    return made


def write_tiny_checkpoint(dir: Path, *, seed: int = 0, layers: int = 2, hidden: int = 64) -> Path:
    """bf16 safetensors, config, fast tokenizer (vocabulary 512), ChatML; the same bytes every time."""
    import torch
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    dir.mkdir(parents=True, exist_ok=True)
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=512,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    texts = [f"{CHATML}system user assistant {request}\n{answer}" for request, answer in pairs(144)]
    bpe.train_from_iterator(texts, trainer)
    bpe.add_special_tokens([AddedToken(token, special=True) for token in special])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        unk_token="<|endoftext|>",
        bos_token="<|im_start|>",
        eos_token="<|im_end|>",
        pad_token="<|im_end|>",
    )
    tokenizer.chat_template = CHATML
    tokenizer.save_pretrained(dir)

    config = LlamaConfig(
        vocab_size=512,
        hidden_size=hidden,
        intermediate_size=2 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=hidden // 4,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        dtype="bfloat16",
    )
    state = torch.random.get_rng_state()
    torch.manual_seed(seed)
    model = LlamaForCausalLM(config).to(torch.bfloat16)
    torch.random.set_rng_state(state)
    model.save_pretrained(dir)
    return dir


def write_tiny_dataset(dir: Path, checkpoint_dir: Path, rows: int = 24) -> Path:
    """`dir/train.jsonl` as `prepare` writes it: input_ids, completion_start and the texts."""
    from transformers import AutoTokenizer

    dir.mkdir(parents=True, exist_ok=True)
    tokenizer = AutoTokenizer.from_pretrained(checkpoint_dir, local_files_only=True)
    with (dir / "train.jsonl").open("w", encoding="utf-8") as file:
        for request, answer in pairs(rows):
            prompt = tokenizer.apply_chat_template(
                [{"role": "user", "content": request}], tokenize=False, add_generation_prompt=True
            )
            start = len(tokenizer(prompt, add_special_tokens=False)["input_ids"])
            input_ids = tokenizer(prompt + answer + "<|im_end|>\n", add_special_tokens=False)["input_ids"]
            row = {"input_ids": input_ids, "completion_start": start, "prompt": request, "completion": answer}
            file.write(json.dumps(row) + "\n")
    return dir

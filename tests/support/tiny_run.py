"""A whole loop small enough to be run hundreds of times: random weights, 24 pairs, two optimizer steps."""

from __future__ import annotations

import json
from pathlib import Path

from tests.support.tiny_gguf import write_tiny_llama

RECIPE = """\
name: tiny
model: {source: %(gguf)s}
data: {sources: [{jsonl: pairs.jsonl}], held_out_fraction: 0.25, max_length_tokens: 256}
train:
  learning_rate: 1.0e-3
  max_steps: 2
  effective_batch: 2
  micro_batch: 2
  checkpoint_every_steps: 1
  lora: {rank: 4, alpha: 8}
export: {quant: q8_0, check_prompts: 1}
register: {tag: %(tag)s}
evaluate: {suites: [directness], directness_prompts: 1, max_answer_tokens: 3}
"""


def write_tiny_run(folder: Path, tag: str = "tiny-refined") -> Path:
    """Writes model, pairs and recipe into `folder`; returns the recipe."""
    folder.mkdir(parents=True, exist_ok=True)
    gguf = write_tiny_llama(folder / "tiny.gguf")
    pairs = (
        {"prompt": f"Write a function that adds {i}.", "completion": f"```python\ndef add(x):\n    return x + {i}\n```"}
        for i in range(24)
    )
    (folder / "pairs.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    recipe = folder / "tiny.yaml"
    recipe.write_text(RECIPE % {"gguf": gguf, "tag": tag})
    return recipe

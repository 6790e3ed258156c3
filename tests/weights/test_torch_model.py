from __future__ import annotations

import contextlib
import json
import math
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import peft
import pytest
import torch
import transformers

from amigo_local.domain.errors import InputError
from amigo_local.weights.gguf_header import read_header
from amigo_local.weights.kernels import Rows
from amigo_local.weights.probe import Probe, probes
from amigo_local.weights.torch_model import TorchModel
from amigo_local.weights.weight_source import CheckpointWeights, GgufWeights
from tests.support.tiny_gguf import write_tiny_llama
from tests.weights.conftest import write_adapter

# Of different lengths and with different positions, so that padding and selection count.
PROBES = [
    Probe(tuple(range(3, 60)), (0, 7, 56)),
    Probe((5, 1000, 5, 9), (0, 1, 2, 3)),
    Probe(tuple(range(900, 860, -1)), (39,)),
]


def _plainly(checkpoint: Path, adapter: Path | None, *, with_adapter: bool = True) -> Rows:
    """The same logits from transformers' own loader, whole, prompt by prompt."""
    model = transformers.AutoModelForCausalLM.from_pretrained(
        checkpoint, dtype=torch.float32, attn_implementation="eager"
    )
    off = contextlib.nullcontext()
    if adapter:
        model = peft.PeftModel.from_pretrained(model, str(adapter))
        off = contextlib.nullcontext() if with_adapter else model.disable_adapter()
    with torch.inference_mode(), off:
        found = [model.eval()(torch.tensor([probe.tokens])).logits[0, list(probe.positions)] for probe in PROBES]
    rows: Rows = torch.cat(found).numpy()
    return rows


@pytest.mark.parametrize("source", ["exact_llama", "exact_gemma"])
def test_a_layer_at_a_time_gives_transformers_logits_with_and_without_the_adapter(
    source: str, request: pytest.FixtureRequest, unpacked: Callable[[Path], Path]
) -> None:
    gguf: Path = request.getfixturevalue(source)
    adapter = request.getfixturevalue("gemma_adapter" if "gemma" in source else "llama_adapter")
    checkpoint = unpacked(gguf)
    expected = {on: _plainly(checkpoint, adapter, with_adapter=on) for on in (True, False)}
    assert np.abs(expected[True] - expected[False]).max() > 1
    for weights in (CheckpointWeights(checkpoint), GgufWeights(read_header(gguf))):
        model = TorchModel(checkpoint, weights, adapter)
        for on in (True, False, True):
            np.testing.assert_allclose(model.logits(PROBES, with_adapter=on), expected[on], rtol=0, atol=5e-5)


@pytest.mark.parametrize(
    "settings",
    [
        {"use_dora": True, "target_modules": ["q_proj", "down_proj"]},
        {"use_rslora": True, "rank_pattern": {"v_proj": 3}, "target_modules": ["v_proj", "embed_tokens", "lm_head"]},
        {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens", "lm_head", "norm", "input_layernorm"]},
    ],
    ids=["dora", "embedding", "modules-to-save"],
)
def test_every_kind_of_adapter_is_applied_as_peft_applies_it(settings: dict[str, object], tmp_path: Path) -> None:
    from amigo_local.weights.unpack import unpack

    gguf = write_tiny_llama(tmp_path / "untied.gguf", tied=False, biases=True, weight_type="f32")
    unpack(gguf, tmp_path / "checkpoint", "f32", lambda event: None)
    adapter = write_adapter(tmp_path / "checkpoint", tmp_path / "adapter", **settings)
    if "modules_to_save" in settings:
        _shift_saved_modules(adapter)
    for on in (True, False):
        for weights in (CheckpointWeights(tmp_path / "checkpoint"), GgufWeights(read_header(gguf))):
            found = TorchModel(tmp_path / "checkpoint", weights, adapter).logits(PROBES, with_adapter=on)
            expected = _plainly(tmp_path / "checkpoint", adapter, with_adapter=on)
            np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)


def _shift_saved_modules(adapter: Path) -> None:
    from safetensors.numpy import load_file, save_file

    stored = load_file(adapter / "adapter_model.safetensors")
    assert sum("lora_" not in name for name in stored) == 11  # embedding, head, nine norms
    changed = {name: value if "lora_" in name else value * 1.1 for name, value in stored.items()}
    save_file(changed, adapter / "adapter_model.safetensors", {"format": "pt"})


def test_a_missing_a_surplus_and_a_misshapen_tensor_are_refused(
    exact_llama: Path, unpacked: Callable[[Path], Path], llama_adapter: Path, tmp_path: Path
) -> None:
    checkpoint = Path(shutil.copytree(unpacked(exact_llama), tmp_path / "checkpoint"))
    config = json.loads((checkpoint / "config.json").read_text("utf-8"))
    weights = CheckpointWeights(checkpoint)
    for change, reason in (
        ({"num_hidden_layers": 5}, r"model\.layers\.4\..* is None"),
        ({"num_hidden_layers": 3}, r"model\.layers\.3\..* makes it None"),
        ({"intermediate_size": 256}, r"mlp\.down_proj\.weight is \(256, 512\), config\.json makes it \(256, 256\)"),
    ):
        (checkpoint / "config.json").write_text(json.dumps(config | change), "utf-8")
        with pytest.raises(InputError, match=reason):
            TorchModel(checkpoint, weights)

    from safetensors.numpy import load_file, save_file

    adapter = Path(shutil.copytree(llama_adapter, tmp_path / "adapter"))
    stored = load_file(adapter / "adapter_model.safetensors")
    del stored[next(iter(stored))]
    save_file(stored, adapter / "adapter_model.safetensors", {"format": "pt"})
    with pytest.raises(InputError, match=r"holds no .*lora_"):
        TorchModel(unpacked(exact_llama), weights, adapter)


class _Watched(CheckpointWeights):
    """Notes what the model holds whenever it asks for more."""

    model: TorchModel | None = None
    held_bytes = 0

    def tiles(self, name: str) -> Iterator[tuple[int, Rows]]:
        if self.model is not None:
            stored = {p.data_ptr(): p.untyped_storage().nbytes() for p in self.model._model.parameters()}
            self.held_bytes = max(self.held_bytes, sum(stored.values()))
        return super().tiles(name)


def test_no_more_than_a_layer_and_the_used_tokens_are_held(exact_llama: Path, unpacked: Callable[[Path], Path]) -> None:
    weights = _Watched(unpacked(exact_llama))
    weights.model = model = TorchModel(unpacked(exact_llama), weights)
    model.logits(PROBES)
    layer = 4 * sum(math.prod(shape) for name, shape in weights.shapes.items() if name.startswith("model.layers.0."))
    assert 0.8 * layer < weights.held_bytes <= layer + 4  # and the scalar in every other parameter's place


_PEAK = """
import sys
from pathlib import Path
from amigo_local.weights.probe import Probe
from amigo_local.weights.torch_model import TorchModel
from amigo_local.weights.weight_source import CheckpointWeights

def peak_kib():
    # Not getrusage: its maximum includes the process that this one was forked from.
    return int(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1])

before, directory = peak_kib(), Path(sys.argv[1])
TorchModel(directory, CheckpointWeights(directory)).logits([Probe(tuple(range(64)), tuple(range(64)))])
print((peak_kib() - before) >> 10)
"""


@pytest.mark.slow
def test_smollm2_takes_a_fraction_of_its_weights_memory(smollm2: Path, unpacked: Callable[[Path], Path]) -> None:
    done = subprocess.run([sys.executable, "-c", _PEAK, unpacked(smollm2)], check=True, capture_output=True, text=True)
    # 95 MiB measured, 24 of them logits; in float32 the weights are 513 MiB, and the whole model took 766.
    assert int(done.stdout) < 200


def test_positions_are_spread_to_the_end_and_bounded_by_the_vocabulary() -> None:
    prompts = [list(range(200)), [], [7, 8, 9]]
    small, gemma = probes(prompts, 1000), probes(prompts * 4, 262144)
    assert [len(probe.tokens) for probe in small] == [64, 3]
    assert small[0].positions == tuple(range(64)) and small[1].positions == (0, 1, 2)
    assert gemma[0].positions == (3, 7, 11, 15, 19, 23, 27, 31, 35, 39, 43, 47, 51, 55, 59, 63)
    assert sum(len(probe.positions) for probe in gemma) * 262144 * 4 <= 128 << 20

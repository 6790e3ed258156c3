"""A base model with its adapter in torch as a reference: float32 logits with one decoder layer in memory at a time."""

from __future__ import annotations

import contextlib
import functools
import logging
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import accelerate
import numpy as np
import torch
import transformers

from amigo_local.domain.errors import InputError
from amigo_local.weights.kernels import Rows
from amigo_local.weights.probe import Probe
from amigo_local.weights.weight_source import WeightSource, read_whole

_EMBEDDING, _HEAD, _NORM = "model.embed_tokens", "lm_head", "model.norm"
_FILLED_WHOLE = re.compile(r"model\.layers\.\d+|model\.norm")
# How PEFT renames the module that it wraps: lora layers, and ModulesToSaveWrapper.
_WRAPPED = re.compile(r"\.(?:base_layer|original_module)(?=\.)")


class TorchModel:
    """transformers' model of `config_dir` without weights, its modules filled from `weights` as they run.

    In memory are the adapter, one decoder layer, the activations of all prompts and a chunk of the head. Every pass
    reads the weights once.
    """

    def __init__(self, config_dir: Path, weights: WeightSource, adapter_dir: Path | None = None) -> None:
        """Raises InputError when the weights or the adapter aren't those of the model that config.json describes."""
        self._weights = weights
        self._nothing = torch.zeros(1)
        self._has_adapter = adapter_dir is not None
        with quiet_transformers():
            config = transformers.AutoConfig.from_pretrained(config_dir, local_files_only=True)
            # Parameters only: rotary tables and Gemma's embedding scale aren't in any file.
            with accelerate.init_empty_weights(include_buffers=False):
                base: Any = transformers.AutoModelForCausalLM.from_config(
                    config, dtype=torch.float32, attn_implementation="eager"
                )
            self._check_names(base, config_dir)
            self._empty([name for name, _ in base.named_parameters()], base)
            # PEFT wraps them, and fills them from an adapter on an embedding, which holds a copy of it.
            embedding, head = base.get_submodule(_EMBEDDING), base.get_submodule(_HEAD)
            self._model = base if adapter_dir is None else _with_adapter(base, adapter_dir)
        self._model.eval()
        self._positions = torch.zeros(0, 0, dtype=torch.long)
        for prefix, module in base.named_modules():
            if _FILLED_WHOLE.fullmatch(prefix):
                names = [name for name, parameter in module.named_parameters() if self._is_empty(parameter)]
                module.register_forward_pre_hook(functools.partial(self._fill, prefix, names))
                module.register_forward_hook(functools.partial(self._empty, names))
        base.get_submodule(_NORM).register_forward_hook(self._select)
        for module in (embedding, head):
            self._empty(["weight"], module)
        embedding.register_forward_pre_hook(self._look_up)
        embedding.register_forward_hook(functools.partial(self._empty, ["weight"]))
        head.forward = self._project

    def logits(self, probes: Sequence[Probe], *, with_adapter: bool = True) -> Rows:
        """(positions of all probes, vocabulary) float32; `with_adapter` False switches an adapter off for this call."""
        tokens = torch.zeros(len(probes), max(len(probe.tokens) for probe in probes), dtype=torch.long)
        # Padding comes after the prompts: causal attention keeps it out of them without a mask.
        for row, probe in zip(tokens, probes, strict=True):
            row[: len(probe.tokens)] = torch.tensor(probe.tokens)
        count = max(len(probe.positions) for probe in probes)
        padded = [probe.positions + probe.positions[-1:] * (count - len(probe.positions)) for probe in probes]
        self._positions = torch.tensor(padded)
        on = with_adapter or not self._has_adapter
        switched = contextlib.nullcontext() if on else self._model.disable_adapter()
        with torch.inference_mode(), switched:
            found = self._model(input_ids=tokens, use_cache=False).logits.numpy()
        return np.concatenate([rows[: len(probe.positions)] for rows, probe in zip(found, probes, strict=True)])

    def _check_names(self, base: Any, config_dir: Path) -> None:
        expected = {name: tuple(parameter.shape) for name, parameter in base.named_parameters()}
        if base.config.tie_word_embeddings:
            expected.pop(f"{_HEAD}.weight", None)
        found = self._weights.shapes
        if different := sorted(
            name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name)
        ):
            name = different[0]
            raise InputError(
                f"{config_dir}: tensor {name} is {found.get(name)}, config.json makes it {expected.get(name)}",
                "unpack or download the checkpoint again",
            )

    def _empty(self, names: list[str], module: Any, *_: object) -> None:
        """Parameters in their shapes that take no memory; on the CPU, since PEFT puts an adapter where its base is."""
        for name in names:
            _assign(module, name, self._nothing.expand(module.get_parameter(name).shape))

    def _is_empty(self, parameter: torch.Tensor) -> bool:
        return parameter.data_ptr() == self._nothing.data_ptr()

    def _fill(self, prefix: str, names: list[str], module: Any, args: object) -> None:
        for name in names:
            stored = _WRAPPED.sub("", f"{prefix}.{name}")
            _assign(module, name, torch.from_numpy(read_whole(self._weights, stored)))

    def _look_up(self, module: Any, args: tuple[torch.Tensor]) -> tuple[torch.Tensor]:
        """The rows of the tokens that occur in the place of the embedding, and the tokens renumbered to match."""
        used, renumbered = torch.unique(args[0], return_inverse=True)
        rows = [self._weights.row(f"{_EMBEDDING}.weight", int(token)) for token in used]
        module.padding_idx = None  # which only training asks for
        _assign(module, "weight", torch.from_numpy(np.stack(rows)))
        return (renumbered,)

    def _select(self, module: Any, args: object, hidden: torch.Tensor) -> torch.Tensor:
        """(prompts, tokens, hidden) -> (prompts, positions, hidden): the head sees only what counts."""
        return hidden.gather(1, self._positions[:, :, None].expand(-1, -1, hidden.shape[2]))

    def _project(self, hidden: torch.Tensor) -> torch.Tensor:
        name = f"{_HEAD if f'{_HEAD}.weight' in self._weights.shapes else _EMBEDDING}.weight"
        flat = hidden.reshape(-1, hidden.shape[2])
        logits = torch.empty(len(flat), self._weights.shapes[name][0])
        for start, rows in self._weights.tiles(name):
            logits[:, start : start + len(rows)] = flat @ torch.from_numpy(rows).T
        return logits.reshape(*hidden.shape[:2], -1)


def _with_adapter(base: Any, adapter_dir: Path) -> Any:
    import peft

    # The adapter is made on the meta device, so that a weight which its file lacks stays there and shows.
    model = peft.PeftModel.from_pretrained(base, str(adapter_dir), low_cpu_mem_usage=True, local_files_only=True)
    if missing := sorted(name for name, parameter in model.named_parameters() if parameter.is_meta):
        raise InputError(f"{adapter_dir}: holds no {missing[0]}", "train or download the adapter again")
    return model


def _assign(module: Any, name: str, value: torch.Tensor) -> None:
    owner, _, own_name = name.rpartition(".")
    setattr(module.get_submodule(owner), own_name, torch.nn.Parameter(value, requires_grad=False))


def load_tokenizer(directory: Path) -> Any:
    """transformers' AutoTokenizer of a local directory."""
    with quiet_transformers():
        return transformers.AutoTokenizer.from_pretrained(directory, local_files_only=True)


@contextlib.contextmanager
def quiet_transformers() -> Iterator[None]:
    """No progress bars and no advice on stderr while transformers loads."""
    library = transformers.utils.logging
    level, bars = library.get_verbosity(), library.is_progress_bar_enabled()
    library.set_verbosity(logging.ERROR)
    library.disable_progress_bar()
    try:
        yield
    finally:
        library.set_verbosity(level)
        if bars:
            library.enable_progress_bar()

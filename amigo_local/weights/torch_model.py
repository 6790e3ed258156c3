"""A checkpoint in torch as a reference: logits in float32, with an adapter applied by PEFT."""

from __future__ import annotations

import contextlib
import logging
from pathlib import Path
from typing import Any

import psutil

from amigo_local.domain.units import format_size
from amigo_local.weights.tensor_rows import Rows

# float32 weights, and as much again at the widest moment of loading one shard.
BYTES_PER_PARAMETER = 5


class TorchModel:
    """Weights in float32 on the CPU: 4 bytes a parameter."""

    def __init__(self, checkpoint_dir: Path, adapter_dir: Path | None = None) -> None:
        import torch
        import transformers

        with _quiet():
            model: Any = transformers.AutoModelForCausalLM.from_pretrained(
                checkpoint_dir, dtype=torch.float32, local_files_only=True, attn_implementation="eager"
            )
            if adapter_dir is not None:
                import peft

                model = peft.PeftModel.from_pretrained(model, str(adapter_dir), local_files_only=True)
        self._model = model.eval()

    def logits(self, tokens: list[int], *, with_adapter: bool = True) -> Rows:
        """(len(tokens), vocabulary) float32; `with_adapter` False switches an adapter off for this call."""
        import torch

        without = contextlib.nullcontext() if with_adapter else self._model.disable_adapter()
        with torch.inference_mode(), without:
            answer = self._model(input_ids=torch.tensor([tokens]), use_cache=False)
        logits: Rows = answer.logits[0].float().numpy()
        return logits


def load_tokenizer(checkpoint_dir: Path) -> Any:
    """transformers' AutoTokenizer of a local directory."""
    import transformers

    with _quiet():
        return transformers.AutoTokenizer.from_pretrained(checkpoint_dir, local_files_only=True)


def too_big_for_torch(parameters: int, max_parameters: int | None) -> str:
    """Why a model can't be compared in torch here; empty when it can. None: what memory is available decides."""
    if max_parameters is not None:
        return f"{parameters} parameters, the limit is {max_parameters}" if parameters > max_parameters else ""
    needed, free = parameters * BYTES_PER_PARAMETER, psutil.virtual_memory().available
    return f"it needs {format_size(needed)} of memory, {format_size(free)} are available" if needed > free else ""


class _quiet:
    """No progress bars and no advice on stderr while transformers loads."""

    def __enter__(self) -> None:
        from transformers.utils import logging as library

        self._level = library.get_verbosity()
        self._bars = library.is_progress_bar_enabled()
        library.set_verbosity(logging.ERROR)
        library.disable_progress_bar()

    def __exit__(self, *_: object) -> None:
        from transformers.utils import logging as library

        library.set_verbosity(self._level)
        if self._bars:
            library.enable_progress_bar()

"""The base as a trainer sees it: where it comes from is the caller's business."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import msgspec

from amigo_local.domain.errors import InputError
from amigo_local.domain.memory_plan import MemoryPlan
from amigo_local.domain.recipe import TrainSettings
from amigo_local.training.copy_engine import Traffic
from amigo_local.training.samples import file_digest


class Streamer(Protocol):
    """What moves a streamed base's layers, as far as a trainer is concerned."""

    def reset(self) -> None:
        """Forgets a pass that was cut short: the next one is a forward pass from the first layer on."""

    def initialise_magnitudes(self) -> None:
        """Gives DoRA the magnitudes of the layers' own weights, once PEFT has wrapped them."""

    def traffic(self) -> Traffic:
        """What was copied so far."""

    def close(self) -> None: ...


class LoadedBase(NamedTuple):
    model: Any
    """A transformers causal LM, frozen, every tensor where it is to stay."""
    streamer: Streamer | None = None


class FrozenBase(msgspec.Struct, frozen=True, kw_only=True):
    """What is known before the weights are loaded, and how to load them."""

    name: str
    """What the adapter says it belongs to: a name or digest; a path would tie its bytes to this machine."""
    where: Path
    """What messages call it."""
    digest: str
    """Of what identifies the weights on disk: checkpoints of another base are not continued."""
    vocabulary: int
    """Rows of the embedding."""
    load: Callable[[MemoryPlan], LoadedBase]
    """Puts the layers where the plan has them. Called after the data was found to be good and before LoRA is added."""


def base_from_checkpoint(checkpoint_dir: Path, settings: TrainSettings, name: str = "") -> FrozenBase:
    """A base in transformers' format, quantized as it is loaded. Raises InputError when it is none."""

    def load(plan: MemoryPlan) -> LoadedBase:
        from amigo_local.training.base import load_base, training_device

        return LoadedBase(load_base(checkpoint_dir, settings, training_device(plan.device)))

    vocabulary = _vocabulary(checkpoint_dir)
    digest = file_digest(checkpoint_dir / "config.json")
    return FrozenBase(name=name, where=checkpoint_dir, digest=digest, vocabulary=vocabulary, load=load)


def _vocabulary(checkpoint_dir: Path) -> int:
    """From config.json alone (Gemma 3's multimodal config nests it)."""
    path = checkpoint_dir / "config.json"
    try:
        config: dict[str, Any] = json.loads(path.read_bytes())
    except FileNotFoundError as error:
        raise InputError(
            f"{checkpoint_dir} is no checkpoint: it has no config.json",
            "unpack one: amigo-local unpack REF --out DIR",
        ) from error
    except ValueError as error:
        raise InputError(f"{path} is no JSON: {error}", "unpack the model again") from error
    vocabulary = config.get("vocab_size") or config.get("text_config", {}).get("vocab_size")
    if not isinstance(vocabulary, int):
        raise InputError(f"{path} has no vocab_size", "is it a language model's checkpoint?")
    return vocabulary

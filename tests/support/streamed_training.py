"""A tiny GGUF quantized by `quantize`, trained as the product assembles it: mapped, or streamed as to a card."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import msgspec
import torch

from amigo_local.domain.artifact import Figure
from amigo_local.domain.events import AnyEvent
from amigo_local.domain.memory_plan import Batching, MemoryPlan
from amigo_local.domain.recipe import DpoSettings, LoraSettings, TrainSettings
from amigo_local.domain.settings import OllamaSettings, ProgramSettings
from amigo_local.engine.contract import StageContext
from amigo_local.engine.machine import measure_machine
from amigo_local.engine.workspace import Workspace
from amigo_local.stages import quantize
from amigo_local.training import streamed_base
from amigo_local.training.copy_engine import CopyEngine
from amigo_local.training.frozen_base import FrozenBase, LoadedBase
from amigo_local.training.host_table import HostTable
from amigo_local.training.layer_streaming import LayerStreamer, spread_evenly
from amigo_local.training.nf4_store import open_store
from tests.support.host_model import StreamedTable
from tests.support.streaming_proof import CPU, ENGINES
from tests.support.tiny_gguf import VOCABULARY, write_tiny_gemma3, write_tiny_llama

WRITERS: dict[str, Callable[..., Path]] = {"gemma3": write_tiny_gemma3, "llama": write_tiny_llama}
LAYERS = {"gemma3": 6, "llama": 4}
ROWS, HELD_OUT = 10, 3
LORA = LoraSettings(rank=4, alpha=8, dropout=0.1)
# Two epochs of ten rows in batches of five: four steps, an evaluation after the second and the last.
SETTINGS = TrainSettings(
    learning_rate=5e-3,
    epochs=2,
    effective_batch=5,
    evaluate_every_steps=2,
    checkpoint_every_steps=1,
    seed=7,
    lora=LORA,
    dpo=DpoSettings(beta=0.3),
)
STEPS = 4


def plan_for(family: str, *, resident: int = 1, **changes: Any) -> MemoryPlan:
    """As for a small card, but on the processor. Rows have 20 to 60 tokens, gemma3's window is 32."""
    plan = MemoryPlan(
        device="cpu",
        batching=Batching(micro_batch=2, accumulation=2),
        max_length_tokens=64,
        optimizer="adamw_torch",
        recompute=True,
        resident_layers=resident,
        streamed_layers=LAYERS[family] - resident,
        slots=2,
        head_tile_rows=300,
    )
    return msgspec.structs.replace(plan, **changes)


class TinyModel:
    """A GGUF with a quantized embedding, its store, and sets of rows and of pairs for it, in one folder."""

    def __init__(self, folder: Path, family: str) -> None:
        self.family, self.folder, self.store = family, folder, folder / "store"
        self.gguf = WRITERS[family](folder / "model.gguf")
        settings = ProgramSettings(ollama=OllamaSettings(use=False))
        self.store.mkdir()
        context = StageContext(
            Workspace(folder / "home"),
            settings,
            measure_machine(folder, settings.machine),
            "run",
            lambda event: None,
            self.store,
        )
        params = quantize.QuantizeParams(ref=str(self.gguf))
        quantize.run(params, context)
        self.digest = quantize.inputs(params, context)["model"]
        self.rows, self.pairs = write_rows(folder / "rows"), write_pairs(folder / "pairs")
        self.streamers: list[LayerStreamer] = []
        """Those that a streamed base has attached, in order."""

    def base(self, engine: str | None) -> FrozenBase:
        """`streamed_base.load`'s, mapped and resident; with an engine (`streaming_proof.ENGINES`) the one for a card,
        its layers and its head's tiles copied by that engine."""
        base = streamed_base.base_from_store(self.store, name="tiny", source_digest=self.digest, source=self.gguf)
        if engine is None:
            return base
        return msgspec.structs.replace(base, load=lambda plan: self.stream(plan, ENGINES[engine]()))

    def stream(self, plan: MemoryPlan, engine: CopyEngine) -> LoadedBase:
        from amigo_local.training.base import compute_dtype

        resources = ExitStack()
        resources.callback(engine.close)
        store = open_store(self.store, source_digest=self.digest, source=self.gguf)
        dtype = compute_dtype(CPU)
        # Of copies: a layer that isn't where it has to be would otherwise be read from the mapped store unnoticed.
        engines = streamed_base.Engines(engine, engine)
        loaded = streamed_base.stream(store, plan, CPU, dtype, engines, store.packs, resources)
        assert isinstance(loaded.streamer, streamed_base.StreamedLayers)
        streamer = loaded.streamer.streamer
        assert streamer.resident == tuple(sorted(spread_evenly(LAYERS[self.family], plan.streamed_layers)))
        self.streamers.append(streamer)
        head = loaded.model.lm_head.table
        assert type(head) is HostTable and head.type_name == "Q8_0"
        head.__class__ = StreamedTable  # on a processor there is nothing to copy: as on a card all the same
        return loaded

    def train(
        self,
        out_dir: Path,
        settings: TrainSettings = SETTINGS,
        plan: MemoryPlan | None = None,
        *,
        engine: str | None = None,
        base: FrozenBase | None = None,
        emit: Callable[[AnyEvent], None] = lambda event: None,
        **more: Any,
    ) -> dict[str, Figure]:
        """engine: as in `base`, which may be given instead."""
        from amigo_local.training.dpo import train_dpo
        from amigo_local.training.sft import train_sft
        from amigo_local.training.training_run import TrainingRun

        method, rows = (train_dpo, self.pairs) if settings.method == "dpo" else (train_sft, self.rows)
        run = TrainingRun(
            settings=settings,
            plan=plan or plan_for(self.family),
            base=base or self.base(engine),
            dataset_dir=rows,
            out_dir=out_dir,
            emit=emit,
            **more,
        )
        return method(run)


def write_rows(folder: Path) -> Path:
    """`prepare`'s files, of random tokens."""
    draw = random.Random(1)

    def row() -> dict[str, Any]:
        length = draw.randint(20, 60)
        return {"input_ids": _tokens(draw, length), "completion_start": draw.randint(5, length - 8)}

    return _write(folder, row)


def write_pairs(folder: Path) -> Path:
    draw = random.Random(2)

    def row() -> dict[str, Any]:
        sizes = {"prompt_ids": (6, 20), "chosen_ids": (8, 40), "rejected_ids": (4, 40)}
        return {name: _tokens(draw, draw.randint(*size)) for name, size in sizes.items()}

    return _write(folder, row)


def _tokens(draw: random.Random, count: int) -> list[int]:
    return [draw.randint(5, VOCABULARY - 1) for _ in range(count)]


def _write(folder: Path, row: Callable[[], dict[str, Any]]) -> Path:
    folder.mkdir(parents=True)
    for name, count in (("train", ROWS), ("held_out", HELD_OUT)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row()) + "\n" for _ in range(count)))
    return folder


def stirred_adapter(model: TinyModel, folder: Path, lora: LoraSettings = LORA) -> Path:
    """LoRA weights that change what the base says, as trained ones would."""
    from peft import get_peft_model

    from amigo_local.training.adapter import save_adapter
    from amigo_local.training.base import lora_config

    folder.mkdir(parents=True)
    wrapped = get_peft_model(model.base(None).load(plan_for(model.family)).model, lora_config(lora))
    generator = torch.Generator().manual_seed(3)
    for name, parameter in wrapped.named_parameters():
        if "lora_A" in name or "lora_B" in name:
            parameter.data = torch.randn(parameter.shape, generator=generator) * 0.05
        elif parameter.requires_grad:
            parameter.data = parameter.data.float()
    save_adapter(wrapped, folder, "tiny")
    return folder

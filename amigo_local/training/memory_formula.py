"""What a plan is made for, and the bytes of its single tensors, from a model's dimensions alone."""

from __future__ import annotations

from typing import NamedTuple

import msgspec

from amigo_local.domain.memory_plan import HEAD_TILE_ROWS, Optimizer, Staging
from amigo_local.domain.recipe import TrainSettings
from amigo_local.domain.shape import ModelShape
from amigo_local.domain.units import MIB
from amigo_local.training.ggml_blocks import BLOCKS, BlockSize
from amigo_local.training.nf4_index import aligned, part_bytes
from amigo_local.training.samples import PADDED_TO

CONTEXT_BYTES = 350 * MIB  # CUDA's own, with torch's kernels loaded, on a laptop card: assumed
VRAM_FACTOR = 1.06
"""What the allocator holds for each byte asked for (fragments, cuBLAS' workspace): assumed."""
PROCESS_BYTES = 2560 * MIB  # RSS of Python with torch and CUDA's libraries: assumed
DEFAULT_SLOTS = 2  # one is computed with while the next is filled
PAGED_FROM_ELEMENTS = 100_000  # Optimizer8bit.get_state_buffer in bitsandbytes/optim/optimizer.py
EIGHT_BIT_FROM_ELEMENTS = 4096  # min_8bit_size of its Optimizer2State


class Calibration(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What a probe measured on this machine, in place of what is assumed of a laptop RTX 4050."""

    flops: float = 12e12
    """Effective, of matrix products in bf16."""
    bytes_per_second: float = 11e9
    """Host to device: PCIe 4.0 x8 (11 to 12 GB/s)."""
    vram_factor: float = VRAM_FACTOR
    """Peak of the allocator's reserved memory over the bytes of the formula. On a processor, which has no
    such slack, the peak of RSS over the formula's, times ASSUMED's."""
    context_bytes: int = CONTEXT_BYTES


ASSUMED = Calibration()


class Job(NamedTuple):
    """What is to be trained."""

    shape: ModelShape
    settings: TrainSettings
    length: int
    """Tokens of the longest sample."""
    table_type: str
    """ggml type of the embedding and the head on the host."""
    calibration: Calibration = ASSUMED


class Levers(NamedTuple):
    """What the plan chooses; the fields of MemoryPlan."""

    micro_batch: int
    resident: int
    recompute: bool = True
    offload: bool = False
    slots: int = DEFAULT_SLOTS
    head_tile_rows: int = HEAD_TILE_ROWS
    mlp_tile_tokens: int | None = None
    optimizer: Optimizer = "paged_adamw_8bit"
    staging: Staging = "ring"


class Rows(NamedTuple):
    """A micro-batch at its largest, as micro_batches.lay_out makes it."""

    rows: int
    width: int
    masks: int
    """How many (rows, width, width) bool masks there are."""

    @property
    def tokens(self) -> int:
        return self.rows * self.width


def padded_length(job: Job) -> int:
    return -(-job.length // PADDED_TO) * PADDED_TO


def micro_batch_rows(job: Job, micro_batch: int) -> Rows:
    """A pair of DPO's has two sequences, which stay together whatever the capacity."""
    shape, width = job.shape, padded_length(job)
    sequences = max(micro_batch, 2 if job.settings.method == "dpo" else 1)
    both = 0 < shape.sliding_layers < shape.layers
    if job.settings.packing:
        return Rows(1, sequences * width, 2 if both else 1)
    windowed = shape.sliding_window is not None and shape.sliding_layers > 0 and width >= shape.sliding_window
    return Rows(sequences, width, 1 if windowed else 0)


# -- What doesn't depend on the micro-batch


def kept_as(job: Job) -> str:
    """ggml type that the embedding is read from. llama.cpp stores rows that aren't whole blocks as Q8_0 or F16."""
    wanted = job.table_type if job.table_type in BLOCKS else "BF16"
    return next(name for name in (wanted, "Q8_0", "F16") if job.shape.hidden_size % BLOCKS[name].weights == 0)


def block(job: Job) -> BlockSize:
    return BLOCKS[kept_as(job)]


def row_bytes(job: Job) -> int:
    """Of the embedding on the host."""
    return job.shape.hidden_size // block(job).weights * block(job).nbytes


def table_bytes(job: Job) -> int:
    """Of the embedding, and of the head where that is a table of its own."""
    return (1 if job.shape.tied_embeddings else 2) * job.shape.vocabulary * row_bytes(job)


def layer_bytes(shape: ModelShape, quantization: str = "nf4") -> int:
    """Of one decoder layer, as its pack holds it."""
    if quantization != "nf4":
        return 2 * shape.layer_parameters
    return sum(aligned(part) for inputs, outputs in shape.linears.values() for part in part_bytes(inputs * outputs))


def small_bytes(shape: ModelShape) -> int:
    """Norms, biases and rotary tables, in f32."""
    norms = (4 if shape.post_norms else 2) * shape.hidden_size + (2 * shape.head_dim if shape.qk_norms else 0)
    biases = shape.query_size + 2 * shape.kv_size if shape.attention_bias else 0
    return 4 * (shape.layers * (norms + biases) + shape.hidden_size + 4 * shape.head_dim)


def adapter_parameters(job: Job) -> int:
    """LoRA A and B, and DoRA's magnitudes."""
    lora, shape = job.settings.lora, job.shape
    magnitudes = sum(outputs for _, outputs in shape.adapted(lora.targets).values()) if lora.use_dora else 0
    return shape.lora_parameters(lora.rank, lora.targets) + shape.layers * magnitudes


class OptimizerState(NamedTuple):
    on_card: int
    paged: int
    """In memory that CUDA moves between host and card (cudaMallocManaged): on the card while the optimizer steps."""
    while_stepping: int
    """Temporaries, beside the state."""


def optimizer_state(job: Job, optimizer: Optimizer) -> OptimizerState:
    """AdamW's two moments, as bitsandbytes' Optimizer2State.init_state or torch keeps them."""
    if optimizer == "adamw_torch":
        parameters = adapter_parameters(job)
        return OptimizerState(8 * parameters, 0, 4 * parameters)  # _multi_tensor_adamw's square roots
    on_card = paged = 0
    lora = job.settings.lora
    for inputs, outputs in job.shape.adapted(lora.targets).values():
        for elements in (lora.rank * inputs, lora.rank * outputs, *([outputs] if lora.use_dora else [])):
            eight_bit = elements >= EIGHT_BIT_FROM_ELEMENTS
            state = 2 * elements * (1 if eight_bit else 4)
            on_card += 8 * -(-elements // 256) if eight_bit else 0  # two f32 scales a block
            if optimizer == "paged_adamw_8bit" and elements >= PAGED_FROM_ELEMENTS:
                paged += state
            else:
                on_card += state
    return OptimizerState(job.shape.layers * on_card, job.shape.layers * paged, 0)


def checkpoint_bytes(job: Job, tokens: int) -> int:
    """The bf16 hidden state that each layer's recomputation starts from."""
    return 2 * tokens * job.shape.hidden_size * job.shape.layers


def offloaded_bytes(job: Job, tokens: int) -> int:
    """torch's pinned allocator rounds each block up to a power of two."""
    one = 2 * tokens * job.shape.hidden_size
    return job.shape.layers * (1 << (one - 1).bit_length())

"""What a plan is made for, and the bytes of its single tensors, from a model's dimensions alone."""

from __future__ import annotations

from typing import NamedTuple

import msgspec

from amigo_local.domain.memory_plan import Optimizer, Staging
from amigo_local.domain.recipe import TrainSettings
from amigo_local.domain.shape import ModelShape
from amigo_local.domain.units import MIB
from amigo_local.training.samples import PADDED_TO

CONTEXT_BYTES = 350 * MIB  # CUDA's own, with torch's kernels loaded, on a laptop card: assumed
VRAM_FACTOR = 1.06
"""What the allocator holds for each byte asked for (fragments, cuBLAS' workspace): assumed."""
PROCESS_BYTES = 2560 * MIB  # RSS of Python with torch and CUDA's libraries: assumed
# What other modules of this room hold, without importing torch for it (tests/training/test_memory_formula.py compares).
PACK_ALIGNMENT = 256  # layer_pack.ALIGNMENT
STAGING_BYTES = 64 * MIB  # staging_ring: 4 chunks of 16 MiB
LOGITS_AT_ONCE = 1 << 22  # tiled_head
DECODED_AT_ONCE = 1 << 22  # ggml_decoding.ELEMENTS_AT_ONCE["cuda"]
TABLE_BLOCKS = {
    **{"F32": (1, 4, 0), "F16": (1, 2, 0), "BF16": (1, 2, 0), "Q8_0": (32, 34, 1), "Q4_0": (32, 18, 3)},
    **{"Q4_1": (32, 20, 6), "Q5_0": (32, 22, 4), "Q5_1": (32, 24, 6), "Q2_K": (256, 84, 6), "Q3_K": (256, 110, 4)},
    **{"Q4_K": (256, 144, 6), "Q5_K": (256, 176, 6), "Q6_K": (256, 210, 4), "IQ4_NL": (32, 18, 7)},
    "IQ4_XS": (256, 136, 7),
}
"""Of each ggml type that a table may stay in, others being kept as bf16: weights and bytes of a block, and bytes that
decoding takes besides for each weight of DECODED_AT_ONCE."""

PAGED_FROM_ELEMENTS = 100_000  # Optimizer8bit.get_state_buffer in bitsandbytes/optim/optimizer.py
EIGHT_BIT_FROM_ELEMENTS = 4096  # min_8bit_size of its Optimizer2State


class Calibration(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What a probe measured on this machine, in place of what is assumed of a laptop RTX 4050."""

    flops: float = 12e12
    """Effective, of matrix products in bf16."""
    bytes_per_second: float = 11e9
    """Host to device: PCIe 4.0 x8 (11 to 12 GB/s)."""
    vram_factor: float = VRAM_FACTOR
    """Peak of the allocator's reserved memory over the bytes of the formula."""
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
    slots: int = 2
    head_tile_rows: int = 8192
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


def aligned(nbytes: int) -> int:
    return -(-nbytes // PACK_ALIGNMENT) * PACK_ALIGNMENT


def block(job: Job) -> tuple[int, int, int]:
    """Of TABLE_BLOCKS, the embedding's. llama.cpp stores rows that aren't whole blocks as Q8_0 or F16."""
    blocks = (TABLE_BLOCKS.get(job.table_type, TABLE_BLOCKS["BF16"]), TABLE_BLOCKS["Q8_0"], TABLE_BLOCKS["F16"])
    return next(block for block in blocks if job.shape.hidden_size % block[0] == 0)


def row_bytes(job: Job) -> int:
    """Of the embedding on the host."""
    weights, nbytes, _ = block(job)
    return job.shape.hidden_size // weights * nbytes


def layer_bytes(shape: ModelShape, quantization: str = "nf4") -> int:
    """One decoder layer as layer_pack lays it out: codes, a uint8 scale for 64 of them, and f32 for 256 of those."""
    if quantization != "nf4":
        return 2 * shape.layer_parameters
    total = 0
    for inputs, outputs in shape.linears.values():
        scales = -(-inputs * outputs // 64)
        total += aligned(-(-inputs * outputs // 2)) + aligned(scales) + aligned(4 * -(-scales // 256))
    return total


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

"""Bytes that a QLoRA step takes on a card and beside it, part by part, from a model's dimensions alone.

Counted from the tensors that transformers 5.23, PEFT 0.21, bitsandbytes 0.50 and torch 2.13 keep alive; a dry run on
tensors without memory checks the sums (tests/training/test_memory_dry_run.py). In comments T are tokens of a
micro-batch, H hidden size, I intermediate size, Q and K query and key/value sizes.
"""

from __future__ import annotations

from typing import NamedTuple

import msgspec

from amigo_local.domain.memory_plan import Optimizer, Part, Staging
from amigo_local.domain.recipe import TrainSettings
from amigo_local.domain.shape import ModelShape
from amigo_local.domain.units import MIB
from amigo_local.training.samples import PADDED_TO

CONTEXT_BYTES = 350 * MIB  # CUDA's own, with torch's kernels loaded, on a laptop card: assumed
VRAM_FACTOR = 1.06
"""What the allocator holds for each byte asked for (fragments, cuBLAS' workspace): assumed."""
PROCESS_BYTES = 2560 * MIB  # RSS of Python with torch and CUDA's libraries: assumed
ADAPTER_COPIES_CACHED = True
"""Autocast keeps a bf16 copy of every f32 LoRA weight from its use in the forward pass until the context's end
(at::autocast::cached_cast); AutocastKwargs(cache_enabled=False) would drop each at once."""
# What other modules of this room hold, without importing torch for it (tests/training/test_memory_formula.py compares).
PACK_ALIGNMENT = 256  # layer_pack.ALIGNMENT
STAGING_BYTES = 64 * MIB  # staging_ring: 4 chunks of 16 MiB
LOGITS_AT_ONCE = 1 << 22  # tiled_head
DECODED_AT_ONCE = 1 << 22  # ggml_decoding.ELEMENTS_AT_ONCE["cuda"]
DECODING_BYTES = {256: 6, 32: 1, 1: 0}
"""Of each of them, by the block's size: at most (ggml_decoding.temporary_bytes)."""
TABLE_BLOCKS = {
    **{"F32": (1, 4), "F16": (1, 2), "BF16": (1, 2), "Q8_0": (32, 34), "Q4_0": (32, 18), "Q4_1": (32, 20)},
    **{"Q5_0": (32, 22), "Q5_1": (32, 24), "Q2_K": (256, 84), "Q3_K": (256, 110), "Q4_K": (256, 144)},
    **{"Q5_K": (256, 176), "Q6_K": (256, 210), "IQ4_NL": (32, 18), "IQ4_XS": (256, 136)},
}
"""(weights, bytes) of a block of each ggml type that a table may stay in; others are kept as bf16."""

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


def block(job: Job) -> tuple[int, int]:
    """(weights, bytes) of the embedding's blocks. llama.cpp stores rows that aren't whole blocks as Q8_0 or F16."""
    blocks = (TABLE_BLOCKS.get(job.table_type, TABLE_BLOCKS["BF16"]), TABLE_BLOCKS["Q8_0"], TABLE_BLOCKS["F16"])
    return next(block for block in blocks if job.shape.hidden_size % block[0] == 0)


def row_bytes(job: Job) -> int:
    """Of the embedding on the host."""
    weights, nbytes = block(job)
    return job.shape.hidden_size // weights * nbytes


def layer_bytes(shape: ModelShape, quantization: str = "nf4") -> int:
    """One decoder layer as layer_pack lays it out: codes, uint8 scales (one in 64), f32 scales of scales (one in 256)."""
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


# -- What a micro-batch takes at once


def checkpoint_bytes(job: Job, tokens: int) -> int:
    """The bf16 hidden state that each layer's recomputation starts from."""
    return 2 * tokens * job.shape.hidden_size * job.shape.layers


def saved_by_attention(job: Job, rows: Rows) -> int:
    """What autograd keeps of one layer's attention, and what all layers share: masks and rotary tables."""
    shape, tokens = job.shape, rows.tokens
    # q, the output, and keys and values repeated for every query head: a mask rules out sdpa's enable_gqa.
    per_token = 8 * shape.query_size + 4 * shape.heads
    if shape.qk_norms:
        per_token += 4 * (shape.query_size + shape.kv_size)  # f32, as the norms' inputs are
    per_token += 8 * shape.head_dim * (2 if rows.masks > 1 else 1)  # cos and sin, f32 products among them
    lora = job.settings.lora
    adapted = shape.adapted(lora.targets)
    per_token += 2 * lora.rank * len(adapted)
    copies = 2 * lora.rank * sum(inputs + outputs for inputs, outputs in adapted.values())
    return tokens * per_token + copies + _mask_bytes(rows)


def _mask_bytes(rows: Rows) -> int:
    """The bool masks, and the bf16 one that sdpa makes of one for its kernel."""
    square = rows.rows * rows.width**2
    return rows.masks * square + (2 * square if rows.masks else 0)


def layer_work(job: Job, levers: Levers) -> int:
    """The most that recomputing one layer and going backward through it takes, beside the checkpoints.

    The peaks of a step, in the order they come; which one is highest depends on I/H, Q/H and T.
    """
    shape, rows = job.shape, micro_batch_rows(job, levers.micro_batch)
    tokens, hidden = rows.tokens, rows.tokens * shape.hidden_size
    tile = min(tokens, levers.mlp_tile_tokens or tokens)
    mlp = tile * shape.intermediate_size
    weight = dequantized_bytes(shape)
    saved = saved_by_attention(job, rows)
    norms = 3 if shape.post_norms else 2  # f32 inputs that wait for their backward pass
    post = shape.post_norms
    peaks = [
        # the down projection, recomputed
        saved + weight + 8 * mlp + (28 if post else 22) * hidden,
        # and backward: gate, its activation, up, and two gradients of their product
        saved + weight + 10 * mlp + (4 * norms + (10 if post else 8)) * hidden,
        # the activation, backward
        saved + 12 * mlp + (4 * norms + 8) * hidden,
        # the norm before the MLP, backward: five f32 temporaries
        saved + (4 * (norms + 5) + 6) * hidden,
    ]
    if post:  # the norm behind the MLP, whose saved tensors are all there
        peaks.append(saved + (8 * mlp if tile == tokens else 0) + 44 * hidden)
    peaks.append(_attention_backward(job, rows))
    return max(peaks) + dora_bytes(job)


def dequantized_bytes(shape: ModelShape) -> int:
    """The widest weight in bf16 for one product, and its scales in f32 (bitsandbytes.functional.dequantize_4bit)."""
    widest = max(inputs * outputs for inputs, outputs in shape.linears.values())
    return 2 * widest + 4 * -(-widest // 64)


def _attention_backward(job: Job, rows: Rows) -> int:
    """Gradients of q, k and v for every head, and the memory-efficient kernel's workspace: f32 for dq, and blocks of
    64 keys for dk and dv, no more than 200 in all (Params::workspace_size in PyTorch's mem_eff_attention/
    kernel_backward.h, and attention_backward.cu)."""
    shape, tokens = job.shape, rows.tokens
    blocks = min(200, rows.rows * shape.heads * -(-rows.width // 64))
    workspace = 4 * tokens * shape.query_size + 8 * blocks * 64 * shape.head_dim
    kernel = saved_by_attention(job, rows) + 8 * tokens * shape.query_size + workspace
    norm = 24 * tokens * shape.query_size + saved_by_attention(job, rows) - 8 * tokens * shape.query_size
    return max(kernel, norm if shape.qk_norms else 0) + 10 * tokens * shape.hidden_size


def dora_bytes(job: Job) -> int:
    """DoRA's weight norm of the widest projection: an identity matrix in f32 and bf16 that LoRA's weight is read off
    with, and that weight, the base's, their sum and its square in up to f32 (peft/tuners/lora/dora.py)."""
    lora = job.settings.lora
    if not lora.use_dora:
        return 0
    return max(6 * inputs**2 + 14 * inputs * outputs for inputs, outputs in job.shape.adapted(lora.targets).values())


def forward_work(job: Job, levers: Levers) -> int:
    """The most that one layer's forward pass takes, with the copies of all adapters at the last one."""
    shape, rows = job.shape, micro_batch_rows(job, levers.micro_batch)
    tile = min(rows.tokens, levers.mlp_tile_tokens or rows.tokens)
    mlp, weight = 2 * tile * shape.intermediate_size, dequantized_bytes(shape)
    shared = _mask_bytes(rows) + 8 * rows.tokens * shape.head_dim * max(1, rows.masks)
    hidden = 2 * rows.tokens * shape.hidden_size
    # Behind the checkpoints come the layer's input and its norm's; offloaded, the residual stream is one of its own.
    work = max(4 * mlp, 2 * mlp + weight) + (2 * levers.offload + 2 * (tile < rows.tokens)) * hidden
    return _adapter_copies(job) + work + shared + dora_bytes(job)


def _adapter_copies(job: Job) -> int:
    return 2 * adapter_parameters(job) if ADAPTER_COPIES_CACHED else 0


def head_work(job: Job, levers: Levers) -> int:
    """The tiled head with every token scored, after the last layer."""
    shape, rows = job.shape, micro_batch_rows(job, levers.micro_batch)
    hidden = rows.tokens * shape.hidden_size
    # The last norm's f32 input, what is scored, and the gradient in f32; target rows come when the tiles are gone.
    waiting = (4 + 2 + 4) * hidden
    return _adapter_copies(job) + _mask_bytes(rows) + waiting + head_tile_bytes(job, levers)


def head_tile_bytes(job: Job, levers: Levers) -> int:
    """Two tiles as they are stored, one decoded, what decoding takes, and the logits of one tile at a time: in f32
    and in bf16, and in f32 again for the entropies that TRL's DPO logs (tiled_head.py, host_table.py)."""
    shape = job.shape
    tile = min(levers.head_tile_rows, shape.vocabulary)
    elements = tile * shape.hidden_size
    decoded = 0 if job.table_type == "BF16" else 2 * elements  # a view of what is bf16 already
    decoding = DECODING_BYTES[block(job)[0]] * min(elements, DECODED_AT_ONCE)
    raw = 2 * tile * row_bytes(job)
    rows = micro_batch_rows(job, levers.micro_batch)
    logits = min(max(LOGITS_AT_ONCE, tile), rows.tokens * tile)
    return raw + decoded + decoding + (6 if job.settings.method == "sft" else 10) * logits


# -- The whole


def vram_parts(job: Job, levers: Levers) -> tuple[Part, ...]:
    """In the order of a stacked bar; the sum is the peak."""
    shape, calibration = job.shape, job.calibration
    one_layer = layer_bytes(shape, job.settings.quantization)
    streamed = shape.layers - levers.resident
    adapter = 4 * adapter_parameters(job)
    state = optimizer_state(job, levers.optimizer)
    tokens = micro_batch_rows(job, levers.micro_batch).tokens
    name, work, checkpoints = working_set(job, levers, tokens)
    parts = [
        ("resident layers", levers.resident * one_layer),
        ("layer slots", min(levers.slots, streamed) * one_layer),
        ("norms", small_bytes(shape)),
        ("adapter", adapter),
        ("its gradients", adapter),
        ("optimizer", state.on_card),
        ("checkpoints", checkpoints),
        (name, work),
    ]
    slack = int(sum(nbytes for _, nbytes in parts) * (calibration.vram_factor - 1))
    parts = [("CUDA context", calibration.context_bytes), *parts, ("allocator slack", max(0, slack))]
    return tuple(Part(name, nbytes) for name, nbytes in parts if nbytes)


def working_set(job: Job, levers: Levers, tokens: int) -> tuple[str, int, int]:
    """(which moment of a step takes most, its bytes, checkpoints then): forward, head, backward and optimizer step
    are never at once."""
    checkpoints = (0 if levers.offload else 1) * checkpoint_bytes(job, tokens)
    edge = 4 * tokens * job.shape.hidden_size  # the embeddings, and the last hidden state
    back = edge // 2 if levers.offload else 0  # a checkpoint in use has come back from the host
    if levers.recompute:
        backward = layer_work(job, levers)
    else:
        checkpoints = 0
        backward = 3 * edge + layer_work(job, levers) + (job.shape.layers - 1) * saved_by_layer(job, levers)
    state = optimizer_state(job, levers.optimizer)
    moments = [
        ("one layer's work", backward + back),
        ("forward pass", forward_work(job, levers) + edge),
        ("head", head_work(job, levers) + back),
    ]
    name, work = max(moments, key=lambda moment: moment[1])
    stepping = state.paged + state.while_stepping - checkpoints
    return (name, work, checkpoints) if work >= stepping else ("optimizer step", stepping, checkpoints)


def saved_by_layer(job: Job, levers: Levers) -> int:
    """What autograd keeps of one layer that isn't recomputed."""
    shape, rows = job.shape, micro_batch_rows(job, levers.micro_batch)
    norms = 4 if shape.post_norms else 2
    per_token = (4 * norms + 4) * shape.hidden_size + 8 * shape.intermediate_size
    return saved_by_attention(job, rows) - rows.masks * rows.rows * rows.width**2 + rows.tokens * per_token


def ram_parts(job: Job, levers: Levers) -> tuple[Part, ...]:
    """Streamed layers and tables are pages of mapped files: what doesn't fit is read again at each pass, from disk."""
    shape = job.shape
    one_layer = layer_bytes(shape, job.settings.quantization)
    streamed = shape.layers - levers.resident
    tables = (1 if shape.tied_embeddings else 2) * shape.vocabulary * row_bytes(job)
    tokens = micro_batch_rows(job, levers.micro_batch).tokens
    parts = [
        ("process", PROCESS_BYTES),
        ("streamed layers", streamed * one_layer),
        ("embedding and head", tables),
        ("offloaded checkpoints", offloaded_bytes(job, tokens) if levers.offload else 0),
        ("staging ring", STAGING_BYTES),
        ("paged optimizer", optimizer_state(job, levers.optimizer).paged),
    ]
    return tuple(Part(name, nbytes) for name, nbytes in parts if nbytes)


def offloaded_bytes(job: Job, tokens: int) -> int:
    """torch's pinned allocator rounds each block up to a power of two."""
    one = 2 * tokens * job.shape.hidden_size
    return job.shape.layers * (1 << (one - 1).bit_length())


def disk_parts(job: Job, optimizer: Optimizer) -> tuple[Part, ...]:
    """Checkpoints hold the adapter and AdamW's moments; one more than are kept is written aside."""
    adapter, state = 4 * adapter_parameters(job), optimizer_state(job, optimizer)
    kept = job.settings.keep_checkpoints + 1 + job.settings.keep_best
    return (
        Part("checkpoints", kept * (adapter + state.on_card + state.paged)),
        Part("adapter", adapter),
        Part("logs", 16 * MIB),
    )

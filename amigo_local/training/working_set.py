"""The most that a step takes on a card beside what stays: one layer's recomputation and backward pass, or the head.

Counted from the tensors that transformers 5.23, PEFT 0.21, bitsandbytes 0.50 and torch 2.13 keep alive; a dry run on
tensors without memory checks the sums (tests/training/test_memory_dry_run.py). In comments T are tokens of a
micro-batch, H hidden size, I intermediate size, Q and K query and key/value sizes.
"""

from __future__ import annotations

from amigo_local.domain.shape import ModelShape
from amigo_local.training.buffer_sizes import LOGITS_AT_ONCE
from amigo_local.training.ggml_blocks import ELEMENTS_AT_ONCE
from amigo_local.training.memory_formula import (
    Job,
    Levers,
    Rows,
    adapter_parameters,
    block,
    checkpoint_bytes,
    kept_as,
    micro_batch_rows,
    optimizer_state,
    row_bytes,
)


def working_set(job: Job, levers: Levers, tokens: int) -> tuple[str, int, int]:
    """(which moment of a step takes most, its bytes, checkpoints then): forward, head, backward and optimizer step
    are never at once."""
    checkpoints = (0 if levers.offload else 1) * checkpoint_bytes(job, tokens)
    edge = 4 * tokens * job.shape.hidden_size  # the embeddings, and the last hidden state
    back = edge // 2 if levers.offload else 0  # a checkpoint in use has come back from the host
    backward, head = layer_work(job, levers), head_work(job, levers)
    if not levers.recompute:  # what autograd keeps of every layer is there until the layer's backward pass
        checkpoints, saved = 0, saved_by_layer(job, levers)
        backward += 3 * edge + (job.shape.layers - 1) * saved
        head += edge + job.shape.layers * saved
    state = optimizer_state(job, levers.optimizer)
    moments = [
        ("one layer's work", backward + back),
        ("forward pass", forward_work(job, levers) + edge),
        ("head", head + back),
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


def saved_by_attention(job: Job, rows: Rows) -> int:
    """What autograd keeps of one layer's attention, and what all layers share: masks and rotary tables."""
    shape, tokens = job.shape, rows.tokens
    # q, the output, and keys and values repeated for every query head: a mask rules out sdpa's enable_gqa.
    per_token = 8 * shape.query_size + 4 * shape.heads
    if shape.qk_norms:
        per_token += 4 * (shape.query_size + shape.kv_size)  # f32, as the norms' inputs are
    per_token += 8 * shape.head_dim * (2 if rows.masks > 1 else 1)  # cos and sin, f32 products among them
    lora = job.settings.lora
    per_token += 2 * lora.rank * len(shape.adapted(lora.targets))
    return tokens * per_token + _adapter_copies(job) + _mask_bytes(rows)


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
    """The most that one layer's forward pass takes, beside the checkpoints."""
    shape, rows = job.shape, micro_batch_rows(job, levers.micro_batch)
    tile = min(rows.tokens, levers.mlp_tile_tokens or rows.tokens)
    mlp, weight = 2 * tile * shape.intermediate_size, dequantized_bytes(shape)
    shared = _mask_bytes(rows) + 8 * rows.tokens * shape.head_dim * max(1, rows.masks)
    hidden = 2 * rows.tokens * shape.hidden_size
    # Behind the checkpoints come the layer's input and its norm's; offloaded, the residual stream is one of its own.
    work = max(4 * mlp, 2 * mlp + weight) + (2 * levers.offload + 2 * (tile < rows.tokens)) * hidden
    return _adapter_copies(job) + work + shared + dora_bytes(job)


def _adapter_copies(job: Job) -> int:
    """One layer's adapters in bf16: StepTrainer turns off autocast's cache, which would keep every layer's
    (at::autocast::cached_cast)."""
    return 2 * adapter_parameters(job) // job.shape.layers


def head_work(job: Job, levers: Levers) -> int:
    """The tiled head with every token scored, after the last layer."""
    shape, rows = job.shape, micro_batch_rows(job, levers.micro_batch)
    hidden = rows.tokens * shape.hidden_size
    # The last norm's f32 input, what is scored, and the gradient in f32; target rows come when the tiles are gone.
    waiting = (4 + 2 + 4) * hidden
    return _mask_bytes(rows) + waiting + head_tile_bytes(job, levers)


def head_tile_bytes(job: Job, levers: Levers) -> int:
    """Two tiles as they are stored, one decoded, what decoding takes, and the logits of one tile at a time: in f32
    and in bf16 (tiled_head.py, host_table.py)."""
    shape = job.shape
    tile = min(levers.head_tile_rows, shape.vocabulary)
    elements = tile * shape.hidden_size
    decoded = 0 if kept_as(job) == "BF16" else 2 * elements  # a view of what is bf16 already
    decoding = block(job).temporary_bytes * min(elements, ELEMENTS_AT_ONCE["cuda"])
    raw = 2 * tile * row_bytes(job)
    rows = micro_batch_rows(job, levers.micro_batch)
    logits = min(max(LOGITS_AT_ONCE, tile), rows.tokens * tile)
    return raw + decoded + decoding + 6 * logits

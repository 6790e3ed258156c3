"""A training step of a real transformers model on tensors without memory, and the bytes alive at its peak.

A fake `cuda` device aborts a torch built without CUDA, so the tensors are fake `cpu` ones, and what CUDA does otherwise
is written out here: bitsandbytes dequantizes a weight for each product, sdpa runs the memory-efficient kernel with its
workspace, the allocator rounds up to 512 bytes. Everything else is transformers' own code, under autocast
without its cache, as StepTrainer has it.
"""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Iterator
from typing import Any

import msgspec
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only
from torch.utils.checkpoint import checkpoint
from torch.utils.weak import WeakIdKeyDictionary

from amigo_local.training import ggml_decoding
from amigo_local.training.logit_rule import LogitRule
from amigo_local.training.tiled_head import token_statistics
from amigo_local.training.tiled_mlp import tile_mlps

_ROUNDED_TO = 512  # kMinBlockSize in c10/cuda/CUDACachingAllocator.cpp


class DryRun(msgspec.Struct, kw_only=True):
    """What to run. `layers`: fewer than the model has; the rest repeats them."""

    config: dict[str, Any]
    """A config.json."""
    tokens: int
    """Of one packed row, or of each of `rows` padded ones."""
    rows: int = 1
    rank: int = 32
    layers: int | None = None
    recompute: bool = True
    offload: bool = False
    head_tile_rows: int = 8192
    table_type: str = "BF16"
    """ggml type that the head is stored in."""
    mlp_tile_tokens: int | None = None


class Peaks(msgspec.Struct, kw_only=True):
    """Bytes of activations: the frozen weights, the adapter and its gradients are not counted."""

    forward: int = 0
    head: int = 0
    backward: int = 0
    largest: list[tuple[int, str]] = []
    """What was alive at the highest peak: (bytes, operator that made it)."""

    @property
    def peak(self) -> int:
        return max(self.forward, self.head, self.backward)


class _Live(TorchDispatchMode):
    """Counts storages from when an operator makes them until the last tensor on them is gone."""

    def __init__(self) -> None:
        super().__init__()
        self.live = self.peak = 0
        self._names: WeakIdKeyDictionary = WeakIdKeyDictionary()
        self.at_peak: list[tuple[int, str]] = []
        self.uncounted: WeakIdKeyDictionary = WeakIdKeyDictionary()

    def ignore(self, *tensors: torch.Tensor) -> None:
        for tensor in tensors:
            self.uncounted[tensor.untyped_storage()] = True

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.prim.device.default and not args[0].fake_mode.in_kernel_invocation:
            return args[0].fake_device  # what comes of it below, for two calls in three
        out = func(*args, **(kwargs or {}))
        if isinstance(out, torch.Tensor):  # nearly always, and the walk through a tree takes longer than the rest
            self._see(out, func)
        elif isinstance(out, tuple | list):
            tree_map_only(torch.Tensor, lambda tensor: self._see(tensor, func), out)
        return out

    def _see(self, tensor: torch.Tensor, func: Any) -> None:
        storage = tensor.untyped_storage()
        if storage in self._names or storage in self.uncounted or tensor.device.type != "cpu":
            return
        nbytes = -(-storage.nbytes() // _ROUNDED_TO) * _ROUNDED_TO
        self._names[storage] = (nbytes, f"{func} {tuple(tensor.shape)} {tensor.dtype}")
        self.live += nbytes
        weakref.finalize(storage, self._gone, nbytes)
        if self.live > self.peak:
            self.peak = self.live
            self.at_peak = list(self._names.values())

    def _gone(self, nbytes: int) -> None:
        self.live -= nbytes

    def take_peak(self) -> int:
        """The peak since the last call."""
        peak, self.peak = self.peak, self.live
        return peak


class _Product(torch.autograd.Function):
    """bitsandbytes' MatMul4Bit above 1536 rows: _gemm_4bit_default_impl forward, dequantize_4bit backward."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, rows: int) -> torch.Tensor:
        ctx.shape = (rows, x.shape[-1])
        return nn.functional.linear(x, _dequantized(ctx.shape, x.dtype))

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None]:
        return torch.matmul(gradients[0], _dequantized(ctx.shape, gradients[0].dtype)), None


def _dequantized(shape: tuple[int, int], dtype: torch.dtype) -> torch.Tensor:
    scales = torch.empty(shape[0] * shape[1] // 64) + 1.0
    weight = torch.empty(shape, dtype=dtype)
    del scales
    return weight


class _LoraLinear(nn.Module):
    """peft.tuners.lora.bnb.Linear4bit.forward without dropout, under autocast: the input isn't converted."""

    def __init__(self, inputs: int, outputs: int, rank: int) -> None:
        super().__init__()
        self.outputs = outputs
        self.lora_a = nn.Linear(inputs, rank, bias=False)
        self.lora_b = nn.Linear(rank, outputs, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        product: Any = _Product.apply
        result = product(x, self.outputs)
        result = result.clone()
        output = self.lora_b(self.lora_a(x)) * 2.0
        result = result + output
        return result  # noqa: RET504  # as PEFT has it: names keep tensors alive


class _Attention(torch.autograd.Function):
    """_efficient_attention_forward and _backward of aten/src/ATen/native/transformers/cuda on (rows, heads, tokens, d).

    The workspace is Params::workspace_size of mem_eff_attention/kernel_backward.h: f32 for dq always, for dk and dv
    where a head is wider than the block (no more than 200 blocks of 64 keys in all).
    """

    @staticmethod
    def forward(ctx: Any, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        rows, heads, tokens, dim = q.shape
        out = torch.empty(rows, tokens, heads, dim, dtype=q.dtype)
        ctx.save_for_backward(q, k, v, bias, out, torch.empty(rows, heads, tokens))
        return out.transpose(1, 2)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        q, k, *_ = ctx.saved_tensors
        rows, heads, tokens, dim = q.shape
        kept = torch.empty(rows, heads, tokens)
        grads = tuple(torch.empty(rows, tokens, heads, dim, dtype=q.dtype) for _ in range(3))
        workspace = torch.empty(rows * heads * tokens * dim + 2 * min(200, rows * heads * -(-tokens // 64)) * 64 * dim)
        if k.shape[1] != heads:  # enable_gqa: the gradients of a group are summed
            grads = (grads[0], *(g.view(rows, tokens, k.shape[1], -1, dim).sum(3) for g in grads[1:]))
        del workspace, kept
        return *(g.transpose(1, 2) for g in grads), None


def _sdpa(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attn_mask: torch.Tensor | None = None,
    **_: Any,
) -> torch.Tensor:
    attend: Any = _Attention.apply
    bias = None
    if attn_mask is not None:
        # convert_boolean_attn_mask and, off a multiple of 16, pad_bias in transformers/attention.cpp.
        bias = torch.where(attn_mask, torch.zeros((), dtype=query.dtype), torch.zeros((), dtype=query.dtype))
        if bias.shape[-1] % 16:
            bias = nn.functional.pad(bias, (0, 16 - bias.shape[-1] % 16))
    out: torch.Tensor = attend(query, key, value, bias)
    return out


@contextlib.contextmanager
def _as_on_cuda() -> Iterator[None]:
    original, at_once = nn.functional.scaled_dot_product_attention, ggml_decoding.ELEMENTS_AT_ONCE["cpu"]
    nn.functional.scaled_dot_product_attention = _sdpa
    ggml_decoding.ELEMENTS_AT_ONCE["cpu"] = ggml_decoding.ELEMENTS_AT_ONCE["cuda"]
    try:
        yield
    finally:
        nn.functional.scaled_dot_product_attention = original
        ggml_decoding.ELEMENTS_AT_ONCE["cpu"] = at_once


def _checkpointed(offload: bool) -> Any:
    """transformers' checkpoint function; `offload` is its save_on_cpu."""

    def to_host(tensor: torch.Tensor) -> Any:
        return tensor.shape, tensor.dtype

    def from_host(packed: Any) -> torch.Tensor:
        return torch.empty(packed[0], dtype=packed[1])

    def run(function: Any, *args: Any) -> Any:
        with torch.autograd.graph.saved_tensors_hooks(to_host, from_host) if offload else contextlib.nullcontext():
            return checkpoint(function, *args, use_reentrant=False, preserve_rng_state=False)

    return run


class _Head:
    """host_table.HostTable on a card: two raw tiles, one decoded by the real code."""

    def __init__(self, run: DryRun, config: Any) -> None:
        self.shape = torch.Size((config.vocab_size, config.hidden_size))
        self._tile_rows, self._type = run.head_tile_rows, run.table_type

    def rows(self, ids: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        return torch.empty(len(ids), self.shape[1], dtype=dtype)

    def tiles(self, dtype: torch.dtype) -> Iterator[tuple[int, torch.Tensor]]:
        vocabulary, width = self.shape
        row_bytes = ggml_decoding.row_bytes(self._type, width)
        raw = [torch.empty(self._tile_rows, row_bytes, dtype=torch.uint8) for _ in range(2)]
        view = ggml_decoding.is_stored_as(self._type, dtype)
        decoded = None if view else torch.empty(self._tile_rows, width, dtype=dtype)
        for index, first in enumerate(range(0, vocabulary, self._tile_rows)):
            tile = raw[index % 2]
            if view or index < 2:  # the others are like the first
                tile = ggml_decoding.decode(tile, self._type, width, dtype, decoded)
            else:
                assert decoded is not None
                tile = decoded
            yield first, tile[: min(self._tile_rows, vocabulary - first)]


def _build(run: DryRun) -> Any:
    """The causal LM's decoder, its linears replaced, checkpointed."""
    from transformers import CONFIG_MAPPING, AutoModel

    config = CONFIG_MAPPING[run.config["model_type"]].from_dict(dict(run.config)).get_text_config()
    if run.layers:
        config.num_hidden_layers = run.layers
        if getattr(config, "layer_types", None):
            # Of both kinds where there are both, in their order.
            kinds = [t for i, t in enumerate(config.layer_types) if i < run.layers - 1]
            config.layer_types = [*kinds, config.layer_types[-1] if run.layers == 1 else "full_attention"]
    config._attn_implementation = "sdpa"
    config.use_cache = False
    with torch.device("meta"):
        model = AutoModel.from_config(config, dtype=torch.bfloat16)
    model.embed_tokens = nn.Identity()
    for name, module in list(model.named_modules()):
        if type(module) is nn.Linear:
            parent, _, own = name.rpartition(".")
            setattr(model.get_submodule(parent), own, _LoraLinear(module.in_features, module.out_features, run.rank))
    if run.mlp_tile_tokens:
        tile_mlps(model.layers, run.mlp_tile_tokens)
    for module in model.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            if parameter.device.type == "meta":
                frozen = nn.Parameter(torch.empty(parameter.shape, dtype=parameter.dtype), requires_grad=False)
                setattr(module, name, frozen)
        for name, buffer in list(module.named_buffers(recurse=False)):
            module.register_buffer(name, torch.empty(buffer.shape, dtype=buffer.dtype), persistent=False)
    for module in model.modules():
        if hasattr(module, "gradient_checkpointing"):
            module.gradient_checkpointing = run.recompute
            module._gradient_checkpointing_func = _checkpointed(run.offload)
    return model.train()


def peak_bytes(run: DryRun) -> Peaks:
    """Runs one micro-batch forward, through the head and backward, with the adapter's gradients there already."""
    peaks = Peaks()
    with FakeTensorMode(allow_non_fake_inputs=True), _as_on_cuda():
        model = _build(run)
        live = _Live()
        for tensor in (*model.parameters(), *model.buffers()):
            live.ignore(tensor)
            if tensor.requires_grad:
                tensor.grad = torch.empty_like(tensor)
                live.ignore(tensor.grad)
        hidden = model.config.hidden_size
        with live:
            with torch.autocast("cpu", dtype=torch.bfloat16, cache_enabled=False):
                embedded = torch.empty(run.rows, run.tokens, hidden, dtype=torch.bfloat16).requires_grad_()
                position_ids = torch.arange(run.tokens)[None]
                masks = {
                    kind: torch.ones(run.rows, 1, run.tokens, run.tokens, dtype=torch.bool)
                    for kind in set(getattr(model.config, "layer_types", None) or ["full_attention"])
                }
                # Gemma's models take a mask for each kind of layer, the others one.
                mask = masks if model.config.model_type.startswith("gemma") else masks["full_attention"]
                out = model(inputs_embeds=embedded, attention_mask=mask, position_ids=position_ids).last_hidden_state
                del embedded, mask, masks, position_ids
                peaks.forward = live.take_peak()
                scored = out.flatten(0, 1)[torch.arange(run.rows * run.tokens)]
                del out
                targets = torch.zeros(len(scored), dtype=torch.int64)
                loss = token_statistics(scored, targets, _Head(run, model.config), LogitRule()).log_probs.sum()
                del scored
                peaks.head = live.take_peak()
            loss.backward()
            peaks.backward = live.take_peak()
        peaks.largest = sorted(live.at_peak, reverse=True)
    return peaks

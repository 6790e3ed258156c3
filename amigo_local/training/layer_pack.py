"""One decoder layer's NF4 weights as one flat run of bytes, and the layer's Linear4bit modules bound to it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

import msgspec
import torch
from torch import nn

from amigo_local.training.nf4_index import aligned

Part = Literal["packed", "absmax", "absmax2"]
"""Of a double-quantized weight: two codes a byte; uint8 scale codes, one in 64 weights; f32 scales of those scales,
one in 256 (bitsandbytes.functional.QuantState)."""
PART_DTYPES: dict[Part, torch.dtype] = {"packed": torch.uint8, "absmax": torch.uint8, "absmax2": torch.float32}


class PackedTensor(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Where one tensor of one linear lies in its layer's pack."""

    module: str
    """Within the layer: `self_attn.q_proj`."""
    part: Part
    offset: int
    nbytes: int
    shape: tuple[int, ...]


class LayerPack:
    """A layer's tensors in one uint8 tensor `flat` (nbytes,) on the host, mapped or in memory."""

    def __init__(self, flat: torch.Tensor, tensors: tuple[PackedTensor, ...]) -> None:
        self.flat, self.tensors = flat, tensors

    @property
    def nbytes(self) -> int:
        return self.flat.numel()


def linears_4bit(layer: nn.Module) -> Iterator[tuple[str, Any]]:
    """(name within the layer, bitsandbytes.nn.Linear4bit), also those that PEFT has wrapped (`…base_layer`)."""
    import bitsandbytes

    for name, module in layer.named_modules():
        if isinstance(module, bitsandbytes.nn.Linear4bit):
            yield name.removesuffix(".base_layer"), module


def bind(layer: nn.Module, pack: LayerPack, buffer: torch.Tensor) -> None:
    """Makes the layer's weights views of `buffer` (uint8, at least pack.nbytes), once and for all.

    Nothing about a module may change afterwards: MatMul4Bit keeps the weight in `ctx.tensors`, outside
    save_for_backward, so that what a backward pass reads is whatever the bound bytes hold by then.

    Raises ValueError when pack and layer aren't of the same linears.
    """
    modules = dict(linears_4bit(layer))
    packed = {(tensor.module, tensor.part) for tensor in pack.tensors}
    if packed != {(name, part) for name in modules for part in PART_DTYPES}:
        names = ", ".join(sorted({name for name, _ in packed}))
        raise ValueError(f"a pack of {names} for a layer of {', '.join(sorted(modules))}")
    for tensor in pack.tensors:
        module = modules[tensor.module]
        part = buffer[tensor.offset : tensor.offset + tensor.nbytes]
        view = part.view(PART_DTYPES[tensor.part]).view(tensor.shape)
        state = module.weight.quant_state
        if tensor.part == "packed":
            module.weight.data = view
        elif tensor.part == "absmax":
            state.absmax = view
        else:
            state.state2.absmax = view
    for module in modules.values():
        state = module.quant_state = module.weight.quant_state
        # What isn't in the pack is the same for all layers, or one number: the code books, and absmax's mean.
        state.code, state.offset = state.code.to(buffer.device), state.offset.to(buffer.device)
        state.state2.code = state.state2.code.to(buffer.device)
        # bitsandbytes would repack the weight in place at the first eval forward on CPUs with AVX512-BF16, and
        # gradients through it would be wrong from then on.
        module.support_avx512bf16_for_cpu = False


def pack_layer(layer: nn.Module) -> LayerPack:
    """Copies the weights of a layer that is quantized already (`from_pretrained(load_in_4bit)`) into a pack."""
    tensors: list[PackedTensor] = []
    sources: list[torch.Tensor] = []
    offset = 0
    for name, module in linears_4bit(layer):
        state = module.weight.quant_state
        if getattr(state, "packing_format_for_cpu", False):
            raise ValueError(f"{name} was repacked for inference on a CPU; its NF4 layout is gone")
        if not state.nested:
            raise ValueError(f"{name} isn't double-quantized")
        parts: tuple[tuple[Part, torch.Tensor], ...] = (
            ("packed", module.weight.data),
            ("absmax", state.absmax),
            ("absmax2", state.state2.absmax),
        )
        for part, value in parts:
            nbytes = value.numel() * value.element_size()
            tensors.append(PackedTensor(name, part, offset, nbytes, tuple(value.shape)))
            sources.append(value)
            offset += aligned(nbytes)
    flat = torch.zeros(offset, dtype=torch.uint8)
    for tensor, value in zip(tensors, sources, strict=True):
        as_bytes = value.detach().contiguous().reshape(-1).view(torch.uint8)
        flat[tensor.offset : tensor.offset + tensor.nbytes].copy_(as_bytes)
    return LayerPack(flat, tuple(tensors))

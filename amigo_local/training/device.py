"""What the card can do: bf16, NF4, a torch that reaches it, and attention that never needs a square of the length."""

from __future__ import annotations

import logging
import types
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version

import msgspec

from amigo_local.domain.errors import AmigoError, InputError
from amigo_local.domain.events import Emit, Note

BF16_CAPABILITY = (8, 0)
"""CUDA compute capability from which tensor cores multiply bf16: CUDA C++ Programming Guide, "Compute Capabilities".
f16 is no way out below: its largest number is 65,504, and Gemma 3's activations are larger."""

# What torch says when no kernel is left to choose: aten/src/ATen/native/transformers/cuda/sdp_utils.cpp and
# attention.cpp, seen in 2.13.
_NO_KERNEL = ("No available kernel", "No viable backend for scaled_dot_product_attention")


class Libraries(msgspec.Struct, frozen=True, kw_only=True):
    """What the installed libraries were built for, and what they make of the driver."""

    torch_version: str
    torch_cuda: str | None
    """The CUDA version that torch was built with; None: a build without."""
    card_usable: bool
    """torch.cuda.is_available(): built with CUDA, and the driver answers."""
    bitsandbytes_cuda: bool
    """Its native library with NF4 kernels for the card was found and loaded."""
    bitsandbytes_error: str = ""
    """Why that library didn't load."""


class Card(msgspec.Struct, frozen=True, kw_only=True):
    name: str
    capability: tuple[int, int]


def installed_libraries() -> Libraries:
    """Imports torch and bitsandbytes: seconds."""
    import torch

    log = logging.getLogger("bitsandbytes")
    level = log.level
    log.setLevel(logging.CRITICAL)  # it logs a traceback when its library doesn't load; the reason is told anyway
    try:
        from bitsandbytes.cextension import lib
    finally:
        log.setLevel(level)
    return Libraries(
        torch_version=torch.__version__,
        torch_cuda=torch.version.cuda,
        card_usable=torch.cuda.is_available(),
        # cextension.CudaBNBNativeLibrary says True; the CPU library and the one that stands for a failure say False.
        bitsandbytes_cuda=bool(type(lib).compiled_with_cuda),
        bitsandbytes_error=str(vars(lib).get("error_msg", "")),
    )


def visible_card(index: int = 0) -> Card | None:
    """The card that training would use; None where torch reaches none."""
    import torch

    if not torch.cuda.is_available():
        return None
    return Card(name=torch.cuda.get_device_name(index), capability=torch.cuda.get_device_capability(index))


def card_problems(gpu_name: str | None, libraries: Libraries, card: Card | None) -> tuple[Note, ...]:
    """What stands in the way of training on the card. gpu_name: as nvidia-smi has it, None where it sees none.

    "problem": training can't run as it is. "warning": it can, but on the processor.
    """
    if card is None:
        return () if gpu_name is None else (_unreached(gpu_name, libraries),)
    notes = []
    if card.capability < BF16_CAPABILITY:
        major, minor = card.capability
        text = (
            f"{card.name} (compute capability {major}.{minor}) has no bf16: training needs 8.0 or newer (RTX 30, A100)"
        )
        notes.append(Note(text, "problem", "train on another card, or on the processor: CUDA_VISIBLE_DEVICES= "))
    if not libraries.bitsandbytes_cuda:
        why = next((line for line in libraries.bitsandbytes_error.splitlines() if line.strip()), "")
        why = why or f"it found none for CUDA {libraries.torch_cuda}"
        fix = f"pip install --force-reinstall --no-deps bitsandbytes=={version('bitsandbytes')}"
        text = f"bitsandbytes has loaded no CUDA build, so that NF4 can't run on {card.name}: {why}"
        notes.append(Note(text, "problem", f"{fix}; then: python -m bitsandbytes"))
    return tuple(notes)


def _unreached(gpu_name: str, libraries: Libraries) -> Note:
    if libraries.torch_cuda is None:
        wanted = libraries.torch_version.split("+")[0]
        fix = f"pip install --force-reinstall torch=={wanted}, from an index with CUDA builds"
        text = f"there is a card ({gpu_name}), but torch {libraries.torch_version} is a build without CUDA"
    else:
        fix = "update the NVIDIA driver; nvidia-smi shows the CUDA version it serves. See also CUDA_VISIBLE_DEVICES"
        text = f"there is a card ({gpu_name}), but torch, built for CUDA {libraries.torch_cuda}, can't use it"
    return Note(f"{text}: training would run on the processor", "warning", fix)


def check_card(emit: Emit, gpu_name: str | None) -> None:
    """Before training: emits the warnings, raises InputError for the first problem."""
    for note in card_problems(gpu_name, installed_libraries(), visible_card()):
        if note.level == "problem":
            raise InputError(note.text, note.fix)
        emit(note)


@contextmanager
def fused_attention(device_type: str) -> Iterator[None]:
    """Within it a card (`torch.device.type` "cuda") computes attention with fused kernels only.

    torch falls back to plain matrix products in silence, which keep heads x length² numbers a layer: at 4096
    tokens of Gemma-3-12B 1 GiB in f32, and out of memory somewhere else. Here the fall-back is an AmigoError that
    names the layer and its shapes. On a processor nothing changes.
    """
    if device_type != "cuda":
        yield
        return
    from torch.nn.attention import SDPBackend, sdpa_kernel

    fused = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.CUDNN_ATTENTION]
    with sdpa_kernel(fused):
        try:
            yield
        except RuntimeError as error:
            if not any(words in str(error) for words in _NO_KERNEL):
                raise
            raise AmigoError(
                f"no fused attention kernel of torch takes {_attention_call(error)}",
                "it would fall back to one whose memory grows with the square of the length: update torch, or take "
                "another card. Flash attention takes bf16 heads of up to 256, on RTX cards above 192 without dropout",
            ) from error


def _attention_call(error: BaseException) -> str:
    """The layer and shapes that the failed call was made with, from its frame: torch's message has neither."""
    trace: types.TracebackType | None = error.__traceback__
    while trace is not None:
        frame = trace.tb_frame
        if frame.f_code.co_name == "sdpa_attention_forward":  # transformers.integrations.sdpa_attention
            found = frame.f_locals
            query, key, mask = found["query"], found["key"], found.get("attention_mask")
            layer = getattr(found["module"], "layer_idx", None)
            return (
                f"{'a layer' if layer is None else f'layer {layer}'}: query {_shape(query)}, key {_shape(key)}, "
                f"{'no mask' if mask is None else f'mask {_shape(mask)}'}, dropout {found.get('dropout', 0.0)}"
            )
        trace = trace.tb_next
    return "this model's attention"


def _shape(tensor: object) -> str:
    """`1 x 16 x 2048 x 256 bfloat16`."""
    sizes = " x ".join(str(size) for size in getattr(tensor, "shape", ()))
    return f"{sizes} {str(getattr(tensor, 'dtype', '')).removeprefix('torch.')}"

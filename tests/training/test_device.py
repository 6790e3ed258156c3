"""What is said of a card that can't train, and of attention that would run out of memory."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
import torch
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from amigo_local.domain.errors import AmigoError, InputError
from amigo_local.domain.events import AnyEvent
from amigo_local.training import device
from amigo_local.training.device import Card, Libraries, card_problems, check_card, fused_attention

GOOD = Libraries(torch_version="2.13.0+cu130", torch_cuda="13.0", card_usable=True, bitsandbytes_cuda=True)
RTX_4050 = Card(name="NVIDIA GeForce RTX 4050 Laptop GPU", capability=(8, 9))


def replaced(**fields: Any) -> Libraries:
    return msgspec.structs.replace(GOOD, **fields)


def test_a_good_card_and_no_card_at_all_are_no_problem() -> None:
    assert card_problems(RTX_4050.name, GOOD, RTX_4050) == ()
    assert card_problems(None, replaced(torch_cuda=None, card_usable=False, bitsandbytes_cuda=False), None) == ()


@pytest.mark.parametrize(("capability", "refused"), [((7, 5), True), ((7, 0), True), ((8, 0), False), ((12, 0), False)])
def test_a_card_without_bf16_is_refused(capability: tuple[int, int], refused: bool) -> None:
    notes = card_problems("card", GOOD, Card(name="Tesla T4", capability=capability))
    assert bool(notes) == refused
    if notes:
        assert notes[0].level == "problem"
        assert notes[0].text.startswith(f"Tesla T4 (compute capability {capability[0]}.{capability[1]}) has no bf16")
        assert "8.0" in notes[0].text and "another card" in notes[0].fix


def test_bitsandbytes_without_a_cuda_build_is_refused_with_its_own_reason() -> None:
    failed = replaced(
        bitsandbytes_cuda=False,
        bitsandbytes_error="\nlibcudart.so.13: cannot open shared object file: No such file or directory\nmore",
    )
    (note,) = card_problems("card", failed, RTX_4050)
    assert note.level == "problem"
    assert note.text.endswith(
        "RTX 4050 Laptop GPU: libcudart.so.13: cannot open shared object file: No such file or directory"
    )
    assert note.fix.startswith("pip install --force-reinstall --no-deps bitsandbytes==0.50.2")


def test_a_torch_that_cannot_reach_the_card_is_told_since_it_would_train_on_the_processor() -> None:
    without = replaced(torch_version="2.13.0+cpu", torch_cuda=None, card_usable=False, bitsandbytes_cuda=False)
    (note,) = card_problems(RTX_4050.name, without, None)
    assert note.level == "warning"
    assert "torch 2.13.0+cpu is a build without CUDA: training would run on the processor" in note.text
    assert "torch==2.13.0," in note.fix
    (note,) = card_problems(RTX_4050.name, replaced(card_usable=False), None)
    assert "built for CUDA 13.0, can't use it" in note.text
    assert "driver" in note.fix


def test_what_is_installed_here_is_read_and_checked() -> None:
    """bitsandbytes' own word on which library it loaded; here there is no card."""
    libraries = device.installed_libraries()
    assert libraries.torch_version == torch.__version__
    assert libraries.card_usable == torch.cuda.is_available() == (device.visible_card() is not None)
    assert libraries.bitsandbytes_cuda == torch.cuda.is_available()


def test_before_training_a_warning_is_emitted_and_a_problem_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[AnyEvent] = []
    monkeypatch.setattr(device, "installed_libraries", lambda: replaced(card_usable=False))
    monkeypatch.setattr(device, "visible_card", lambda: None)
    check_card(events.append, RTX_4050.name)
    assert [getattr(event, "level", "") for event in events] == ["warning"]
    monkeypatch.setattr(device, "visible_card", lambda: Card(name="Tesla T4", capability=(7, 5)))
    with pytest.raises(InputError, match="Tesla T4"):
        check_card(events.append, "Tesla T4")


def attend(dropout: float) -> torch.Tensor:
    """As a transformers layer does. torch's kernels for processors take no dropout, so only plain products are left."""
    heads = torch.randn(1, 2, 8, 16)
    layer: Any = SimpleNamespace(is_causal=True, layer_idx=7, training=True)
    return sdpa_attention_forward(layer, heads, heads, heads, None, dropout=dropout)[0]


def test_attention_that_no_fused_kernel_takes_is_an_error_that_names_layer_and_shapes() -> None:
    with fused_attention("cuda"):
        assert attend(0.0).shape == (1, 8, 2, 16)
        with pytest.raises(RuntimeError, match="No available kernel"):
            attend(0.1)
    with pytest.raises(AmigoError) as caught, fused_attention("cuda"):
        attend(0.1)
    shapes = "layer 7: query 1 x 2 x 8 x 16 float32, key 1 x 2 x 8 x 16 float32, no mask, dropout 0.1"
    assert caught.value.message == f"no fused attention kernel of torch takes {shapes}"
    assert attend(0.1).shape == (1, 8, 2, 16)  # and afterwards everything is as before


def test_another_error_passes_through_and_a_processor_keeps_all_kernels() -> None:
    with pytest.raises(RuntimeError, match="other"), fused_attention("cuda"):
        raise RuntimeError("other")
    with fused_attention("cpu"):
        assert attend(0.1).shape == (1, 8, 2, 16)


@pytest.mark.gpu
@pytest.mark.parametrize("masked", [False, True])
def test_on_a_card_gemmas_heads_of_256_are_taken_with_and_without_a_mask_backwards_too(masked: bool) -> None:
    query = torch.randn(1, 16, 1024, 256, device="cuda", dtype=torch.bfloat16, requires_grad=True)
    mask = torch.ones(1, 1, 1024, 1024, dtype=torch.bool, device="cuda").tril() if masked else None
    layer: Any = SimpleNamespace(is_causal=True, layer_idx=0, training=True)
    with fused_attention("cuda"):
        sdpa_attention_forward(layer, query, query, query, mask, dropout=0.0)[0].sum().backward()
    assert query.grad is not None

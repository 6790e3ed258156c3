"""What is only so on a card, as far as a processor can show it: its device, autocast, offloading, paged moments."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch

from amigo_local.training import step_trainer
from amigo_local.training.base import training_device
from amigo_local.training.checkpointed_trainer import page_out
from tests.support.streamed_training import SETTINGS, TinyModel, plan_for

from .conftest import files


def test_the_plan_decides_where_training_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert training_device("cuda") == torch.device("cuda", 0)
    assert training_device("cpu") == torch.device("cpu")


def test_several_visible_cards_are_no_reason_for_data_parallel(tmp_path: Path) -> None:
    from trl import SFTConfig

    plan = plan_for("llama")
    arguments = step_trainer.step_arguments(SFTConfig, SETTINGS, plan, 4, tmp_path)
    assert arguments.n_gpu == 1, "transformers counts what is visible; a processor has none"
    assert arguments.train_batch_size == SETTINGS.effective_batch


def test_loaded_moments_go_back_where_a_paged_optimizer_makes_them() -> None:
    from bitsandbytes.optim import AdamW8bit, PagedAdamW8bit

    def trained(optimizer_class: Any) -> tuple[torch.nn.Parameter, Any]:
        draw = torch.Generator().manual_seed(0)
        parameter = torch.nn.Parameter(torch.randn(128, 64, generator=draw))
        optimizer = optimizer_class([parameter], lr=1e-2)
        parameter.grad = torch.randn(128, 64, generator=draw)
        optimizer.step()
        return parameter, optimizer

    class Paged(PagedAdamW8bit):  # type: ignore[misc]  # bitsandbytes ships no types
        """A processor has no managed memory."""

        def get_state_buffer(self, p: Any, dtype: torch.dtype = torch.float32) -> Any:
            buffer = torch.zeros_like(p, dtype=dtype)
            buffer.is_paged, buffer.page_deviceid = True, 0
            return buffer

        def prefetch_state(self, p: Any) -> None: ...

    kept, optimizer = trained(Paged)
    saved = io.BytesIO()
    torch.save(optimizer.state_dict(), saved)
    saved.seek(0)
    resumed, again = trained(Paged)
    again.load_state_dict(torch.load(saved, weights_only=True))
    for state in again.state.values():  # on a card they come without the mark, on the card
        state["state1"], state["state2"] = state["state1"].clone(), state["state2"].clone()
    page_out(again)
    (state,) = again.state.values()
    assert all(state[name].is_paged for name in ("state1", "state2"))
    for parameter, one in ((kept, optimizer), (resumed, again)):
        parameter.grad = torch.ones_like(parameter)
        one.step()
    assert torch.equal(kept, resumed)
    _, plain = trained(AdamW8bit)
    before = [id(value) for state in plain.state.values() for value in state.values()]
    page_out(plain)
    assert [id(value) for state in plain.state.values() for value in state.values()] == before


@pytest.mark.slow
@pytest.mark.parametrize("method", ["sft", "dpo"])
def test_streamed_and_offloaded_under_autocast_is_what_mapped_is(
    method: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    import transformers.modeling_utils
    from torch.autograd.graph import save_on_cpu

    plainly = step_trainer.step_arguments
    more: dict[str, Any] = {"bf16": True}

    def as_on_a_card(config: Any, *asked: Any) -> Any:
        return plainly(lambda **ours: config(**ours | more), *asked)

    monkeypatch.setattr(step_trainer, "step_arguments", as_on_a_card)
    monkeypatch.setattr(transformers.modeling_utils, "save_on_cpu", lambda **no_pinned_memory: save_on_cpu())
    (tmp_path / "model").mkdir()
    model = TinyModel(tmp_path / "model", "gemma3")
    settings = msgspec.structs.replace(SETTINGS, method=method)
    model.train(tmp_path / "mapped", settings)
    more["activation_checkpointing_kwargs"] = {"offload": True}
    model.train(tmp_path / "streamed", settings, plan_for("gemma3"), engine="ring, late")
    assert files(tmp_path / "streamed") == files(tmp_path / "mapped")

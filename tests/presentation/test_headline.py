from __future__ import annotations

import pytest

from amigo_local.domain.artifact import Figure
from amigo_local.presentation.headline import headline


@pytest.mark.parametrize(
    ("stage", "figures", "said"),
    [
        ("prepare", {"train_samples": 3208}, "3,208 samples"),
        ("train", {"first_loss": 1.234, "final_loss": 0.5}, "loss 1.23 → 0.50"),
        ("quantize", {"mean_error": 0.0939}, "error 9.4 %"),
        ("export", {"quantization": "Q4_K", "kl_mean": 0.0287}, "Q4_K, KL 0.029"),
        ("export", {"quantization": "Q4_K"}, "Q4_K"),
        ("register", {"tag": "a:b"}, "a:b"),
        ("evaluate", {"directness.before.at_once_share": 0.69, "directness.after.at_once_share": 1.0},
         "code at once 69 → 100 %"),
        ("evaluate", {"context.m:1.5b.names_used_share": 0.25}, "context 25 %"),
        ("pull", {"size_bytes": 3}, ""),
        ("train", {}, ""),
    ],
)  # fmt: skip
def test_a_stage_is_known_by_one_figure(stage: str, figures: dict[str, Figure], said: str) -> None:
    assert headline(stage, figures) == said

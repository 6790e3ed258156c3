"""What an architecture does to logits after the projection."""

from __future__ import annotations

from typing import Any

import msgspec
import torch


class LogitRule(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """logit = softcap * tanh(scale * projection / softcap), or scale * projection."""

    scale: float = 1.0
    softcap: float | None = None
    """final_logit_softcapping of Gemma 2 (30.0)."""

    @classmethod
    def of(cls, config: Any) -> LogitRule:
        """Reads a transformers config exactly as TRL's add_fused_lm_head does (trl/trainer/utils.py)."""
        config = config.get_text_config()
        scale = next(
            (
                value
                # Cohere; Muse Glimmer; Falcon-H1. MPT has a logit_scale of None.
                for name in ("logit_scale", "output_multiplier", "lm_head_multiplier")
                if (value := getattr(config, name, None)) is not None
            ),
            None,
        )
        divisor = getattr(config, "logits_scaling", None)  # Granite, MiniCPM3; HyperCLOVA X multiplies by it
        if scale is None and divisor is not None:
            scale = divisor if config.model_type == "hyperclovax" else 1 / divisor
        return cls(1.0 if scale is None else scale, getattr(config, "final_logit_softcapping", None))

    def apply_(self, projections: torch.Tensor, slopes: torch.Tensor | None) -> None:
        """Makes logits of projections in place. slopes (same shape, given when there is a softcap) become
        1 - tanh^2: the derivative of the logits, but for `scale`."""
        if self.softcap is None:
            if self.scale != 1:
                projections.mul_(self.scale)
            return
        projections.mul_(self.scale / self.softcap).tanh_()
        if slopes is not None:
            torch.mul(projections, projections, out=slopes).neg_().add_(1)
        projections.mul_(self.softcap)

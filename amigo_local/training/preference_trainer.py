"""TRL's DPO loss over micro-batches of pairs, against log-probabilities that were computed beforehand."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from trl import DPOTrainer
from trl.trainer.utils import FusedCausalLMOutput

from amigo_local.training.fused_lm_head import attach_fused_lm_head
from amigo_local.training.micro_batches import MicroBatch, StepRow, lay_out
from amigo_local.training.reference import Logps
from amigo_local.training.step_trainer import StepTrainer

TOLD = (
    *("rewards/chosen", "rewards/rejected", "rewards/margins", "rewards/accuracies"),
    *("logps/chosen", "logps/rejected"),
)
"""What is logged of each step, by TRL's names; a reward is beta x (log-probability - the reference's)."""


class PreferenceTrainer(StepTrainer, DPOTrainer):  # type: ignore[misc]  # trl ships no types
    """TRL computes the loss and the rewards of a pair; the mean is over the step's pairs.

    TRL's own precomputation of the reference hashes every weight and goes through a `datasets` cache, neither of
    which works for weights that stream; so `_compute_loss` is told that it has been done.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        attach_fused_lm_head(self.model)  # in place of TRL's, whose entropy and mean logits nobody asks for
        self.precompute_ref_logps = True
        self.reference: dict[str, Mapping[int, Logps]] = {"train": {}, "eval": {}}
        """By a row's index, of the rows that are trained on and of those held out."""

    def _prepare_dataset(self, dataset: Any, *args: Any, **kwargs: Any) -> Any:
        return dataset  # row numbers: the rows are tokenized already

    def loss_terms(self, rows: Sequence[StepRow]) -> int:
        return len(rows)

    def loss_sum(self, model: Any, micro_batch: MicroBatch) -> torch.Tensor:
        mode, pairs = "train" if self.model.training else "eval", len(micro_batch.rows)
        sides = SideBySide(micro_batch, self.token_logps(micro_batch))
        reference = torch.tensor([self.reference[mode][row.index] for row in micro_batch.rows])
        chosen, rejected = reference.to(sides.logps.device).unbind(dim=1)
        step_metrics, self._metrics = self._metrics, {mode: defaultdict(list)}
        try:
            inputs = sides.inputs() | {"ref_chosen_logps": chosen, "ref_rejected_logps": rejected}
            mean: torch.Tensor = self._compute_loss(sides.output, inputs, return_outputs=False)
        finally:
            told, self._metrics = self._metrics[mode], step_metrics
        for name in TOLD:
            # TRL logs the mean of what is appended: a pair counts once, however many share its micro-batch.
            self._metrics[mode][name] += told[name] * pairs
        return mean * pairs

    def rehearse_loss(self, model: Any, rows: Sequence[StepRow]) -> torch.Tensor:
        reference, nothing = self.reference, {row.index: (0.0, 0.0) for row in rows}
        self.reference = {"train": nothing, "eval": nothing}
        try:
            return self.run_micro_batch(model, rows)
        finally:
            self.reference = reference

    def reference_of(self, rows: Sequence[StepRow], told: Callable[[int], None]) -> dict[int, Logps]:
        """By a row's index, what the model as it is now gives the rows of one step; dropout is off.

        Micro-batches, dtypes and kernels are those of a training step on the same rows. told: called after each
        micro-batch with how many rows are done.
        """

        def score(groups: list[list[StepRow]]) -> dict[int, Logps]:
            found: dict[int, Logps] = {}
            for group in groups:
                self._in_hand = group
                found |= self._pair_logps(lay_out(group, self.setup.settings.packing).to(self.args.device))
                told(len(found))
            return found

        was_training = self.model.training
        self.model.eval()
        try:
            return self._as_memory_allows(rows, score)
        finally:
            self.model.train(was_training)

    def _pair_logps(self, micro_batch: MicroBatch) -> dict[int, Logps]:
        # Trainer wraps the model in autocast when training begins, and not before.
        with torch.no_grad(), self.accelerator.autocast():
            sums = SideBySide(micro_batch, self.token_logps(micro_batch)).logps.sum(dim=1)
        chosen, rejected = (side.tolist() for side in sums.chunk(2))
        return dict(zip((row.index for row in micro_batch.rows), zip(chosen, rejected, strict=True), strict=True))


class SideBySide:
    """A micro-batch's answers as `DPOTrainer._compute_loss` takes them: those chosen, then those rejected."""

    def __init__(self, micro_batch: MicroBatch, logps: torch.Tensor) -> None:
        """logps: (completion tokens,) in the order of the micro-batch's sequences: chosen, rejected, chosen, ..."""
        sides = [side for row in micro_batch.rows for side in row.sequences]
        answers = torch.split(logps, [len(side.input_ids) - side.completion_start for side in sides])
        ordered = [*answers[0::2], *answers[1::2]]
        self.logps = torch.nn.utils.rnn.pad_sequence(ordered, batch_first=True)
        """(2 x pairs, longest answer) f32; 0 behind an answer's end."""
        lengths = torch.tensor([len(answer) for answer in ordered], device=logps.device)
        self._mask = torch.arange(self.logps.shape[1], device=logps.device) < lengths[:, None]

    def inputs(self) -> dict[str, torch.Tensor]:
        """All that TRL looks at: which tokens are an answer's. The column in front is the token before the answer."""
        mask = torch.nn.functional.pad(self._mask.long(), (1, 0))
        return {"input_ids": mask, "attention_mask": mask, "completion_mask": mask}

    def output(self, **inputs: Any) -> FusedCausalLMOutput:
        """What TRL calls for the model's output: the forward pass has been done."""
        nothing = torch.zeros_like(self.logps)
        return FusedCausalLMOutput(log_probs=self.logps, entropy=nothing, mean_logits=nothing, is_top1=nothing.bool())

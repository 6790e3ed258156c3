"""A training step as a loop over micro-batches, whose size gives way when memory runs out."""

from __future__ import annotations

import gc
import math
from abc import abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from accelerate.utils import AutocastKwargs

from amigo_local.domain.errors import AmigoError
from amigo_local.domain.events import Note
from amigo_local.domain.memory_plan import MemoryPlan
from amigo_local.domain.recipe import TrainSettings
from amigo_local.training.checkpointed_trainer import CheckpointedTrainer, StepSetup
from amigo_local.training.embedding_noise import EmbeddingNoise
from amigo_local.training.micro_batches import MicroBatch, StepBatch, StepRow, footprint, lay_out, split_step
from amigo_local.training.out_of_memory import is_out_of_memory
from amigo_local.training.samples import IGNORED_LABEL

_T = TypeVar("_T")
_SCHEDULERS = {"cosine": "cosine", "linear": "linear", "constant": "constant_with_warmup"}


class StepTrainer(CheckpointedTrainer):
    """Goes before TRL's trainer: `class AdapterTrainer(StepTrainer, SFTTrainer)`.

    A subclass gives `loss_sum` and `loss_terms`. `train_dataset` is `Dataset.from_dict({"index": order})`, indices
    of `setup.rows`; `args` are `step_arguments(...)`.
    """

    _metrics: dict[str, dict[str, list[float]]]
    """TRL's, averaged into the log of a step."""

    def __init__(self, *args: Any, setup: StepSetup, **kwargs: Any) -> None:
        def collect(items: list[dict[str, int]]) -> StepBatch:
            return StepBatch(tuple(setup.rows[item["index"]] for item in items))

        super().__init__(*args, setup=setup, data_collator=collect, **kwargs)
        # Each LoRA weight is used once in a pass: a cache of bf16 copies would be 2 bytes of each for nothing.
        self.accelerator.autocast_handler = AutocastKwargs(cache_enabled=False)
        self.after_micro_batch: Callable[[Any, int, int], None] = lambda state, done, total: None
        """Called with (state, how many are done, of how many) after each micro-batch of a step but the last."""
        self._in_hand: Sequence[StepRow] = ()
        self._step_rows: Sequence[StepRow] = ()
        embedding, alpha = self.model.get_input_embeddings(), setup.settings.neftune_noise_alpha
        self._noise = EmbeddingNoise(embedding, alpha) if alpha else None

    # -- What a subclass gives

    @abstractmethod
    def loss_sum(self, model: Any, micro_batch: MicroBatch) -> torch.Tensor:
        """The loss summed over the micro-batch's terms, f32 (); with its graph in training, without in evaluation.

        SFT: -log p of each completion token. DPO: the loss of each pair. May append to TRL's
        `self._metrics["train" or "eval"][name]`; what a step appended before it was done again is dropped.
        """

    @abstractmethod
    def loss_terms(self, rows: Sequence[StepRow]) -> int:
        """How many terms these rows have, which the mean is over: completion tokens (SFT), pairs (DPO)."""

    def rehearse_loss(self, model: Any, rows: Sequence[StepRow]) -> torch.Tensor:
        """As `run_micro_batch`, before anything that a run computes ahead is there."""
        return self.run_micro_batch(model, rows)

    def token_logps(self, micro_batch: MicroBatch) -> torch.Tensor:
        """log p of each completion token, (tokens,) f32, in the order of the micro-batch's sequences."""
        # The contract of TRL's add_fused_lm_head: log_probs (rows, width - 1), 0 where the label is ignored.
        output = self.model(
            input_ids=micro_batch.input_ids,
            position_ids=micro_batch.position_ids,
            labels=micro_batch.labels,
            fused_lm_head=True,
        )
        logps: torch.Tensor = output.log_probs[micro_batch.labels[:, 1:] != IGNORED_LABEL]
        return logps

    # -- A step

    def training_step(self, model: Any, inputs: StepBatch, num_items_in_batch: Any = None) -> torch.Tensor:
        """Leaves the gradient of the step's mean loss in the parameters, and returns that loss."""
        self.remember_random_state()
        self._step_rows = inputs.rows
        model.train()
        terms = self.loss_terms(inputs.rows)

        def forward_and_backward(groups: list[list[StepRow]]) -> tuple[list[list[StepRow]], torch.Tensor]:
            losses = []
            for number, group in enumerate(groups, start=1):
                loss = self.run_micro_batch(model, group) / terms
                self.accelerator.backward(loss)
                losses.append(loss.detach())
                if number < len(groups):
                    self.after_micro_batch(self.state, number, len(groups))
            return groups, torch.stack(losses)

        groups, losses = self._as_memory_allows(inputs.rows, forward_and_backward)
        for number, (group, loss) in enumerate(zip(groups, losses.tolist(), strict=True), start=1):
            if not math.isfinite(loss):
                self._refuse("loss", loss, group, f"micro-batch {number} of {len(groups)}")
        return losses.sum()

    def held_out_loss(self) -> float:
        rows, at_once = self.setup.held_out, self.args.per_device_train_batch_size
        chunks = [range(start, min(start + at_once, len(rows))) for start in range(0, len(rows), at_once)]
        self.callback_handler.eval_dataloader = chunks  # callbacks take its length

        def forward(groups: list[list[StepRow]]) -> float:
            with torch.no_grad():
                return sum(float(self.run_micro_batch(self.model, group)) for group in groups)

        total, terms = 0.0, 0
        for chunk in chunks:
            part = [rows[index] for index in chunk]
            total += self._as_memory_allows(part, forward)
            terms += self.loss_terms(part)
            self.control = self.callback_handler.on_prediction_step(self.args, self.state, self.control)
        return total / terms

    def split(self, rows: Sequence[StepRow]) -> list[list[StepRow]]:
        """The micro-batches that these rows go through the model in, as memory is now."""
        groups = split_step([row.lengths for row in rows], self.capacity_tokens, self.setup.settings.packing)
        return [[rows[index] for index in group] for group in groups]

    def run_micro_batch(self, model: Any, group: Sequence[StepRow]) -> torch.Tensor:
        """`loss_sum` of these rows, laid out on the device."""
        self._in_hand = group
        micro_batch = lay_out(group, self.setup.settings.packing).to(self.args.device)
        if self._noise is not None:
            self._noise.expect(micro_batch)
        return self.loss_sum(model, micro_batch)

    # -- When memory runs out

    def _as_memory_allows(self, rows: Sequence[StepRow], work: Callable[[list[list[StepRow]]], _T]) -> _T:
        """`work` on the micro-batches of these rows. Where memory runs out, what it has done is taken back, drawn
        random numbers too, and it is done again in smaller ones."""
        metrics = self._metrics["train" if self.model.training else "eval"]
        before = {name: list(values) for name, values in metrics.items()}
        while True:
            try:
                return work(self.split(rows))
            except RuntimeError as error:
                if not is_out_of_memory(error):
                    raise
                reason = str(error).splitlines()[0]
            # Not within the except clause: the traceback holds frames, and frames hold the graph.
            self.model.zero_grad(set_to_none=True)
            metrics.clear()
            metrics.update({name: list(values) for name, values in before.items()})
            gc.collect()
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            if self.setup.streamer is not None:
                self.setup.streamer.reset()
            self._random_at_step_end.restore()
            self._lower_capacity(reason)

    def _lower_capacity(self, reason: str) -> None:
        rows = self._in_hand
        if len(rows) == 1:
            self.save_before_leaving(mid_step=True)
            lengths = " + ".join(str(length) for length in rows[0].lengths)
            where = f"{self.setup.rows.path}:{rows[0].line}"
            raise AmigoError(
                f"out of memory on a single sample, of {lengths} tokens ({where}): {reason}",
                "set data.max_length_tokens below that, train.memory.resident_layers lower, or "
                "train.memory.offload_checkpoints=true",
            )
        failed = footprint([row.lengths for row in rows], self.setup.settings.packing)
        while self.capacity_tokens >= failed:
            self.capacity_tokens //= 2
        what = f"step {self.state.global_step + 1}" if self.model.training else "the evaluation"
        text = f"out of memory with {failed} tokens at once: {what} is done again with at most {self.capacity_tokens}"
        self.tell(Note(text, "warning", "set train.micro_batch lower to spare the detour"))

    # -- When a step must not be taken

    def _clip_grad_norm(self, model: Any) -> Any:
        norm = super()._clip_grad_norm(model)
        if not math.isfinite(norm):
            self._refuse("gradient", float(norm), self._step_rows, "its micro-batches together")
        return norm

    def _refuse(self, what: str, value: float, rows: Sequence[StepRow], which: str) -> None:
        """Before the optimizer has seen it, while everything is as the last finished step left it."""
        self.save_before_leaving(mid_step=True)
        lines = ", ".join(str(line) for line in sorted(row.line for row in rows))
        good = self.setup.checkpoints.newest()
        raise AmigoError(
            f"the {what} became {'NaN' if math.isnan(value) else 'infinite'} at step {self.state.global_step + 1}, "
            f"in {which}: lines {lines} of {self.setup.rows.path}",
            "look at those lines, or lower train.learning_rate or train.max_grad_norm"
            + (f"; the weights before it: train.adapter={good}" if good else ""),
        )

    # -- What Trainer does with a step's inputs, were they a mapping of tensors

    def _get_num_items_in_batch(self, batch_samples: list[Any], device: Any) -> None:
        return None

    def floating_point_ops(self, inputs: Any) -> int:
        return 0


def step_arguments(
    config: Callable[..., Any], settings: TrainSettings, plan: MemoryPlan, steps: int, output_dir: Path
) -> Any:
    """TRL's arguments. config: SFTConfig or DPOConfig with what is the method's own; here is what StepTrainer needs."""
    on_gpu = plan.device == "cuda"
    made = config(
        output_dir=str(output_dir),
        use_cpu=not on_gpu,
        max_steps=steps,
        per_device_train_batch_size=settings.effective_batch,  # an item of the DataLoader is a whole step
        gradient_accumulation_steps=1,
        learning_rate=settings.learning_rate,
        lr_scheduler_type=_SCHEDULERS[settings.scheduler],
        warmup_steps=math.ceil(settings.warmup_fraction * steps),
        weight_decay=settings.weight_decay,
        max_grad_norm=settings.max_grad_norm,
        optim=plan.optimizer,
        seed=settings.seed,
        train_sampling_strategy="sequential",  # training_order has shuffled already
        remove_unused_columns=False,
        bf16=on_gpu,  # autocast; on CPU base.compute_dtype decides alone
        activation_checkpointing=plan.recompute,
        # On a processor they are on the host as it is.
        activation_checkpointing_kwargs={"offload": True} if plan.offload_checkpoints and on_gpu else None,
        dataloader_pin_memory=False,  # there are no tensors in it yet
        logging_steps=1,
        logging_nan_inf_filter=False,
        save_strategy="steps",
        save_steps=settings.checkpoint_every_steps,
        report_to="none",
        project="amigo-local",  # trackio's and wandb's, where they are asked for
        disable_tqdm=True,
    )
    made._n_gpu = 1  # or several visible cards would be wrapped in nn.DataParallel, which TRL refuses
    made.report_to = []  # transformers adds a tracker by itself where KUBEFLOW_TRAINER_SERVER_URL is set
    return made

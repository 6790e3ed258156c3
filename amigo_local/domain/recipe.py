"""Recipe: what a person wants done to a model. The plan, not the recipe, fits it to a machine."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta

from amigo_local.domain.data_source import DataSource
from amigo_local.domain.strict import Fraction, Positive, Strict

Dtype = Literal["bf16", "f16", "f32"]
# llama.cpp's mixes in lower case: those whose rule is ported, and those that llama.cpp is asked for (many of the
# latter need an importance matrix). Literals nest, so a face sees one list.
PortedMix = Literal[
    "f16",
    "bf16",
    "q8_0",
    "q6_k",
    "q5_k_m",
    "q5_k_s",
    "q4_k_m",
    "q4_k_s",
    "q4_0",
    "q3_k_m",
]
StatedMix = Literal[
    "f32",
    "q5_0",
    "q5_1",
    "q4_1",
    "q3_k_l",
    "q3_k_s",
    "q2_k",
    "iq4_nl",
    "iq4_xs",
    "iq3_m",
    "iq3_s",
    "q2_k_s",
    "iq3_xs",
    "iq3_xxs",
    "iq2_m",
    "iq2_s",
    "iq2_xs",
    "iq2_xxs",
    "iq1_m",
    "iq1_s",
]
Quant = Literal["keep", PortedMix, StatedMix]


class ModelSettings(Strict, frozen=True, kw_only=True):
    source: str | None = None
    """REF of the model to refine: an Ollama tag, a GGUF file or a checkpoint directory."""
    base: str | None = None
    """REF of a checkpoint to train on instead of unpacking the source's GGUF."""
    dtype: Dtype | None = None
    """What the unpacked checkpoint is written in; None: what loses least of this source."""


class DifficultySettings(Strict, frozen=True, kw_only=True):
    """When a problem counts as hard. Measured where the model's own answers could be run, else by stated signs."""

    hard_below: Fraction = 0.5
    """Pass rate of the model's direct answers below which a problem is hard."""
    signs: Positive = 2
    """So many signs of difficulty make a problem hard that can't be run (data/difficulty.py lists them)."""


class DataSettings(Strict, frozen=True, kw_only=True):
    sources: tuple[DataSource, ...] = ()
    """Where training data comes from; each entry is told by its first key: `[{stdlib: all}, {jsonl: mine.jsonl}]`."""
    held_out_fraction: Fraction = 0.15
    """Share of *modules* (or of rows, where there are none) kept away from training, for evaluation."""
    max_length_tokens: Positive = 1024
    """Longer samples are left out, and counted."""
    max_characters: Positive = 200_000
    """Longer rows are left out before anything else looks at them."""
    languages: tuple[str, ...] = ()
    """Programming languages to keep; empty: all. Rows that don't say theirs are kept."""
    licenses: tuple[str, ...] = ()
    """SPDX identifiers to keep; empty: all. Rows that don't say theirs are kept."""
    near_duplicates: Annotated[float, Meta(gt=0, le=1)] | None = None
    """Leave out samples as similar to an earlier one as this (Jaccard similarity of word 5-grams); None: keep them."""
    evaluation_sets: tuple[str, ...] = ()
    """Files of problems that must not be trained on, besides the well-known ones."""
    reasoning: Literal["keep", "strip", "hard"] = "keep"
    """Chains of thought before an answer: keep them, strip them, or keep those of hard problems."""
    difficulty: DifficultySettings = DifficultySettings()
    only_code: bool = False
    """Of an answer that is one block of code with words around it, keep the block alone."""
    seed: int = 0


class LoraSettings(Strict, frozen=True, kw_only=True):
    rank: Positive = 32
    """Width of the adapter on every linear; each doubling costs memory for it and its optimizer."""
    alpha: Positive = 64
    """The adapter counts alpha / rank times; twice the rank is usual."""
    dropout: Fraction = 0.0
    """Share of the adapter's input that is left out at random in training."""
    targets: Literal["all-linear"] | tuple[str, ...] = "all-linear"
    """Linears that get an adapter, by their names in the model (q_proj, …)."""
    use_rslora: bool = False
    """Scale by alpha / sqrt(rank) instead of alpha / rank, so that high ranks still learn."""
    use_dora: bool = False
    """Train each row's magnitude apart from its direction; costs memory and about a third of the speed."""


class DpoSettings(Strict, frozen=True, kw_only=True):
    """Direct preference optimization, as TRL names it."""

    beta: Annotated[float, Meta(gt=0)] = 0.1
    """How strongly the policy is held to the reference; higher stays closer."""
    loss: Literal["sigmoid", "ipo", "hinge"] = "sigmoid"
    """sigmoid is DPO's own; ipo doesn't overfit pairs that are always right; hinge stops at a margin."""
    label_smoothing: Annotated[float, Meta(ge=0, lt=0.5)] = 0.0
    """The share of pairs that are expected to be labelled the wrong way round."""


class MemorySettings(Strict, frozen=True, kw_only=True):
    """Levers that the plan chooses; a value here fixes one. None: planned."""

    resident_layers: Annotated[int, Meta(ge=0)] | None = None
    """Decoder layers that stay on the GPU; the others stream through `slots`."""
    slots: Annotated[int, Meta(ge=1, le=8)] | None = None
    """Buffers on the GPU that streamed layers take turns in."""
    offload_checkpoints: bool | None = None
    """Keep the hidden states that recomputing starts from in host memory."""
    staging: Literal["ring", "pinned"] | None = None
    """How streamed layers leave the host: a small pinned ring over the mapped store, or all of them pinned."""
    head_tile_rows: Annotated[int, Meta(ge=256)] | None = None
    """Vocabulary rows of the head on the GPU at once."""
    mlp_tile_tokens: Annotated[int, Meta(ge=128)] | None = None
    """Tokens that pass through an MLP at once; long samples only."""


class TrainSettings(Strict, frozen=True, kw_only=True):
    method: Literal["sft", "dpo"] = "sft"
    """sft learns completions; dpo learns to prefer `chosen` over `rejected`."""
    adapter: str | None = None
    """Adapter to start from: a directory, or run:ID; None: fresh LoRA weights."""
    learning_rate: Annotated[float, Meta(gt=0)] = 2e-4
    """Of the first step after warming up; smaller for larger models, and a tenth and less of it for dpo."""
    epochs: Annotated[float, Meta(gt=0)] = 1.0
    """How often every sample is seen."""
    max_steps: Positive | None = None
    """Stop after so many optimizer steps even if epochs remain."""
    effective_batch: Positive = 8
    """Samples per optimizer step. The plan splits it into micro-batch x accumulation."""
    micro_batch: Positive | None = None
    """Overrides the plan's micro-batch."""
    packing: bool = True
    """Lay a step's short samples end to end, each seeing only itself, instead of padding them."""
    warmup_fraction: Fraction = 0.03
    """Share of the steps in which the learning rate rises from 0."""
    scheduler: Literal["cosine", "linear", "constant"] = "cosine"
    """How the learning rate falls after warming up."""
    weight_decay: Annotated[float, Meta(ge=0)] = 0.0
    """Pull of the adapter's weights towards 0, as AdamW does it."""
    max_grad_norm: Annotated[float, Meta(gt=0)] = 1.0
    """Longer gradients are cut to this length."""
    optimizer: Literal["auto", "adamw_torch", "adamw_8bit", "paged_adamw_8bit"] = "auto"
    """auto: paged_adamw_8bit on a GPU, adamw_torch on a processor."""
    neftune_noise_alpha: Annotated[float, Meta(gt=0)] | None = None
    """Noise on the input embeddings (NEFTune); None: off."""
    quantization: Literal["nf4", "none"] = "nf4"
    """What the frozen base is held in while training: 4-bit NF4, or the checkpoint's own type."""
    checkpoint_every_steps: Positive = 50
    """A cut run loses at most so many optimizer steps."""
    keep_checkpoints: Positive = 2
    """The newest so many stay on disk."""
    evaluate_every_steps: Positive | None = None
    """Measure the loss on held-out samples so often; None: never."""
    keep_best: bool = False
    """Write the adapter with the lowest held-out loss instead of the last one; needs evaluate_every_steps."""
    log_every_steps: Positive = 1
    """Steps between two points of the loss curve."""
    report_to: tuple[Literal["trackio", "tensorboard", "wandb"], ...] = ()
    """Trackers that are told the metrics besides our own journal; none unless asked for."""
    seed: int = 0
    lora: LoraSettings = LoraSettings()
    dpo: DpoSettings = DpoSettings()
    memory: MemorySettings = MemorySettings()


class ExportSettings(Strict, frozen=True, kw_only=True):
    quant: Quant = "keep"
    """`keep`: each tensor in the type it has in the source; else one of llama.cpp's mixes."""
    imatrix: str | None = None
    """Importance matrix to quantize with: a file, or `auto` to collect one on the training data."""
    check_prompts: Annotated[int, Meta(ge=0)] = 8
    """Texts for the KL check of the exported file against base + adapter (stages/_check_texts.py)."""


class RegisterSettings(Strict, frozen=True, kw_only=True):
    tag: str | None = None
    """Tag of the refined model; None: the source's name with `-amigo`."""
    like: str | None = None
    """Tag whose template, parameters and system are taken; None: the source."""


HUMANEVAL_PROBLEMS = 164
"""Chen et al. 2021."""
Suite = Literal["directness", "humaneval", "context", "debugging", "reasoning"]


class EvaluateSettings(Strict, frozen=True, kw_only=True):
    suites: tuple[Suite, ...] = ("directness", "humaneval")
    """What is measured, before and after."""
    directness_prompts: Positive = 24
    """Requests that measure whether code comes at once."""
    skill_prompts: Positive = 24
    """Held-out requests of each of the suites context, debugging and reasoning."""
    humaneval_problems: Positive | None = None
    """The first n problems, evenly spread; None: all 164."""
    max_answer_tokens: Positive = 512
    """Longer answers are cut, and count as they are."""
    seed: int = 0


class Recipe(Strict, frozen=True, kw_only=True):
    name: str
    """What it is called in tables and reports; left out: as its file."""
    summary: str = ""
    """What it is for, in a sentence."""
    model: ModelSettings = ModelSettings()
    data: DataSettings = DataSettings()
    train: TrainSettings = TrainSettings()
    export: ExportSettings = ExportSettings()
    register: RegisterSettings = RegisterSettings()
    evaluate: EvaluateSettings = EvaluateSettings()
    gate: dict[str, str] = {}
    """Metric -> the least change that a stage of a chain must bring: `+5pt` at least, `-2pt` at most lost."""

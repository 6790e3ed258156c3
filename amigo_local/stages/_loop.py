"""The loop as one story: an Ollama tag goes in, a refined Ollama tag comes out, both answer."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec

from amigo_local.domain.artifact import Artifact
from amigo_local.domain.errors import InputError
from amigo_local.domain.model_ref import ModelRef, parse_model_ref
from amigo_local.domain.recipe import Recipe
from amigo_local.domain.shape import ModelShape
from amigo_local.engine.contract import Chain, ChainRequest, RecipeRequest, StageContext, Step
from amigo_local.stages._models import ResolvedModel, resolve, run_artifacts
from amigo_local.stages._refinement import Refinement
from amigo_local.stages._serving import reachable
from amigo_local.stages._sets import prepared_sets
from amigo_local.stages._shapes import checkpoint_shape

LAST = "evaluate"


def chain_until(last: str) -> Callable[[RecipeRequest, StageContext], Chain]:
    """The loop's steps up to and including `last`, of every recipe."""

    def steps(request: RecipeRequest, context: StageContext) -> Chain:
        return loop(request, context, until=last)

    return steps


def say_what_is_there(report: Artifact, context: StageContext) -> None:
    """The last words of a loop: where the report is, and how to talk to both models."""
    refs = msgspec.convert(report.params["refs"], tuple[str, ...])
    context.note(f"the report, with answers side by side: {report.path}/report.md", "good")
    context.note(f"talk to both: amigo-local chat {' '.join(refs)}", "good")


def loop(request: RecipeRequest, context: StageContext, *, until: str | None = None) -> Chain:
    """pull → tokenizer → prepare → quantize → train → export → register → evaluate.

    Of several recipes, which make a chain: every set is prepared first, so that what is wrong with data shows before
    hours of training; then each stage goes on from the adapter before it and is measured; the last is exported.
    No copy of the weights is made but the NF4 store that training reads; a recipe without quantization trains on an
    unpacked checkpoint instead.

    Only artifacts' paths and digests pass from step to step, so that `plan` can walk the same story
    with what isn't made yet. until: the last step that will be run; None: none is, so that a model's
    dimensions are enough.
    """
    from amigo_local.engine.recipe_chain import load_chain
    from amigo_local.stages.pull import PullParams
    from amigo_local.stages.quantize import QuantizeParams
    from amigo_local.stages.tokenizer import TokenizerParams
    from amigo_local.stages.unpack import UnpackParams

    recipes = tuple(stage.recipe for stage in load_chain(request.recipe, request.overrides).stages)
    check_recipes(recipes, measured=until not in ("prepare", "train"))
    first = recipes[0]
    ref = source_ref(request, first)
    if ref.kind == "ollama" and (server := reachable(context.settings)) and not server.has(ref.value):
        yield Step("pull", PullParams(tag=ref.value))
    source = resolve(str(ref), context)
    if until:
        source.need_gguf("the loop")
    checkpoint, shape = None, source.shape()
    if first.model.base:
        checkpoint, shape = _given_base(first.model.base, source, context)
    started = start_adapter(first, resolve(checkpoint, context) if checkpoint else source, context)
    if until not in (None, "prepare"):
        for recipe in recipes:
            _warn_unless_it_fits(recipe, shape, source.table_type(), context)
    if checkpoint is None and first.train.quantization == "none":
        checkpoint = (yield Step("unpack", UnpackParams(ref=str(ref), dtype=first.model.dtype))).path
    tokenizer = checkpoint or (yield Step("tokenizer", TokenizerParams(ref=str(ref)))).path
    datasets = yield from prepared_sets(recipes, str(ref), tokenizer, context, planning=until is None)
    if until == "prepare":
        return
    frozen = checkpoint
    if first.train.quantization == "nf4":
        frozen = (yield Step("quantize", QuantizeParams(ref=checkpoint or str(ref)))).path
    assert frozen is not None  # an unquantized base is a checkpoint
    refinement = Refinement(
        recipes=recipes,
        ref=str(ref),
        source=source,
        shape=shape,
        checkpoint=checkpoint,
        frozen=frozen,
        datasets=datasets,
        start_adapter=started,
        name=refined_tag(recipes[-1], source),
        export_each=isinstance(request, ChainRequest) and request.export_each,
    )
    if until == "train":
        yield from refinement.train()
    else:
        report = yield from refinement.train_and_measure(context, planning=until is None)
        if until:
            say_what_is_there(report, context)


def check_recipes(recipes: Sequence[Recipe], *, measured: bool = True) -> None:
    """Refuses settings that contradict each other. measured: whether the stages of a chain will be measured too."""
    for recipe in recipes:
        _check_settings(recipe)
    if measured and len(recipes) > 1:
        _check_measured(recipes)


def _check_settings(recipe: Recipe) -> None:
    from amigo_local.evaluation.gate import parse_gate
    from amigo_local.training.settings_check import check_settings

    check_sources(recipe)
    check_settings(recipe.train)
    parse_gate(recipe.gate)


def _check_measured(recipes: Sequence[Recipe]) -> None:
    """Refuses what would stop a chain after hours of training: what can't be measured after a stage."""
    from amigo_local.evaluation.progress import suite_of

    if recipes[0].train.lora.use_dora:
        raise InputError(
            "train.lora.use_dora: a chain measures every stage's adapter with llama.cpp, which can't apply DoRA",
            "--set train.lora.use_dora=false, or run the recipes one after the other, each with train.adapter: run:ID",
        )
    suites = {suite for recipe in recipes for suite in recipe.evaluate.suites}
    for recipe in recipes:
        for metric in recipe.gate:
            if (suite := suite_of(metric)) not in suites:
                raise InputError(
                    f"the gate of {recipe.name} asks for {metric}, and no recipe of the chain measures it",
                    f"add {suite} to evaluate.suites, or take {metric} out of the gate",
                )


def check_sources(recipe: Recipe) -> None:
    """Raises InputError where the sources don't give what the method learns from."""
    wanted = recipe.train.method == "dpo"
    if any(source.preferences != wanted for source in recipe.data.sources):
        found, needed = ("single answers", "chosen and rejected") if wanted else ("pairs of answers", "completion")
        raise InputError(
            f"train.method is {recipe.train.method}, and data.sources gives {found}",
            f"give each source the columns of {needed}, or change train.method",
        )
    if recipe.train.evaluate_every_steps is not None and recipe.data.held_out_fraction == 0:
        raise InputError(
            "train.evaluate_every_steps is set, and data.held_out_fraction is 0: there is nothing to evaluate on",
            "set data.held_out_fraction above 0, or leave train.evaluate_every_steps out",
        )


def _warn_unless_it_fits(recipe: Recipe, shape: ModelShape, table_type: str, context: StageContext) -> None:
    """No more than a warning: whether training is done already isn't known before the steps that lead to it."""
    length = recipe.data.max_length_tokens
    if shape.context_length and length > shape.context_length:
        text = f"data.max_length_tokens is {length}, the model was made for {shape.context_length}"
        context.note(text, "warning", f"--set data.max_length_tokens={shape.context_length}")
    from amigo_local.stages._gpu_handoff import handed_over
    from amigo_local.training.memory_plan import choose_plan

    machine = handed_over(context.machine, reachable(context.settings))
    try:
        choose_plan(shape, recipe.train, length, machine, table_type=table_type)
    except InputError as error:
        context.note(f"training won't fit as things are now: {error.message}", "warning", error.hint)


def source_ref(request: RecipeRequest, recipe: Recipe) -> ModelRef:
    """The model to refine: the request's, else the recipe's."""
    text = request.model or recipe.model.source
    if not text:
        raise InputError(
            f"the recipe {recipe.name} names no model", "choose a model (--model REF), or add model.source to it"
        )
    return parse_model_ref(text)


def start_adapter(recipe: Recipe, base: ResolvedModel, context: StageContext) -> str | None:
    """Directory of the adapter that `train.adapter` names: a folder, or the newest of `run:ID`. What can't be gone on
    from is refused before anything is made."""
    from amigo_local.training.adapter import check_start

    text = recipe.train.adapter
    if text is None:
        return None
    if text.startswith("run:"):
        run_id = text.removeprefix("run:")
        made = [a.path for a in run_artifacts(context.workspace, run_id) if a.kind == "adapter"]
        if not made:
            raise InputError(f"train.adapter: run {run_id} has trained no adapter", f"amigo-local runs show {run_id}")
        path = Path(made[-1])
    else:
        path = Path(text).expanduser().absolute()
        if not (path / "adapter_config.json").is_file():
            raise InputError(
                f"train.adapter: {path} holds no adapter_config.json", "give an adapter's directory or run:ID"
            )
    # A base that is a config.json alone, or a checkpoint that isn't made yet, has no digest to compare.
    if base.config is None and (base.checkpoint or recipe.train.quantization == "nf4"):
        check_start(path, base.digest, recipe.train.lora)
    return str(path)


def refined_tag(recipe: Recipe, source: ResolvedModel) -> str:
    """The recipe's tag, else the source's name with `-amigo` before its tag part."""
    if recipe.register.tag:
        return recipe.register.tag
    if source.ref.kind == "ollama":
        name, separator, tag = source.ref.value.partition(":")
        return f"{name}-amigo{separator}{tag}"
    stem = re.sub(r"[^\w.-]+", "-", (source.config or source.files).stem).strip("-.").lower()
    return f"{stem}-amigo"


def _given_base(text: str, source: ResolvedModel, context: StageContext) -> tuple[str, ModelShape]:
    base = resolve(text, context)
    if base.checkpoint is None:
        raise InputError(f"model.base: {text} is no checkpoint", "give a directory or hf:org/name")
    shape, expected = checkpoint_shape(base.checkpoint), source.shape()
    for field in ("hidden_size", "layers", "heads", "kv_heads", "head_dim", "intermediate_size"):
        if getattr(shape, field) != getattr(expected, field):
            raise InputError(
                f"model.base {text} isn't what {source.ref} was made from: {field} is {getattr(shape, field)},"
                f" the GGUF has {getattr(expected, field)}",
                "leave model.base out to unpack the GGUF itself",
            )
    return str(base.checkpoint), shape

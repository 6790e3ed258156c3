"""The loop as one story: an Ollama tag goes in, a refined Ollama tag comes out, both answer."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import msgspec

from amigo_local.domain.artifact import Artifact
from amigo_local.domain.errors import InputError
from amigo_local.domain.model_ref import ModelRef, parse_model_ref
from amigo_local.domain.recipe import Recipe
from amigo_local.domain.shape import ModelShape
from amigo_local.engine.contract import Chain, RecipeRequest, StageContext, Step
from amigo_local.stages._models import ResolvedModel, checkpoint_shape, resolve
from amigo_local.stages._serving import reachable

LAST = "evaluate"


def chain_until(last: str) -> Callable[[RecipeRequest, StageContext], Chain]:
    """The loop's steps up to and including `last`."""

    def steps(request: RecipeRequest, context: StageContext) -> Chain:
        whole = loop(request, context)
        artifact = None
        while True:
            try:
                step = whole.send(artifact)
            except StopIteration:
                return
            artifact = yield step
            if step.stage == last:
                break
        if last == LAST:
            say_what_is_there(artifact, context)

    return steps


def say_what_is_there(report: Artifact, context: StageContext) -> None:
    """The last words of a loop: where the report is, and how to talk to both models."""
    refs = msgspec.convert(report.params["refs"], tuple[str, ...])
    context.note(f"the report, with answers side by side: {report.path}/report.md", "good")
    context.note(f"talk to both: amigo-local chat {' '.join(refs)}", "good")


def loop(request: RecipeRequest, context: StageContext) -> Chain:
    """pull → unpack → prepare → train → export → register → evaluate.

    Only artifacts' paths and digests pass from step to step, so that `plan` can walk the same story
    with what isn't made yet.
    """
    from amigo_local.engine.recipe_file import load_recipe
    from amigo_local.stages.evaluate import EvaluateParams
    from amigo_local.stages.export import AUTO, AUTO_CHUNKS, ExportParams
    from amigo_local.stages.imatrix import ImatrixParams
    from amigo_local.stages.prepare import PrepareParams
    from amigo_local.stages.pull import PullParams
    from amigo_local.stages.register import RegisterParams
    from amigo_local.stages.train import TrainParams
    from amigo_local.stages.unpack import UnpackParams

    recipe = load_recipe(request.recipe, request.overrides).recipe
    ref = source_ref(request, recipe)
    if ref.kind == "ollama" and (server := reachable(context.settings)) and not server.has(ref.value):
        yield Step("pull", PullParams(tag=ref.value))
    source = resolve(str(ref), context)
    source.need_gguf("the loop")

    if recipe.model.base:
        checkpoint_path, shape = _given_base(recipe.model.base, source, context)
    else:
        checkpoint = yield Step("unpack", UnpackParams(ref=str(ref), dtype=recipe.model.dtype))
        checkpoint_path, shape = checkpoint.path, source.shape()
    dataset = yield Step("prepare", PrepareParams(checkpoint=checkpoint_path, data=recipe.data))
    adapter = yield Step(
        "train",
        TrainParams(
            checkpoint=checkpoint_path,
            dataset=dataset.path,
            train=recipe.train,
            max_length_tokens=recipe.data.max_length_tokens,
            shape=shape,
        ),
    )
    imatrix = recipe.export.imatrix
    if imatrix == AUTO:
        imatrix = (yield Step("imatrix", ImatrixParams(ref=str(ref), texts=dataset.path, chunks=AUTO_CHUNKS))).path
    name = refined_tag(recipe, source)
    exported = yield Step(
        "export",
        ExportParams(
            base=str(ref),
            adapter=adapter.path,
            quant=recipe.export.quant,
            checkpoint=checkpoint_path,
            dataset=dataset.path,
            from_checkpoint=bool(recipe.model.base),  # the adapter was trained on it
            imatrix=imatrix,
            name=re.sub(r"[^\w.-]+", "-", name),
            check_prompts=recipe.export.check_prompts,
        ),
    )
    like = recipe.register.like or source.tag
    registered = yield Step("register", RegisterParams(file=exported.path, tag=name, like=like))
    yield Step(
        LAST,
        EvaluateParams(
            refs=(str(ref), f"ollama:{name}"),
            settings=recipe.evaluate,
            dataset=dataset.path,
            places={
                "adapter": adapter.path,
                "training data": dataset.path,
                "unpacked base": checkpoint_path,
                "Modelfile": str(Path(registered.path) / "Modelfile"),
            },
        ),
    )


def source_ref(request: RecipeRequest, recipe: Recipe) -> ModelRef:
    """The model to refine: the request's, else the recipe's."""
    text = request.model or recipe.model.source
    if not text:
        raise InputError(f"the recipe {recipe.name} names no model", "add model.source to it, or give --model REF")
    return parse_model_ref(text)


def refined_tag(recipe: Recipe, source: ResolvedModel) -> str:
    """The recipe's tag, else the source's name with `-amigo` before its tag part."""
    if recipe.register.tag:
        return recipe.register.tag
    if source.ref.kind == "ollama":
        name, separator, tag = source.ref.value.partition(":")
        return f"{name}-amigo{separator}{tag}"
    stem = re.sub(r"[^\w.-]+", "-", source.files.stem).strip("-.").lower()
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

"""Refinement: from prepared sets to a registered model; each stage trained on the one before, measured, and gated."""

from __future__ import annotations

import re
from collections.abc import Generator, Mapping
from dataclasses import dataclass
from pathlib import Path

import msgspec

from amigo_local.domain.artifact import Artifact, Figure
from amigo_local.domain.events import Column, Table
from amigo_local.domain.recipe import EvaluateSettings, Recipe, Suite
from amigo_local.domain.shape import ModelShape
from amigo_local.engine.contract import StageContext, Step
from amigo_local.stages._chain_progress import BASE, ChainProgress
from amigo_local.stages._models import ResolvedModel

Made = Generator[Step, Artifact, Artifact]


@dataclass(frozen=True)
class Refinement:
    """What a loop has when its sets are prepared."""

    recipes: tuple[Recipe, ...]
    ref: str
    """REF of the source."""
    source: ResolvedModel
    shape: ModelShape
    checkpoint: str | None
    """The base in PyTorch's form, where it was unpacked or given."""
    frozen: str
    """What training reads: the NF4 store, or the checkpoint."""
    datasets: Mapping[str, str]
    """Recipe name -> folder of its set."""
    start_adapter: str | None
    name: str
    """Tag of the refined model."""
    export_each: bool

    @property
    def single(self) -> bool:
        return len(self.recipes) == 1

    def train(self) -> Made:
        """Every stage's adapter, one on the other; the last is returned."""
        adapter = None
        for recipe in self.recipes:
            adapter = yield from self._trained(recipe, adapter)
        assert adapter is not None
        return adapter

    def train_and_measure(self, context: StageContext, *, planning: bool) -> Made:
        """The same, each stage measured after it; then the last is exported, registered and put beside the source."""
        progress = ChainProgress(context, planning)
        adapter: Artifact | None = None
        lineage: list[tuple[Figure, ...]] = []
        if self.single and self.recipes[0].gate and not planning:
            context.note("its gate holds between the stages of a chain: a recipe that runs alone isn't stopped by it")
        if not self.single:
            progress.add(BASE, (yield from self._measured(BASE, None)), {})
            progress.check_gates({recipe.name: recipe.gate for recipe in self.recipes})
        for recipe in self.recipes:
            before, adapter = adapter, (yield from self._trained(recipe, adapter))
            start = _short(before) if before else self.start_adapter or "the base"
            lineage.append((recipe.name, _short(adapter), start, adapter.path))
            if self.single:
                break
            if self.export_each and recipe is not self.recipes[-1]:
                yield from self._registered(recipe, adapter, self._stage_tag(recipe))
            progress.add(recipe.name, (yield from self._measured(recipe.name, adapter)), recipe.gate)
        assert adapter is not None
        if not self.single and not planning:
            columns = (Column("stage"), Column("adapter"), Column("goes on from"), Column("path"))
            context.emit(Table("Lineage", columns, tuple(lineage)))
        registered = yield from self._registered(self.recipes[-1], adapter, self.name)
        return (yield from self._compared(adapter, registered))

    def _stage_tag(self, recipe: Recipe) -> str:
        """`name:12b-stage1` of stage1_nl_to_code, unless another stage is called so too."""
        short = recipe.name.partition("_")[0]
        alone = sum(other.name.partition("_")[0] == short for other in self.recipes) == 1
        return f"{self.name}-{_plain(short if alone else recipe.name)}"

    def _of(self, recipe: Recipe) -> str:
        return "" if self.single else recipe.name

    def _trained(self, recipe: Recipe, before: Artifact | None) -> Made:
        from amigo_local.stages.train import TrainParams

        return (
            yield Step(
                "train",
                TrainParams(
                    base=self.frozen,
                    source=self.checkpoint or self.ref,
                    dataset=self.datasets[recipe.name],
                    start_adapter=before.path if before else self.start_adapter,
                    train=msgspec.structs.replace(recipe.train, adapter=None),
                    max_length_tokens=recipe.data.max_length_tokens,
                    shape=self.shape,
                ),
                self._of(recipe),
            )
        )

    def _registered(self, recipe: Recipe, adapter: Artifact, tag: str) -> Made:
        """The model of an adapter: exported into one GGUF, which gets a tag."""
        from amigo_local.stages.export import AUTO, AUTO_CHUNKS, ExportParams
        from amigo_local.stages.imatrix import ImatrixParams
        from amigo_local.stages.register import RegisterParams

        of, dataset = self._of(recipe), self._plain_set
        imatrix = recipe.export.imatrix
        if imatrix == AUTO:
            params = ImatrixParams(ref=self.ref, texts=dataset, chunks=AUTO_CHUNKS)
            imatrix = (yield Step("imatrix", params, of)).path
        exported = yield Step(
            "export",
            ExportParams(
                base=self.ref,
                adapter=adapter.path,
                quant=recipe.export.quant,
                checkpoint=self.checkpoint,
                dataset=dataset,
                from_checkpoint=bool(recipe.model.base),  # the adapter was trained on it
                imatrix=imatrix,
                name=_plain(tag),
                check_prompts=recipe.export.check_prompts,
            ),
            of,
        )
        like = recipe.register.like or self.source.tag
        return (yield Step("register", RegisterParams(file=exported.path, tag=tag, like=like), of))

    def _measured(self, of: str, adapter: Artifact | None) -> Made:
        """One stage of a chain by itself. The adapter is laid over the source's own GGUF, so that nothing has to be
        exported for it; the source is measured from the same file in the same way."""
        from amigo_local.stages.evaluate import EvaluateParams

        return (
            yield Step(
                "evaluate",
                EvaluateParams(
                    refs=(str(self.source.gguf or self.ref),),
                    settings=self._settings,
                    dataset=self._plain_set,
                    skills=dict(self.datasets),
                    adapter=adapter.path if adapter else None,
                ),
                of,
            )
        )

    def _compared(self, adapter: Artifact, registered: Artifact) -> Made:
        from amigo_local.stages.evaluate import EvaluateParams

        return (
            yield Step(
                "evaluate",
                EvaluateParams(
                    refs=(self.ref, f"ollama:{self.name}"),
                    settings=self._settings,
                    dataset=self._plain_set,
                    skills={} if self.single else dict(self.datasets),
                    places={
                        "adapter": adapter.path,
                        "training data": self.datasets[self.recipes[-1].name],
                        "frozen base": self.frozen,
                        "Modelfile": str(Path(registered.path) / "Modelfile"),
                    },
                ),
                "",
            )
        )

    @property
    def _plain_set(self) -> str:
        """What directness is asked on and exports are checked with: the first stage's, which all have in common."""
        return self.datasets[self.recipes[0].name]

    @property
    def _settings(self) -> EvaluateSettings:
        """The last recipe's, with the suites of all: a stage must be seen to keep what earlier ones taught."""
        suites: dict[Suite, None] = {}
        for recipe in self.recipes:
            suites |= dict.fromkeys(recipe.evaluate.suites)
        return msgspec.structs.replace(self.recipes[-1].evaluate, suites=tuple(suites))


def _plain(name: str) -> str:
    """As it may stand in a tag and in a file's name."""
    return re.sub(r"[^\w.-]+", "-", name)


def _short(artifact: Artifact) -> str:
    return artifact.digest.removeprefix("sha256:")[:12]

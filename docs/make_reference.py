"""Writes docs/reference.md from the stages' own settings: `python docs/make_reference.py`."""

from __future__ import annotations

import typing
from pathlib import Path

import click
import msgspec
from msgspec import Meta

from amigo_local.cli.options import click_parameters
from amigo_local.domain.data_source import DataSource
from amigo_local.domain.recipe import Recipe
from amigo_local.engine.contract import Stage
from amigo_local.engine.field_docs import field_docs
from amigo_local.stages import load_stage, stage_names

TARGET = Path(__file__).with_name("reference.md")
INTRODUCTION = """\
# Reference

Made by `python docs/make_reference.py` from the program itself; a test keeps it true.

Every verb also takes `--json` (records as JSON lines on stdout, nothing else there), `--set KEY=VALUE`
(recipe keys for verbs that take a RECIPE, else the verb's own settings; `ollama.host`, `ollama.store`,
`ollama.use`, `machine.ram`, `machine.vram`, `machine.disk` and `unsafe` everywhere) and `--home DIR`
(`AMIGO_HOME`; default: the platform's data folder).

REF names a model: an Ollama `TAG` or `ollama:TAG`, `path/to.gguf`, a checkpoint directory,
`hf:org/name` (from the hub's cache on this machine), or `run:ID`.

Exit codes: 0 done, 1 the work failed, 2 wrong usage or input, 130 cancelled.
"""


def verb(stage: Stage) -> str:
    """One verb: usage, summary, settings."""
    hints = typing.get_type_hints(stage.asked, include_extras=True)
    usage, rows = [f"amigo-local {stage.name}"], []
    for parameter in click_parameters(stage.asked):
        meta = next(m for m in typing.get_args(hints[str(parameter.name)])[1:] if isinstance(m, Meta))
        if isinstance(parameter, click.Argument):
            usage.append(parameter.make_metavar(click.Context(click.Command(stage.name))))
            rows.append(f"| `{str(parameter.name).upper()}` | {meta.description} |")
        else:
            assert isinstance(parameter, click.Option)
            choices = ""
            if isinstance(parameter.type, click.Choice) and "One of: " not in (parameter.help or ""):  # long lists are
                choices = f" One of: {', '.join(parameter.type.choices)}."
            usage += [f"{parameter.opts[0]} …"] if parameter.required else []
            rows.append(f"| `{parameter.opts[0]}` | {parameter.help}{choices} |")
    table = ["| setting | meaning |", "|---|---|", *rows] if rows else []
    return "\n".join([f"### {stage.name}", "", f"`{' '.join(usage)}`", "", stage.summary, "", *table, ""])


def recipe_keys(struct: type[msgspec.Struct], path: str = "") -> list[str]:
    """Every key of a recipe with its default and what it means."""
    rows = []
    hints, docs = typing.get_type_hints(struct), field_docs(struct)
    for field in msgspec.structs.fields(struct):
        hint = hints[field.name]
        if isinstance(hint, type) and issubclass(hint, msgspec.Struct):
            rows += recipe_keys(hint, f"{path}{field.name}.")
        else:
            default = "required" if field.required else f"`{_default(field)}`"
            meaning = docs.get(field.name, "").replace("|", "\\|")
            rows.append(f"| `{path}{field.name}` | {default} | {meaning} |")
    return rows


def _default(field: msgspec.structs.FieldInfo) -> str:
    value = field.default_factory() if field.default is msgspec.NODEFAULT else field.default
    return msgspec.json.encode(value).decode()


def source_kinds() -> str:
    """Every kind of data source with its keys."""
    parts = []
    for kind in typing.get_args(DataSource):
        first, docs = str(kind.__struct_config__.tag), field_docs(kind)
        rows = ["| key | default | meaning |", "|---|---|---|"]
        for field in sorted(msgspec.structs.fields(kind), key=lambda field: field.name != first):
            default = "required" if field.required else f"`{_default(field)}`"
            rows.append(f"| `{field.name}` | {default} | {docs.get(field.name, '')} |")
        parts.append(f"**{first}**: {' '.join((kind.__doc__ or '').split())}\n\n" + "\n".join(rows) + "\n")
    return "\n".join(parts)


def reference() -> str:
    verbs = "\n".join(verb(load_stage(name)) for name in stage_names())
    keys = "\n".join(["| key | default | meaning |", "|---|---|---|", *recipe_keys(Recipe)])
    note = "Built-in defaults; `recipes/base.yaml` lies over them."
    sources = (
        "One of these, told by its first key, is one entry of `data.sources`. More about them: [data.md](data.md)."
    )
    return (
        f"{INTRODUCTION}\n## Verbs\n\n{verbs}\n## Recipe keys\n\n{note}\n\n{keys}\n"
        f"\n## Data sources\n\n{sources}\n\n{source_kinds()}"
    )


if __name__ == "__main__":
    TARGET.write_text(reference(), encoding="utf-8")

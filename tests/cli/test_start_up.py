from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from amigo_local.stages import load_stage, stage_names
from tests.support.command_line import amigo

HEAVY = {
    "torch",
    "transformers",
    "datasets",
    "textual",
    "llama_cpp",
    "numpy",
    "gguf",
    "ollama",
    "httpx",
    "rich",
    "psutil",
    "yaml",
}


def modules_after(code: str) -> set[str]:
    script = f"import sys\n{code}\nprint('\\n'.join(sys.modules))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return {name.partition(".")[0] for name in done.stdout.split()}


def test_help_imports_nothing_heavy() -> None:
    found = modules_after(
        "from click.testing import CliRunner\n"
        "from amigo_local.cli.main import cli\n"
        "result = CliRunner().invoke(cli, ['--help'])\n"
        "assert result.exit_code == 0 and 'doctor' in result.output"
    )
    assert found & HEAVY == set()


@pytest.mark.parametrize("arguments", [["tui", "--help"], ["runs", "--help"], []])
def test_only_opening_the_app_imports_textual(arguments: list[str]) -> None:
    found = modules_after(
        "from click.testing import CliRunner\n"
        "from amigo_local.cli.main import cli\n"
        f"CliRunner().invoke(cli, {arguments})\n"
    )
    assert not found & {"textual", "textual_serve", "aiohttp", "rich"}


@pytest.mark.parametrize("room", ["serving", "weights", "data", "training", "evaluation", "remote", "engine"])
def test_importing_a_room_costs_nothing(room: str) -> None:
    assert modules_after(f"import amigo_local.{room}") & HEAVY == set()


def test_every_verb_of_the_contract_is_a_stage_and_has_help(tmp_path: Path) -> None:
    contract = "doctor models pull unpack prepare plan train merge export register chat evaluate run runs demo"
    assert set(contract.split()) <= set(stage_names())
    for name in stage_names():
        stage = load_stage(name)
        assert stage.name == name and len(stage.summary) <= 80
        done = amigo(tmp_path, name, "--help")
        assert done.returncode == 0 and stage.summary.split()[0] in done.stdout
        for option in ("--json", "--set", "--home"):
            assert option in done.stdout


def test_every_setting_of_every_verb_has_a_description() -> None:
    import typing

    from msgspec import Meta

    for name in stage_names():
        for field, hint in typing.get_type_hints(load_stage(name).asked, include_extras=True).items():
            metas = [meta for meta in typing.get_args(hint)[1:] if isinstance(meta, Meta)]
            assert any(meta.description for meta in metas), f"{name}: {field}"

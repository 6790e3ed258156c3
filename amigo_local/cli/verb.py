"""One verb as a click command: reads settings, starts the runner, hands records to a renderer."""

from __future__ import annotations

import os
import shlex
import signal
import sys
import time
from pathlib import Path
from typing import Any, Protocol

import click
import msgspec

from amigo_local.cli.options import build_params, click_parameters
from amigo_local.domain.errors import EXIT_DONE, AmigoError
from amigo_local.domain.events import Note, Record, StageFailed, encode_record
from amigo_local.domain.settings import ProgramSettings
from amigo_local.engine.contract import Stage
from amigo_local.engine.data_paths import found_from_anywhere
from amigo_local.engine.runner import Outcome, Runner
from amigo_local.engine.runner_process import RunRequest, start_detached
from amigo_local.engine.settings_tree import build, overlay, parse_override, parse_yaml
from amigo_local.engine.workspace import Workspace
from amigo_local.stages import load_stage

_PROGRAM_KEYS = tuple(f"{name}{end}" for name in ProgramSettings.__struct_fields__ for end in ".=")


class Renderer(Protocol):
    """Shows records; `close` ends any live display."""

    def __call__(self, record: Record) -> None: ...

    def close(self) -> None: ...


def verb_command(stage: Stage) -> click.Command:
    """The click command of a stage, with the options that every verb has."""
    common: list[click.Parameter] = [
        click.Option(["--json", "as_json"], is_flag=True, help="Records as JSON lines on stdout, nothing else there."),
        click.Option(
            ["--set", "overrides"],
            multiple=True,
            metavar="KEY=VALUE",
            help="Override one setting: key.path=value (recipe keys; ollama.host, machine.ram, …).",
        ),
        click.Option(["--home"], metavar="DIR", envvar="AMIGO_HOME", help="Home folder for runs and artifacts."),
    ]
    if stage.is_journalled:
        text = "Start it, print the run's ID, and leave it alone; `runs watch` shows it."
        common.append(click.Option(["--detach"], is_flag=True, help=text))

    def callback(
        as_json: bool, overrides: tuple[str, ...], home: str | None, detach: bool = False, **given: Any
    ) -> int:
        return run_verb(stage, given, overrides, home, as_json, detach)

    own = click_parameters(stage.asked)
    return click.Command(
        stage.name, params=[*own, *common], callback=callback, help=stage.summary, epilog=_epilog(own, stage)
    )


def _epilog(own: list[click.Parameter], stage: Stage) -> str | None:
    """Arguments have no help in click: list them below the options."""
    import typing

    from msgspec import Meta

    hints = typing.get_type_hints(stage.asked, include_extras=True)
    lines = []
    for parameter in own:
        metas = [m for m in typing.get_args(hints[str(parameter.name)])[1:] if isinstance(m, Meta)]
        if isinstance(parameter, click.Argument) and metas:
            lines.append(f"{str(parameter.name).upper()}: {metas[0].description}")
    return "\b\n" + "\n".join(lines) if lines else None


def run_verb(
    stage: Stage, given: dict[str, Any], overrides: tuple[str, ...], home: str | None, as_json: bool, detach: bool
) -> int:
    """Runs the verb to its end and returns its exit code; detached, no more than starts it."""
    settings, rest = program_settings(overrides)
    params = found_from_anywhere(build_params(stage.asked, given, rest))
    workspace = Workspace(home_folder(home))
    title = " ".join([stage.name, *(shlex.quote(a) for a in sys.argv[2:] if a != "--detach")])
    if detach:
        request = RunRequest(
            verb=stage.name,
            params=msgspec.to_builtins(params),
            settings=settings,
            home=str(workspace.root),
            title=title,
        )
        show_detached(stage.name, start_detached(request), as_json)
        return EXIT_DONE
    renderer = choose_renderer(as_json)
    runner = Runner(workspace, settings, load_stage, renderer)

    def interrupt(signum: int, frame: object) -> None:
        if not runner.cancel():
            raise KeyboardInterrupt

    previous = signal.signal(signal.SIGINT, interrupt)
    terminate = signal.signal(signal.SIGTERM, interrupt)
    try:
        if stage.name == "chat" and not getattr(params, "prompt", None) and not as_json:
            from amigo_local.cli.conversation import converse

            return converse(runner, params)
        outcome: Outcome = runner.run(stage.name, params, title)
        return outcome.exit_code
    finally:
        signal.signal(signal.SIGINT, previous)
        signal.signal(signal.SIGTERM, terminate)
        renderer.close()


def program_settings(overrides: tuple[str, ...]) -> tuple[ProgramSettings, tuple[str, ...]]:
    """Splits --set into what holds for the program and what the verb takes."""
    mine = [text for text in overrides if text.startswith(_PROGRAM_KEYS)]
    tree = parse_yaml("", "--set")
    for text in mine:
        tree = overlay(tree, parse_override(text))
    return build(ProgramSettings, tree), tuple(text for text in overrides if text not in mine)


def home_folder(given: str | None) -> Path:
    """--home or AMIGO_HOME, else the platform's data folder."""
    if given:
        return Path(given).expanduser().absolute()
    import platformdirs

    return Path(platformdirs.user_data_dir("amigo-local", appauthor=False))


def choose_renderer(as_json: bool) -> Renderer:
    """JSON lines when asked for, live on a terminal, plain lines on a pipe."""
    if as_json:
        return JsonRenderer()
    if sys.stderr.isatty() and os.environ.get("TERM") != "dumb":
        from amigo_local.cli.live import LiveRenderer

        return LiveRenderer()
    from amigo_local.cli.plain import PlainRenderer

    return PlainRenderer()


class JsonRenderer:
    """Records as JSON lines on stdout."""

    def __call__(self, record: Record) -> None:
        sys.stdout.buffer.write(encode_record(record) + b"\n")
        sys.stdout.buffer.flush()

    def close(self) -> None:
        """Nothing is kept open."""


def show_detached(verb: str, run_id: str, as_json: bool) -> None:
    """The run's id on stdout, for scripts, and on stderr what to do with it."""
    how = f"watch it: amigo-local runs watch {run_id}"
    if as_json:
        JsonRenderer()(Record(run_id, 0, time.time(), verb, Note(f"started; {how}")))
        return
    click.echo(run_id)
    click.echo(f"{verb}: started; {how}", err=True)


def show_error(error: AmigoError, json: bool) -> int:
    """A failure from before anything started: on stderr for a person, as a record with --json."""
    if json:
        JsonRenderer()(Record("", 0, time.time(), "", StageFailed(error.message, error.hint, error.exit_code)))
    else:
        click.echo(f"error: {error.message}" + (f"\n  hint: {error.hint}" if error.hint else ""), err=True)
    return error.exit_code

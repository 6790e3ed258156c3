"""`amigo-local tui`: opens the app on this terminal, or serves it to a browser."""

from __future__ import annotations

import os
import sys

import click

from amigo_local.domain.errors import EXIT_DONE, InputError

NAME = "tui"
SUMMARY = "Open the app: the whole loop from a terminal, or a browser"
_DRIVER = "TEXTUAL_DRIVER"  # set by textual-serve for the apps of its pages, which have no terminal
_FIRST_WINDOWS_BUILD = 10586  # Windows 10 1511, the first whose console knows escape sequences


def tui_command() -> click.Command:
    return click.Command(
        NAME,
        callback=_open,
        help=SUMMARY,
        params=[
            click.Option(["--home"], metavar="DIR", envvar="AMIGO_HOME", help="Home folder for runs and artifacts."),
            click.Option(
                ["--set", "overrides"],
                multiple=True,
                metavar="KEY=VALUE",
                help="Override one setting of the program: ollama.host, machine.ram, …",
            ),
            click.Option(
                ["--screen"],
                metavar="NAME",
                default="",
                help="Open there: loop, models, recipe, train, compare, evaluate, runs or doctor.",
            ),
            click.Option(["--web", "in_browser"], is_flag=True, help="Serve it to a browser on this machine."),
            click.Option(["--host"], metavar="ADDRESS", help="With --web: listen there. [default: 127.0.0.1]"),
            click.Option(["--port"], type=click.IntRange(0, 65535), metavar="N", help="With --web. [default: 8023]"),
        ],
    )


def _open(
    home: str | None, overrides: tuple[str, ...], screen: str, in_browser: bool, host: str | None, port: int | None
) -> int:
    if not in_browser and (host is not None or port is not None):
        raise InputError("--host and --port are of the browser's view", "add --web")
    if not in_browser and (reason := why_not_here()):
        raise InputError(*reason)
    from amigo_local.cli.verb import home_folder, program_settings

    settings, rest = program_settings(overrides)
    if rest:
        raise InputError(f"--set {rest[0]}: a setting of a recipe, not of the program", "set it on the Recipe screen")
    from amigo_local.tui.running import check_screen, run_app

    check_screen(screen)
    folder = home_folder(home)
    if in_browser:
        given = [word for text in overrides for word in ("--set", text)] + (["--screen", screen] if screen else [])
        # Without -P, a file of the current folder could stand in for one of our modules.
        own = [sys.executable, "-P", "-m", "amigo_local", NAME, "--home", str(folder), *given]
        _serve(own, "127.0.0.1" if host is None else host, 8023 if port is None else port)
        return EXIT_DONE
    return run_app(folder, settings, screen)


def _serve(command: list[str], host: str, port: int) -> None:
    try:
        from amigo_local.tui.web import serve
    except ModuleNotFoundError as error:
        if error.name not in ("textual_serve", "aiohttp"):
            raise
        hint = "pip install 'amigo-local[web]'"
        raise InputError("the browser's view needs textual-serve, which isn't installed", hint) from error
    serve(command, host, port, lambda text: click.echo(text, err=True))


def opens_by_itself() -> bool:
    """Whether `amigo-local` without arguments opens the app."""
    return why_not_here() is None


def why_not_here() -> tuple[str, str] | None:
    """What keeps the app from drawing here, and the hint; None when nothing does."""
    if os.environ.get(_DRIVER):
        return None
    commands = "amigo-local --help lists the commands, which need no terminal"
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        which = "stdin" if sys.stdout.isatty() else "stdout"
        return f"the app needs a terminal, and {which} is none", commands
    if os.environ.get("TERM") == "dumb":
        return "TERM=dumb: this terminal can't place its cursor", commands
    if sys.platform == "win32" and sys.getwindowsversion().build < _FIRST_WINDOWS_BUILD:
        return "this console of Windows knows no escape sequences", "use Windows 10 1511 or newer, or Windows Terminal"
    return None

"""`amigo-local`: one command per stage and one for the app, loaded only when it is asked for."""

from __future__ import annotations

import sys
from collections.abc import Sequence

import click

from amigo_local import __version__
from amigo_local.cli import tui_command
from amigo_local.domain.errors import EXIT_CANCELLED, EXIT_USAGE, AmigoError
from amigo_local.stages import load_stage, stage_names

EPILOG = """\b
Without a command, on a terminal, it opens the app.
REF names a model: an Ollama TAG or ollama:TAG, path/to.gguf, a checkpoint
directory, hf:org/name, or run:ID.
Exit codes: 0 done, 1 the work failed, 2 wrong usage or input, 130 cancelled."""


class VerbGroup(click.Group):
    """Lists the stages folder; builds a command when it is named."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted([*stage_names(), tui_command.NAME])

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name == tui_command.NAME:
            return tui_command.tui_command()
        if cmd_name not in stage_names():
            return None
        from amigo_local.cli.verb import verb_command

        return verb_command(load_stage(cmd_name))

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Names and summaries only: no command has to be built for `--help`."""
        with formatter.section("Commands"):
            summaries = {name: load_stage(name).summary for name in stage_names()}
            formatter.write_dl(sorted((summaries | {tui_command.NAME: tui_command.SUMMARY}).items()))


@click.group(cls=VerbGroup, epilog=EPILOG, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="amigo-local")
def cli() -> None:
    """From an Ollama tag to a refined Ollama tag, on the machine you have."""


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point: the only place where errors become exit codes."""
    for stream in (sys.stdout, sys.stderr):
        # A console that can't show a character (legacy Windows code pages) must not end the program.
        stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]  # TextIOWrapper in any real run
    argv = sys.argv[1:] if argv is None else argv
    if not argv and tui_command.opens_by_itself():
        argv = [tui_command.NAME]
    try:
        code = cli.main(args=argv, prog_name="amigo-local", standalone_mode=False)
    except AmigoError as error:
        from amigo_local.cli.verb import show_error

        code = show_error(error, json="--json" in argv)
    except click.exceptions.Abort:
        code = EXIT_CANCELLED
    except KeyboardInterrupt:
        code = EXIT_CANCELLED
    except click.ClickException as error:
        error.show()
        code = EXIT_USAGE
    except BrokenPipeError:
        sys.stderr.close()  # nobody reads on (`| head`); Python would complain at exit
        code = 0
    sys.exit(code if isinstance(code, int) else 0)

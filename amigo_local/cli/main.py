"""`amigo-local`: one command per stage, loaded only when it is asked for."""

from __future__ import annotations

import sys
from collections.abc import Sequence

import click

from amigo_local import __version__
from amigo_local.domain.errors import EXIT_CANCELLED, EXIT_USAGE, AmigoError
from amigo_local.stages import load_stage, stage_names

EPILOG = """\b
REF names a model: an Ollama TAG or ollama:TAG, path/to.gguf, a checkpoint
directory, hf:org/name, or run:ID.
Exit codes: 0 done, 1 the work failed, 2 wrong usage or input, 130 cancelled."""


class VerbGroup(click.Group):
    """Lists the stages folder; builds a command when it is named."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(stage_names())

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in stage_names():
            return None
        from amigo_local.cli.verb import verb_command

        return verb_command(load_stage(cmd_name))

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Names and summaries only: no command has to be built for `--help`."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, load_stage(name).summary) for name in stage_names()])


@click.group(cls=VerbGroup, epilog=EPILOG, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="amigo-local")
def cli() -> None:
    """From an Ollama tag to a refined Ollama tag, on the machine you have."""


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point: the only place where errors become exit codes."""
    for stream in (sys.stdout, sys.stderr):
        # A console that can't show a character (legacy Windows code pages) must not end the program.
        stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]  # TextIOWrapper in any real run
    try:
        code = cli.main(args=argv, prog_name="amigo-local", standalone_mode=False)
    except AmigoError as error:
        from amigo_local.cli.verb import show_error

        code = show_error(error, json="--json" in (argv if argv is not None else sys.argv[1:]))
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

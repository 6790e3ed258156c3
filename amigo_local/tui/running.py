"""Runs the app on this terminal, and leaves the terminal as it was, whatever happened."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from rich.console import Console

from amigo_local.domain.errors import AmigoError, InputError
from amigo_local.domain.settings import ProgramSettings
from amigo_local.tui.app import AmigoApp
from amigo_local.tui.screens.base import SCREENS
from amigo_local.tui.session import Session

# Out of the alternate screen; cursor, wrapping and colours back; no mouse, no bracketed paste, no focus reports, and
# the keyboard's own protocol (kitty's) off.
_SANE = "".join(
    f"\x1b[{code}"
    for code in ("?1049l", "?25h", "?7h", "0m", "?1000l", "?1003l", "?1006l", "?1015l", "?2004l", "?1004l", "<u")
)


def check_screen(name: str) -> None:
    """Empty: where it was left. Raises InputError on a name that no screen has."""
    if name and name not in SCREENS:
        raise InputError(f"there is no screen {name!r}", f"one of: {', '.join(SCREENS)}")


def run_app(home: Path, settings: ProgramSettings, screen: str = "") -> int:
    """Until the user leaves; returns the exit code. Raises AmigoError, naming a log, when the app itself fails."""
    log = home / "cache" / "tui.log"
    try:
        log.parent.mkdir(parents=True, exist_ok=True)
        file = log.open("a", encoding="utf-8")
    except OSError as error:
        raise InputError(
            f"can't write in the home folder {home}: {error.strerror}", "--home DIR, or AMIGO_HOME"
        ) from error
    # What libraries have to say belongs there too, not across the screen.
    logging.basicConfig(filename=log, level=logging.WARNING, format="%(asctime)s %(name)s: %(message)s")
    logging.captureWarnings(True)
    session = Session(home, settings)
    failed = AmigoError("the app failed; runs that it started go on", f"how it came about is in {log}")
    with file, _terminal_put_back():
        app = AmigoApp(session, screen)
        # Tracebacks are for whoever mends the program, not for whoever uses it.
        app.error_console = Console(file=file, width=120)
        try:
            _run(app)
        except Exception as error:
            app.error_console.print_exception()
            raise failed from error
        finally:
            session.save()
    if app.return_code == 1:
        raise failed
    return app.return_code or 0


def _run(app: AmigoApp) -> None:
    """SIGTERM and SIGINT end it as a key would."""
    if hangup := getattr(signal, "SIGHUP", None):
        signal.signal(hangup, lambda number, frame: _end_at_once(app.session, number))
    _take_any_bytes()
    with asyncio.Runner() as runner:
        with contextlib.suppress(NotImplementedError):  # Windows
            for number in (signal.SIGTERM, signal.SIGINT):
                runner.get_loop().add_signal_handler(number, app.call_later, app.leave)
        runner.run(app.run_async())


def _take_any_bytes() -> None:
    """Textual ends at the first byte typed or pasted that isn't UTF-8, which a terminal of another character set sends.
    There is no setting for it; on Windows keys come as characters."""
    if os.name == "posix":
        from textual.drivers import linux_driver

        decoder = linux_driver.getincrementaldecoder  # type: ignore[attr-defined]  # imported there, not made
        linux_driver.getincrementaldecoder = lambda name: partial(decoder(name), "replace")  # type: ignore[attr-defined]


def _end_at_once(session: Session, number: int) -> None:
    """The terminal was closed. Textual's writer ends at its first failed write, and drawing what leads to a regular end
    would then wait for it for ever. Questions end with their pipes, runs go on. Some shells tell of it twice."""
    signal.signal(number, signal.SIG_IGN)
    session.save()
    os._exit(128 + number)


@contextlib.contextmanager
def _terminal_put_back() -> Iterator[None]:
    """The modes of the terminal as they were; what an app that was torn down half-way left on is turned off."""
    try:
        import termios
    except ImportError:
        yield  # Windows
        return
    try:
        descriptor = sys.stdin.fileno()
        modes = termios.tcgetattr(descriptor)
    except (ValueError, OSError, termios.error):
        yield  # a page's app has no terminal
        return
    try:
        yield
    except BaseException:
        sys.stdout.write(_SANE)
        sys.stdout.flush()
        raise
    finally:
        with contextlib.suppress(termios.error):  # a terminal that was closed
            termios.tcsetattr(descriptor, termios.TCSADRAIN, modes)

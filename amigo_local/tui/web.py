"""The app in a browser: textual-serve's bridge behind a page of our own, for this machine unless asked otherwise."""

from __future__ import annotations

import asyncio
import ipaddress
import os
import shlex
import signal
import socket
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from string import Template
from urllib.parse import urlsplit

import psutil
from aiohttp import web
from aiohttp.typedefs import Handler, Middleware
from textual_serve.server import Server

from amigo_local.domain.errors import InputError

PAGE = Path(__file__).with_name("web_page")
CLOSING_SECONDS = 5.0
"""For the apps of open pages to end when the server does."""


def serve(command: Sequence[str], host: str, port: int, say: Callable[[str], None]) -> None:
    """Serves until Ctrl-C; each page runs `command`, which must start a Textual app. Port 0 takes a free one.

    Raises InputError when it can't listen there.
    """
    asyncio.run(_serve(command, host, port, say))


async def _serve(command: Sequence[str], host: str, port: int, say: Callable[[str], None]) -> None:
    bridge = Server(_shell_line(command), host=host, port=port, title="amigo-local")
    runner = web.AppRunner(make_application(bridge, host), access_log=None, shutdown_timeout=1.0)
    await runner.setup()
    try:
        await _listen(runner, host, port)
        say(f"amigo-local is at {_address(runner, host)}; Ctrl-C ends it")
        if not is_loopback(host):
            say(f"warning: anyone who reaches {host} can use it as you; without --host, this machine alone can")
        await _until_told_to_end()
    finally:
        await runner.cleanup()


def _shell_line(command: Sequence[str]) -> str:
    """textual-serve takes a line for the shell; `exec`, so that no shell stands between it and the app."""
    return subprocess.list2cmdline(command) if os.name == "nt" else f"exec {shlex.join(command)}"


async def _listen(runner: web.AppRunner, host: str, port: int) -> None:
    try:
        await web.TCPSite(runner, host, port).start()
    except socket.gaierror as error:
        raise InputError(
            f"--host {host}: {error.strerror}", "--host 127.0.0.1, or an address of this machine"
        ) from error
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else str(error)
        raise InputError(f"can't listen on {host} port {port}: {reason}", f"take another: --port {port + 1}") from error


def _address(runner: web.AppRunner, host: str) -> str:
    port = runner.addresses[0][1]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


async def _until_told_to_end() -> None:
    told = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        try:
            loop.add_signal_handler(number, told.set)
        except NotImplementedError:  # Windows: Ctrl-C arrives as KeyboardInterrupt
            signal.signal(number, lambda *_: loop.call_soon_threadsafe(told.set))
    await told.wait()


def make_application(bridge: Server, host: str) -> web.Application:
    """The page, what it loads, and the websocket that each page has to an app of its own."""
    sessions: dict[asyncio.Task[object], asyncio.Transport | None] = {}

    async def page(request: web.Request) -> web.Response:
        size = request.query.get("fontsize", "")
        font_size = size if size.isdecimal() and len(size) < 4 else "15"
        text = Template((PAGE / "page.html").read_text("utf-8")).substitute(address=request.host, font_size=font_size)
        return web.Response(text=text, content_type="text/html", headers=_page_headers(request.host))

    async def script(_: web.Request) -> web.FileResponse:
        return web.FileResponse(PAGE / "page.js")

    async def session(request: web.Request) -> web.WebSocketResponse:
        task = asyncio.current_task()
        assert task
        sessions[task] = request.transport
        try:
            return await bridge.handle_websocket(request)
        finally:
            del sessions[task]

    async def end_sessions(_: web.Application) -> None:
        """A page that is cut off has its app told to quit; one that doesn't is killed with all that it started."""
        for transport in sessions.values():
            if transport:
                transport.abort()  # a closing handshake would wait for the page
        if sessions:
            await asyncio.wait(sessions.keys(), timeout=CLOSING_SECONDS)
        for child in psutil.Process().children(recursive=True) if sessions else ():
            child.kill()

    application = web.Application(middlewares=[_own_pages_only(host)])
    application.add_routes(
        [
            web.get("/", page),
            web.get("/page.js", script),
            web.get("/ws", session),
            web.get("/download/{key}", bridge.handle_download),
            web.static("/static", bridge.statics_path),
        ]
    )
    application.on_shutdown.append(end_sessions)
    return application


def _page_headers(address: str) -> dict[str, str]:
    """Nothing from other hosts, and no other site's frame around it."""
    policy = (
        "default-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; "
        f"connect-src 'self' ws://{address}; frame-ancestors 'none'; base-uri 'none'; form-action 'none'"
    )
    return {"Content-Security-Policy": policy, "Cache-Control": "no-store", "Referrer-Policy": "no-referrer"}


def _own_pages_only(host: str) -> Middleware:
    """Refuses what other sites' pages send: a websocket isn't held to its origin by the browser (RFC 6455, 10.2), and a
    name that was made to resolve to this machine (DNS rebinding) would pass for the same origin."""
    names = {"localhost", host.lower()}
    if not is_loopback(host):
        names |= {socket.gethostname().lower(), socket.getfqdn().lower()}

    @web.middleware
    async def check(request: web.Request, handler: Handler) -> web.StreamResponse:
        if not _names_this_machine(request.host, names):
            raise web.HTTPForbidden(text=f"403: {request.host!r} is no name of this machine\n")
        origin = request.headers.get("Origin")
        if origin is not None and urlsplit(origin).netloc.lower() != request.host.lower():
            raise web.HTTPForbidden(text=f"403: pages of {origin!r} may not use this\n")
        return await handler(request)

    return check


def _names_this_machine(address: str, names: set[str]) -> bool:
    """An IP address can't be rebound, so any will do."""
    try:
        name = urlsplit(f"//{address}").hostname or ""
    except ValueError:
        return False
    return name in names or _ip_address(name) is not None


def is_loopback(host: str) -> bool:
    address = _ip_address(host)
    return address.is_loopback if address else host.lower() == "localhost"


def _ip_address(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(text)
    except ValueError:
        return None

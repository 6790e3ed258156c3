"""`amigo-local tui --web`: in a real browser, and against what other pages and machines may try."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import aiohttp
import psutil
import pytest
from PIL import Image

from amigo_local.domain.modelfile import Modelfile
from amigo_local.serving.ollama_server import OllamaServer
from amigo_local.tui.saved_state import CompareState, SavedState, write_state
from amigo_local.tui.web import is_loopback
from tests.support.browser import Browser
from tests.support.command_line import amigo
from tests.support.ollama_server import RealOllama
from tests.support.served_app import Served
from tests.support.tiny_gguf import write_tiny_llama

ON_ITS_FIRST_SCREEN = "Doctor"


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with Served(tmp_path_factory.mktemp("home")) as server:
        yield server


def test_a_browser_gets_the_app_and_keys_reach_it_without_a_click(served: Served) -> None:
    with Browser((1000, 600)) as browser:
        browser.open(served.url)
        browser.wait_for(lambda: ON_ITS_FIRST_SCREEN in browser.received)
        assert browser.evaluate("document.title") == "amigo-local"
        browser.wait_for("document.activeElement.classList.contains('xterm-helper-textarea')")
        before = len(browser.received)
        browser.press("ctrl+p")
        browser.wait_for(lambda: "Search for commands" in browser.received[before:])
        assert [line for line in browser.console if not line.startswith("ping=")] == []
        assert {urlsplit(url).netloc for url in browser.requested} == {urlsplit(served.url).netloc}


def test_two_models_are_compared_in_the_browser(tmp_path: Path, ollama_server: RealOllama) -> None:
    server, tags = OllamaServer(ollama_server.host), ("web-left:latest", "web-right:latest")
    for seed, tag in enumerate(tags):
        server.create(tag, write_tiny_llama(tmp_path / f"{seed}.gguf", seed=seed), Modelfile(), lambda event: None)
    write_state(tmp_path / "home", SavedState(compare=CompareState(left=tags[0], right=tags[1])))
    with Served(tmp_path / "home", "--screen", "compare", ollama=ollama_server.url) as served, Browser() as browser:
        browser.open(served.url)
        browser.wait_for(lambda: all(tag in browser.received for tag in tags), 20)
        browser.wait_for("document.activeElement.classList.contains('xterm-helper-textarea')")
        browser.type("Write a loop")
        browser.wait_for(lambda: "loop" in browser.received)
        browser.press("Enter")
        browser.wait_for(lambda: browser.received.count(" tok/s") >= 2 and "which is better?" in browser.received, 60)
        browser.screenshot(tmp_path / "compared.png")
    picture = Image.open(tmp_path / "compared.png").convert("RGB")
    assert picture.size == (1280, 800) and len(picture.getcolors(1 << 20) or ()) > 50


def status_of(url: str, **headers: str) -> int:
    async def ask() -> int:
        async with aiohttp.ClientSession() as session, session.get(url, headers=headers) as reply:
            return reply.status

    return asyncio.run(ask())


def websocket_answer(url: str, **headers: str) -> str:
    """What comes first, or the status that refused it."""

    async def ask() -> str:
        async with aiohttp.ClientSession() as session:
            try:
                address = url.replace("http", "ws") + "/ws?width=80&height=24"
                async with session.ws_connect(address, headers=headers) as socket:
                    return bytes((await socket.receive(10)).data).decode()
            except aiohttp.WSServerHandshakeError as refused:
                return str(refused.status)

    return asyncio.run(ask())


def test_other_sites_and_names_that_were_made_to_point_here_are_refused(served: Served) -> None:
    assert "\x1b[" in websocket_answer(served.url, Origin=served.url)
    assert "\x1b[" in websocket_answer(served.url)  # no browser leaves it out
    port = served.port
    for origin in ("http://evil.example", f"http://evil.example:{port}", "null", f"http://localhost:{port}"):
        assert websocket_answer(served.url, Origin=origin) == "403"
    for host in ("evil.example", f"evil.example:{port}", "127.0.0.1.evil.example", "[::1", "localhost.evil.example"):
        assert websocket_answer(served.url, Host=host, Origin=f"http://{host}") == "403"
        assert status_of(served.url, Host=host) == 403
    # Through a tunnel, another port and any name of the loopback are right.
    assert status_of(served.url, Host="localhost:9000") == 200
    assert "\x1b[" in websocket_answer(served.url, Host="localhost:9000", Origin="http://localhost:9000")


def test_a_page_of_another_origin_cant_open_the_websocket_in_a_real_browser(served: Served) -> None:
    with Browser((400, 300)) as browser:
        browser.open("data:text/html,<title>other</title>")
        opened = browser.evaluate(
            f"new Promise(done => {{ const s = new WebSocket('{served.url.replace('http', 'ws')}/ws');"
            "s.onopen = () => done('opened'); s.onerror = () => done('refused') })"
        )
    assert opened == "refused"


def test_the_page_loads_nothing_from_elsewhere_and_no_other_site_may_frame_it(served: Served) -> None:
    async def ask() -> tuple[str, str]:
        async with aiohttp.ClientSession() as session, session.get(served.url + "/?fontsize=<b>") as reply:
            return await reply.text(), reply.headers["Content-Security-Policy"]

    page, policy = asyncio.run(ask())
    assert "https://" not in page and "<b>" not in page and f"ws://127.0.0.1:{served.port}/ws" in page
    assert "default-src 'self'" in policy and "frame-ancestors 'none'" in policy
    assert status_of(served.url + "/static/../web.py") == 404 and status_of(served.url + "/static/") in (403, 404)


def test_ctrl_c_ends_it_with_the_apps_of_its_pages_and_nothing_on_the_screen(tmp_path: Path) -> None:
    with Served(tmp_path) as server:

        async def visit() -> list[psutil.Process]:
            async with aiohttp.ClientSession() as session, session.ws_connect(f"{server.url}/ws") as socket:
                seen = b""
                while ON_ITS_FIRST_SCREEN.encode() not in seen:
                    seen += (await socket.receive(10)).data
                children = server.children()
                assert await asyncio.to_thread(server.interrupt) == 0
                return children

        children = asyncio.run(visit())
        assert children and psutil.wait_procs(children, timeout=5)[1] == []
        assert server.process.stderr and server.process.stderr.read() == ""


def test_a_closed_page_ends_its_app(tmp_path: Path) -> None:
    with Served(tmp_path) as server:
        websocket_answer(server.url)
        children = server.children()
        assert psutil.wait_procs(children, timeout=10)[1] == []
        assert server.process.poll() is None


def test_a_port_in_use_is_said_with_the_next_one_to_try(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        done = amigo(tmp_path, "tui", "--web", "--port", str(port))
    assert done.returncode == 2
    assert f"can't listen on 127.0.0.1 port {port}: Address already in use" in done.stderr
    assert f"--port {port + 1}" in done.stderr


def test_only_an_address_that_others_reach_is_warned_about(tmp_path: Path) -> None:
    with Served(tmp_path, "--host", "0.0.0.0") as server:
        assert server.process.stderr
        assert "warning: anyone who reaches 0.0.0.0 can use it as you" in server.process.stderr.readline()
        there = f"http://127.0.0.1:{server.port}"
        assert status_of(there, Host=f"{socket.gethostname()}:{server.port}") == 200
        assert status_of(there, Host="192.168.7.7:80") == 200 and status_of(there, Host="evil.example") == 403
    assert [host for host in ("127.0.0.1", "::1", "localhost", "127.9.9.9") if not is_loopback(host)] == []
    assert [host for host in ("0.0.0.0", "::", "192.168.1.2", "example.org") if is_loopback(host)] == []

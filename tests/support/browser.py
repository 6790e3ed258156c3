"""A real browser: headless Chromium, driven over its DevTools protocol."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import aiohttp
import pytest

MISSING = "needs Chromium: apt install chromium"
POLL_SECONDS = 0.03
_FLAGS = (
    "--headless=new",
    "--no-sandbox",  # refuses to start as root with it; it sees our own pages only
    "--enable-unsafe-swiftshader",  # WebGL without a card, for terminals that draw with it
    "--disable-dev-shm-usage",  # containers have 64 MB there
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--mute-audio",
    "--hide-scrollbars",
    "--force-color-profile=srgb",
    "--remote-debugging-port=0",
)
# Key: its code, Windows' virtual key code and the text it types (DevTools protocol, Input.dispatchKeyEvent).
_KEYS = {
    "Enter": ("Enter", 13, "\r"),
    "Escape": ("Escape", 27, ""),
    "Tab": ("Tab", 9, ""),
    "Backspace": ("Backspace", 8, ""),
    "ArrowUp": ("ArrowUp", 38, ""),
    "ArrowDown": ("ArrowDown", 40, ""),
    "ArrowLeft": ("ArrowLeft", 37, ""),
    "ArrowRight": ("ArrowRight", 39, ""),
}
_MODIFIERS = {"alt": 1, "ctrl": 2, "shift": 8}


class Browser:
    """Context manager around one page."""

    def __init__(self, size: tuple[int, int] = (1280, 800)) -> None:
        binary = shutil.which("chromium")
        if not binary:
            pytest.skip(MISSING)
        self._folder = Path(tempfile.mkdtemp(prefix="browser-"))
        self.console: list[str] = []
        """What the page logged, and its exceptions."""
        self.requested: list[str] = []
        """Every URL that was asked for, websockets too."""
        self.received = ""
        """What websockets brought, as text: for a terminal in a page, all that was drawn, escape sequences too."""
        self._runner = asyncio.Runner()
        self._last_id = 0
        with (self._folder / "log").open("wb") as log:  # no desktop bus in a container: it complains a lot
            self._process = subprocess.Popen(
                [
                    binary,
                    *_FLAGS,
                    f"--window-size={size[0]},{size[1]}",
                    f"--user-data-dir={self._folder}",
                    "about:blank",
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**os.environ, "HOME": str(self._folder)},
                start_new_session=True,
            )
        try:
            self._runner.run(self._connect(size))
        except BaseException:
            self.close()
            raise

    async def _connect(self, size: tuple[int, int]) -> None:
        port_file = self._folder / "DevToolsActivePort"
        deadline = time.monotonic() + 30
        while not (port_file.exists() and port_file.read_text().count("\n")):
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError("Chromium did not start:\n" + (self._folder / "log").read_text()[-2000:])
            await asyncio.sleep(POLL_SECONDS)
        self._http = aiohttp.ClientSession()
        async with self._http.get(f"http://127.0.0.1:{port_file.read_text().split()[0]}/json/list") as reply:
            (page,) = [target for target in await reply.json() if target["type"] == "page"]
        self._socket = await self._http.ws_connect(page["webSocketDebuggerUrl"], max_msg_size=0)
        for domain in ("Page", "Runtime", "Network", "Log"):
            await self._call(f"{domain}.enable")
        metrics = {"width": size[0], "height": size[1], "deviceScaleFactor": 1, "mobile": False}
        await self._call("Emulation.setDeviceMetricsOverride", **metrics)

    async def _call(self, method: str, **params: Any) -> dict[str, Any]:
        """The result of one command; events that come meanwhile are noted."""
        self._last_id += 1
        await self._socket.send_json({"id": self._last_id, "method": method, "params": params})
        while True:
            message = await asyncio.wait_for(self._socket.receive(), 30)
            if message.type is not aiohttp.WSMsgType.TEXT:
                raise RuntimeError(f"Chromium closed the connection during {method}")
            said = json.loads(message.data)
            if said.get("id") == self._last_id:
                if "error" in said:
                    raise RuntimeError(f"{method}: {said['error']['message']}")
                result: dict[str, Any] = said["result"]
                return result
            self._note(said.get("method", ""), said.get("params", {}))

    def _note(self, event: str, params: dict[str, Any]) -> None:
        if event == "Runtime.consoleAPICalled":
            self.console.append(" ".join(str(arg.get("value", arg.get("description"))) for arg in params["args"]))
        elif event == "Runtime.exceptionThrown":
            details = params["exceptionDetails"]
            self.console.append(details.get("exception", {}).get("description", details["text"]))
        elif event == "Log.entryAdded":
            self.console.append(params["entry"]["text"])
        elif event == "Network.requestWillBeSent":
            self.requested.append(params["request"]["url"])
        elif event == "Network.webSocketCreated":
            self.requested.append(params["url"])
        elif event == "Network.webSocketFrameReceived":
            frame = params["response"]
            binary = frame["opcode"] == 2
            data = base64.b64decode(frame["payloadData"]).decode(errors="replace") if binary else frame["payloadData"]
            self.received += data

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """One command of the DevTools protocol."""
        return self._runner.run(self._call(method, **params))

    # -- Pages

    def open(self, url: str) -> None:
        """Returns when it has loaded."""
        failed = self.call("Page.navigate", url=url).get("errorText")
        if failed:
            raise RuntimeError(f"{url}: {failed}")
        self.wait_for("document.readyState === 'complete' && location.href !== 'about:blank'", 20)

    def evaluate(self, expression: str) -> Any:
        """The JSON value of an expression; a promise's once it is kept."""
        done = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in done:
            raise RuntimeError(done["exceptionDetails"].get("exception", {}).get("description", expression))
        return done["result"].get("value")

    def wait_for(self, condition: str | Callable[[], bool], seconds: float = 10) -> None:
        """Polls a JavaScript expression, or a function over what was noted, until it holds."""
        deadline = time.monotonic() + seconds
        while True:
            # Asking is what makes events arrive, so the page is asked either way.
            held = self.evaluate(condition if isinstance(condition, str) else "0")
            if held if isinstance(condition, str) else condition():
                return
            if time.monotonic() > deadline:
                raise AssertionError(f"did not come true in {seconds:g} s: {condition}; console: {self.console[-5:]}")
            time.sleep(POLL_SECONDS)

    def type(self, text: str) -> None:
        """One key press per character, into what has the focus."""
        for character in text:
            self.press(character)

    def press(self, key: str) -> None:
        """A key by its DOM name, with modifiers in front: Enter, ArrowDown, ctrl+q, a."""
        *held, name = key.split("+") if len(key) > 1 else [key]
        modifiers = sum(_MODIFIERS[word] for word in held)
        code, number, text = _KEYS.get(name, (f"Key{name.upper()}", ord(name.upper()[0]), name))
        common = {"key": name, "code": code, "windowsVirtualKeyCode": number, "modifiers": modifiers}
        typed = {"text": text} if text and not modifiers else {}
        self.call("Input.dispatchKeyEvent", type="keyDown" if typed else "rawKeyDown", **common, **typed)
        self.call("Input.dispatchKeyEvent", type="keyUp", **common)

    def click(self, x: float, y: float) -> None:
        for kind in ("mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def screenshot(self, path: Path) -> None:
        """A PNG of what is in the window."""
        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"]))

    def close(self) -> None:
        with contextlib.suppress(AttributeError, RuntimeError):
            self._runner.run(self._http.close())
        self._runner.close()
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        shutil.rmtree(self._folder, ignore_errors=True)

    def __enter__(self) -> Browser:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

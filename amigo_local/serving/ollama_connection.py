"""Where the Ollama server is, and how its failures are told to a person."""

from __future__ import annotations

import contextlib
import ipaddress
import json
import os
from collections.abc import Iterator, Mapping
from urllib.parse import urlsplit

import httpx
import ollama

from amigo_local.domain.errors import InputError

DEFAULT_PORT = 11434  # envconfig/config.go: Host
NO_SERVER_HINT = "start it with `ollama serve`, or set OLLAMA_HOST to where it runs"
WENT_AWAY_HINT = "see the server's log (journalctl -u ollama), then run the same command again"


def server_url(host: str | None = None, environment: Mapping[str, str] = os.environ) -> str:
    """`http://host:port` from an argument, else OLLAMA_HOST, else 127.0.0.1:11434; read as Ollama reads it.

    A server told to listen on every address (0.0.0.0, ::) is asked on loopback. Raises InputError.
    """
    given = (host or environment.get("OLLAMA_HOST") or "").strip().strip("\"'")
    scheme, separator, rest = given.partition("://")
    if not separator:
        scheme, rest = "http", given
    try:
        parts = urlsplit(f"{scheme}://{rest}")
        port = parts.port
    except ValueError as error:
        raise InputError(f"{given!r} is no server address: {error}", "write it like 127.0.0.1:11434") from None
    name = parts.hostname or "127.0.0.1"
    if port is None:
        port = {"http": 80, "https": 443}.get(scheme, DEFAULT_PORT) if separator else DEFAULT_PORT
    if name in ("0.0.0.0", "::"):
        name = "127.0.0.1" if name == "0.0.0.0" else "::1"
    name = f"[{name}]" if ":" in name else name
    return f"{scheme}://{name}:{port}{parts.path.rstrip('/')}"


def is_loopback(url: str) -> bool:
    """A proxy from the environment must not stand between us and this machine."""
    name = urlsplit(url).hostname or ""
    with contextlib.suppress(ValueError):
        return ipaddress.ip_address(name).is_loopback
    return name == "localhost"


@contextlib.contextmanager
def ollama_errors(url: str, doing: str, kept: str = "") -> Iterator[None]:
    """Turns what the client raises into InputErrors. `kept` says what is left when the server goes midway."""
    try:
        yield
    except (httpx.ConnectError, httpx.ConnectTimeout, ConnectionError) as error:
        if isinstance(error, OSError) and type(error) is not ConnectionError:
            raise  # a broken pipe of ours, not what the client raises
        raise InputError(f"no Ollama server answers at {url}", NO_SERVER_HINT) from error
    except (httpx.TransportError, json.JSONDecodeError) as error:  # a line of JSON may be cut, too
        told = f"; {kept}" if kept else ""
        raise InputError(f"the Ollama server at {url} went away while {doing}{told}", WENT_AWAY_HINT) from error
    except ollama.ResponseError as error:
        raise InputError(f"the Ollama server failed while {doing}: {error.error}", WENT_AWAY_HINT) from error

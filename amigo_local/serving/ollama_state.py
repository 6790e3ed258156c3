"""What an Ollama server has in memory now, asked so cheaply that a gauge may ask every two seconds."""

from __future__ import annotations

import json
import urllib.request
from http.client import HTTPException
from typing import Any

from amigo_local.domain.errors import InputError
from amigo_local.domain.events import LoadedModel, OllamaState
from amigo_local.serving.ollama_connection import NO_SERVER_HINT, is_loopback

_SECONDS = 1.0
_MOST_BYTES = 1 << 20


def ollama_state(url: str) -> OllamaState:
    """With the standard library's client: making an httpx client alone takes tens of milliseconds.

    Raises InputError when no server answers within a second.
    """
    direct = is_loopback(url)
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({})) if direct else urllib.request.build_opener()
    try:
        version = str(_get(opener, f"{url}/api/version")["version"])
        models = _get(opener, f"{url}/api/ps").get("models") or ()
        return OllamaState(url=url, version=version, loaded=tuple(map(loaded_model, models)))
    except (OSError, HTTPException) as error:
        raise InputError(f"no Ollama server answers at {url}", NO_SERVER_HINT) from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"what answers at {url} is no Ollama server", "set OLLAMA_HOST to where it runs") from error


def _get(opener: urllib.request.OpenerDirector, address: str) -> dict[str, Any]:
    with opener.open(address, timeout=_SECONDS) as reply:
        return dict(json.loads(reply.read(_MOST_BYTES)))


def loaded_model(entry: dict[str, Any]) -> LoadedModel:
    """An entry of `/api/ps` (ProcessModelResponse in Ollama's api/types.go)."""
    return LoadedModel(
        name=str(entry["name"]),
        size_bytes=int(entry.get("size") or 0),
        size_vram_bytes=int(entry.get("size_vram") or 0),
        expires=str(entry.get("expires_at") or ""),
    )

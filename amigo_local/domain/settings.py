"""ProgramSettings: what holds for every verb on this machine, as opposed to one recipe."""

from __future__ import annotations

from amigo_local.domain.strict import Strict


class OllamaSettings(Strict, frozen=True, kw_only=True):
    host: str | None = None
    """URL of the server; None: OLLAMA_HOST, else http://127.0.0.1:11434."""
    store: str | None = None
    """Models folder of the server; None: looked for in the usual places and proven by digests."""
    use: bool = True
    """False: never ask a server; the embedded llama.cpp and our own library serve."""


class MachineBudget(Strict, frozen=True, kw_only=True):
    """Caps on what may be used, as sizes (`6GiB`); None: what the machine has."""

    vram: str | None = None
    ram: str | None = None
    disk: str | None = None


class ProgramSettings(Strict, frozen=True, kw_only=True):
    ollama: OllamaSettings = OllamaSettings()
    machine: MachineBudget = MachineBudget()
    unsafe: bool = False
    """Run generated code without a sandbox where none works."""

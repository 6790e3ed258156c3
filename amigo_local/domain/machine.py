"""Machine: what there is to work with, as measured now."""

from __future__ import annotations

import msgspec


class Machine(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Bytes are free or available at the time of measuring, unless the name says total."""

    platform: str
    cpu_count: int
    ram_total_bytes: int
    ram_available_bytes: int
    disk_free_bytes: int
    gpu_name: str | None = None
    vram_total_bytes: int | None = None
    vram_free_bytes: int | None = None

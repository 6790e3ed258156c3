from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest


@pytest.fixture(autouse=True)
def thawed() -> Iterator[None]:
    """An app freezes what is there, for it ends with its process; here the next one comes."""
    yield
    gc.unfreeze()

from __future__ import annotations

import runpy
from pathlib import Path

DOCS = Path(__file__).parents[2] / "docs"


def test_the_reference_says_what_the_program_does() -> None:
    made = runpy.run_path(str(DOCS / "make_reference.py"))["reference"]()
    assert made == (DOCS / "reference.md").read_text(encoding="utf-8"), "run: python docs/make_reference.py"

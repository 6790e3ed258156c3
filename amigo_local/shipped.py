"""Where the recipes and Modelfile templates that ship with the program are found."""

from __future__ import annotations

from pathlib import Path


def shipped_folder(name: str) -> Path:
    """`recipes` or `modelfiles`: inside an installed wheel, else beside the package in a checkout."""
    package = Path(__file__).resolve().parent
    installed = package / "_shipped" / name
    return installed if installed.is_dir() else package.parent / name

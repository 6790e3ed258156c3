"""Finds the code that a person names: Python's own library, an installed package, or a folder."""

from __future__ import annotations

import difflib
import os
import sys
import sysconfig
from collections.abc import Sequence
from importlib import metadata, util
from pathlib import Path
from typing import Literal

from amigo_local.data.code.code_tree import (
    LEFT_OUT,
    VENDORED,
    CodeFile,
    CodeTree,
    folder_group,
    is_test_name,
    unfit,
    walked,
)
from amigo_local.data.code.license_file import license_of
from amigo_local.data.code.tracked_files import is_repository, tracked_files
from amigo_local.data.reading import Reading
from amigo_local.domain.errors import InputError

STDLIB_LICENSE = "PSF-2.0"


def standard_library(modules: Literal["all"] | Sequence[str] = "all", folder: Path | None = None) -> CodeTree:
    """The running Python's own; `folder` is read instead of it. Raises InputError for a module that isn't there."""
    root = folder or Path(sysconfig.get_paths()["stdlib"])
    files = []
    tops = [entry for entry in root.iterdir() if entry.name.removesuffix(".py") in sys.stdlib_module_names]
    found = [path for entry in tops for path in ([entry] if entry.suffix == ".py" else entry.rglob("*.py"))]
    for path in sorted(found, key=lambda path: path.relative_to(root).as_posix()):
        relative = path.relative_to(root)
        top = relative.parts[0].removesuffix(".py")
        if not LEFT_OUT & {*relative.parts, top}:
            files.append(CodeFile(path, relative.as_posix(), top))
    if modules != "all":
        available = sorted({file.group for file in files})
        for name in modules:
            if name not in available:
                close = difflib.get_close_matches(name, available, 1)
                hint = f"did you mean {close[0]}?" if close else f"one of: {', '.join(available[:12])} …"
                raise InputError(f"{name!r} is no minable module of Python's standard library", hint)
        files = [file for file in files if file.group in set(modules)]
    return CodeTree(label="stdlib", license=STDLIB_LICENSE, files=tuple(files))


def installed_package(name: str, reading: Reading) -> CodeTree:
    """A package as it is imported, found without importing it. Raises InputError when it isn't installed."""
    root = package_root(name)
    if root.is_file():
        return CodeTree(label=name, license=package_license(name), files=(CodeFile(root, root.name, name),))
    files = []
    for path in walked(root, reading):
        relative = path.relative_to(root.parent).as_posix()
        parts = relative.removesuffix(".py").split("/")
        if not LEFT_OUT & set(parts) and not is_test_name(path.name):
            inner = "" if parts[1] == "__init__" else f".{parts[1]}"
            files.append(CodeFile(path, relative, f"{parts[0]}{inner}"))
    return CodeTree(label=name, license=package_license(name), files=tuple(files))


def package_root(name: str) -> Path:
    """The folder, or the one file, of a top-level package."""
    hint = f"pip install {name.partition('.')[0]}"
    if not name.isidentifier():
        raise InputError(f"package: {name!r} is no name of a top-level package", "give it as it is imported: numpy")
    try:
        spec = util.find_spec(name)
    except (ImportError, ValueError, AttributeError) as error:
        raise InputError(f"package: {name} can't be found ({error})", hint) from error
    if spec is None:
        raise InputError(f"package: {name} isn't installed beside this program", hint)
    if spec.submodule_search_locations:
        return Path(next(iter(spec.submodule_search_locations)))
    if not spec.origin or not spec.origin.endswith(".py"):
        raise InputError(f"package: {name} has no Python files", "name a package that is written in Python")
    return Path(spec.origin)


def package_version(name: str) -> str:
    """Of the distribution that brings the package; empty where no metadata says."""
    distribution = _distribution(name)
    return distribution.version if distribution else ""


def package_license(name: str) -> str:
    """SPDX identifier of the package's own code; empty where its metadata doesn't say one."""
    distribution = _distribution(name)
    if distribution is None:
        return ""
    fields = distribution.metadata
    stated: dict[str, str] = {
        name: next(iter(fields.get_all(name) or [""])) for name in ("License-Expression", "License")
    }
    # Of `BSD-3-Clause AND MIT AND …` the first is the package's own by custom; the others are of what it bundles,
    # and vendored folders aren't read.
    expression = stated["License-Expression"].split(" AND ")[0].strip("() ")
    if expression:
        return expression
    if named := license_of(stated["License"]):
        return named
    classifiers = [line.rpartition("::")[2].strip() for line in fields.get_all("Classifier") or [] if "License" in line]
    return next((found for line in classifiers if (found := license_of(line))), "")


def _distribution(name: str) -> metadata.Distribution | None:
    try:
        return metadata.distribution(name)
    except (metadata.PackageNotFoundError, ValueError):
        names = metadata.packages_distributions().get(name)
        return metadata.distribution(names[0]) if names else None


def folder_tree(folder: Path, reading: Reading, license: str | None = None) -> CodeTree:
    """The Python files of a folder: those that git tracks where it is a repository, else all that lie in it."""
    root = folder.expanduser()
    if not root.is_dir():
        what = "is no folder" if root.exists() else "no such folder"
        raise InputError(f"{folder}: {what}", "give the path of a git repository or of any folder of code")
    root = root.resolve()
    label = root.name or "root"
    listed = tracked_files(root, reading, ".py") if is_repository(root) else list(walked(root, reading))
    files: list[CodeFile] = []
    tests: list[CodeFile] = []
    for path in listed:
        relative = path.relative_to(root).as_posix()
        if VENDORED & set(relative.split("/")[:-1]):
            reading.skip("vendored file", relative)
        elif not is_text(relative):
            reading.skip("file's name isn't UTF-8", relative)
        elif reason := unfit(path):
            reading.skip(reason, relative)
        else:
            file = CodeFile(path, relative, f"{label}:{folder_group(relative)}")
            (tests if file.is_test else files).append(file)
    if not files:
        raise InputError(f"{folder}: no Python file that could be read", "name a folder that holds *.py files")
    found = license_in(root) if license is None else license
    return CodeTree(label=label, license=found, files=tuple(files), tests=tuple(tests))


def is_text(name: str) -> bool:
    """Whether a file's name, which is bytes, can be written into a request."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def license_in(root: Path) -> str:
    """SPDX identifier by the licence file at the root; empty where there is none or its text isn't known."""
    for path in sorted(root.iterdir()):
        if path.name.lower().startswith(("license", "licence", "copying", "unlicense")) and path.is_file():
            try:
                found = license_of(path.read_text(encoding="utf-8", errors="replace")[:60_000])
            except OSError:
                continue
            if found:
                return found
    return ""


def opened(name: str, reading: Reading) -> CodeTree:
    """`stdlib`, an installed package, or the path of a folder: what holds a slash or begins with `.` or `~`."""
    if name == "stdlib":
        return standard_library()
    if "/" in name or os.sep in name or name.startswith((".", "~")):
        return folder_tree(Path(name), reading)
    return installed_package(name, reading)

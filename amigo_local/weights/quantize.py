"""llama.cpp's quantization of a whole GGUF, in a process of its own so that it can be stopped and can't print."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
from pathlib import Path

from amigo_local.domain.errors import AmigoError
from amigo_local.domain.events import Emit, Progress
from amigo_local.weights.ggml_types import FILE_TYPE_IDS

_TENSOR_LINE = re.compile(r"\[\s*(\d+)/\s*(\d+)\]")
_LAST_LINES = 5
_BUFFER_BYTES = 256 << 20  # of rows in memory at once, where llama.cpp's own default is 8 GiB


def quantize(source: Path, target: Path, file_type: str, emit: Emit, threads: int | None = None) -> None:
    """Runs llama_model_quantize; `file_type` is llama.cpp's name of a mix (`Q4_K_M`).

    The process ends with this one, however this one ends. Raises AmigoError with llama.cpp's last lines when it
    fails; whatever `emit` raises passes through after the process has been stopped.
    """
    command = [sys.executable, "-m", __name__, str(source), str(target), str(FILE_TYPE_IDS[file_type])]
    process = subprocess.Popen(
        [*command, str(threads or os.cpu_count() or 1)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        encoding="utf-8",
        errors="replace",
    )
    lines: list[str] = []
    try:
        assert process.stdout is not None
        for line in process.stdout:
            if match := _TENSOR_LINE.search(line):
                emit(Progress("quantizing", int(match[1]), int(match[2]), "tensors"))
            if line.strip():
                lines = [*lines[1 - _LAST_LINES :], line.strip()]
        status = process.wait()
    finally:
        process.kill()
        process.wait()
        for stream in (process.stdin, process.stdout):
            if stream is not None:
                stream.close()
    if status != 0:
        raise AmigoError(f"llama.cpp could not quantize {source}: {' / '.join(lines)}", "run the export again")


def _end_with_parent() -> None:
    """The parent's end closes our stdin, even when it was killed."""

    def watch() -> None:
        while os.read(0, 1024):  # not sys.stdin: its lock would stand in the way of our own end
            pass
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _main(source: str, target: str, file_type: int, threads: int) -> int:
    import ctypes

    import llama_cpp

    @llama_cpp.llama_log_callback  # type: ignore[untyped-decorator]  # ctypes
    def log(level: int, text: bytes, user_data: ctypes.c_void_p) -> None:
        sys.stdout.buffer.write(text)
        sys.stdout.buffer.flush()

    llama_cpp.llama_log_set(log, ctypes.c_void_p(0))
    settings = llama_cpp.llama_model_quantize_default_params()
    settings.ftype = file_type
    settings.nthread = threads
    settings.max_buf_size = _BUFFER_BYTES
    status: int = llama_cpp.llama_model_quantize(source.encode(), target.encode(), ctypes.byref(settings))
    return 1 if status else 0


if __name__ == "__main__":
    _end_with_parent()
    sys.exit(_main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])))

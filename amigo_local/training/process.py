"""The process that trains: thread count, telemetry, and libraries that talk on stdout."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

# Read by the libraries when they are first imported, so set before torch, transformers and trl are.
QUIET_ENVIRONMENT = {
    "HF_HUB_DISABLE_TELEMETRY": "1",  # TRL reports each trainer it builds unless told not to
    "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "TRANSFORMERS_VERBOSITY": "error",
    "TRANSFORMERS_NO_ADVISORY_WARNINGS": "1",
    # libgomp's threads spin at every barrier, for longer than most operations take. With other work on the
    # same two cores SmolLM2-135M trained at 11 tok/s; spinning briefly, at 49 (with one thread, at 82).
    "GOMP_SPINCOUNT": "3000",
}


def physical_cores() -> int:
    """Cores without hyper-threads; at least 1."""
    import psutil

    return psutil.cpu_count(logical=False) or psutil.cpu_count() or 1


def prepare_process() -> int:
    """Call before torch is imported; harmless afterwards. Returns the number of torch threads.

    Unless OMP_NUM_THREADS says otherwise, torch gets all physical cores but one (its default counts
    hyper-threads on some machines, which slows matrix products down). Threads wait for each other by
    spinning, so one busy core stalls them all: with both of two cores SmolLM2-135M trained at 190
    tok/s on a quiet machine and at 9 beside one other process, with one of them at 130 in both.
    """
    for name, value in QUIET_ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    import torch

    threads = os.environ.get("OMP_NUM_THREADS", "")
    count = int(threads) if threads.isdigit() and int(threads) else max(1, physical_cores() - 1)
    torch.set_num_threads(count)
    return count


@contextmanager
def quiet_and_offline() -> Iterator[None]:
    """Nothing below may reach the hub or speak: everything that training loads is a local folder.

    bitsandbytes warns about a missing `kernels` package on CPUs with AVX512-BF16 (that kernel serves
    inference alone), transformers about padding tokens, torch about pinned memory without a GPU.
    """
    import logging

    import datasets
    import huggingface_hub.constants as hub
    import transformers.utils.logging as transformers_logging

    offline, verbosity = hub.HF_HUB_OFFLINE, transformers_logging.get_verbosity()
    hub.HF_HUB_OFFLINE = True
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    datasets.disable_progress_bars()
    levels = {name: logging.getLogger(name).level for name in ("bitsandbytes", "trl", "accelerate", "peft", "torch")}
    for name in levels:
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        hub.HF_HUB_OFFLINE = offline
        transformers_logging.set_verbosity(verbosity)
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)

"""Trains in forked children and kills them: `python forked_training.py REQUEST.json`.

The request holds what a TrainingRun does, `kill_after` (steps; one child each) and `trail`, a file that
gets one JSON line [child, step, loss] per step. A last child runs to the end.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
from pathlib import Path


def main(request_path: str) -> None:
    import bitsandbytes  # noqa: F401  # imported once here, so that each fork has it
    import datasets  # noqa: F401
    import peft  # noqa: F401
    import torch  # noqa: F401  # no computation before the fork: its threads would not survive it
    import transformers
    import trl

    _ = (transformers.AutoModelForCausalLM, transformers.AutoTokenizer, trl.SFTTrainer)  # lazy ones too
    request = json.loads(Path(request_path).read_text())
    delays = random.Random(request["seed"])
    for child, kill_after in enumerate([*request["kill_after"], None]):
        reader, writer = os.pipe()
        worker = os.fork()
        if worker == 0:
            os.close(reader)
            _train(request, child, writer)
        os.close(writer)
        with os.fdopen(reader) as steps:
            for line in steps:
                if kill_after is not None and int(line) == kill_after:
                    time.sleep(delays.uniform(0, request["step_seconds"]))
                    os.kill(worker, signal.SIGKILL)
                    break
        _, status = os.waitpid(worker, 0)
        expected = 0 if kill_after is None else signal.SIGKILL
        if status != expected:
            sys.exit(f"child {child} ended with status {status}, expected {expected}")


def _train(request: dict, child: int, writer: int) -> None:
    import msgspec

    from amigo_local.domain.events import AnyEvent, MetricLogged
    from amigo_local.domain.memory_plan import MemoryPlan
    from amigo_local.domain.recipe import TrainSettings
    from amigo_local.training.frozen_base import base_from_checkpoint
    from amigo_local.training.sft import train_sft
    from amigo_local.training.training_run import TrainingRun

    def emit(event: AnyEvent) -> None:
        if isinstance(event, MetricLogged) and "loss" in event.values:
            with Path(request["trail"]).open("a") as trail:
                trail.write(json.dumps([child, event.step, event.values["loss"]]) + "\n")
            os.write(writer, f"{event.step}\n".encode())

    code = 1
    settings = msgspec.convert(request["settings"], TrainSettings)
    start = request["start_adapter"]
    try:
        train_sft(
            TrainingRun(
                settings=settings,
                plan=msgspec.convert(request["plan"], MemoryPlan),
                base=base_from_checkpoint(Path(request["base"]), settings, "tiny"),
                dataset_dir=Path(request["dataset"]),
                out_dir=Path(request["out"]),
                emit=emit,
                start_adapter=Path(start) if start else None,
            )
        )
        code = 0
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    main(sys.argv[1])

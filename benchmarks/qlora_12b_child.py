"""The process of one measurement: `python benchmarks/qlora_12b_child.py JOB`, both in JSON. Started by qlora_12b.py."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

sys.path.insert(0, str(Path(__file__).parents[1]))
from amigo_local.domain.errors import AmigoError, InputError
from amigo_local.training.process import prepare_process, quiet_and_offline

if TYPE_CHECKING:
    from benchmarks.qlora_12b_records import Measurement, Setup, Task


def run(task: Task, setup: Setup) -> Measurement:
    from benchmarks.qlora_12b_ours import measure
    from benchmarks.qlora_12b_peer import measure_peer
    from benchmarks.qlora_12b_store import config_of, make_peer_checkpoint, make_store

    scratch = Path(setup.scratch)
    store = make_store(config_of(setup.shape), scratch)
    try:
        if task.side in ("peer", "peer uncapped"):
            return measure_peer(task, setup, make_peer_checkpoint(store, scratch))
        return measure(task, setup, store)
    except Exception as error:  # noqa: BLE001  # an entry point: whatever happens is a result
        return failure(task, setup, error)


def failure(task: Task, setup: Setup, error: Exception) -> Measurement:
    from benchmarks.qlora_12b_records import Measurement

    found = ran_out(error)
    innermost = found or next(chain_of(error))
    hint = f" ({error.hint})" if isinstance(error, AmigoError) and error.hint else ""
    return Measurement(
        task=task,
        card=setup.card,
        outcome="out of memory" if found else "refused" if isinstance(error, InputError) else "failed",
        message=f"{type(error).__name__}: {error}"[:2000] + hint,
        phase=phase_of(found) if found else "",
        frames=last_frames(innermost),
    )


def ran_out(error: BaseException) -> BaseException | None:
    """The error that says so, among this one and those it was raised from; None where there is none.

    transformers collects what its loader meets and raises a RuntimeError that quotes it (log_conversion_errors).
    """
    from amigo_local.training.out_of_memory import is_out_of_memory

    return next((it for it in chain_of(error) if isinstance(it, RuntimeError) and is_out_of_memory(it)), None)


def chain_of(error: BaseException) -> Iterator[BaseException]:
    """From the innermost out."""
    links = [error]
    while (below := links[-1].__cause__ or links[-1].__context__) is not None:
        links.append(below)
    yield from reversed(links)


def phase_of(error: BaseException) -> str:
    """loading, preparing, forward pass, backward pass or optimizer step, by the frames of the traceback."""
    calls = [(f.filename.replace("\\", "/"), f.name) for f in traceback.extract_tb(error.__traceback__)]
    names = {name for _, name in calls}
    stepping = ("/torch/optim/", "/bitsandbytes/optim/", "/accelerate/optimizer.py")
    if names & {"from_pretrained", "load"}:
        return "loading"
    if any("/torch/autograd/" in file and name == "backward" for file, name in calls):
        return "backward pass"
    if any(name == "step" and any(part in file for part in stepping) for file, name in calls):
        return "optimizer step"
    return "forward pass" if "training_step" in names else "preparing"


def last_frames(error: BaseException, count: int = 4) -> tuple[str, ...]:
    """`transformers/models/gemma3/modeling_gemma3.py:110 forward`, the innermost last."""
    frames = traceback.extract_tb(error.__traceback__)[-count:]
    return tuple(f"{_short(frame.filename)}:{frame.lineno} {frame.name}" for frame in frames)


def _short(filename: str) -> str:
    parts = Path(filename).parts
    if "site-packages" in parts:
        return "/".join(parts[parts.index("site-packages") + 1 :])
    return "/".join(parts[-3:])


def main() -> None:
    prepare_process()
    from benchmarks.qlora_12b_records import Job

    job = msgspec.json.decode(sys.argv[1], type=Job)
    # Libraries print on stdout too: the result has it for itself.
    out = os.dup(1)
    os.dup2(2, 1)
    with quiet_and_offline():
        result = run(job.task, job.setup)
    with os.fdopen(out, "wb") as stdout:
        stdout.write(msgspec.json.encode(result) + b"\n")


if __name__ == "__main__":
    main()

"""The process of one measurement: `python benchmarks/qlora_12b_child.py JOB`, both in JSON. Started by qlora_12b.py."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import msgspec

sys.path.insert(0, str(Path(__file__).parents[1]))
from amigo_local.training.process import prepare_process, quiet_and_offline

prepare_process()
from amigo_local.domain.errors import AmigoError, InputError  # noqa: E402  # the process is prepared before torch comes
from benchmarks.qlora_12b_ours import measure  # noqa: E402
from benchmarks.qlora_12b_peer import chain_of, last_frames, measure_peer, phase_of, ran_out  # noqa: E402
from benchmarks.qlora_12b_records import Measurement, Outcome, Setup, Task  # noqa: E402
from benchmarks.qlora_12b_store import config_of, make_peer_checkpoint, make_store  # noqa: E402


class Job(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    setup: Setup
    task: Task


def run(job: Job) -> Measurement:
    scratch, task = Path(job.setup.scratch), job.task
    store = make_store(config_of(job.setup.shape), scratch)
    try:
        if task.side in ("peer", "peer uncapped"):
            return measure_peer(task, job.setup, make_peer_checkpoint(store, scratch))
        return measure(task, job.setup, store)
    except Exception as error:  # noqa: BLE001  # an entry point: whatever happens is a result
        return failure(task, job.setup, error)


def failure(task: Task, setup: Setup, error: Exception) -> Measurement:
    found = ran_out(error)
    innermost = found or next(chain_of(error))
    outcome: Outcome
    if found is not None:
        outcome = "out of memory"
    elif isinstance(error, InputError):
        outcome = "refused"
    else:
        outcome = "failed"
    hint = f" ({error.hint})" if isinstance(error, AmigoError) and error.hint else ""
    return Measurement(
        task=task,
        card=setup.card,
        outcome=outcome,
        message=f"{type(error).__name__}: {error}"[:2000] + hint,
        phase=phase_of(innermost) if found is not None else "",
        frames=last_frames(innermost),
    )


def main() -> None:
    job = msgspec.json.decode(sys.argv[1], type=Job)
    # Libraries print on stdout too: the result has it for itself.
    out = os.dup(1)
    os.dup2(2, 1)
    with quiet_and_offline():
        result = run(job)
    with os.fdopen(out, "wb") as stdout:
        stdout.write(msgspec.json.encode(result) + b"\n")


if __name__ == "__main__":
    main()

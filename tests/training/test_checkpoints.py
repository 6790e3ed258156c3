"""The folder of checkpoints: what is kept, and what a full disk leaves."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from amigo_local.training.checkpoints import CheckpointFolder

# A checkpoint of a quarter of the disk, twice; then one that is too large, as torch and as safetensors write.
FILLING = """
import sys
from pathlib import Path
import torch
from safetensors.torch import save_file
from amigo_local.domain.errors import AmigoError
from amigo_local.training.checkpoints import CheckpointFolder
folder = CheckpointFolder(Path("/mnt/checkpoints"), keep=2)
folder.open({})
for step in (1, 2):
    folder.write(step, lambda path: torch.save(torch.zeros(1 << 18), path / "optimizer.pt"), nbytes=1 << 20)
large = torch.zeros(1 << 20)
for fill in (lambda path: torch.save(large, path / "optimizer.pt"),
             lambda path: save_file({"a": large}, path / "adapter_model.safetensors"),
             lambda path: (path / "trainer_state.json").write_bytes(bytes(1 << 22))):
    try:
        folder.write(3, fill, nbytes=1 << 22)
    except AmigoError as error:
        print(error.message, "|", error.hint)
    print(sorted(path.name for path in folder.path.iterdir()), folder.newest().name)
"""

TRAINING = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[3])
from amigo_local.domain.errors import AmigoError
from amigo_local.training.frozen_base import base_from_checkpoint
from amigo_local.training.sft import train_sft
from amigo_local.training.training_run import TrainingRun
from tests.training.conftest import PLAN, SETTINGS
base, dataset = Path(sys.argv[1]), Path(sys.argv[2])
room = Path("/mnt/ballast")
room.write_bytes(bytes(200 << 10))
for _ in range(2):
    try:
        frozen = base_from_checkpoint(base, SETTINGS, "tiny")
        train_sft(TrainingRun(SETTINGS, PLAN, frozen, dataset, Path("/mnt/out"), lambda event: None))
    except AmigoError as error:
        print(error.message, "|", error.hint)
    print(sorted(str(path.relative_to("/mnt")) for path in Path("/mnt").glob("out/**/checkpoint-?")))
    room.unlink(missing_ok=True)
print((Path("/mnt/out/adapter_model.safetensors").read_bytes()
       == (Path(sys.argv[4]) / "adapter_model.safetensors").read_bytes()))
"""


def on_a_disk_of(size_bytes: int, code: str, *arguments: str, temporary: Path) -> list[str]:
    """Lines that `code` prints, run where /mnt is a tmpfs of that size."""
    if not shutil.which("bwrap"):
        pytest.skip("no bubblewrap: apt-get install bubblewrap")
    sandbox = ["bwrap", "--ro-bind", "/", "/", "--dev", "/dev", "--proc", "/proc", "--bind", str(temporary)]
    sandbox += [str(temporary), "--setenv", "TMPDIR", str(temporary), "--setenv", "OMP_NUM_THREADS", "1"]
    sandbox += ["--size", str(size_bytes), "--tmpfs", "/mnt"]
    probe = subprocess.run([*sandbox, "true"], capture_output=True, text=True)
    if probe.returncode:
        pytest.skip(f"bubblewrap can't mount a small tmpfs here: {probe.stderr.strip()}")
    done = subprocess.run([*sandbox, "--", sys.executable, "-c", code, *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout.splitlines()


def test_a_full_disk_costs_the_new_checkpoint_and_none_that_was_there(tmp_path: Path) -> None:
    said = on_a_disk_of(4 << 20, FILLING, temporary=tmp_path)
    assert len(said) == 6
    for told, left in zip(said[0::2], said[1::2], strict=True):
        assert told.startswith("/mnt/checkpoints: the disk is full: the checkpoint of step 3 takes about 4.0 MiB, ")
        assert "the one of step 2 is whole | free some space and run again" in told
        assert left == "['checkpoint-1', 'checkpoint-2', 'identity.json'] checkpoint-2"


@pytest.mark.slow
def test_training_stopped_by_a_full_disk_goes_on_when_there_is_room(
    tiny_base: Path, tiny_dataset: Path, uninterrupted: Path, tmp_path: Path
) -> None:
    root = Path(__file__).resolve().parents[2]
    arguments = (str(tiny_base), str(tiny_dataset), str(root), str(uninterrupted))
    said = on_a_disk_of(600 << 10, TRAINING, *arguments, temporary=tmp_path)
    assert "the disk is full: the checkpoint of step " in said[0]
    assert said[1] != "[]"  # an earlier one is there
    assert said[2:] == ["[]", "True"]  # done, with the bytes of a run that nothing stopped


def test_the_newest_are_kept_and_the_one_that_is_asked_for(tmp_path: Path) -> None:
    folder = CheckpointFolder(tmp_path, keep=2)
    folder.open({})
    for step, best in ((1, None), (2, 2), (3, 2), (4, 2), (5, 5), (6, 5), (10, 5)):
        folder.write(step, lambda path: None, also_keep=best)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "checkpoint-10",
        "checkpoint-5",
        "checkpoint-6",
        "identity.json",
    ]
    folder.write(11, lambda path: None, also_keep=5)
    assert folder.at(5).is_dir() and not folder.at(6).exists()


def test_an_error_in_the_middle_leaves_no_torn_checkpoint(tmp_path: Path) -> None:
    folder = CheckpointFolder(tmp_path, keep=2)
    folder.open({})

    def fill(path: Path) -> None:
        (path / "a").write_text("a")
        raise KeyError("unforeseen")

    with pytest.raises(KeyError):
        folder.write(1, fill)
    assert [path.name for path in tmp_path.iterdir()] == ["identity.json"]

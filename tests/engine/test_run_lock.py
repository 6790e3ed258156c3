from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import threading
from pathlib import Path

import pytest

from amigo_local.domain.errors import InputError
from amigo_local.engine.lock import ALIVE_NAME, hold_run, is_alive

HOLDER = textwrap.dedent("""
    import subprocess, sys, time
    from pathlib import Path
    from amigo_local.engine.lock import hold_run
    with hold_run(Path(sys.argv[1]), "amigo-local pull a"):
        subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], stdin=subprocess.PIPE)
        print("held", flush=True)
        time.sleep(60)
""")


def test_a_run_is_alive_as_long_as_its_owner_however_that_ends(tmp_path: Path) -> None:
    assert not is_alive(tmp_path) and not is_alive(tmp_path / "none")
    owner = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path)], stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        assert owner.stdout and owner.stdout.readline() == "held\n"
        assert is_alive(tmp_path) and is_alive(tmp_path)
        with pytest.raises(InputError) as refused, hold_run(tmp_path, "second"):
            pass
        assert f"`amigo-local pull a` (pid {owner.pid}" in refused.value.message
        assert refused.value.hint == f"amigo-local runs watch {tmp_path.name}"
    finally:
        owner.kill()
        owner.wait()
    # Its child is still there, and the file with the pid too: neither says that it lives.
    assert (tmp_path / ALIVE_NAME).exists() and not is_alive(tmp_path)
    with hold_run(tmp_path, "third"):
        assert is_alive(tmp_path)
    assert not is_alive(tmp_path)
    if os.name == "posix":
        os.killpg(owner.pid, signal.SIGKILL)


@pytest.mark.skipif(sys.platform == "win32", reason="flock is POSIX")
def test_those_who_ask_disturb_neither_each_other_nor_an_owner_that_begins(tmp_path: Path) -> None:
    import fcntl

    with hold_run(tmp_path, "made"):
        pass
    with (tmp_path / ALIVE_NAME).open("rb") as asking:
        fcntl.flock(asking, fcntl.LOCK_SH)  # somebody in the middle of the question
        assert not is_alive(tmp_path), "one who asks is taken for the owner"
        threading.Timer(0.2, lambda: fcntl.flock(asking, fcntl.LOCK_UN)).start()
        with hold_run(tmp_path, "begins meanwhile"):
            assert is_alive(tmp_path)

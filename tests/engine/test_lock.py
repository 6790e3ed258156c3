from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from amigo_local.domain.errors import InputError
from amigo_local.engine.lock import hold_home

HOLDER = textwrap.dedent("""
    import sys, time
    from pathlib import Path
    from amigo_local.engine.lock import hold_home
    with hold_home(Path(sys.argv[1]), "amigo-local run stage1"):
        print("held", flush=True)
        time.sleep(60)
""")


def test_a_held_home_is_refused_naming_the_holder_and_a_killed_holder_frees_it(tmp_path: Path) -> None:
    holder = subprocess.Popen([sys.executable, "-c", HOLDER, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout and holder.stdout.readline() == "held\n"
        with pytest.raises(InputError) as refused, hold_home(tmp_path, "second"):
            pass
        assert f"`amigo-local run stage1` (pid {holder.pid}" in refused.value.message
        assert "--home" in refused.value.hint
    finally:
        holder.kill()
        holder.wait()
    with hold_home(tmp_path, "third"):
        pass


def test_a_home_is_free_again_after_the_block(tmp_path: Path) -> None:
    for _ in range(2):
        with hold_home(tmp_path, "a"):
            pass

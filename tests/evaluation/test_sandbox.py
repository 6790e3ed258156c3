from __future__ import annotations

import os
import socket
import sys
import tempfile
import time
from pathlib import Path

import psutil
import pytest

from amigo_local.domain.errors import InputError
from amigo_local.evaluation.sandbox import Sandbox, open_sandbox

CHEATS = {
    "os._exit": ("import os; os._exit(0)", "no-nonce"),
    "os._exit in a thread": (
        "import os, threading; t = threading.Thread(target=os._exit, args=(0,)); t.start(); t.join()",
        "no-nonce",
    ),
    "sys.exit": ("import sys; sys.exit(0)", "failed"),
    "raise SystemExit": ("raise SystemExit", "failed"),
    "printing passed": ("print('passed ' + 'a' * 32, flush=True); assert False", "failed"),
    "writing to the usual descriptors": (
        "import os\nfor n in range(5):\n try: os.write(n, b'passed ' + b'a' * 32)\n except OSError: pass\nos._exit(0)",
        "no-nonce",
    ),
    "patching os": ("import os; os.write = lambda *a: 1; os._exit = lambda *a: None; assert False", "failed"),
    "patching builtins": (
        "import builtins; builtins.exec = lambda *a: None; builtins.AssertionError = Warning; assert False",
        "failed",
    ),
    "an exception that can't be shown": (
        "class E(BaseException):\n def __str__(self): raise SystemExit\nraise E",
        "failed",
    ),
    "closing everything": ("import os; os.closerange(0, 1024); os._exit(0)", "no-nonce"),
    "replacing the process": ("import os; os.execv('/usr/bin/true', ['true'])", "no-nonce"),
}


@pytest.mark.parametrize("cheat", CHEATS)
def test_ending_early_proves_nothing(sandbox: Sandbox, cheat: str) -> None:
    program, reason = CHEATS[cheat]
    verdict = sandbox.run(f"{program}\nassert False, 'the check'")
    assert (verdict.passed, verdict.reason) == (False, reason)


def test_a_program_that_reaches_its_end_passes(sandbox: Sandbox) -> None:
    verdict = sandbox.run("import math, json\nprint('noise' * 100000)\nassert math.sqrt(4) == 2")
    assert verdict.passed and verdict.reason == "passed"


def test_a_failed_check_says_which(sandbox: Sandbox) -> None:
    verdict = sandbox.run("def f(x):\n    return x\n\nassert f(1) == 2, 'off by one'")
    assert verdict.reason == "failed"
    assert verdict.detail == "AssertionError: off by one (line 4: assert f(1) == 2, 'off by one')"
    assert "SyntaxError" in sandbox.run("def f(:").detail
    assert sandbox.run("x = '\ud800'").reason == "failed"  # no valid text


def test_an_endless_loop_and_a_long_sleep_are_ended(sandbox: Sandbox) -> None:
    for program in ("while True: pass", "import time; time.sleep(60)"):
        started = time.monotonic()
        verdict = sandbox.run(program, timeout_seconds=0.3)
        assert verdict.reason == "timeout", verdict
        assert time.monotonic() - started < 8


def test_memory_is_bounded(sandbox: Sandbox) -> None:
    verdict = sandbox.run("x = bytearray(600 * 2**20)", memory_bytes=512 * 2**20)
    assert verdict.reason == "failed" and "MemoryError" in verdict.detail
    assert sandbox.run("x = bytearray(300 * 2**20)", memory_bytes=512 * 2**20).passed


def test_a_fork_bomb_stays_small_and_nothing_of_it_survives(sandbox: Sandbox) -> None:
    count_forks = (
        "import os, time\nmade = 0\ntry:\n    for _ in range(300):\n"
        "        if os.fork() == 0:\n            time.sleep(300)\n"
        "        made += 1\nexcept BlockingIOError:\n    pass\nassert 0 < made < 20, made"
    )
    assert sandbox.run(count_forks).passed
    assert not sandbox.run("import os\nwhile True: os.fork()", timeout_seconds=1).passed
    mine = psutil.Process().children(recursive=True)
    assert not [child for child in mine if "bwrap" in child.name() and child.status() != psutil.STATUS_ZOMBIE]


def test_a_process_left_behind_dies_with_the_sandbox(sandbox: Sandbox) -> None:
    marker = f"amigo-left-behind-{os.getpid()}"
    program = f"import subprocess\nsubprocess.Popen(['/bin/sh', '-c', 'sleep 300; : {marker}'], start_new_session=True)"
    assert sandbox.run(program).passed
    time.sleep(0.2)
    assert not [p for p in psutil.process_iter(["cmdline"]) if marker in " ".join(p.info["cmdline"] or [])]


def test_no_file_of_the_user_can_be_read(sandbox: Sandbox) -> None:
    with tempfile.NamedTemporaryFile(dir=Path.home(), prefix=".amigo-test-") as secret:
        for path in (secret.name, __file__, "/etc/passwd", "/proc/self/environ", "/root/.bashrc"):
            verdict = sandbox.run(f"open({path!r})")
            assert verdict.reason == "failed", path
            assert verdict.detail.startswith(("FileNotFoundError", "PermissionError", "NotADirectoryError")), verdict
    home = str(Path.home())
    python = os.path.realpath(sys.base_prefix)
    inside = f"import os\nfound = os.listdir({home!r}) if os.path.isdir({home!r}) else []\n"
    allowed = [Path(python).relative_to(home).parts[0]] if Path(python).is_relative_to(home) else []
    assert sandbox.run(f"{inside}assert set(found) <= set({allowed!r}), found").passed


def test_nothing_can_be_written_outside_tmp_and_tmp_is_empty_each_time(sandbox: Sandbox) -> None:
    for path in ("/x", "/usr/x", "/dev/x", "/dev/shm/x", "/etc/x", f"{os.path.realpath(sys.base_prefix)}/x"):
        verdict = sandbox.run(f"open({path!r}, 'w')")
        assert verdict.reason == "failed", path
    keep = "import os\nassert os.listdir('/tmp') == []\nopen('/tmp/kept', 'w').write('x')\nassert os.getcwd() == '/tmp'"
    assert sandbox.run(keep).passed and sandbox.run(keep).passed
    assert not Path("/tmp/kept").exists()
    too_much = "with open('/tmp/big', 'wb') as f:\n    for _ in range(100): f.write(b'x' * 2**20)"
    assert not sandbox.run(too_much).passed


def test_there_is_no_network(sandbox: Sandbox) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        program = f"import socket\nsocket.create_connection(('127.0.0.1', {port}), 2)"
        assert "ConnectionRefusedError" in sandbox.run(program).detail
        socket.create_connection(("127.0.0.1", port), 2).close()  # from outside it does answer
    verdict = sandbox.run("import socket\nsocket.create_connection(('192.0.2.1', 80), 2)")  # RFC 5737: a test address
    assert "Network is unreachable" in verdict.detail


def test_code_never_runs_as_root_and_sees_no_environment(sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AMIGO_TEST_TOKEN", "secret")
    program = (
        "import os\nassert 0 not in (os.getuid(), os.geteuid(), os.getgid()), os.getuid()\n"
        "try: os.setuid(0)\nexcept OSError: pass\nelse: raise AssertionError('root again')\n"
        "assert os.getgroups() in ([], [65534]), os.getgroups()\n"
        "assert set(os.environ) <= {'PATH', 'HOME', 'TMPDIR', 'LANG', 'LC_CTYPE', 'PWD', 'PYTHONHASHSEED'}, os.environ"
    )
    verdict = sandbox.run(program)
    assert verdict.passed, verdict


def test_a_crash_is_told_from_a_failure(sandbox: Sandbox) -> None:
    verdict = sandbox.run("import ctypes; ctypes.string_at(0)")
    assert (verdict.reason, verdict.detail) == ("crashed", "signal 11")
    assert sandbox.run("import os; os._exit(7)").detail == "exit status 7"


def test_a_program_costs_less_than_a_fifth_of_a_second(sandbox: Sandbox) -> None:
    times = []
    for _ in range(10):
        started = time.perf_counter()
        assert sandbox.run("pass").passed
        times.append(time.perf_counter() - started)
    assert min(times) < 0.2


def broken_bwrap(tmp_path: Path) -> str:
    """What Ubuntu 24.04's bubblewrap does under AppArmor's restriction."""
    program = tmp_path / "bwrap"
    program.write_text("#!/bin/sh\necho 'bwrap: setting up uid map: Permission denied' >&2\nexit 1\n")
    program.chmod(0o755)
    return str(program)


def test_where_bubblewrap_does_not_work_nothing_is_run(tmp_path: Path) -> None:
    sandbox = open_sandbox(bubblewrap=broken_bwrap(tmp_path))
    assert sandbox.kind == "none" and not sandbox.can_run
    assert "setting up uid map: Permission denied" in sandbox.statement
    assert "no generated code was run" in sandbox.statement
    assert "sysctl" in sandbox.fix or "container" in sandbox.fix
    with pytest.raises(InputError) as error:
        sandbox.run(f"open({str(tmp_path / 'ran')!r}, 'w')")
    assert error.value.hint == sandbox.fix
    assert not (tmp_path / "ran").exists()


def test_where_bubblewrap_is_missing_the_fix_installs_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    sandbox = open_sandbox()
    assert not sandbox.can_run
    if sys.platform == "linux":
        assert "bubblewrap isn't installed" in sandbox.statement
        assert "apt-get install bubblewrap" in sandbox.fix


def test_unsafe_must_be_asked_for_and_still_wants_the_nonce(tmp_path: Path) -> None:
    sandbox = open_sandbox(unsafe=True, bubblewrap=broken_bwrap(tmp_path))
    assert sandbox.kind == "none" and sandbox.can_run
    assert "without protection" in sandbox.statement
    assert sandbox.run("assert 1 + 1 == 2").passed
    assert sandbox.run("import os; os._exit(0)").reason == "no-nonce"
    assert sandbox.run("assert False").reason == "failed"
    assert sandbox.run("while True: pass", timeout_seconds=0.3).reason == "timeout"


def test_unsafe_is_not_used_where_bubblewrap_works(sandbox: Sandbox) -> None:
    assert open_sandbox(unsafe=True).kind == sandbox.kind == "bubblewrap"

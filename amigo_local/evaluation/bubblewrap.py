"""The bubblewrap command lines that may work on this machine, and what to do where none does."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec

from amigo_local.domain.units import MIB

SCRATCH_BYTES = 64 * MIB
NOBODY = 65534

_SYSTEM_FOLDERS = ("bin", "lib", "lib32", "lib64", "sbin")
_ENVIRONMENT = {
    "PATH": "/usr/bin:/bin",
    "HOME": "/tmp",
    "TMPDIR": "/tmp",
    "LANG": "C.UTF-8",
    "PYTHONHASHSEED": "0",  # the same answer gets the same verdict
}


class Launch(msgspec.Struct, frozen=True):
    """A command that wants the harness's text as its last argument."""

    command: tuple[str, ...]
    version: str
    become_nobody: bool = False
    """The harness must give up root itself."""
    process_options: dict[str, Any] = {}


def bubblewrap_launches(program: str) -> list[Launch]:
    """Command lines to try, best first.

    As an ordinary user: a user namespace of its own. As root: no user namespace, for there the code
    would still be the real root, whom RLIMIT_NPROC doesn't bind; it becomes nobody inside, or
    bubblewrap is started as nobody.
    """
    version = _version(program)
    isolated = ["--unshare-ipc", "--unshare-pid", "--unshare-net", "--unshare-uts", "--unshare-cgroup-try"]
    isolated += ["--die-with-parent", "--new-session", "--clearenv", "--cap-drop", "ALL"]
    own_user = ["--unshare-user", "--uid", str(NOBODY), "--gid", str(NOBODY)]
    common = [*_view(), *_python()]
    ordinary = Launch((program, *isolated, *own_user, *common), version)
    if os.geteuid() != 0:
        return [ordinary]
    drop = ["--cap-add", "CAP_SETUID", "--cap-add", "CAP_SETGID"]
    as_nobody = {"user": NOBODY, "group": NOBODY, "extra_groups": [], "cwd": "/"}
    return [
        Launch((program, *isolated, *drop, *common), version, become_nobody=True),
        msgspec.structs.replace(ordinary, process_options=as_nobody),
    ]


def _view() -> list[str]:
    """The file system inside: /usr and Python read-only, an empty /tmp, a minimal /dev, and nothing else."""
    arguments = ["--ro-bind", "/usr", "/usr"]
    for name in _SYSTEM_FOLDERS:
        folder = Path("/", name)
        if folder.is_symlink():
            arguments += ["--symlink", str(folder.readlink()), str(folder)]
        elif folder.is_dir():
            arguments += ["--ro-bind", str(folder), str(folder)]
    arguments += ["--ro-bind-try", "/etc/ld.so.cache", "/etc/ld.so.cache", "--ro-bind-try", "/nix/store", "/nix/store"]
    made: set[Path] = set()
    for prefix in dict.fromkeys(os.path.realpath(path) for path in (sys.base_prefix, sys.base_exec_prefix)):
        if Path(prefix).is_relative_to("/usr"):
            continue
        for parent in reversed(Path(prefix).parents[:-1]):
            if parent not in made:  # bubblewrap would make it for its own user alone
                arguments += ["--perms", "0755", "--dir", str(parent)]
                made.add(parent)
        arguments += ["--ro-bind", prefix, prefix]
    arguments += ["--dev", "/dev", "--perms", "1777", "--size", str(SCRATCH_BYTES), "--tmpfs", "/tmp"]
    # bubblewrap's own root and /dev are writable tmpfs until they are made read-only.
    return [*arguments, "--remount-ro", "/dev", "--remount-ro", "/", "--chdir", "/tmp"]


def _python() -> list[str]:
    """The base interpreter: a virtual environment's packages stay outside."""
    arguments = [item for name, value in _ENVIRONMENT.items() for item in ("--setenv", name, value)]
    executable = os.path.realpath(getattr(sys, "_base_executable", None) or sys.executable)
    return [*arguments, executable, "-s", "-S", "-P", "-B", "-X", "utf8", "-c"]


def _version(program: str) -> str:
    try:
        answer = subprocess.run([program, "--version"], capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return "bubblewrap"
    return answer.stdout.strip() or "bubblewrap"


def why_no_sandbox(program: str | None, complaint: str) -> tuple[str, str]:
    """What is wrong, and the command or change that would mend it."""
    if sys.platform != "linux":
        system = {"darwin": "macOS", "win32": "Windows"}.get(sys.platform, sys.platform)
        return f"there is no sandbox for generated code on {system}", "evaluate on Linux or in WSL2"
    if not program:
        return "bubblewrap isn't installed", "sudo apt-get install bubblewrap (dnf, pacman and zypper call it the same)"
    statement = f"bubblewrap doesn't work here ({complaint or 'no answer'})"
    if _kernel_setting("apparmor_restrict_unprivileged_userns") == "1":
        return statement, "sudo sysctl -w kernel.apparmor_restrict_unprivileged_userns=0"
    if _kernel_setting("unprivileged_userns_clone") == "0":
        return statement, "sudo sysctl -w kernel.unprivileged_userns_clone=1"
    if Path("/.dockerenv").exists() or Path("/run/.containerenv").exists():
        return statement, "start the container with --security-opt seccomp=unconfined --cap-add SYS_ADMIN"
    return statement, "allow user namespaces: sudo sysctl -w user.max_user_namespaces=15000"


def _kernel_setting(name: str) -> str | None:
    try:
        return Path("/proc/sys/kernel", name).read_text(encoding="ascii").strip()
    except OSError:
        return None

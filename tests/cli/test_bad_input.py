"""Bad input, as a person meets it: a clear message, a hint, exit 2, no traceback, nothing left behind."""

from __future__ import annotations

import signal
import struct
import subprocess
import time
from pathlib import Path

import pytest

from tests.support.command_here import amigo_here
from tests.support.command_line import SCRIPT, amigo, amigo_records, environment
from tests.support.ollama_server import RealOllama
from tests.support.tiny_gguf import write_tiny_llama


@pytest.fixture(scope="module")
def gguf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_llama(tmp_path_factory.mktemp("tiny") / "tiny.gguf")


def refused(home: Path, *arguments: str, ollama: str | None = None) -> str:
    """stderr of a command that must be refused with exit 2 and a hint, leaving no artifact."""
    done = amigo_here(home, *arguments, ollama=ollama)
    assert done.returncode == 2, done.stderr
    assert "hint: " in done.stderr
    artifacts = home / "artifacts"
    assert not artifacts.exists() or not list(artifacts.iterdir())
    return done.stderr


def test_server_down(tmp_path: Path) -> None:
    said = refused(tmp_path, "pull", "gemma3:12b")
    assert "no Ollama server answers at http://127.0.0.1:9" in said and "ollama serve" in said


def test_unknown_tag_names_the_nearest(tmp_path: Path, ollama_server: RealOllama, gguf: Path) -> None:
    assert (
        amigo_here(tmp_path, "register", str(gguf), "--tag", "bad-input-known", ollama=ollama_server.url).returncode
        == 0
    )
    done = amigo_here(tmp_path, "unpack", "bad-input-knwon", "--out", str(tmp_path / "x"), ollama=ollama_server.url)
    assert done.returncode == 2
    assert "bad-input-known" in done.stderr and "amigo-local pull bad-input-knwon" in done.stderr


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda data: b"PK\x03\x04" + data[4:], "not a GGUF file"),
        (lambda data: data[: len(data) // 2], "ends at byte"),
        (lambda data: data[:100], "truncated"),
        (lambda data: data[:16] + struct.pack("<Q", 1 << 60) + data[24:], "tensors needs"),
    ],
    ids=["no GGUF", "a tensor past the end", "truncated header", "hostile count"],
)
def test_a_damaged_gguf(tmp_path: Path, gguf: Path, damage: object, says: str) -> None:
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(damage(gguf.read_bytes()))  # type: ignore[operator]
    said = refused(tmp_path / "home", "unpack", str(broken))
    assert str(broken) in said or "broken.gguf" in said
    assert says in said
    assert "broken.gguf" in refused(tmp_path / "home", "register", str(broken), "--tag", "x")


def test_an_unsupported_architecture_lists_the_supported(tmp_path: Path, gguf: Path) -> None:
    other = tmp_path / "other.gguf"
    # Same length, so that nothing else in the file moves.
    other.write_bytes(gguf.read_bytes().replace(b"llama", b"mamba"))
    said = refused(tmp_path / "home", "unpack", str(other))
    assert "mamba" in said and "gemma3" in said and "llama" in said


def test_a_missing_file(tmp_path: Path) -> None:
    assert "nowhere.gguf" in refused(tmp_path, "register", str(tmp_path / "nowhere.gguf"), "--tag", "x")


def test_a_disk_that_is_too_small_is_refused_before_anything_is_written(tmp_path: Path, gguf: Path) -> None:
    said = refused(tmp_path, "unpack", str(gguf), "--set", "machine.disk=1MiB")
    assert "too small" in said and "1048576 bytes" in said and "needs" in said


def test_memory_that_is_too_small_is_refused_before_anything_is_written(tmp_path: Path, gguf: Path) -> None:
    said = refused(tmp_path, "unpack", str(gguf), "--set", "machine.ram=64MiB")
    assert "RAM: unpack needs" in said and "64.0 MiB" in said


def test_a_card_that_is_too_small_is_refused_by_plan_naming_vram(tmp_path: Path, gguf: Path) -> None:
    recipe = tmp_path / "r.yaml"
    recipe.write_text("name: r\ndata: {sources: [{stdlib: all}], max_length_tokens: 1024}\n")
    done = amigo(tmp_path / "home", "plan", str(recipe), "--model", str(gguf), "--vram", "64MiB", "--ram", "16GiB")
    assert done.returncode == 2 and "VRAM" in done.stderr, done.stderr


def test_a_recipe_error_names_file_and_line(tmp_path: Path) -> None:
    recipe = tmp_path / "r.yaml"
    recipe.write_text("name: r\n\ntrain:\n  learning_rat: 1\n")
    said = refused(tmp_path / "home", "run", str(recipe))
    assert "r.yaml:4: train.learning_rat: unknown key; did you mean learning_rate?" in said
    assert "no recipe at nowhere.yaml" in refused(tmp_path / "home", "run", "nowhere.yaml")


def test_an_output_that_exists_is_never_overwritten(tmp_path: Path, gguf: Path) -> None:
    out = tmp_path / "mine"
    out.mkdir()
    (out / "precious.txt").write_text("mine")
    assert "already exists" in refused(tmp_path / "home", "unpack", str(gguf), "--out", str(out))
    assert [path.name for path in out.iterdir()] == ["precious.txt"]


def test_a_home_that_cant_be_written(gguf: Path) -> None:
    home = Path("/sys/amigo-local-home")  # not writable for anybody, root included
    done = amigo(home, "unpack", str(gguf))
    assert done.returncode == 2
    assert "can't be written" in done.stderr and "--home" in done.stderr
    assert amigo(home, "models", "show", str(gguf)).returncode == 0  # reading needs no home


def test_wrong_usage_is_exit_2(tmp_path: Path) -> None:
    for arguments in (["nonsense"], ["pull"], ["export", "--quant", "q9"], ["runs", "shwo"], ["unpack", "two words"]):
        assert amigo(tmp_path, *arguments).returncode == 2, arguments
    done = amigo(tmp_path, "chat", "x", "--prompt", "y", "--set", "temprature=1")
    assert done.returncode == 2 and "did you mean temperature?" in done.stderr


def test_errors_are_records_with_json(tmp_path: Path) -> None:
    code, records = amigo_records(tmp_path, "run", "nowhere.yaml")
    failed = [record.event for record in records if type(record.event).__name__ == "StageFailed"]
    assert code == 2 and len(failed) == 1 and "nowhere.yaml" in failed[0].message  # type: ignore[union-attr]


def test_two_runs_on_one_home_and_ctrl_c(tmp_path: Path, gguf: Path) -> None:
    """The second is refused and names the first; Ctrl-C ends the first with 130, leaving nothing half-made."""
    first = subprocess.Popen(
        [str(SCRIPT), "unpack", str(gguf)],
        env=environment(tmp_path),
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
    )
    assert first.stderr
    line = first.stderr.readline()
    assert line.startswith("unpack: ")
    said = amigo(tmp_path, "unpack", str(gguf))
    assert said.returncode == 2
    assert f"pid {first.pid}" in said.stderr and "amigo-local unpack" in said.stderr
    first.send_signal(signal.SIGINT)
    rest = first.stderr.read()
    assert first.wait(timeout=60) == 130, rest
    assert "cancelled" in rest and "Traceback" not in rest
    assert list((tmp_path / "artifacts").iterdir()) == []
    again = amigo(tmp_path, "unpack", str(gguf))
    assert again.returncode == 0, again.stderr


def test_sigint_before_any_work_is_130_without_a_traceback(tmp_path: Path) -> None:
    process = subprocess.Popen(
        [str(SCRIPT), "doctor"], env=environment(tmp_path), stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True
    )
    time.sleep(0.25)
    process.send_signal(signal.SIGINT)
    said = process.communicate(timeout=60)[1]
    assert process.returncode in (0, 130) and "Traceback" not in said

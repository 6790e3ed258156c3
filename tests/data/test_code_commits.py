from __future__ import annotations

import ast
import os
import subprocess
from pathlib import Path

import pytest

from amigo_local.data.code.changes import change_of
from amigo_local.data.code.commit_pairs import wish_of
from amigo_local.data.code.languages import language_of
from amigo_local.data.code.standalone import Refused
from amigo_local.data.pair import Pair
from amigo_local.data.reading import Reading
from amigo_local.data.sources import repo
from amigo_local.domain.data_source import RepoSource
from amigo_local.domain.errors import InputError
from amigo_local.domain.events import AnyEvent, Note

OLD = "import os\n\nLIMIT = 3\n\n\ndef first(x):\n    return x\n\n\ndef second(x):\n    # why\n    return x * 2\n"
NEW = OLD.replace("return x * 2", "return x * LIMIT")


class Repository:
    """A real one, with fixed authors and dates."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir()
        self.git("init", "-q", "-b", "main")
        self.git("config", "core.autocrlf", "false")

    def git(self, *arguments: str, author: str = "Ada Lovelace") -> str:
        who = {"NAME": author, "EMAIL": "ada@private.org", "DATE": "2024-05-05T10:00:00+00:00"}
        environment = {f"GIT_{role}_{name}": value for role in ("AUTHOR", "COMMITTER") for name, value in who.items()}
        run = subprocess.run(
            ["git", "-C", str(self.folder), *arguments],
            check=True,
            capture_output=True,
            text=True,
            env={**os.environ, **environment, "GIT_CONFIG_GLOBAL": os.devnull},
        )
        return run.stdout

    def commit(self, message: str, author: str = "Ada Lovelace", **files: str | bytes | None) -> None:
        for name, content in files.items():
            path = self.folder / name.replace("__", "/").replace("_py", ".py").replace("_js", ".js").replace(
                "_md", ".md"
            )
            path.parent.mkdir(parents=True, exist_ok=True)
            if content is None:
                path.unlink()
            else:
                path.write_bytes(content if isinstance(content, bytes) else content.encode())
        self.git("add", "-A")
        self.git("commit", "-q", "--allow-empty", "-m", message, author=author)

    def pairs(self, **more: object) -> tuple[list[Pair], Reading]:
        self.events: list[AnyEvent] = []
        reading = Reading(emit=self.events.append)
        source = RepoSource(repo=str(self.folder), take=("commits",), **more)  # type: ignore[arg-type]
        return list(repo.read(source, reading)), reading


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    made = Repository(tmp_path / "mine")
    made.commit("Begin with everything that is needed", a_py=OLD, b_js="let a = 1;\n", README_md="Hello.\n")
    return made


def test_a_commit_becomes_its_message_and_the_old_file_to_what_is_new(repository: Repository) -> None:
    repository.commit(
        "Let the limit decide in second (#12)\n\nTwo was a guess.\n\nMore.\n\nSigned-off-by: Ada <ada@private.org>",
        a_py=NEW,
    )
    pairs, reading = repository.pairs(license="MIT")
    assert len(pairs) == 1
    pair = pairs[0]
    assert "Let the limit decide in second.\n\nTwo was a guess." in pair.prompt
    assert f"`a.py`:\n```python\n{OLD.rstrip()}\n```" in pair.prompt
    assert pair.completion == "```python\ndef second(x):\n    # why\n    return x * LIMIT\n```"
    assert (pair.language, pair.license, pair.source, pair.module) == ("python", "MIT", "mine", "mine:a")
    head = repository.git("rev-parse", "HEAD").strip()
    assert pair.name == f"{head[:10]} a.py"
    assert reading.rows == 2 and reading.skipped == {"commit: changes several files": 1}


def test_nothing_of_an_author_gets_in(repository: Repository) -> None:
    repository.commit("Ask ada@private.org before the limit changes", a_py=NEW)
    text = repr(repository.pairs()[0])
    assert "private.org" not in text and "Lovelace" not in text and "Ask before" in text


def test_tests_and_prose_may_change_beside_the_code(repository: Repository) -> None:
    repository.commit("Let the limit decide here", a_py=NEW, tests__test_a_py="def test(): pass\n", README_md="More.\n")
    pairs, _ = repository.pairs()
    assert [pair.name.split()[1] for pair in pairs] == ["a.py"]


def test_any_language_is_read_by_its_ending(repository: Repository) -> None:
    repository.commit("Make the number a constant", b_js="const a = 1;\n")
    pairs, _ = repository.pairs()
    assert pairs[0].language == "javascript"
    assert pairs[0].completion == "```javascript\nconst a = 1;\n```"
    assert language_of("deep/x.RS") == "rust" and language_of("Makefile") == "" and language_of("x.lock") == ""


@pytest.mark.parametrize(
    ("message", "files", "author", "reason"),
    [
        ("wip", {"a_py": NEW}, "Ada", "commit: message says nothing"),
        ("fix", {"a_py": NEW}, "Ada", "commit: message says nothing"),
        ("Bump the version to 3", {"a_py": NEW}, "Ada", "commit: message says nothing"),
        ("Fix lint in some files", {"a_py": NEW}, "Ada", "commit: message says nothing"),
        ("Let the limit decide", {"a_py": NEW}, "dependabot[bot]", "commit: by a program"),
        ("Let the limit decide", {"a_py": NEW, "b_js": "let a = 2;\n"}, "Ada", "commit: changes several files"),
        ("Say what this is for", {"README_md": "More.\n"}, "Ada", "commit: changes no code"),
        ("Add another file here", {"c_py": "x = 1\n"}, "Ada", "commit: adds or removes a file"),
        ("Remove what isn't used", {"a_py": None}, "Ada", "commit: adds or removes a file"),
        ("Break it for a while", {"a_py": "def f(:\n"}, "Ada", "commit: file isn't readable Python"),
        ("Explain it in comments", {"a_py": OLD.replace("# why", "# because")}, "Ada",
         "commit: changes comments or layout only"),
        ("Remove the second one", {"a_py": OLD[: OLD.index("def second")]}, "Ada", "commit: only removes or moves"),
        ("Write the bytes of it", {"a_py": b"x = 1\0\n"}, "Ada", "commit: binary file"),
        ("Write it in another code", {"a_py": b"x = '\xe9'\n"}, "Ada", "commit: file isn't UTF-8 text"),
        ("Write very much of it", {"a_py": "x = 1\n" * 200_000}, "Ada",
         "commit: file larger than 1 MB, or not in this clone"),
        ("Fill in the blanks", {"b_js": "let   a = 1;\n"}, "Ada", "commit: changes layout only"),
    ],
)  # fmt: skip
def test_what_makes_no_pair_is_counted_and_named(
    repository: Repository, message: str, files: dict[str, str | bytes | None], author: str, reason: str
) -> None:
    repository.commit(message, author, **files)
    head = repository.git("rev-parse", "HEAD").strip()
    repository.commit("Put all of it back as it was", a_py=OLD, b_js="let a = 1;\n", c_py="x = 1\n")
    repository.commit("Let the limit decide again", a_py=NEW)
    pairs, reading = repository.pairs()
    assert head[:10] in reading.places[reason]
    assert len(pairs) == 1


def test_links_and_merges_are_left_out(repository: Repository) -> None:
    repository.git("checkout", "-qb", "side")
    repository.commit("Let the limit decide at the side", a_py=NEW)
    repository.git("checkout", "-q", "main")
    repository.commit("Make the number a constant", b_js="const a = 1;\n")
    repository.git("merge", "-q", "--no-ff", "-m", "Merge what was made at the side", "side")
    (repository.folder / "a.py").unlink()
    (repository.folder / "a.py").symlink_to("b.js")
    repository.git("commit", "-qam", "Make a link of it")
    pairs, reading = repository.pairs()
    assert sorted(pair.name.split()[1] for pair in pairs) == ["a.py", "b.js"]
    assert reading.rows == 4  # the merge isn't looked at


def test_a_revision_is_read_instead_of_what_is_checked_out(repository: Repository) -> None:
    repository.git("checkout", "-qb", "side")
    repository.commit("Let the limit decide at the side", a_py=NEW)
    repository.git("checkout", "-q", "main")
    assert len(repository.pairs(revision="side")[0]) == 1
    with pytest.raises(InputError, match="nothing in it makes a sample"):
        repository.pairs()
    with pytest.raises(InputError, match="no branch, tag or commit 'nowhere'"):
        repository.pairs(revision="nowhere")
    with pytest.raises(InputError, match="no branch, tag or commit"):
        repository.pairs(revision="--output=evil")


def test_a_folder_below_the_root_is_a_repository_of_its_own(repository: Repository) -> None:
    repository.commit("Put a file into a folder", deep__c_py=OLD)
    repository.commit("Let the limit decide in the deep", deep__c_py=NEW)
    repository.commit("Let the limit decide at the top", a_py=NEW)
    reading = Reading(emit=lambda event: None)
    source = RepoSource(repo=str(repository.folder / "deep"), take=("commits",))
    assert [pair.name.split()[1] for pair in repo.read(source, reading)] == ["c.py"]


def test_what_is_no_repository_has_no_commits(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text(OLD)
    source = RepoSource(repo=str(tmp_path), take=("commits",))
    with pytest.raises(InputError, match="is no git repository") as error:
        list(repo.read(source, Reading(emit=lambda event: None)))
    assert "docstrings" in error.value.hint
    assert not repo.look(source, Reading(emit=lambda event: None)).reachable


def test_an_empty_repository_says_so(tmp_path: Path) -> None:
    made = Repository(tmp_path / "empty")
    with pytest.raises(InputError, match="no commits yet"):
        made.pairs()


def test_without_git_commits_are_refused_and_folders_still_read(
    repository: Repository, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(InputError, match="the program git isn't installed"):
        repository.pairs()
    text = "def f(x):\n    'Return the why of a thing.'\n    a = x\n    return a\n"
    (repository.folder / "c.py").write_text(text)
    source = RepoSource(repo=str(repository.folder), take=("docstrings",))
    assert [pair.name for pair in repo.read(source, Reading(emit=lambda event: None))] == ["c.f"]


def test_a_shallow_clone_is_said(repository: Repository, tmp_path: Path) -> None:
    repository.commit("Let the limit decide here", a_py=NEW)
    repository.commit("Let five decide here", a_py=NEW.replace("* LIMIT", "* 5"))
    for depth, count in (("1", 0), ("2", 1)):
        clone = object.__new__(Repository)
        clone.folder = tmp_path / f"clone{depth}"
        repository.git("clone", "-q", "--depth", depth, f"file://{repository.folder}", str(clone.folder))
        if count:
            assert len(clone.pairs()[0]) == count
            notes = [event for event in clone.events if isinstance(event, Note)]
            assert "shallow" in notes[0].text and notes[0].level == "warning"
        else:
            with pytest.raises(InputError, match="shallow") as error:
                clone.pairs()
            assert "--unshallow" in error.value.hint


def test_programs_that_a_repository_names_are_not_started(repository: Repository, tmp_path: Path) -> None:
    mark = tmp_path / "was_run"
    repository.commit("Let the limit decide here", a_py=NEW)
    for key in ("core.fsmonitor", "diff.external", "gpg.program", "core.sshCommand", "core.pager"):
        repository.git("config", key, f"touch {mark}")
    repository.git("config", "log.showSignature", "true")
    assert len(repository.pairs()[0]) == 1
    assert not mark.exists()


def test_of_a_long_file_only_what_changes_is_shown() -> None:
    filler = "".join(f"def f{number}(x):\n    return x + {number}\n\n\n" for number in range(60))
    methods = "".join(f"    def m{number}(self):\n        return {number}\n\n" for number in range(40))
    old = f"import os\n\n\n{filler}class Long:\n{methods}"
    new = old.replace("return x + 7\n", "return x - 7\n").replace("        return 9\n", "        return 99\n")
    change = change_of("python", old, new)
    assert change.shown == (
        "import os\n\n\ndef f7(x):\n    return x + 7\n\n\nclass Long:\n    def m9(self):\n        return 9"
    )
    assert change.answer == "def f7(x):\n    return x - 7\n\n\nclass Long:\n    def m9(self):\n        return 99"
    ast.parse(change.shown), ast.parse(change.answer)
    with pytest.raises(Refused, match="only adds to a long file"):
        change_of("python", old, f"{old}\n\ndef added():\n    pass\n")


@pytest.mark.parametrize(
    ("message", "wish"),
    [
        ("feat(parser): accept empty lines", "Accept empty lines."),
        ("gh-123: Accept empty lines (#45)", "Accept empty lines."),
        ("Accept empty lines\n\nThey are\nharmless.\n\nCo-authored-by: B <b@c.org>",
         "Accept empty lines.\n\nThey are harmless."),
        ("Accept empty lines\n\nFixes #12", "Accept empty lines."),
    ],
)  # fmt: skip
def test_a_message_is_made_a_wish(message: str, wish: str) -> None:
    assert wish_of(message) == wish

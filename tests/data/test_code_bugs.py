from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from amigo_local.data.code.judging import judged_in_order
from amigo_local.data.code.mutations import mutated, mutations
from amigo_local.data.pair import Pair
from amigo_local.data.reading import Reading
from amigo_local.data.sources import bug_injection, doctest
from amigo_local.domain.data_source import BugInjectionSource, DoctestSource
from amigo_local.domain.errors import InputError
from amigo_local.domain.verdict import Judge, Verdict
from amigo_local.evaluation.sandbox import open_sandbox

COUNTING = '''
"""Counting."""
STEP = 1

def up_to(limit):
    """Return the numbers from zero up to a limit.

    >>> up_to(3)
    [0, 1, 2]
    >>> up_to(-1)
    Traceback (most recent call last):
    ...
    ValueError: limit is negative
    """
    # counted one by one
    if limit < 0:
        raise ValueError("limit is negative")
    found = []
    number = 0
    while number < limit:
        found.append(number)
        number += STEP
    return found

def wrong(x):
    """Return one more than the number.

    >>> wrong(1)
    3
    """
    y = x + 1
    return y

def from_elsewhere(x):
    """Return the text with its blanks escaped.

    >>> import shlex
    >>> shlex.quote('from_elsewhere')
    'from_elsewhere'
    """
    y = x.strip()
    return y
'''
SUMS = '''
def total(values, start=0):
    """Add up all values."""
    result = start
    for value in values:
        result = result + value
    return result

def least(values):
    result = values[0]
    for value in values[1:]:
        if value < result:
            result = value
    return result
'''
TESTS = """
import math
import unittest

import pytest

from sums import least, total

NUMBERS = [1, 2, 3]

def test_total():
    assert total(NUMBERS) == 6
    assert total([], start=2) == 2
    assert math.isclose(total([0.5]), 0.5)

def test_with_fixture(tmp_path):
    assert total([tmp_path])

def test_both():
    assert least([1]) == total([1])

class LeastTest(unittest.TestCase):
    def setUp(self):
        self.values = [3, 1, 2]

    def test_least(self):
        self.assertEqual(least(self.values), 1)
"""


@pytest.fixture(scope="module")
def judge() -> Judge:
    sandbox = open_sandbox()
    if not sandbox.can_run:
        pytest.skip(f"{sandbox.statement}; {sandbox.fix}")
    return sandbox.run


def put(root: Path, **files: str) -> Path:
    for name, text in files.items():
        (root / f"{name}.py").write_text(text, encoding="utf-8")
    return root


def code_of(text: str) -> str:
    return re.findall(r"```python\n(.*?)\n```", text, re.DOTALL)[-1]


def test_only_functions_whose_examples_pass_are_taken(tmp_path: Path, judge: Judge) -> None:
    reading = Reading(emit=lambda event: None, judge=judge)
    pairs = list(doctest.read(DoctestSource(doctest=str(put(tmp_path, counting=COUNTING))), reading))
    assert [pair.name for pair in pairs] == ["counting.up_to"]
    assert "numbers from zero up to a limit" in pairs[0].prompt
    assert ">>> up_to(3)\n[0, 1, 2]" in pairs[0].prompt
    assert code_of(pairs[0].completion).startswith("STEP = 1\n\n\ndef up_to(limit):\n    # counted one by one\n")
    assert reading.places == {
        "its own examples don't pass alone": ["counting.wrong"],
        "its examples pass without it": ["counting.from_elsewhere"],
    }
    check = pairs[0].check
    assert check is not None and (check.skill, check.entry_point) == ("writing", "up_to")
    assert judge(check.program_for("def up_to(limit):\n    return up_to_(limit)\n")).reason == "failed"
    other = "def up_to(n):\n    if n < 0:\n        raise ValueError('limit is negative')\n    return list(range(n))"
    assert judge(check.program_for(other)).passed
    assert not judge(
        check.program_for(other.replace("is negative", "was negative"))
    ).passed  # doctest compares messages


def test_flags_in_examples_are_obeyed(tmp_path: Path, judge: Judge) -> None:
    text = '''
def spread(x):
    """Return the number with much around it.

    >>> spread(1)  # doctest: +ELLIPSIS
    '...1...'
    >>> print("a    b", spread(2).strip())  # doctest: +NORMALIZE_WHITESPACE
    a b 2
    """
    y = str(x)
    return f"   {y}   "
'''
    reading = Reading(emit=lambda event: None, judge=judge)
    assert len(list(doctest.read(DoctestSource(doctest=str(put(tmp_path, one=text))), reading))) == 1


def test_examples_that_reach_for_their_own_module_are_refused(tmp_path: Path, judge: Judge) -> None:
    """They would judge the installed function instead of the answer."""
    text = "def {name}(x):\n    '''Return the x with all.\n\n    {example}\n    >>> {name}(1)\n    1\n    '''\n"
    first = text.format(name="f", example=">>> from one import f") + "    y = x\n    return y\n"
    second = text.format(name="g", example=">>> import one") + "    z = x\n    return z\n"
    own = first + second
    reading = Reading(emit=lambda event: None, judge=judge)
    pairs = list(doctest.read(DoctestSource(doctest=str(put(tmp_path, one=own))), reading))
    assert [pair.name for pair in pairs] == ["one.f"] and "import" not in pairs[0].prompt
    assert reading.places["its examples use the module itself"] == ["one.g"]


def test_without_a_sandbox_it_is_said_how_to_get_one() -> None:
    for read, source in (
        (doctest.read, DoctestSource(doctest="stdlib")),
        (bug_injection.read, BugInjectionSource(bug_injection="stdlib")),
    ):
        with pytest.raises(InputError, match="no sandbox") as error:
            list(read(source, Reading(emit=lambda event: None)))  # type: ignore[arg-type]
        assert "bubblewrap" in error.value.hint and "--unsafe" in error.value.hint
    facts = doctest.look(DoctestSource(doctest="stdlib"), Reading(emit=lambda event: None))
    assert facts.reachable and "no sandbox" in facts.problem


@pytest.fixture(scope="module")
def bugs(tmp_path_factory: pytest.TempPathFactory, judge: Judge) -> tuple[list[Pair], Reading]:
    folder = put(tmp_path_factory.mktemp("mine"), counting=COUNTING, sums=SUMS, test_sums=TESTS)
    reading = Reading(emit=lambda event: None, judge=judge)
    return list(bug_injection.read(BugInjectionSource(bug_injection=str(folder), per_function=5), reading)), reading


def test_broken_code_fails_as_the_request_says_and_the_answer_passes(
    bugs: tuple[list[Pair], Reading], judge: Judge
) -> None:
    pairs, _ = bugs
    assert len(pairs) >= 10 and {pair.name.split()[0] for pair in pairs} == {
        "counting.up_to",
        "sums.total",
        "sums.least",
    }
    for pair in pairs[::2]:
        assert pair.check is not None and pair.check.skill == "debugging"
        broken = code_of(pair.prompt)
        assert judge(pair.check.program_for(code_of(pair.completion))).passed
        if "never ends" not in pair.prompt:
            verdict = judge(pair.check.program_for(broken))
            assert verdict.reason == "failed"
            error = re.findall(r"```\n(.*?)\n```", pair.prompt, re.DOTALL)[0]
            assert error.split("\n")[-1].strip() in verdict.detail
        changed = [a != b for a, b in zip(broken.split("\n"), code_of(pair.completion).split("\n"), strict=False)]
        assert any(changed)


def test_comments_and_formatting_outside_the_bug_stay(bugs: tuple[list[Pair], Reading]) -> None:
    for pair in bugs[0]:
        if pair.name.startswith("counting.up_to"):
            assert "    # counted one by one\n" in code_of(pair.prompt)
            assert "    # counted one by one\n" in code_of(pair.completion)


def test_errors_look_as_a_person_sees_them(bugs: tuple[list[Pair], Reading]) -> None:
    prompts = "\n".join(pair.prompt for pair in bugs[0])
    assert "Failed example:\n    up_to(3)\nExpected:\n    [0, 1, 2]\nGot" in prompts
    assert (
        "Failed test: test_total\n    assert total(NUMBERS) == 6\nAssertionError\nwhere total(NUMBERS) is " in prompts
    )
    assert "Failed test: test_least\n    self.assertEqual(least(self.values), 1)\nAssertionError: " in prompts
    assert "(line" not in re.sub(r"\(line \d+, in \w+\)", "", prompts) and "_run_tests" not in prompts


def test_the_diagnosis_names_what_is_wrong_and_what_is_right(bugs: tuple[list[Pair], Reading]) -> None:
    for pair in bugs[0]:
        diagnosis = pair.completion.partition("\n\n```")[0]
        assert diagnosis.endswith(".") and "\n" not in diagnosis and "`" in diagnosis
        if match := re.match(r"`(.+?)` must be `(.+?)`: ", diagnosis):
            assert match[1] in " ".join(code_of(pair.prompt).split())
            assert match[2] in " ".join(code_of(pair.completion).split())


def test_all_bugs_of_a_function_are_of_one_group_and_endless_loops_are_few(bugs: tuple[list[Pair], Reading]) -> None:
    groups: dict[str, set[str]] = {}
    for pair in bugs[0]:
        groups.setdefault(pair.name.split()[0], set()).add(pair.module)
    assert all(len(group) == 1 for group in groups.values())
    assert sum("never ends" in pair.prompt for pair in bugs[0]) <= 0.1 * len(bugs[0])


def test_tests_that_need_more_than_the_function_are_counted(bugs: tuple[list[Pair], Reading]) -> None:
    places = bugs[1].places
    assert places["test: it needs fixtures"] == ["test_sums.py: test_with_fixture"]
    assert places["test: it uses more of the tree than one function"] == ["test_sums.py: test_both"]


def test_bugs_are_the_same_every_time(bugs: tuple[list[Pair], Reading], tmp_path: Path, judge: Judge) -> None:
    folder = tmp_path / "mine0"
    folder.mkdir()
    put(folder, counting=COUNTING)
    source = BugInjectionSource(bug_injection=str(folder), per_function=2)
    first, second = (list(bug_injection.read(source, Reading(emit=lambda event: None, judge=judge))) for _ in range(2))
    assert first == second and len(first) == 2


PATTERNS = {
    "comparison": (
        "if a < b:\n        return 1\n    return 2",
        "if a <= b:",
        "`a <= b` must be `a < b`: the value at the bound is taken in wrongly.",
    ),
    "operator": (
        "return a + b",
        "return a - b",
        "`a - b` must be `a + b`: the operator is - where + is meant.",
    ),
    "boolean operator": (
        "return a and b",
        "return a or b",
        "`a or b` must be `a and b`: one condition is enough for it, and all must hold.",
    ),
    "dropped not": (
        "return not a",
        "return a",
        "`a` must be `not a`: without `not` the condition is the wrong way round.",
    ),
    "inverted condition": (
        "if a:\n        return 1\n    return b",
        "if not a:",
        "`not a` must be `a`: the condition is the wrong way round.",
    ),
    "off by one": (
        "return list(range(a))",
        "range(a - 1)",
        "`range(a - 1)` must be `range(a)`: the last round is left out.",
    ),
    "index": (
        "return a[0]",
        "return a[1]",
        "`a[1]` must be `a[0]`: the index is off by one.",
    ),
    "swapped arguments": (
        "return divmod(a, b)",
        "divmod(b, a)",
        "`divmod(b, a)` must be `divmod(a, b)`: the arguments are swapped.",
    ),
    "wrong function": (
        "return min(a)",
        "max(a)",
        "`max(a)` must be `min(a)`: `max` does something else than `min`.",
    ),
    "wrong variable": (
        "return len(a)",
        "return len(b)",
        "`return len(b)` must be `return len(a)`: `b` isn't what is meant here.",
    ),
    "missing return": (
        "return len(a)",
        "    len(a)",
        "The `return` before `len(a)` is missing: the value is worked out and thrown away.",
    ),
    "early return": (
        "for x in a:\n        b += x\n    return b",
        "        return b",
        "`return b` is indented too far: it ends the loop in its first round.",
    ),
    "removed statement": (
        "a.sort()\n    return a",
        "def f(a, b=None):\n    return a",
        "The statement `a.sort()` is missing.",
    ),
    "mutable default": (
        "if b is None:\n        b = []\n    b.append(a)\n    return b",
        "def f(a, b=[]):\n    b.append(a)",
        "`b=[]` is made once and shared by all calls: the default must be None, and a new one be made inside.",
    ),
}


@pytest.mark.parametrize("kind", PATTERNS)
def test_each_kind_of_bug_is_made_by_position_and_told(kind: str) -> None:
    body, wrong, said = PATTERNS[kind]
    code = f"def f(a, b=None):\n    {body}"
    made = {mutated(code, each): each.diagnosis for each in mutations(code, "f") if each.kind == kind}
    assert said in made.values()
    assert wrong in next(text for text, diagnosis in made.items() if diagnosis == said)


def test_mutations_parse_differ_and_touch_only_the_function() -> None:
    code = 'TEXT = "äöü 1 < 2"\n\n\ndef helper(x):\n    return x + 1\n\n\ndef f(a, b):  # ä < b\n    c = "ü" + a  # ä\n'
    code += "    if (a) < (b) and not (a == c):\n        return helper(b)[0:1]\n    return c"
    made = mutations(code, "f")
    assert len(made) >= 12
    for each in made:
        text = mutated(code, each)
        ast.parse(text)
        assert text != code
        assert text.startswith(code[: code.index("def f")])
    assert [mutated(code, each) for each in made] == [mutated(code, each) for each in mutations(code, "f")]


def test_judgements_come_in_order_and_end_when_nobody_asks() -> None:
    asked: list[int] = []

    def judged(number: int) -> Verdict:
        asked.append(number)
        return Verdict(number % 2 == 0, "passed")

    stream = judged_in_order(iter(range(1000)), judged)
    assert [next(stream)[0] for _ in range(5)] == [0, 1, 2, 3, 4]
    stream.close()  # type: ignore[attr-defined]
    assert len(asked) < 20

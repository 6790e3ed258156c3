"""Programs that judge an answer: its doctest examples or the tests beside it, and what a failure says."""

from __future__ import annotations

import re

from amigo_local.domain.answer_check import AnswerCheck

LONGEST_FAILURE = 420
CPU_SECONDS = 1
"""An answer that computes longer than this runs forever, as far as a person is concerned who waits for it."""
FOREVER = "runs forever"

# Runs after the answer, in its namespace, in a sandbox that has the standard library only. The first failure ends it,
# with an error text a person would see; frames of `doctest` itself are no part of it.
_EXAMPLES = """\
import doctest as _doctest
import textwrap as _textwrap


def _shown(example, what):
    source = _textwrap.indent(example.source.rstrip("\\n"), "    ")
    return AssertionError(f"Failed example:\\n{{source}}\\n{{what.rstrip()}}"[:{longest}])


class _Examples(_doctest.DocTestRunner):
    def report_failure(self, out, test, example, got):
        raise _shown(example, self._checker.output_difference(example, got, self.optionflags))

    def report_unexpected_exception(self, out, test, example, exc_info):
        kind, error, trace = exc_info
        place = ""
        while trace is not None:
            if trace.tb_frame.f_code.co_filename == "answer":
                place = f" (line {{trace.tb_lineno}}, in {{trace.tb_frame.f_code.co_name}})"
            trace = trace.tb_next
        raise _shown(example, f"Exception raised:\\n    {{kind.__name__}}: {{error}}{{place}}") from None


_examples = {examples!r}
_Examples(verbose=False).run(_doctest.DocTestParser().get_doctest(_examples, dict(globals()), "answer", None, 0))
"""

# A plain assertion says nothing but that it failed: where it compares, the compared values are worked out again.
_TESTS = """\
import ast as _ast

_tests = {tests!r}


def _compared(statement, frame):
    if not isinstance(statement, _ast.Assert) or not isinstance(statement.test, _ast.Compare):
        return ""
    left = compile(_ast.Expression(statement.test.left), "tests", "eval")
    try:
        return f"\\nwhere {{_ast.unparse(statement.test.left)}} is {{eval(left, frame.f_globals, frame.f_locals)!r}}"
    except Exception:
        return ""


def _run_tests():
    tree = _ast.parse(_tests)
    try:
        exec(compile(tree, "tests", "exec"), globals())
        exec({call!r}, globals())
    except Exception as error:
        trace, place, line, frame = error.__traceback__, "", 0, None
        while trace is not None:
            name = trace.tb_frame.f_code.co_filename
            if name == "tests":
                line, frame, place = trace.tb_lineno, trace.tb_frame, ""
            elif name == "answer":
                place = f" (line {{trace.tb_lineno}}, in {{trace.tb_frame.f_code.co_name}})"
            trace = trace.tb_next
        statements = [node for node in _ast.walk(tree) if isinstance(node, _ast.stmt)]
        found = [node for node in statements if node.lineno <= line <= node.end_lineno]
        statement = max(found, key=lambda node: node.lineno, default=None)
        shown = "" if statement is None else "\\n    " + _ast.unparse(statement).replace("\\n", "\\n    ")
        said = f"{{type(error).__name__}}: {{error}}".removesuffix(": ")
        values = _compared(statement, frame) if statement is not None else ""
        raise AssertionError(f"Failed test: {name}{{shown}}\\n{{said}}{{place}}{{values}}"[:{longest}]) from None


_run_tests()
"""

_LIMIT = """\
import signal as _signal


class _Forever(KeyboardInterrupt):
    pass


def _too_long(*_):
    raise _Forever


if hasattr(_signal, "setitimer"):
    _signal.signal(_signal.SIGVTALRM, _too_long)
    _signal.setitimer(_signal.ITIMER_VIRTUAL, {seconds})
"""


def examples_program(examples: str) -> str:
    """`examples` are a doctest session, compared as `doctest` does, with the flags that its comments name."""
    return _EXAMPLES.format(examples=examples, longest=LONGEST_FAILURE)


def tests_program(name: str, tests: str, call: str) -> str:
    """`tests` define what `call` runs, after the answer and in its namespace."""
    return _TESTS.format(tests=tests, call=call, name=name, longest=LONGEST_FAILURE)


def limited_program(check: AnswerCheck, code: str) -> str:
    """The whole program for `code`, which gives up after CPU_SECONDS: many a bug makes a loop endless."""
    return f"{_LIMIT.format(seconds=CPU_SECONDS)}\n{check.program_for(code)}"


def failure_text(detail: str) -> str:
    """A verdict's detail without where in our own program it was raised."""
    text = re.sub(r" \(line \d+: (?:raise|exec\(|_Examples\(|_run_tests\().*\Z", "", detail, flags=re.DOTALL)
    return text.removeprefix("AssertionError: ").rstrip()


def ran_forever(detail: str) -> bool:
    return detail.startswith("_Forever")

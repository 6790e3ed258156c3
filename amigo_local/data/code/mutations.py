"""Bugs to put into a working function: one small edit each, by position, so that the rest of its text stays."""

from __future__ import annotations

import ast
import itertools
import re
from collections.abc import Callable, Iterator

import msgspec

from amigo_local.data.code.standalone import Function

_COMPARISONS = {
    ast.Lt: ("<", "<=", "the value at the bound is taken in wrongly"),
    ast.LtE: ("<=", "<", "the value at the bound is left out"),
    ast.Gt: (">", ">=", "the value at the bound is taken in wrongly"),
    ast.GtE: (">=", ">", "the value at the bound is left out"),
    ast.Eq: ("==", "!=", "the test is the wrong way round"),
    ast.NotEq: ("!=", "==", "the test is the wrong way round"),
    ast.In: ("in", "not in", "the test is the wrong way round"),
    ast.NotIn: ("not in", "in", "the test is the wrong way round"),
    ast.Is: ("is", "is not", "the test is the wrong way round"),
    ast.IsNot: ("is not", "is", "the test is the wrong way round"),
}  # fmt: skip
_OPERATORS = {
    ast.Add: ("+", "-"), ast.Sub: ("-", "+"), ast.Mult: ("*", "+"), ast.Div: ("/", "//"), ast.FloorDiv: ("//", "/"),
    ast.Mod: ("%", "//"), ast.LShift: ("<<", ">>"), ast.RShift: (">>", "<<"), ast.BitAnd: ("&", "|"),
    ast.BitOr: ("|", "&"), ast.BitXor: ("^", "|"), ast.Pow: ("**", "*"),
}  # fmt: skip
_LOOKALIKES = {
    "min": "max", "max": "min", "any": "all", "all": "any", "append": "extend", "extend": "append",
    "startswith": "endswith", "endswith": "startswith", "lstrip": "rstrip", "rstrip": "lstrip", "find": "rfind",
    "rfind": "find", "lower": "upper", "upper": "lower", "split": "rsplit", "rsplit": "split",
    "partition": "rpartition", "rpartition": "partition", "floor": "ceil", "ceil": "floor", "keys": "values",
}  # fmt: skip
_LONGEST_QUOTE = 60


class Mutation(msgspec.Struct, frozen=True):
    kind: str
    edits: tuple[tuple[int, int, bytes], ...]
    """Begin and end, in bytes of the UTF-8 text, and what stands there instead; in order, not overlapping."""
    diagnosis: str
    """What is wrong with the broken text, and what it leads to: one sentence that names both texts."""


class _Text:
    """The bytes of a source, by the line and column that `ast` gives."""

    def __init__(self, code: str) -> None:
        self.data = code.encode()
        self.starts = [0]
        for line in self.data.split(b"\n"):
            self.starts.append(self.starts[-1] + len(line) + 1)

    def begin(self, node: ast.stmt | ast.expr | ast.arg) -> int:
        return self.starts[node.lineno - 1] + node.col_offset

    def end(self, node: ast.stmt | ast.expr | ast.arg) -> int:
        return self.starts[(node.end_lineno or 1) - 1] + (node.end_col_offset or 0)

    def of(self, node: ast.stmt | ast.expr) -> str:
        return self.data[self.begin(node) : self.end(node)].decode()

    def between(self, before: ast.expr, after: ast.expr, pattern: str) -> tuple[int, int] | None:
        """Where the one match of `pattern` lies between two expressions."""
        start = self.end(before)
        found = list(re.finditer(pattern, self.data[start : self.begin(after)].decode()))
        # A comment in between may hold anything, characters of several bytes too.
        gap = self.data[start : self.begin(after)]
        if len(found) != 1 or b"#" in gap or len(gap) != len(gap.decode()):
            return None
        return start + found[0].start(), start + found[0].end()


def mutated(code: str, mutation: Mutation) -> str:
    data = code.encode()
    for begin, end, text in reversed(mutation.edits):
        data = data[:begin] + text + data[end:]
    return data.decode()


def mutations(code: str, name: str) -> list[Mutation]:
    """Every mutation of the top-level function `name` in `code` that still parses, in the order of the text."""
    tree = ast.parse(code)
    function = next(node for node in tree.body if isinstance(node, Function) and node.name == name)
    text = _Text(code)
    found = []
    for node in ast.walk(function):
        for make in _MAKERS:
            found += [mutation for mutation in make(node, text, function) if _parses(code, mutation)]
    return sorted(found, key=lambda mutation: (mutation.edits, mutation.kind))


def _parses(code: str, mutation: Mutation) -> bool:
    try:
        ast.parse(mutated(code, mutation))
    except (SyntaxError, ValueError):
        return False
    return True


def _quoted(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= _LONGEST_QUOTE else f"{line[: _LONGEST_QUOTE - 2]} …"


def _replaced(
    kind: str, text: _Text, whole: ast.stmt | ast.expr, span: tuple[int, int], new: str, why: str
) -> Mutation:
    """`whole` is quoted, with the change and without."""
    begin, end = text.begin(whole), text.end(whole)
    right = text.of(whole)
    wrong = (text.data[begin : span[0]] + new.encode() + text.data[span[1] : end]).decode()
    if len(right) > _LONGEST_QUOTE or "\n" in right:
        right, wrong = text.data[span[0] : span[1]].decode(), new
    return Mutation(kind, ((*span, new.encode()),), f"`{_quoted(wrong)}` must be `{_quoted(right)}`: {why}.")


def _comparison(node: ast.AST, text: _Text, function: Function) -> Iterator[Mutation]:
    if isinstance(node, ast.Compare) and len(node.ops) == 1:
        right, wrong, why = _COMPARISONS[type(node.ops[0])]
        pattern = r"\s+".join(map(re.escape, right.split()))
        pattern = rf"\b{pattern}\b" if right[0].isalpha() else pattern
        if span := text.between(node.left, node.comparators[0], pattern):
            yield _replaced("comparison", text, node, span, wrong, why)


def _operator(node: ast.AST, text: _Text, function: Function) -> Iterator[Mutation]:
    if isinstance(node, ast.BinOp) and type(node.op) in _OPERATORS and not _is_text(node.left):
        right, wrong = _OPERATORS[type(node.op)]
        if span := text.between(node.left, node.right, re.escape(right)):
            why = f"the operator is {wrong} where {right} is meant"
            yield _replaced("operator", text, node, span, wrong, why)
    if isinstance(node, ast.AugAssign) and type(node.op) in _OPERATORS:
        right, wrong = _OPERATORS[type(node.op)]
        if span := text.between(node.target, node.value, re.escape(right) + "="):
            yield _replaced("operator", text, node, span, f"{wrong}=", f"{text.of(node.target)} goes the wrong way")


def _boolean(node: ast.AST, text: _Text, function: Function) -> Iterator[Mutation]:
    if isinstance(node, ast.BoolOp):
        right, wrong = ("and", "or") if isinstance(node.op, ast.And) else ("or", "and")
        why = (
            "one condition is enough for it, and all must hold"
            if right == "and"
            else "all must hold, and one is enough"
        )
        if span := text.between(node.values[0], node.values[1], rf"\b{right}\b"):
            yield _replaced("boolean operator", text, node, span, wrong, why)
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
        begin, inner = text.begin(node), text.begin(node.operand)
        gap = len(re.match(rb"not\s*", text.data[begin:inner] + b" ").group()) if inner > begin else 0  # type: ignore[union-attr]
        span = (begin, min(begin + gap, inner))
        yield _replaced("dropped not", text, node, span, "", "without `not` the condition is the wrong way round")


def _condition(node: ast.AST, text: _Text, function: Function) -> Iterator[Mutation]:
    if isinstance(node, ast.If | ast.While | ast.IfExp) and not isinstance(node.test, ast.UnaryOp | ast.Compare):
        test = text.of(node.test)
        if "\n" not in test:
            span = (text.begin(node.test), text.end(node.test))
            new = f"not {test}" if isinstance(node.test, ast.Name | ast.Call | ast.Attribute) else f"not ({test})"
            yield _replaced("inverted condition", text, node.test, span, new, "the condition is the wrong way round")


def _number(node: ast.AST, text: _Text, function: Function) -> Iterator[Mutation]:
    for place, kind, child in _numbers_of(node):
        value = child.value
        if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1000:
            for wrong in (value + 1, value - 1) if value else (1,):
                span = (text.begin(child), text.end(child))
                why = "the index is off by one" if kind == "index" else "the number is off by one"
                yield _replaced(kind, text, place, span, str(wrong), why)


def _numbers_of(node: ast.AST) -> Iterator[tuple[ast.expr, str, ast.Constant]]:
    """The expression to quote, the kind of mistake, and the number."""
    if isinstance(node, ast.Subscript):
        bounds = (
            [node.slice.lower, node.slice.upper, node.slice.step] if isinstance(node.slice, ast.Slice) else [node.slice]
        )
        for bound in bounds:
            bound = bound.operand if isinstance(bound, ast.UnaryOp) else bound
            if isinstance(bound, ast.Constant):
                yield node, "index", bound
    elif isinstance(node, ast.Compare | ast.BinOp):
        for side in ast.iter_child_nodes(node):
            if isinstance(side, ast.Constant):
                yield node, "off by one", side
    elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ("range", "enumerate"):
        for argument in node.args:
            if isinstance(argument, ast.Constant):
                yield node, "off by one", argument


def _range(node: ast.AST, text: _Text, function: Function) -> Iterator[Mutation]:
    if (
        isinstance(node, ast.Call)
        and isinstance(node.func, ast.Name)
        and node.func.id == "range"
        and len(node.args) < 3
    ):
        stop = node.args[-1]
        if not isinstance(stop, ast.Constant):
            span = (text.begin(stop), text.end(stop))
            yield _replaced("off by one", text, node, span, f"{text.of(stop)} - 1", "the last round is left out")
            yield _replaced("off by one", text, node, span, f"{text.of(stop)} + 1", "it goes one round too far")
            if len(node.args) == 1:
                yield _replaced("off by one", text, node, span, f"1, {text.of(stop)}", "the first round is left out")
    if (
        isinstance(node, ast.Slice)
        and node.upper is not None
        and not isinstance(node.upper, ast.Constant | ast.UnaryOp)
    ):
        span = (text.begin(node.upper), text.end(node.upper))
        yield _replaced("index", text, node.upper, span, f"{text.of(node.upper)} - 1", "the slice ends one too early")


def _arguments(node: ast.AST, text: _Text, function: Function) -> Iterator[Mutation]:
    if (
        isinstance(node, ast.Call)
        and len(node.args) >= 2
        and not any(isinstance(item, ast.Starred) for item in node.args)
    ):
        first, second = text.of(node.args[0]), text.of(node.args[1])
        if first != second and "\n" not in first + second:
            span = (text.begin(node.args[0]), text.end(node.args[1]))
            yield _replaced("swapped arguments", text, node, span, f"{second}, {first}", "the arguments are swapped")


def _lookalike(node: ast.AST, text: _Text, function: Function) -> Iterator[Mutation]:
    if isinstance(node, ast.Call):
        name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        if wrong := _LOOKALIKES.get(name):
            end = text.end(node.func)
            span = (end - len(name.encode()), end)
            yield _replaced("wrong function", text, node, span, wrong, f"`{wrong}` does something else than `{name}`")


def _variable(node: ast.AST, text: _Text, function: Function) -> Iterator[Mutation]:
    """Another variable of the function that is bound before; parameters for parameters, locals for locals."""
    if not isinstance(node, ast.Name) or not isinstance(node.ctx, ast.Load):
        return
    parameters = [item.arg for item in [*function.args.posonlyargs, *function.args.args, *function.args.kwonlyargs]]
    stored = [item for item in ast.walk(function) if isinstance(item, ast.Name) and isinstance(item.ctx, ast.Store)]
    local = sorted({item.id for item in stored if item.lineno < node.lineno} - set(parameters))
    scope = parameters if node.id in parameters else local if node.id in local else []
    others = [name for name in scope if name != node.id]
    if others:
        wrong = others[(scope.index(node.id)) % len(others)]
        span = (text.begin(node), text.end(node))
        statement = _statement_of(node, function)
        yield _replaced("wrong variable", text, statement or node, span, wrong, f"`{wrong}` isn't what is meant here")


def _statement_of(node: ast.Name, function: Function) -> ast.stmt | None:
    """The simple statement of one line around it."""
    simple = ast.Return | ast.Assign | ast.AugAssign | ast.Expr
    around = [
        item for item in ast.walk(function)
        if isinstance(item, simple) and item.lineno == item.end_lineno == node.lineno
    ]  # fmt: skip
    return around[0] if len(around) == 1 else None


def _return(node: ast.AST, text: _Text, function: Function) -> Iterator[Mutation]:
    if isinstance(node, ast.Return) and node.value is not None and not isinstance(node.value, ast.Constant):
        span = (text.begin(node), text.begin(node.value))
        if b"(" not in text.data[span[0] : span[1]]:
            value = _quoted(text.of(node.value))
            yield Mutation(
                "missing return",
                ((*span, b""),),
                f"The `return` before `{value}` is missing: the value is worked out and thrown away.",
            )


def _early_return(node: ast.AST, text: _Text, function: Function) -> Iterator[Mutation]:
    """A return that follows a loop slips into it."""
    body = getattr(node, "body", None)
    if not isinstance(body, list):
        return
    for loop, after in itertools.pairwise(body):
        if isinstance(loop, ast.For | ast.While) and isinstance(after, ast.Return) and not loop.orelse:
            if after.lineno != after.end_lineno:
                continue
            line = text.starts[after.lineno - 1]
            indent = b" " * loop.body[-1].col_offset
            said = f"`{_quoted(text.of(after))}` is indented too far: it ends the loop in its first round."
            yield Mutation("early return", ((line, line + after.col_offset, indent),), said)


def _removed(node: ast.AST, text: _Text, function: Function) -> Iterator[Mutation]:
    for body in (getattr(node, "body", None), getattr(node, "orelse", None)):
        if not isinstance(body, list):
            continue
        for statement in body:
            if (
                isinstance(statement, ast.AugAssign)
                or (isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Call))
                or isinstance(statement, ast.Continue | ast.Break)
            ):
                begin, end = text.starts[statement.lineno - 1], text.starts[statement.end_lineno or 1]
                alone = (
                    text.data[begin : text.begin(statement)].isspace()
                    and text.data[text.end(statement) : end].strip() == b""
                )
                if alone and len(body) > 1:
                    said = f"The statement `{_quoted(text.of(statement))}` is missing."
                    yield Mutation("removed statement", ((begin, end, b""),), said)
                elif alone:
                    span = (text.begin(statement), text.end(statement), b"pass")
                    said = f"`pass` stands where `{_quoted(text.of(statement))}` is needed."
                    yield Mutation("removed statement", (span,), said)


def _mutable_default(node: ast.AST, text: _Text, function: Function) -> Iterator[Mutation]:
    """`x=None` with `if x is None: x = []` becomes `x=[]`, which all calls then share."""
    if node is not function:
        return
    arguments = function.args.args[len(function.args.args) - len(function.args.defaults) :]
    for argument, default in zip(arguments, function.args.defaults, strict=True):
        for statement in function.body:
            if not isinstance(statement, ast.If) or statement.orelse or len(statement.body) != 1:
                continue
            made = statement.body[0]
            if ast.unparse(statement.test) != f"{argument.arg} is None" or not isinstance(made, ast.Assign):
                continue
            if ast.unparse(made.targets[0]) == argument.arg and ast.unparse(made.value) in ("[]", "{}", "set()"):
                begin, end = text.starts[statement.lineno - 1], text.starts[statement.end_lineno or 1]
                value = ast.unparse(made.value)
                shared = f"`{argument.arg}={value}` is made once and shared by all calls"
                said = f"{shared}: the default must be None, and a new one be made inside."
                edits = ((text.begin(default), text.end(default), value.encode()), (begin, end, b""))
                yield Mutation("mutable default", edits, said)


def _is_text(node: ast.expr) -> bool:
    return isinstance(node, ast.JoinedStr) or (isinstance(node, ast.Constant) and isinstance(node.value, str | bytes))


_MAKERS: tuple[Callable[[ast.AST, _Text, Function], Iterator[Mutation]], ...] = (
    _comparison, _operator, _boolean, _condition, _number, _range, _arguments, _lookalike, _variable, _return,
    _early_return, _removed, _mutable_default,
)  # fmt: skip

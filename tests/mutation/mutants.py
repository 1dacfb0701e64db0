"""Single-line mutants of a module: where a small mistake can be made in it, and what the line would then read."""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator
from dataclasses import dataclass

COMPARISONS: dict[type[ast.cmpop], type[ast.cmpop]] = {
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.NotIn: ast.In,
}  # fmt: skip


@dataclass(frozen=True, order=True)
class Mutant:
    """One line of one file, changed.

    Args:
        file: relative to the package's parent folder.
        line: counted from 1.
        operator: what kind of mistake it is.
        original: the line as it is.
        changed: the line with the mistake.
    """

    file: str
    line: int
    operator: str
    original: str
    changed: str

    def applied(self, source: str) -> str:
        """The file's text with the mistake in it."""
        lines = source.splitlines(keepends=True)
        assert lines[self.line - 1].rstrip("\r\n") == self.original, f"{self.file} has changed"
        lines[self.line - 1] = self.changed + "\n"
        return "".join(lines)


def mutants_of(source: str, file: str) -> list[Mutant]:
    """Every mutant of a module, in order; each compiles.

    Left alone: docstrings and other texts, annotations, decorators, assertions, imports, what only type checkers read,
    and what is raised (its class and words).
    """
    lines = source.splitlines()
    found = set()
    for parent in _worth_changing(ast.parse(source)):
        for node, operator, replacement in _replacements(parent):
            if node.lineno != node.end_lineno:
                continue
            original = lines[node.lineno - 1]
            mutant = Mutant(file, node.lineno, operator, original, _spliced(original, node, replacement))
            if mutant.changed != original and _compiles(mutant.applied(source)):
                found.add(mutant)
    return sorted(found)


def _worth_changing(tree: ast.AST) -> Iterator[ast.AST]:
    """The nodes of a module in which a mistake would be one of the program's."""
    for name, value in ast.iter_fields(tree):
        if name in ("annotation", "returns", "decorator_list", "type_params"):
            continue
        for node in value if isinstance(value, list) else [value]:
            if not isinstance(node, ast.AST) or isinstance(node, SKIPPED) or _is_for_type_checkers(node):
                continue
            if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
                continue  # a docstring
            yield node
            yield from _worth_changing(node)


NAMES = (ast.Name, ast.Tuple)
SKIPPED = (ast.Assert, ast.Raise, ast.Import, ast.ImportFrom, ast.JoinedStr)


def _is_for_type_checkers(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"


def _replacements(node: ast.AST) -> Iterator[tuple[ast.expr | ast.stmt, str, str]]:
    """Mistakes that a node can have: the node or the part of it to replace, the kind, and the text in its place."""
    if isinstance(node, (ast.If, ast.While, ast.IfExp)) and not isinstance(node.test, ast.Compare):
        yield node.test, "condition negated", f"(not ({ast.unparse(node.test)}))"
    for kind, change in CHANGES.items():
        if isinstance(node, kind):
            for operator, replacement in change(node):
                yield node, operator, replacement


def _compare(node: ast.Compare) -> Iterator[tuple[str, str]]:
    for i, operator in enumerate(node.ops):
        ops = [*node.ops[:i], COMPARISONS[type(operator)](), *node.ops[i + 1 :]]
        yield "compare flipped", f"({ast.unparse(ast.Compare(node.left, ops, node.comparators))})"


def _constant(node: ast.Constant) -> Iterator[tuple[str, str]]:
    value = node.value
    if isinstance(value, bool):
        yield "constant changed", repr(not value)
    elif isinstance(value, int):
        yield "constant changed", repr(value + 1)
    elif isinstance(value, float):
        yield "constant changed", repr(value * 2 or 1.0)


def _both_or_either(node: ast.BoolOp) -> Iterator[tuple[str, str]]:
    other = ast.Or() if isinstance(node.op, ast.And) else ast.And()
    yield "and/or exchanged", f"({ast.unparse(ast.BoolOp(other, node.values))})"


def _negation(node: ast.UnaryOp) -> Iterator[tuple[str, str]]:
    if isinstance(node.op, ast.Not):
        yield "negation dropped", f"({ast.unparse(node.operand)})"


def _statement(node: ast.Expr | ast.Assign | ast.AugAssign | ast.Continue | ast.Break) -> Iterator[tuple[str, str]]:
    # without the assignment that makes a name, the next line would fail whatever the tests say
    if not isinstance(node, ast.Assign) or not any(isinstance(target, NAMES) for target in node.targets):
        yield "statement deleted", "pass"


def _call(node: ast.Call) -> Iterator[tuple[str, str]]:
    if len(node.args) < 2 or any(isinstance(argument, ast.Starred) for argument in node.args[:2]):
        return
    first, second, *others = node.args
    yield "arguments swapped", ast.unparse(ast.Call(node.func, [second, first, *others], node.keywords))


def _return(node: ast.Return) -> Iterator[tuple[str, str]]:
    if node.value is not None and not (isinstance(node.value, ast.Constant) and node.value.value is None):
        yield "return altered", "return None"


CHANGES: dict[type[ast.AST] | tuple[type[ast.AST], ...], Callable[..., Iterator[tuple[str, str]]]] = {
    ast.Compare: _compare,
    ast.Constant: _constant,
    ast.BoolOp: _both_or_either,
    ast.UnaryOp: _negation,
    (ast.Expr, ast.Assign, ast.AugAssign, ast.Continue, ast.Break): _statement,
    ast.Call: _call,
    ast.Return: _return,
}


def _spliced(line: str, node: ast.expr | ast.stmt, replacement: str) -> str:
    """A line with a node's text replaced; ast counts bytes."""
    encoded = line.encode()
    return (encoded[: node.col_offset] + replacement.encode() + encoded[node.end_col_offset :]).decode()


def _compiles(source: str) -> bool:
    try:
        compile(source, "mutant", "exec")
    except SyntaxError:
        return False
    return True

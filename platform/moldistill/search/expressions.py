"""The language of constraints: a small part of Python's expressions, over dotted keys of the run's settings.

Text is read by Python's own parser and evaluated here node by node: nothing is ever executed.
"""

from __future__ import annotations

import ast
import math
import operator
import warnings
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from moldistill.core.errors import InputError

LONGEST = 1000
"""Characters of an expression, and `DEEPEST` its nesting: more is a mistake, or an attack on the parser."""

DEEPEST = 60

LITERALS = {"null": None, "true": True, "false": False}
"""YAML's words for values that Python writes otherwise; both are understood."""

ARITHMETIC: dict[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.Pow: math.pow,  # of floats: 9**9**9 overflows instead of filling the memory
}
ORDER: dict[type[ast.cmpop], Callable[[Any, Any], Any]] = {
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
}
EQUALITY: dict[type[ast.cmpop], Callable[[Any, Any], Any]] = {ast.Eq: operator.eq, ast.NotEq: operator.ne}
MEMBERSHIP: dict[type[ast.cmpop], Callable[[Any, Any], Any]] = {
    ast.In: lambda item, values: item in values,
    ast.NotIn: lambda item, values: item not in values,
}
COMPARISONS = ORDER | EQUALITY | MEMBERSHIP
SIGNS: dict[type[ast.unaryop], Callable[[Any], Any]] = {ast.USub: operator.neg, ast.UAdd: operator.pos}
FUNCTIONS: dict[str, tuple[Callable[..., Any], int, int]] = {
    "min": (min, 2, 9),
    "max": (max, 2, 9),
    "abs": (abs, 1, 1),
    "log": (math.log, 1, 2),
}
"""Functions of numbers, with the fewest and the most arguments. log: natural, or to the base of its second one."""

ALLOWED = (
    "comparisons, + - * / // % **, and, or, not, in, numbers, quoted text, lists, keys of the run, "
    "true, false, null, min, max, abs, log"
)


def parse_expression(text: str, where: str) -> ast.expr:
    """The tree of an expression that holds nothing but what is allowed. InputError with the place otherwise."""
    if len(text) > LONGEST:
        raise InputError(
            f"{where}: too long",
            got=f"{len(text)} characters",
            expected=f"at most {LONGEST}",
            remedy="write several constraints: all of them must hold",
        )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SyntaxWarning)
            tree = ast.parse(" ".join(text.splitlines()).strip(), mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise InputError(
            f"{where}: not an expression",
            got=f"{text!r}: {getattr(error, 'msg', None) or error}",
            expected="a condition such as `model.width % model.heads == 0`",
            remedy="check brackets and quotes; == compares, and conditions are joined by `and` and `or`",
        ) from None
    if _depth(tree) > DEEPEST:
        raise InputError(f"{where}: nested too deeply", got=text, remedy="write several constraints: all must hold")
    for node in _operands(tree):
        if not _allowed(node):
            raise InputError(
                f"{where}: constraints have no such expression",
                got=ast.unparse(node),
                expected=ALLOWED,
                remedy=_instead(node),
            )
    return tree


def _depth(tree: ast.AST) -> int:
    deepest, pending = 0, [(tree, 1)]
    while pending:
        node, depth = pending.pop()
        deepest = max(deepest, depth)
        pending += [(child, depth + 1) for child in ast.iter_child_nodes(node)]
    return deepest


def key_of(node: ast.expr) -> str | None:
    """The dotted key that a node names; None for anything else."""
    if isinstance(node, ast.Name):
        return None if node.id in LITERALS else node.id
    if isinstance(node, ast.Attribute) and (owner := key_of(node.value)):
        return f"{owner}.{node.attr}"
    return None


def keys_of(tree: ast.expr) -> tuple[str, ...]:
    """All keys of an expression, each once."""
    return tuple(dict.fromkeys(key for node in _operands(tree) if (key := key_of(node))))


def _operands(node: ast.expr) -> Iterator[ast.expr]:
    """The expression and the parts it is made of; a dotted key is one part, and a function's name is none."""
    yield node
    if key_of(node):
        return
    children: list[ast.AST] = list(node.args) if isinstance(node, ast.Call) else list(ast.iter_child_nodes(node))
    for child in children:
        if isinstance(child, ast.expr):
            yield from _operands(child)


def _allowed(node: ast.expr) -> bool:
    match node:
        case ast.BoolOp() | ast.List() | ast.Tuple():
            return True
        case ast.Constant(value=value):
            return value is None or isinstance(value, str | int | float)
        case ast.UnaryOp(op=sign):
            return isinstance(sign, ast.Not) or type(sign) in SIGNS
        case ast.BinOp(op=sign):
            return type(sign) in ARITHMETIC
        case ast.Compare(ops=signs):
            return all(type(sign) in COMPARISONS for sign in signs)
        case ast.Call(func=ast.Name(id=name), args=arguments, keywords=[]) if name in FUNCTIONS:
            _, fewest, most = FUNCTIONS[name]
            return fewest <= len(arguments) <= most and not any(isinstance(item, ast.Starred) for item in arguments)
    return key_of(node) is not None or (isinstance(node, ast.Name) and node.id in LITERALS)


def _instead(node: ast.expr) -> str:
    if isinstance(node, ast.Compare):
        return "write == or != instead of `is`"
    if isinstance(node, ast.BinOp):
        return "write `and` and `or` between conditions"
    if isinstance(node, ast.Call):
        return "call min or max with two numbers or more, abs with one, log with one (or a base, too)"
    return "write it with these"


def evaluate(node: ast.expr, value_of: Callable[[str], Any]) -> Any:
    """The value of an allowed expression; value_of: of a dotted key.

    Raises ArithmeticError, TypeError or ValueError where there is none: a division by 0, the size of a null.
    """
    if key := key_of(node):
        return value_of(key)

    def value(part: ast.expr) -> Any:
        return evaluate(part, value_of)

    match node:
        case ast.BoolOp(op=joined, values=conditions):
            return (all if isinstance(joined, ast.And) else any)(value(condition) for condition in conditions)
        case ast.UnaryOp(op=sign, operand=operand):
            return not value(operand) if isinstance(sign, ast.Not) else SIGNS[type(sign)](value(operand))
        case ast.BinOp(left=left, op=operation, right=right):
            return ARITHMETIC[type(operation)](value(left), value(right))
        case ast.Compare(left=left, ops=signs, comparators=others):
            return _chained(value(left), [COMPARISONS[type(sign)] for sign in signs], others, value)
        case ast.Call(func=ast.Name(id=name), args=arguments):
            return FUNCTIONS[name][0](*map(value, arguments))
        case ast.List(elts=items) | ast.Tuple(elts=items):
            return tuple(map(value, items))
    return constant(node)


def _chained(
    before: Any,
    comparisons: Iterable[Callable[[Any, Any], Any]],
    others: Iterable[ast.expr],
    value: Callable[[ast.expr], Any],
) -> bool:
    """`a < b < c`: as in Python, what stands behind a comparison that fails is not looked at."""
    for compare, other in zip(comparisons, others, strict=True):
        after = value(other)
        if not compare(before, after):
            return False
        before = after
    return True


def constant(node: ast.expr) -> Any:
    """The value of a number, a text, true, false or null."""
    if isinstance(node, ast.Name):
        return LITERALS[node.id]
    assert isinstance(node, ast.Constant)  # parse_expression let nothing else pass
    return node.value

"""Constraints of a space: conditions over the run's settings that every trial keeps, checked before one is drawn."""

from __future__ import annotations

import ast
import operator
from dataclasses import dataclass
from functools import cache, reduce
from typing import Any, get_origin

from moldistill.core.config import Leaf
from moldistill.core.errors import InputError, nearest
from moldistill.core.settings import RunSettings
from moldistill.search.expressions import (
    EQUALITY,
    MEMBERSHIP,
    ORDER,
    constant,
    evaluate,
    key_of,
    keys_of,
    parse_expression,
)
from moldistill.search.leafcheck import find_leaf, kinds_of

Kinds = frozenset[str]
"""What a value can be: number, text, truth, null, list."""

_TRUTH, _LIST = frozenset({"truth"}), frozenset({"list"})
_NAMES = {int: "number", float: "number", str: "text", bool: "truth", type(None): "null"}


@dataclass(frozen=True, slots=True)
class Constraint:
    """A condition. keys: of the run's settings, that it names."""

    text: str
    keys: tuple[str, ...]
    tree: ast.expr

    def holds(self, settings: RunSettings) -> bool:
        """Whether the settings keep it. Without a value (a division by 0, the order of a null) it is violated."""
        try:
            return bool(evaluate(self.tree, lambda key: value_at(settings, key)))
        except (ArithmeticError, TypeError, ValueError):
            return False

    def values(self, settings: RunSettings) -> str:
        """What its keys are under these settings, for messages."""
        return ", ".join(f"{key}={value_at(settings, key)}" for key in self.keys)


def value_at(settings: RunSettings, key: str) -> Any:
    """The value of a dotted key."""
    return reduce(getattr, key.split("."), settings)


@cache
def parse_constraint(text: str, where: str) -> Constraint:
    """A constraint from its text. InputError for its syntax, for unknown keys, and for what cannot be compared."""
    tree = parse_expression(text, where)
    leaves = {key: find_leaf(key, where) for key in keys_of(tree)}
    if "truth" not in _kinds(tree, leaves, where):
        raise InputError(
            f"{where}: not a condition",
            got=text,
            expected="a comparison, such as `model.width % model.heads == 0`",
            remedy="compare it with something",
        )
    return Constraint(text, tuple(leaves), tree)


def _kinds(node: ast.expr, leaves: dict[str, Leaf], where: str) -> Kinds:
    """What the value of an expression can be. InputError where a part of it can have no value."""
    if key := key_of(node):
        return _kinds_of_key(leaves[key])
    match node:
        case ast.List(elts=items) | ast.Tuple(elts=items):
            for item in items:
                _kinds(item, leaves, where)
            return _LIST
        case ast.BoolOp(values=conditions):
            return _all(conditions, "truth", leaves, where)
        case ast.UnaryOp(op=sign, operand=operand):
            return _all([operand], "truth" if isinstance(sign, ast.Not) else "number", leaves, where)
        case ast.BinOp(left=left, right=right):
            return _all([left, right], "number", leaves, where)
        case ast.Call(args=arguments):
            return _all(arguments, "number", leaves, where)
        case ast.Compare(left=left, ops=signs, comparators=others):
            for before, comparison, after in zip([left, *others], signs, others, strict=False):
                _check_comparison(before, comparison, after, leaves, where)
            return _TRUTH
    return frozenset({_NAMES[type(constant(node))]})


def _kinds_of_key(leaf: Leaf) -> Kinds:
    if leaf.choices:
        return frozenset(_NAMES[type(choice)] for choice in leaf.choices)
    return frozenset("list" if get_origin(kind) is tuple else _NAMES[kind] for kind in kinds_of(leaf))


def _all(operands: list[ast.expr], wanted: str, leaves: dict[str, Leaf], where: str) -> Kinds:
    for operand in operands:
        found = _kinds(operand, leaves, where)
        if wanted not in found:
            raise InputError(
                f"{where}: a {wanted} is needed",
                got=f"{ast.unparse(operand)}, which is {_words(found)}",
                expected="numbers in arithmetic, and comparisons beside and, or, not",
                remedy="compare text with == or in" if wanted == "number" else "compare it with something",
            )
    return frozenset({wanted})


def _check_comparison(before: ast.expr, sign: ast.cmpop, after: ast.expr, leaves: dict[str, Leaf], where: str) -> None:
    ours, theirs = _kinds(before, leaves, where), _kinds(after, leaves, where)
    if type(sign) in ORDER:
        _all([before, after], "number", leaves, where)
        return
    listed = after.elts if isinstance(after, ast.List | ast.Tuple) else None
    if type(sign) in MEMBERSHIP:
        if "list" not in theirs:
            raise InputError(
                f"{where}: `in` looks into a list",
                got=f"{ast.unparse(after)}, which is {_words(theirs)}",
                expected="a list, such as [64, 128]",
                remedy="write the values in brackets",
            )
        if listed is None:
            return
        theirs = reduce(operator.or_, (_kinds(item, leaves, where) for item in listed), frozenset())
    if not ours & theirs:
        raise InputError(
            f"{where}: these can never be equal",
            got=f"{ast.unparse(before)}: {_words(ours)}; {ast.unparse(after)}: {_words(theirs) or 'empty'}",
            expected="values of the same kind on both sides",
            remedy="quote text, and leave numbers unquoted",
        )
    within = listed if type(sign) in MEMBERSHIP and listed is not None else [after]
    _check_names(before, within, leaves, where)
    if type(sign) in EQUALITY:
        _check_names(after, [before], leaves, where)


def _check_names(key: ast.expr, values: list[ast.expr], leaves: dict[str, Leaf], where: str) -> None:
    """InputError where a key with certain choices is compared with a word that is none of them."""
    name = key_of(key)
    choices = leaves[name].choices if name else ()
    for value in values:
        if choices and isinstance(value, ast.Constant) and value.value not in choices:
            near = nearest(str(value.value), map(str, choices))
            raise InputError(
                f"{where}: {name} is never {value.value!r}",
                expected="one of " + ", ".join(map(str, choices)),
                remedy=f"did you mean '{near}'?" if near else "compare it with one of these",
            )


def _words(kinds: Kinds) -> str:
    return " or ".join(sorted(kinds))

"""Values and ranges held against one key of the run's settings: type, bounds and choices."""

from __future__ import annotations

import math
import types
from typing import Any, Union, get_args, get_origin

from moldistill.core.config import Leaf, leaves
from moldistill.core.errors import InputError, nearest
from moldistill.core.settings import RunSettings
from moldistill.search.parameters import Range

LARGEST = 2.0**53
"""Beyond it not every whole number is a float of its own, and Optuna's ranges are floats."""

_SIGNS = {"gt": ">", "ge": "≥", "lt": "<", "le": "≤"}
_BROKEN = {
    "gt": lambda value, bound: value <= bound,
    "ge": lambda value, bound: value < bound,
    "lt": lambda value, bound: value >= bound,
    "le": lambda value, bound: value > bound,
}
_TYPES = {int: "a whole number", float: "a number", str: "text", bool: "true or false", type(None): "null"}

_NO_RESULT = "it changes no result: set it under `fixed`"
_OTHER_ROWS = "errors of trials that learn from other rows tell nothing of their configurations: set it under `fixed`"
_EPOCHS = "trials of a search end after epochs: search training.epochs"

NOT_SEARCHABLE = {
    "role": "teachers and students have spaces of their own: name another `base`",
    "targets": "name them with --targets (several: once for each teacher)",
    "training.seed": "the best of several seeds is luck, not a better configuration: set it under `fixed`",
    "training.device": "it changes where a trial runs, not what it learns: set it under `fixed`",
    "training.workers": "say `resources: {workers: …}` instead",
    "training.min_workers": _NO_RESULT,
    "training.cpus_per_worker": "say `resources: {cpus: …}` instead",
    "training.max_failures": "say `failures: {retries: …}` instead",
    "training.steps": _EPOCHS,
    "training.budget_seconds": _EPOCHS,
    "training.folds": _OTHER_ROWS,
    "training.fold": _OTHER_ROWS,
    "training.accumulate": "it saves memory and changes no result: set it under `fixed`",
    "training.compile": _NO_RESULT,
    "training.deterministic": _NO_RESULT,
    "training.keep_checkpoints": _NO_RESULT,
    "training.checkpoint_every": _NO_RESULT,
    "training.checkpoint_seconds": _NO_RESULT,
    "training.evaluate_every": "early stopping compares trials at equal epochs: set it under `fixed`",
}


def find_leaf(name: str, where: str) -> Leaf:
    """The key of RunSettings called `name`, or InputError with the nearest right one."""
    known = leaves(RunSettings)
    if name in known:
        return known[name]
    below = [key for key in known if key.startswith(f"{name}.")]
    if below:
        raise InputError(
            f"{where}: '{name}' is a group of keys",
            expected="one of " + ", ".join(below),
            remedy=f"name one of them in full, e.g. `{below[0]}: …`",
        )
    same_end = [key for key in known if key.split(".")[-1] == name.split(".")[-1]]
    near = nearest(name, known) or (same_end[0] if same_end else None)
    raise InputError(
        f"{where}: the run's settings have no key '{name}'",
        expected="a dotted key of the run's settings, such as distill.graph.weight",
        remedy=f"did you mean '{near}'?" if near else "`search_spaces/README.md` lists the keys",
    )


def describe(leaf: Leaf) -> str:
    """What the key takes, in words."""
    if leaf.choices:
        return "one of " + ", ".join(map(str, leaf.choices))
    kinds = " or ".join(_TYPES.get(kind, "a list") for kind in kinds_of(leaf))
    bounds = " and ".join(f"{_SIGNS[sign]} {bound:g}" for sign, bound in leaf.bounds.items() if sign in _SIGNS)
    return f"{kinds} {bounds}".strip()


def kinds_of(leaf: Leaf) -> tuple[Any, ...]:
    """The types that the key takes, one by one."""
    return get_args(leaf.type) if get_origin(leaf.type) in (Union, types.UnionType) else (leaf.type,)


def check_value(leaf: Leaf, value: Any, where: str) -> None:
    """InputError unless the key takes the value."""
    fits = value in leaf.choices if leaf.choices else any(_is_of(value, kind) for kind in kinds_of(leaf))
    if not fits:
        near = nearest(str(value), map(str, leaf.choices))
        raise InputError(
            f"{where}: the key does not take this value",
            got=f"{value!r} ({type(value).__name__})",
            expected=describe(leaf),
            remedy=f"did you mean '{near}'?" if near else "change or remove the value",
        )
    if isinstance(value, int | float):
        check_bounds(leaf, value, where)


def _is_of(value: Any, kind: Any) -> bool:
    if get_origin(kind) is tuple:
        return isinstance(value, list | tuple) and all(_is_of(item, get_args(kind)[0]) for item in value)
    if isinstance(value, bool):
        return kind is bool
    return isinstance(value, int | float) if kind is float else isinstance(value, kind)


def check_bounds(leaf: Leaf, value: float, where: str) -> None:
    """InputError where a number breaks the key's bounds."""
    broken = [sign for sign, bound in leaf.bounds.items() if sign in _SIGNS and _BROKEN[sign](value, bound)]
    if broken or abs(value) > LARGEST or math.isnan(value):
        raise InputError(
            f"{where}: outside the bounds of the key",
            got=f"{value:.15g}" if abs(value) <= LARGEST else "a number beyond ±2^53, or none",
            expected=describe(leaf),
            remedy="change the value" if not broken else f"use a value {_SIGNS[broken[0]]} {leaf.bounds[broken[0]]:g}",
        )


def check_range(leaf: Leaf, domain: Range, where: str) -> None:
    """InputError unless every number of the range is a value of the key."""
    if leaf.choices or not any(kind in (int, float) for kind in kinds_of(leaf)):
        raise InputError(
            f"{where}: a range of numbers for a key that takes none",
            expected=describe(leaf),
            remedy="list values: `{choice: [" + ", ".join(map(str, leaf.choices[:2] or ("…",))) + ", …]}`",
        )
    if float not in kinds_of(leaf) and not domain.whole:
        raise InputError(
            f"{where}: the key takes whole numbers",
            expected=describe(leaf),
            remedy="write `{int: [low, high]}`, with `log: true` for a log scale",
        )
    for value in (domain.low, domain.high):
        check_bounds(leaf, value, where)

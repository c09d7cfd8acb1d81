"""The `parameters` of a space: ranges, choices and conditional branches, checked key by key."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from moldistill.core.errors import InputError, nearest
from moldistill.search.leafcheck import LARGEST, NOT_SEARCHABLE, check_range, check_value, find_leaf
from moldistill.search.parameters import Choice, Option, Parameter, Range, walk

FORMS = ("uniform", "log_uniform", "int", "choice")
_EXAMPLE = "{uniform: [0, 1]}, {log_uniform: [0.01, 10]}, {int: [2, 8]} or {choice: [a, b]}"


def parse_parameters(raw: Mapping[str, Any], where: str) -> tuple[Parameter, ...]:
    """Parameters from their YAML, or InputError with the place of what is wrong."""
    if not raw:
        raise InputError(f"{where}: nothing is searched", expected=f"`key: {_EXAMPLE}`", remedy="add a parameter")
    parameters = _parse(raw, where)
    _refuse_twice(parameters, {}, where)
    return _labelled(parameters)


def _parse(raw: Mapping[str, Any], where: str) -> tuple[Parameter, ...]:
    parameters = []
    for name, form in raw.items():
        leaf = find_leaf(str(name), where)
        place = f"{where}.{name}"
        if name in NOT_SEARCHABLE:
            raise InputError(f"{place}: not a thing to search", remedy=NOT_SEARCHABLE[name])
        domain = _domain(form, place)
        if isinstance(domain, Range):
            check_range(leaf, domain, place)
        else:
            for option in domain.options:
                check_value(leaf, option.value, place)
        parameters.append(Parameter(str(name), domain, str(name)))
    return tuple(parameters)


def _domain(form: Any, place: str) -> Range | Choice:
    if not isinstance(form, Mapping):
        remedy = (
            "write `{choice: [...]}`" if isinstance(form, list) else "put a value that stays the same under `fixed`"
        )
        raise InputError(f"{place}: not a domain", got=repr(form), expected=_EXAMPLE, remedy=remedy)
    kinds = [key for key in form if key in FORMS]
    if len(kinds) != 1:
        strange = next((str(key) for key in form if key not in (*FORMS, "log", "step")), None)
        near = nearest(strange, FORMS) if strange else None
        raise InputError(
            f"{place}: not a domain",
            got=", ".join(map(str, form)) or "an empty mapping",
            expected=f"exactly one of {', '.join(FORMS)}: {_EXAMPLE}",
            remedy=f"did you mean '{near}'?" if near else "keep one of them",
        )
    kind = kinds[0]
    allowed = {"uniform": ("step",), "int": ("step", "log")}.get(kind, ())
    for key in form:
        if key != kind and key not in allowed:
            raise InputError(
                f"{place}: '{key}' does not go with {kind}",
                expected=f"{kind} with " + (" or ".join(allowed) or "nothing else"),
                remedy="write `{int: [low, high], log: true}` for whole numbers on a log scale"
                if kind == "int"
                else "remove it",
            )
    return _choice(form[kind], place) if kind == "choice" else _range(kind, form, place)


def _range(kind: str, form: Mapping[str, Any], place: str) -> Range:
    ends = form[kind]
    number = int if kind == "int" else int | float
    if not (
        isinstance(ends, list)
        and len(ends) == 2
        and all(isinstance(end, number) and not isinstance(end, bool) for end in ends)
    ):
        kinds = "two whole numbers" if kind == "int" else "two numbers"
        raise InputError(f"{place}: {kind} takes {kinds}", got=repr(ends), expected="[low, high]", remedy="write both")
    low, high = ends
    if not low < high:
        remedy = "put it under `fixed`" if low == high else f"write [{high}, {low}]"
        raise InputError(f"{place}: the range is empty", got=f"[{low}, {high}]", expected="low < high", remedy=remedy)
    log = kind == "log_uniform" or form.get("log", False)
    if not isinstance(log, bool):
        raise InputError(f"{place}: log", got=repr(log), expected="true or false", remedy="write `log: true`")
    if log and low <= 0:
        raise InputError(
            f"{place}: a log scale has no {low:g}",
            got=f"[{low}, {high}]",
            expected="low > 0",
            remedy="raise the lower end, or use uniform; `{choice: [0, …]}` with a branch can switch a term off",
        )
    return Range(low, high, whole=kind == "int", log=log, step=_step(form, low, high, log, place))


def _step(form: Mapping[str, Any], low: float, high: float, log: bool, place: str) -> float | None:
    step = form.get("step")
    if step is None:
        return None
    kinds = int if "int" in form else int | float
    if not isinstance(step, kinds) or isinstance(step, bool) or not 0 < step <= LARGEST:
        raise InputError(f"{place}: step", got=repr(step), expected="a positive number", remedy="change the step")
    if log:
        raise InputError(f"{place}: a log scale takes no step", remedy="remove `step` or `log`")
    if not (abs(low) <= LARGEST and abs(high) <= LARGEST):
        return float(step)  # the ends are refused where they are held against the key's bounds
    count = (high - low) / step
    if not math.isfinite(count) or abs(count - round(count)) > 1e-9:
        raise InputError(
            f"{place}: the steps do not end at the upper end",
            got=f"{count:.3f} steps of {step} from {low} to {high}",
            expected="a whole number of steps",
            remedy=f"write [{low}, {low + step * int(count)}]" if math.isfinite(count) else "take larger steps",
        )
    return float(step)


def _choice(raw: Any, place: str) -> Choice:
    if not isinstance(raw, list) or len(raw) < 2:
        remedy = "put a single value under `fixed`" if isinstance(raw, list) and raw else "list the values: [a, b]"
        raise InputError(f"{place}: choice", got=repr(raw), expected="a list of two values or more", remedy=remedy)
    options = tuple(_option(item, f"{place}[{index}]") for index, item in enumerate(raw))
    labels = [option.label for option in options]
    for index, label in enumerate(labels):
        if any(label == other and type(label) is type(other) for other in labels[:index]):
            raise InputError(
                f"{place}[{index}]: the value stands twice", got=repr(label), remedy="remove one of the two"
            )
    return Choice(options)


def _option(item: Any, place: str) -> Option:
    if not isinstance(item, Mapping):
        return Option(tuple(item) if isinstance(item, list) else item)
    if len(item) != 1:
        raise InputError(
            f"{place}: a branch has one value, with its parameters below it",
            got=", ".join(map(str, item)) or "an empty mapping",
            expected="`value: {key: domain, …}`",
            remedy="give each value its own entry of the list",
        )
    (value, below), *_ = item.items()
    if not isinstance(below, Mapping) or not below:
        raise InputError(
            f"{place}: the branch '{value}' holds no parameters",
            got=repr(below),
            expected="`value: {key: domain, …}`",
            remedy=f"write `{value}` alone, or add parameters",
        )
    return Option(value, _parse(below, f"{place}.{value}"))


def _refuse_twice(parameters: tuple[Parameter, ...], outer: Mapping[str, str], where: str) -> None:
    """InputError where one configuration would hold the same key twice; branches that exclude each other may share."""
    level = dict(outer)
    for parameter in parameters:
        if parameter.name in level:
            raise InputError(
                f"{where}.{parameter.name}: the key is searched twice",
                got=f"also at {level[parameter.name]}",
                expected="one place per configuration: a value set outside a branch is dead inside it",
                remedy="remove one of the two",
            )
        level[parameter.name] = f"{where}.{parameter.name}"
    for parameter in parameters:
        if not isinstance(parameter.domain, Choice):
            continue
        added: dict[str, str] = {}
        for index, option in enumerate(parameter.domain.options):
            place = f"{where}.{parameter.name}[{index}].{option.label}"
            _refuse_twice(option.parameters, level, place)
            added |= {inner.name: f"{place}.{inner.name}" for inner in walk(option.parameters)}
        level |= added


def _labelled(parameters: tuple[Parameter, ...]) -> tuple[Parameter, ...]:
    """The same with Optuna's names: a key that branches search differently has one name per branch.

    Optuna's storages refuse one name with several sets of choices, and its samplers would mix their ranges.
    """
    domains: dict[str, set[Range | Choice]] = {}
    for parameter in walk(parameters):
        domains.setdefault(parameter.name, set()).add(parameter.domain)
    several = {name for name, found in domains.items() if len(found) > 1}

    def relabel(items: tuple[Parameter, ...], branch: str) -> tuple[Parameter, ...]:
        result = []
        for item in items:
            label = f"{item.name}@{branch}" if branch and item.name in several else item.name
            domain = item.domain
            if isinstance(domain, Choice):
                options = (
                    replace(option, parameters=relabel(option.parameters, f"{label}={option.label}"))
                    for option in domain.options
                )
                domain = Choice(tuple(options))
            result.append(Parameter(item.name, domain, label))
        return tuple(result)

    return relabel(parameters, "")

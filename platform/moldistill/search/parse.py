"""YAML to `Space`: strict in names, types, bounds and form, with the place and the remedy in every message."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from functools import reduce
from importlib import resources
from pathlib import Path
from typing import Any, TypeVar

from moldistill.core.config import apply_overrides, build, leaves, load_run, read_yaml, to_mapping
from moldistill.core.errors import InputError, nearest
from moldistill.core.settings import RunSettings
from moldistill.core.yaml_file import parse_yaml
from moldistill.search.combinations import refuse_schedulers
from moldistill.search.constraints import parse_constraint
from moldistill.search.domains import parse_parameters
from moldistill.search.grid import points
from moldistill.search.leafcheck import check_value, find_leaf
from moldistill.search.objectives import parse_objectives
from moldistill.search.space import Space, SpaceSettings, absolute, walk
from moldistill.search.starting import check_starting_points

Source = str | Path | Mapping[str, Any]
T = TypeVar("T")

DEEPEST = 300
"""Levels of a space's YAML: enough for a branch below every key that there is."""


def space_names() -> list[str]:
    """Names of the search spaces that come with the package."""
    return shipped_names("search_spaces")


def shipped_names(folder: str) -> list[str]:
    """Names of the YAML files in a folder of the package."""
    entries = (resources.files("moldistill") / folder).iterdir()
    return sorted(entry.name.removesuffix(".yaml") for entry in entries if entry.name.endswith(".yaml"))


def shipped_file(source: str | Path, folder: str, what: str) -> Path:
    """The YAML file called `source`: one of that folder of the package, by its name, or a file; `what` it holds.

    InputError where there is neither.
    """
    names = shipped_names(folder)
    if str(source) in names:
        return Path(str(resources.files("moldistill") / folder / f"{source}.yaml"))
    path = Path(source)
    if not path.exists():
        near = nearest(str(source), names)
        raise InputError(
            f"'{source}' is neither {what} of the package nor a file",
            expected="a YAML file, or one of " + ", ".join(names),
            remedy=f"did you mean '{near}'?" if near else "check the path",
        )
    return path


def load_space(source: Source, overrides: Sequence[str] = (), *, targets: str | Sequence[str] = ()) -> Space:
    """A space from the name of a shipped one, a YAML file, or a mapping.

    A mapping may name another space under `space` and replace keys of it. overrides: `key=value` with a key of the
    space (`budget.trials=4`, `fixed.training.epochs=3`) or of the run's settings (`training.epochs=3`, which fixes it).
    targets: folders of teachers' outputs for distilled students. InputError for anything that is wrong.
    """
    raw, where, folder = _read(source)
    raw = _overridden(raw, overrides)
    _refuse_endless(raw, where)
    refuse_schedulers(raw, where)
    _check_items(raw, where)
    settings = build(SpaceSettings, raw, where)
    _refuse_infinite(settings, where)
    base = run_base(settings.base, folder, f"{where}: base: ")
    fixed = _fixed(settings.fixed, where) | ({"targets": absolute(targets)} if targets else {})
    objectives = parse_objectives(settings.objective, base["role"], where)
    parameters = parse_parameters(settings.parameters, f"{where}: parameters")
    names = {item.name for item in walk(parameters)}
    both = [name for name in fixed if name in names]
    if both:
        raise InputError(
            f"{where}: parameters.{both[0]}: the key is searched and fixed",
            got=f"fixed to {fixed[both[0]]!r}",
            expected="one of the two",
            remedy="remove it from `fixed` or from `parameters`",
        )
    _check_constraints(settings.constraints, names, where)
    told = [to_mapping(objective) for objective in objectives]
    resolved = to_mapping(settings) | {"base": base, "fixed": fixed, "objective": told if len(told) > 1 else told[0]}
    space = Space(
        where=where,
        base=base,
        fixed=fixed,
        parameters=parameters,
        objectives=objectives,
        options=settings,
        mapping=resolved,
        constraints=settings.constraints,
        starting_points=settings.starting_points,
    )
    check_starting_points(space)
    return replace(space, grid_size=len(points(space))) if settings.sampler.name == "grid" else space


def _check_items(raw: Mapping[str, Any], where: str) -> None:
    """InputError for an entry of a list that is not what the list holds, with its place."""
    lists: tuple[tuple[str, type, str], ...] = (
        ("constraints", str, "text, such as 'model.width % model.heads == 0'"),
        ("starting_points", Mapping, "a mapping of searched keys to values"),
        ("objective", Mapping, "a mapping, such as {metric: valid_mae}"),
    )
    for key, kind, expected in lists:
        items = raw.get(key)
        for index, item in enumerate(items if isinstance(items, list | tuple) else ()):
            if not isinstance(item, kind):
                raise InputError(
                    f"{where}: {key}[{index}]: not what this list holds",
                    got=f"{item!r} ({type(item).__name__})",
                    expected=expected,
                    remedy="change it" if key != "constraints" else "write the condition as text, in quotes",
                )


def _refuse_infinite(settings: SpaceSettings, where: str) -> None:
    for key in leaves(SpaceSettings):
        value = reduce(getattr, key.split("."), settings)
        if isinstance(value, float) and not math.isfinite(value):
            raise InputError(
                f"{where}: {key}: not a finite number",
                got=value,
                expected="a number",
                remedy="leave the key out where there is no limit",
            )


def _check_constraints(constraints: Sequence[str], searched: set[str], where: str) -> None:
    for index, text in enumerate(constraints):
        place = f"{where}: constraints[{index}]"
        constraint = parse_constraint(text, place)
        if not searched.intersection(constraint.keys):
            raise InputError(
                f"{place}: it names no parameter that is searched",
                got=text,
                expected="a condition that some configurations keep and others do not",
                remedy="remove it, or search one of its keys",
            )


def _read(source: Source) -> tuple[dict[str, Any], str, Path]:
    """Raw mapping, name in messages, and the folder that relative file names start from."""
    if isinstance(source, Mapping):
        changes = dict(source)
        name = changes.pop("space", None)
        if name is None:
            return changes, "search space", Path()
        raw, where, folder = _read(str(name))
        for key, value in changes.items():
            old = raw.get(key)
            both = isinstance(old, Mapping) and isinstance(value, Mapping)
            raw[key] = {**old, **value} if both else value  # type: ignore[dict-item]  # mypy forgets `both`
        return raw, where, folder
    path = shipped_file(source, "search_spaces", "a search space")
    return read_yaml(path), str(path), path.parent


def _refuse_endless(raw: Any, where: str) -> None:
    """InputError for what holds itself (by an alias of YAML), or is nested more deeply than any space."""
    pending, seen = [(raw, 0)], dict[int, int]()
    while pending:
        value, depth = pending.pop()
        if not isinstance(value, Mapping | list | tuple) or seen.get(id(value), -1) >= depth:
            continue
        if depth > DEEPEST:
            raise InputError(
                f"{where}: nested without an end",
                expected=f"at most {DEEPEST} levels",
                remedy="an alias (*name) must not stand inside what it names",
            )
        seen[id(value)] = depth
        pending += [(item, depth + 1) for item in (value.values() if isinstance(value, Mapping) else value)]


def _overridden(raw: dict[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    known = leaves(RunSettings)
    sections = {item.name for item in fields(SpaceSettings)}
    for override in overrides:
        key, sign, text = override.partition("=")
        key = key.strip()
        section, _, rest = key.partition(".")
        if sign and key in known:
            section, rest = "fixed", key
        if sign and rest and section in ("fixed", "parameters"):
            place = f"override '{override}'"
            value = parse_yaml(text, place)
            old = raw.get(section) or {}
            raw = raw | {section: {**old, rest: value} if isinstance(old, Mapping) else old}  # else refused below
            continue
        if sign and section not in sections:
            near = nearest(key, [*known, *sections])
            raise InputError(
                f"override '{override}': neither the space nor the run has the key '{key}'",
                expected="a key of the space, such as budget.trials, or of the run, such as training.epochs",
                remedy=f"did you mean '{near}'?" if near else "check the key",
            )
        raw = apply_overrides(raw, [override])
    return raw


def run_base(base: str | Mapping[str, Any], folder: Path, place: str = "") -> dict[str, Any]:
    """The whole settings of a run as a mapping: of a preset, a YAML file (beside `folder`, or by path) or a mapping.

    place: what stands before the message of an error.
    """
    source = base
    try:
        if isinstance(base, str) and (folder / base).is_file():
            source = str(folder / base)
        return to_mapping(load_run(source))
    except InputError as error:
        raise InputError(
            place + error.what, got=error.got, expected=error.expected, remedy=error.remedy or "change the base"
        ) from None
    except (OSError, ValueError) as error:  # a name that no file can have
        raise InputError(
            f"{place}it cannot be read", got=error, expected="a run preset, or a run's YAML", remedy="check the name"
        ) from error


def _fixed(raw: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Fixed values by dotted key, whether they were written dotted or nested."""
    flat: dict[str, Any] = {}
    stack: list[tuple[str, Any]] = [(str(key), value) for key, value in raw.items()]
    while stack:
        key, value = stack.pop(0)
        if isinstance(value, Mapping) and key not in leaves(RunSettings):
            stack = [(f"{key}.{part}", inner) for part, inner in value.items()] + stack
            continue
        check_value(find_leaf(key, f"{where}: fixed"), value, f"{where}: fixed.{key}")
        if key == "role":
            raise InputError(f"{where}: fixed.role", remedy="name a `base` of that role instead")
        if key == "training.workers":
            raise InputError(
                f"{where}: fixed.training.workers: resources say how many workers train a trial",
                got=value,
                expected=f"`resources: {{workers: {value}}}`",
                remedy="remove it here, and write that",
            )
        flat[key] = value
    return flat

"""YAML to `Space`: strict in names, types, bounds and form, with the place and the remedy in every message."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from importlib import resources
from pathlib import Path
from typing import Any

from moldistill.core.config import apply_overrides, build, leaves, load_run, read_yaml, to_mapping
from moldistill.core.errors import InputError, nearest
from moldistill.core.settings import RunSettings
from moldistill.core.yaml_file import parse_yaml
from moldistill.search.domains import parse_parameters
from moldistill.search.leafcheck import check_value, find_leaf
from moldistill.search.space import METRICS, ObjectiveSettings, Space, SpaceSettings, absolute, walk

Source = str | Path | Mapping[str, Any]


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
    settings = build(SpaceSettings, raw, where)
    base = run_base(settings.base, folder)
    fixed = _fixed(settings.fixed, where) | ({"targets": absolute(targets)} if targets else {})
    objective = _objective(settings.objective, base["role"], where)
    parameters = parse_parameters(settings.parameters, f"{where}: parameters")
    both = [item.name for item in walk(parameters) if item.name in fixed]
    if both:
        raise InputError(
            f"{where}: parameters.{both[0]}: the key is searched and fixed",
            got=f"fixed to {fixed[both[0]]!r}",
            expected="one of the two",
            remedy="remove it from `fixed` or from `parameters`",
        )
    resolved = to_mapping(settings) | {"base": base, "fixed": fixed, "objective": to_mapping(objective)}
    return Space(
        where=where,
        base=base,
        fixed=fixed,
        parameters=parameters,
        metric=str(objective.metric),
        direction=objective.direction,
        sampler=settings.sampler,
        scheduler=settings.scheduler,
        budget=settings.budget,
        resources=settings.resources,
        storage=settings.storage,
        mapping=resolved,
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
            raw = raw | {section: {**(raw.get(section) or {}), rest: parse_yaml(text, f"override '{override}'")}}
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


def run_base(base: str | Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """The whole settings of a run as a mapping: of a preset, a YAML file (beside `folder`, or by path) or a mapping."""
    source = base
    if isinstance(base, str) and (folder / base).is_file():
        source = str(folder / base)
    return to_mapping(load_run(source))


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
        if key == "training.workers" and value != 1:
            raise InputError(
                f"{where}: fixed.training.workers is {value}",
                expected="1: a trial of a search runs in one process",
                remedy="remove it, and raise `resources: {concurrent: …}` instead",
            )
        flat[key] = value
    return flat


def _objective(objective: ObjectiveSettings, role: str, where: str) -> ObjectiveSettings:
    metric = objective.metric or ("valid_3d_mae" if role == "teacher" else "valid_mae")
    place = f"{where}: objective.metric"
    allowed = METRICS[1:] if role == "teacher" else METRICS
    if "test" in metric:
        raise InputError(
            f"{place}: a search never goes by test rows",
            got=metric,
            expected=" or ".join(allowed),
            remedy=f"write `metric: {allowed[0]}`",
        )
    if metric not in allowed:
        why = " (validation rows have no geometry for a teacher to see)" if metric in METRICS else ""
        raise InputError(
            f"{place}: a {role}'s search cannot go by this{why}",
            got=metric,
            expected=" or ".join(allowed),
            remedy=f"write `metric: {nearest(metric, allowed) or allowed[0]}`",
        )
    if objective.direction != "minimize":
        raise InputError(
            f"{where}: objective.direction: {metric} is an error, which nobody wants large",
            got=objective.direction,
            expected="minimize",
            remedy="write `direction: minimize`",
        )
    return ObjectiveSettings(metric, objective.direction)

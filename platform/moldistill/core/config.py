"""From YAML to settings: strict schemas built from the settings' own classes, presets, and `key=value` overrides."""

from __future__ import annotations

import types
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, Field, asdict, dataclass, fields, is_dataclass
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, Union, cast, get_args, get_origin, get_type_hints

import pydantic
from pydantic import BaseModel, BeforeValidator, ConfigDict, ValidationError, create_model

from moldistill.core.errors import InputError, nearest
from moldistill.core.settings import PipelineSettings, RunSettings
from moldistill.core.yaml_file import dump_yaml, parse_yaml, read_yaml

__all__ = [
    "Leaf",
    "apply_overrides",
    "build",
    "dump_yaml",
    "leaves",
    "load_pipeline",
    "load_run",
    "merge",
    "preset_names",
    "read_yaml",
    "to_mapping",
]

S = TypeVar("S")


@dataclass(frozen=True, slots=True)
class Leaf:
    """One key of a settings class: its type, bounds (gt, ge, lt, le), choices if it is a Literal, and default."""

    type: Any
    bounds: Mapping[str, float]
    choices: tuple[Any, ...]
    default: Any


def _default(item: Field[Any]) -> Any:
    return item.default_factory() if item.default_factory is not MISSING else item.default


def leaves(cls: type, prefix: str = "") -> dict[str, Leaf]:
    """Every key of a settings class that holds a value, by its dotted name."""
    found: dict[str, Leaf] = {}
    hints = get_type_hints(cls)
    for item in fields(cls):
        kind = hints[item.name]
        if is_dataclass(kind):
            assert isinstance(kind, type)
            found |= leaves(kind, f"{prefix}{item.name}.")
        else:
            choices = get_args(kind) if get_origin(kind) is Literal else ()
            found[prefix + item.name] = Leaf(kind, dict(item.metadata), choices, _default(item))
    return found


@cache
def _schema(cls: type) -> type[BaseModel]:
    """A strict pydantic model with the fields, types and bounds of a settings dataclass."""
    hints = get_type_hints(cls)
    members: dict[str, Any] = {}
    for item in fields(cls):
        kind = hints[item.name]
        required = item.default is MISSING and item.default_factory is MISSING
        default: Any = ... if required else _default(item)
        if is_dataclass(kind):
            assert isinstance(kind, type)
            nested = _schema(kind)
            members[item.name] = (nested, ... if required else pydantic.Field(default_factory=nested))
            continue
        bounds = {name: value for name, value in item.metadata.items() if name in ("gt", "ge", "lt", "le")}
        annotated = Annotated[kind, pydantic.Field(**bounds)] if bounds else kind
        members[item.name] = (
            Annotated[annotated, BeforeValidator(_as_tuple)] if _holds_tuple(kind) else annotated,
            default,
        )
    model: type[BaseModel] = create_model(cls.__name__, __config__=ConfigDict(extra="forbid", strict=True), **members)
    return model


def _as_tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _holds_tuple(kind: Any) -> bool:
    """Whether the type takes a tuple, which YAML writes as a list."""
    if get_origin(kind) in (Union, types.UnionType):
        return any(_holds_tuple(part) for part in get_args(kind))
    return get_origin(kind) is tuple


def build(cls: type[S], mapping: Mapping[str, Any], where: str) -> S:
    """Settings of class `cls` from a raw mapping; `where` names its source in messages.

    Raises InputError for an unknown key (with the nearest right one), a wrong type, a value out of bounds, or settings
    that contradict each other.
    """
    try:
        validated = _schema(cast(type, cls)).model_validate(dict(mapping))
    except ValidationError as error:
        raise _explained(cls, error, where) from None
    return _instantiate(cls, validated, where)


def _instantiate(cls: type[S], validated: BaseModel, where: str, path: str = "") -> S:
    hints = get_type_hints(cls)
    values = {}
    for name in (item.name for item in fields(cls)):  # type: ignore[arg-type]  # S is a dataclass
        value = getattr(validated, name)
        values[name] = (
            _instantiate(hints[name], value, where, f"{path}{name}.") if isinstance(value, BaseModel) else value
        )
    try:
        return cls(**values)
    except ValueError as error:
        place = f"{where}: {path.rstrip('.')}" if path else where
        raise InputError(f"{place}: {error}", remedy="change one of the values") from None


def _explained(cls: type, error: ValidationError, where: str) -> InputError:
    """The first problem of a validation, in the user's words."""
    first = error.errors()[0]
    location = [str(part) for part in first["loc"]]
    if first["type"] == "extra_forbidden":
        return _unknown_key(cls, location, where)
    known = leaves(cls)
    while location and ".".join(location) not in known and len(location) > 1:
        location.pop()  # members of a union are named behind the key
    key = ".".join(location)
    expected = _expectation(known[key]) if key in known else "a mapping of further keys"
    if first["type"] == "missing":
        return InputError(f"{where}: the key '{key}' is missing", expected=expected, remedy=f"add `{key}: …`")
    got = first["input"]
    return InputError(
        f"{where}: {key}: {first['msg'].lower()}",
        got=f"{got!r} ({type(got).__name__})",
        expected=expected,
        remedy=f"change {key}",
    )


def _unknown_key(cls: type, location: list[str], where: str) -> InputError:
    *parents, name = location
    prefix = "".join(f"{part}." for part in parents)
    known = sorted({key.removeprefix(prefix).split(".")[0] for key in leaves(cls) if key.startswith(prefix)})
    everywhere = leaves(cls)
    near = nearest(name, known)
    if near is None:
        elsewhere = next((key for key in everywhere if key.split(".")[-1] == name), None)
        remedy = f"did you mean '{elsewhere}'?" if elsewhere else "remove it, or use one of the known keys"
    else:
        remedy = f"did you mean '{prefix}{near}'?"
    return InputError(f"{where}: unknown key '{prefix}{name}'", expected=", ".join(known), remedy=remedy)


def _expectation(leaf: Leaf) -> str:
    if leaf.choices:
        return "one of " + ", ".join(map(str, leaf.choices))
    names = {int: "a whole number", float: "a number", str: "text", bool: "true or false"}
    parts = get_args(leaf.type) if get_origin(leaf.type) in (Union, types.UnionType) else (leaf.type,)
    text = " or ".join(names.get(part, "null" if part is type(None) else "a list or mapping") for part in parts)
    signs = {"gt": ">", "ge": "≥", "lt": "<", "le": "≤"}
    bounds = " and ".join(f"{signs[name]} {value:g}" for name, value in leaf.bounds.items() if name in signs)
    return f"{text} {bounds}".strip()


def merge(base: Mapping[str, Any], change: Mapping[str, Any]) -> dict[str, Any]:
    """`base` with the values of `change`; mappings are merged, everything else is replaced."""
    merged = dict(base)
    for key, value in change.items():
        old = merged.get(key)
        merged[key] = merge(old, value) if isinstance(old, Mapping) and isinstance(value, Mapping) else value
    return merged


def apply_overrides(mapping: Mapping[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """A copy of `mapping` with each `dotted.key=value` set; values are YAML."""
    result = dict(mapping)
    for override in overrides:
        key, sign, text = override.partition("=")
        if not sign or not key.strip():
            raise InputError(
                f"override '{override}'", expected="key=value, e.g. training.epochs=10", remedy="write key=value"
            )
        value = parse_yaml(text, f"override '{override}'")
        for part in reversed(key.strip().split(".")):
            value = {part: value}
        result = merge(result, value)
    return result


def preset_names() -> list[str]:
    """Names of the run presets that come with the package."""
    folder = resources.files("moldistill") / "presets"
    return sorted(entry.name.removesuffix(".yaml") for entry in folder.iterdir() if entry.name.endswith(".yaml"))


def _run_mapping(source: str | Path | Mapping[str, Any], seen: tuple[str, ...] = ()) -> dict[str, Any]:
    """Raw run settings with their `base` merged in."""
    folder = Path()
    if isinstance(source, Mapping):
        mapping = dict(source)
    else:
        path = _run_file(str(source))
        folder = path.parent
        if str(path) in seen:
            raise InputError(f"{path} is its own base", got=" → ".join([*seen, str(path)]), remedy="remove one `base`")
        seen = (*seen, str(path))
        mapping = read_yaml(path)
    base = mapping.pop("base", None)
    if base is None:
        return mapping
    if not isinstance(base, str):
        raise InputError("`base` must name a preset or a file", got=repr(base), expected=", ".join(preset_names()))
    beside = folder / base
    return merge(_run_mapping(beside if beside.is_file() else base, seen), mapping)


def _run_file(source: str) -> Path:
    if source in preset_names():
        return Path(str(resources.files("moldistill") / "presets" / f"{source}.yaml"))
    path = Path(source)
    if path.is_file():
        return path
    near = nearest(source, preset_names())
    raise InputError(
        f"'{source}' is neither a preset nor a file",
        expected="a YAML file, or one of " + ", ".join(preset_names()),
        remedy=f"did you mean '{near}'?" if near else "check the path",
    )


def load_run(source: str | Path | Mapping[str, Any], overrides: Sequence[str] = ()) -> RunSettings:
    """Settings of a run from a preset's name, a YAML file or a raw mapping, `base` merged in, then the overrides."""
    where = "run settings" if isinstance(source, Mapping) else str(source)
    return build(RunSettings, apply_overrides(_run_mapping(source), overrides), where)


def load_pipeline(source: str | Path, overrides: Sequence[str] = ()) -> PipelineSettings:
    """Settings of a pipeline from a YAML file or the name of a shipped one; both runs are checked, too."""
    shipped = resources.files("moldistill") / "pipelines" / f"{source}.yaml"
    path = Path(str(shipped)) if shipped.is_file() and not Path(source).is_file() else Path(source)
    mapping = apply_overrides(read_yaml(path), overrides)
    settings = build(PipelineSettings, mapping, str(source))
    for role in ("teacher", "student"):
        run = load_run(getattr(settings, role))
        if run.role != role:
            raise InputError(
                f"{source}: {role}: the run's role is '{run.role}'", expected=role, remedy=f"name a {role} preset"
            )
    return settings


def to_mapping(settings: Any) -> dict[str, Any]:
    """JSON values of settings, as `build` reads them."""
    return {key: _plain(value) for key, value in asdict(settings).items()}


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, tuple | list) else value

"""JSON Schemas (draft 2020-12) of the YAML files, for editors: made from the settings' own classes and bounds.

An editor completes keys, marks what is misspelt or out of bounds, and shows defaults. What only the whole can tell
(dead parameters, contradictions, constraints) is for `explain`.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import MISSING, fields, is_dataclass
from typing import Annotated, Any, get_type_hints

from pydantic import Field, TypeAdapter

from moldistill.core.config import Leaf, leaves, preset_names
from moldistill.core.errors import InputError, nearest
from moldistill.core.settings import PipelineSettings, RunSettings
from moldistill.search.ablation import ARM_NAME, AblationSettings
from moldistill.search.leafcheck import NOT_SEARCHABLE, kinds_of
from moldistill.search.space_settings import COSTS, METRICS, ObjectiveSettings, SpaceSettings

DRAFT = "https://json-schema.org/draft/2020-12/schema"
Schema = dict[str, Any]

_BOUNDS = {"gt": "exclusiveMinimum", "ge": "minimum", "lt": "exclusiveMaximum", "le": "maximum"}


def schema(kind: str) -> Schema:
    """The schema of a `space`, `run`, `pipeline` or `ablation` file. InputError for anything else."""
    if kind not in KINDS:
        near = nearest(kind, KINDS)
        raise InputError(
            f"there is no schema of '{kind}'",
            expected=", ".join(KINDS),
            remedy=f"did you mean '{near}'?" if near else "choose one of these",
        )
    return {"$schema": DRAFT, "title": f"moldistill {kind}", **KINDS[kind]()}


def schema_text(kind: str) -> str:
    """The same as the text of a file."""
    return json.dumps(schema(kind), indent=1, ensure_ascii=False) + "\n"


def value_schema(leaf: Leaf) -> Schema:
    """What a key takes: its type, bounds, choices and default."""
    bounds: Any = {name: value for name, value in leaf.bounds.items() if name in _BOUNDS}
    kind: Any = Annotated[leaf.type, Field(**bounds)] if bounds else leaf.type
    found: Schema = TypeAdapter(kind).json_schema()
    if leaf.default is not MISSING and not isinstance(leaf.default, Mapping):
        found["default"] = list(leaf.default) if isinstance(leaf.default, tuple) else leaf.default
    return found


def object_schema(cls: type, change: Mapping[str, Schema] | None = None, *, without: Iterable[str] = ()) -> Schema:
    """A mapping with the keys of a settings class, group by group; `change` replaces or adds properties."""
    hints = get_type_hints(cls)
    values = leaves(cls)
    properties: Schema = {}
    for item in fields(cls):
        kind = hints[item.name]
        group = is_dataclass(kind) and isinstance(kind, type)
        properties[item.name] = object_schema(kind) if group else value_schema(values[item.name])
    properties |= change or {}
    needed = [item.name for item in fields(cls) if item.default is MISSING and item.default_factory is MISSING]
    return {
        "type": "object",
        "description": inspect.cleandoc(cls.__doc__ or ""),
        "properties": {name: found for name, found in properties.items() if name not in without},
        "additionalProperties": False,
        **({"required": needed} if needed else {}),
    }


def _base(run: Schema) -> Schema:
    return {"description": "A run preset, a run's YAML, or a run.", "anyOf": [{"enum": preset_names()}, _TEXT, run]}


_TEXT: Schema = {"type": "string", "minLength": 1}


def _ref(name: str) -> Schema:
    return {"$ref": f"#/$defs/{name}"}


def run_schema() -> Schema:
    """A run's YAML: its settings, and the `base` that they start from."""
    base = {"description": "A run preset, or a run's YAML.", "anyOf": [{"enum": preset_names()}, _TEXT]}
    return object_schema(RunSettings, {"base": base})


def _dotted(without: Iterable[str] = ()) -> Schema:
    """Keys of the run, dotted, each with what it takes."""
    return {key: _ref(key) for key in leaves(RunSettings) if key not in without}


def _values() -> Schema:
    return {key: value_schema(leaf) for key, leaf in leaves(RunSettings).items()}


def _definitions() -> Schema:
    """What schemas of spaces share: a run, the value of each of its keys, and `parameters`, which hold themselves."""
    known = leaves(RunSettings)
    searched = {key: _domain(key, leaf) for key, leaf in known.items() if key not in NOT_SEARCHABLE}
    parameters: Schema = {
        "type": "object",
        "description": "What is searched, by dotted key of the run.",
        "properties": searched,
        "additionalProperties": False,
        "minProperties": 1,
    }
    return {"run": run_schema(), "parameters": parameters, **_values()}


def _domain(key: str, leaf: Leaf) -> Schema:
    """The forms that a key takes: ranges within its bounds, and choices with branches."""
    kinds = () if leaf.choices else kinds_of(leaf)
    bounds = {_BOUNDS[name]: value for name, value in leaf.bounds.items() if name in _BOUNDS}
    positive = bounds if leaf.bounds.get("gt", -1) >= 0 else {**bounds, "exclusiveMinimum": 0}
    forms = []
    if float in kinds:
        step = {"step": {"type": "number", "exclusiveMinimum": 0}}
        forms += [_range("uniform", "number", bounds, step), _range("log_uniform", "number", positive, {})]
    if float in kinds or int in kinds:
        more: Schema = {"step": {"type": "integer", "minimum": 1}, "log": {"type": "boolean"}}
        whole = _range("int", "integer", bounds, more)
        both = {"properties": {"log": {"const": True}}, "required": ["log", "step"]}
        forms.append({**whole, "not": both})
    items = {"anyOf": [_ref(key), _branch(leaf)]}
    choice = {"type": "array", "items": items, "minItems": 2, "uniqueItems": True}
    forms.append(_form("choice", choice, {}))
    return {"anyOf": forms}


def _form(name: str, value: Schema, more: Schema) -> Schema:
    properties = {name: value, **more}
    return {"type": "object", "properties": properties, "required": [name], "additionalProperties": False}


def _range(name: str, kind: str, bounds: Mapping[str, float], more: Schema) -> Schema:
    ends = {"type": "array", "items": {"type": kind, **bounds}, "minItems": 2, "maxItems": 2}
    return _form(name, ends, more)


def _branch(leaf: Leaf) -> Schema:
    """One value, with the parameters below it."""
    found: Schema = {"type": "object", "minProperties": 1, "maxProperties": 1}
    if leaf.choices:
        named = {str(choice): _ref("parameters") for choice in leaf.choices}
        return {**found, "properties": named, "additionalProperties": False}
    kinds = kinds_of(leaf)
    if str not in kinds:  # keys of JSON are text, which editors make of the numbers that YAML has
        words = [
            *(["true", "false"] if bool in kinds else [r"[-+.0-9eE]+"]),
            *(["null"] if type(None) in kinds else []),
        ]
        found["propertyNames"] = {"pattern": f"^({'|'.join(words)})$"}
    return {**found, "additionalProperties": _ref("parameters")}


def _objective() -> Schema:
    def one(*metrics: str) -> Schema:
        change: Schema = {"metric": {"enum": [*metrics, None]}, "direction": {"const": "minimize"}}
        return object_schema(ObjectiveSettings, change)

    first, further = one(*METRICS), one(*METRICS, *COSTS)
    several = {"type": "array", "prefixItems": [first], "items": further, "minItems": 1}
    return {"anyOf": [first, several]}


def _space_properties() -> Schema:
    nested = object_schema(RunSettings, without=["role"])["properties"]
    fixed = {**_dotted(without=["role", "training.workers"]), **nested}
    point = _dotted(without=NOT_SEARCHABLE)
    conditions = {"type": "array", "items": {**_TEXT, "examples": ["model.width % model.heads == 0"]}}
    points = {"type": "object", "properties": point, "additionalProperties": False, "minProperties": 1}
    return {
        "base": _base(_ref("run")),
        "parameters": _ref("parameters"),
        "fixed": {"type": "object", "properties": fixed, "additionalProperties": False},
        "constraints": conditions,
        "starting_points": {"type": "array", "items": points},
        "objective": _objective(),
        "storage": {"anyOf": [{"const": "journal"}, {"type": "string", "pattern": "://"}], "default": "journal"},
    }


def space_schema() -> Schema:
    """A search space: the forms of every key that can be searched, to any depth of branches."""
    return {**object_schema(SpaceSettings, _space_properties()), "$defs": _definitions()}


def pipeline_schema() -> Schema:
    """A pipeline: its runs, and a space that may change another one by name."""
    space = object_schema(SpaceSettings, {**_space_properties(), "space": _TEXT})
    space["anyOf"] = [{"required": ["space"]}, {"required": space.pop("required")}]
    change = {"teacher": _ref("run"), "student": _ref("run"), "search": space}
    return {**object_schema(PipelineSettings, change), "$defs": _definitions()}


def ablation_schema() -> Schema:
    """An ablation: arms by name, each with the keys that it changes, dotted or nested."""
    run = object_schema(RunSettings)["properties"]
    arm = {"type": "object", "properties": {**_dotted(), **run, "base": _base(_ref("run"))}}
    arms = {
        "type": "object",
        "propertyNames": {"pattern": f"^{ARM_NAME.pattern}$"},
        "additionalProperties": {"anyOf": [{"type": "null"}, {**arm, "additionalProperties": False}]},
        "minProperties": 2,
    }
    found = object_schema(AblationSettings, {"base": _base(_ref("run")), "arms": arms})
    return {**found, "$defs": {"run": run_schema(), **_values()}}


KINDS: dict[str, Callable[[], Schema]] = {
    "space": space_schema,
    "run": run_schema,
    "pipeline": pipeline_schema,
    "ablation": ablation_schema,
}

"""Strict YAML: no objects, no duplicate keys, scalars of YAML 1.2 (1e-3 is a number and `no` a word)."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from moldistill.core.errors import InputError


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader with the scalars of YAML 1.2's core schema."""

    yaml_implicit_resolvers = {  # noqa: RUF012  (PyYAML's own shape of this table)
        first: [
            (tag, pattern) for tag, pattern in resolvers if not tag.endswith((":float", ":bool", ":timestamp", ":int"))
        ]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if key in seen:
                line = key_node.start_mark.line + 1
                raise InputError(f"{self.name}:{line}: the key '{key}' stands twice", remedy="remove one of the two")
            seen.add(key)
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:bool", re.compile(r"^(?:true|True|TRUE|false|False|FALSE)$"), list("tTfF")
)
_Loader.add_implicit_resolver("tag:yaml.org,2002:int", re.compile(r"^[-+]?[0-9]+$"), list("-+0123456789"))
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(
        r"^(?:[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$"
    ),
    list("-+0123456789."),
)


def parse_yaml(text: str, name: str) -> Any:
    """The value of a YAML text; `name` stands in error messages."""
    try:
        return _load(text, name)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f"{name}:{mark.line + 1}:{mark.column + 1}" if mark is not None else name
        problem = getattr(error, "problem", None) or error
        raise InputError(
            f"{place}: not valid YAML", got=problem, remedy="check indentation, colons and quotes there"
        ) from error
    except (ValueError, TypeError) as error:  # a date that does not exist; a list as a key
        raise InputError(f"{name}: not valid YAML", got=error, remedy="check the value") from error
    except RecursionError as error:
        raise InputError(
            f"{name}: nested too deeply", expected="a few levels", remedy="check its brackets and aliases"
        ) from error


def _load(text: str, name: str) -> Any:
    loader = _Loader(text)  # reads ahead: a control character is found here
    loader.name = name
    try:
        return loader.get_single_data()
    finally:
        loader.dispose()


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file. InputError where it is missing, not YAML or not a mapping."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise InputError(f"{path} does not exist", expected="a YAML file", remedy="check the path") from None
    except IsADirectoryError:
        raise InputError(f"{path} is a folder", expected="a YAML file", remedy="name the file in it") from None
    except UnicodeDecodeError as error:
        raise InputError(
            f"{path} is not UTF-8 text", got=error, expected="a YAML file", remedy="save it as UTF-8"
        ) from error
    value = parse_yaml(text, str(path))
    if not isinstance(value, dict) or not all(isinstance(key, str) for key in value):
        got = "nothing" if value is None else type(value).__name__
        raise InputError(
            f"{path} does not hold a mapping", got=got, expected="lines of `key: value`", remedy="see README.md"
        )
    return value


def dump_yaml(value: Any) -> str:
    """YAML text of a JSON value, keys in their order."""
    return yaml.safe_dump(value, sort_keys=False, allow_unicode=True, width=110)

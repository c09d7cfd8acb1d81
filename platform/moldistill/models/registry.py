"""Models by role and name. A model of one's own joins with ``@register("student", "my-model")``.

Its module is found by the entry point group ``moldistill.models`` of an installed package, or, without one, by the
environment variable ``MOLDISTILL_MODELS``: names of modules on the path, separated by commas.

A student is called with `Molecules`, a teacher with `Molecules` and positions in Å [batch, atoms, 3]; both return a
`ModelOutput` with one graph state and one atom state per layer, all of the width that the settings name.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import cache
from importlib import import_module, metadata
from importlib.util import find_spec
from typing import TypeVar

from torch import nn

from moldistill.core.errors import InputError, nearest
from moldistill.core.settings import ModelSettings, Role

Builder = Callable[[ModelSettings], nn.Module]
GROUP = "moldistill.models"
VARIABLE = "MOLDISTILL_MODELS"
B = TypeVar("B", bound=Builder)

_BUILDERS: dict[tuple[Role, str], Builder] = {}

_SHIPPED: dict[tuple[Role, str], str] = {
    ("student", "transformer"): "student",
    ("student", "hybrid"): "hybrid",
    ("teacher", "transformer"): "teacher",
    ("student", "gine"): "pyg_students",
    ("student", "gps"): "pyg_students",
    ("teacher", "schnet"): "pyg_teachers",
    ("teacher", "visnet"): "pyg_teachers",
}
"""Our own models and their modules, which are imported when they are asked for."""

_OPTIONAL = {"pyg_students": "torch_geometric", "pyg_teachers": "torch_geometric"}
"""Modules that need a further package."""


def register(role: Role, name: str) -> Callable[[B], B]:
    """A decorator that makes a class (or function of `ModelSettings`) known as `model.name` of a role."""

    def remember(builder: B) -> B:
        known = _BUILDERS.get((role, name))
        ours = _SHIPPED.get((role, name))
        taken = known or (ours and builder.__module__ != f"moldistill.models.{ours}")
        if taken and getattr(known, "__qualname__", None) != getattr(builder, "__qualname__", ""):
            raise InputError(
                f"there is a {role} of the name '{name}' already", remedy="register yours under another name"
            )
        _BUILDERS[role, name] = builder
        return builder

    return remember


def model_names(role: Role) -> list[str]:
    """Names of a role: those that are shipped and can work here, and those of other packages."""
    _load_plugins()
    shipped = {
        name
        for (kind, name), module in _SHIPPED.items()
        if kind == role and (module not in _OPTIONAL or find_spec(_OPTIONAL[module]))
    }
    return sorted(shipped | {name for kind, name in _BUILDERS if kind == role})


@cache
def _load_plugins() -> None:
    """Import other packages' models, once."""
    named = [name.strip() for name in os.environ.get(VARIABLE, "").split(",") if name.strip()]
    modules = [entry.value for entry in metadata.entry_points(group=GROUP)] + named
    for module in modules:
        try:
            import_module(module)
        except Exception as error:  # whatever a stranger's module may do at import
            raise InputError(
                f"the models of module '{module}' cannot be imported",
                got=f"{type(error).__name__}: {error}",
                expected="a module that registers models when it is imported",
                remedy=f"mend it, or take it out of {VARIABLE} (or uninstall its package)",
            ) from error


def check_name(role: Role, name: str) -> None:
    """InputError unless there is such a model."""
    known = model_names(role)
    if name not in known:
        near = nearest(name, known)
        raise InputError(
            f"model.name: no {role} of that name",
            got=name,
            expected=", ".join(known),
            remedy=f"did you mean '{near}'?" if near else "choose one of these, or register your own",
        )


def build_model(role: Role, settings: ModelSettings) -> nn.Module:
    """A fresh model, initialised from torch's generator. InputError for an unknown name."""
    check_name(role, settings.name)
    if (role, settings.name) not in _BUILDERS:
        import_module(f"moldistill.models.{_SHIPPED[role, settings.name]}")
    return _BUILDERS[role, settings.name](settings)

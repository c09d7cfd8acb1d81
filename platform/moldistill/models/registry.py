"""Models by role and name. A model of one's own joins with ``@register("student", "my-model")``.

A student is called with `Molecules`, a teacher with `Molecules` and positions in Å [batch, atoms, 3]; both return a
`ModelOutput` with one graph state and one atom state per layer, all of the width that the settings name.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import TypeVar

from torch import nn

from moldistill.core.errors import InputError, nearest
from moldistill.core.settings import ModelSettings, Role

Builder = Callable[[ModelSettings], nn.Module]
B = TypeVar("B", bound=Builder)

_BUILDERS: dict[tuple[Role, str], Builder] = {}


def register(role: Role, name: str) -> Callable[[B], B]:
    """A decorator that makes a class (or function of `ModelSettings`) known as `model.name` of a role."""

    def remember(builder: B) -> B:
        _BUILDERS[role, name] = builder
        return builder

    return remember


def model_names(role: Role) -> list[str]:
    """Registered names of a role."""
    for module in ("student", "teacher"):
        import_module(f"moldistill.models.{module}")
    return sorted(name for kind, name in _BUILDERS if kind == role)


def build_model(role: Role, settings: ModelSettings) -> nn.Module:
    """A fresh model, initialised from torch's generator. InputError for an unknown name."""
    known = model_names(role)
    if settings.name not in known:
        near = nearest(settings.name, known)
        raise InputError(
            f"model.name: no {role} of that name",
            got=settings.name,
            expected=", ".join(known),
            remedy=f"did you mean '{near}'?" if near else "choose one of these, or register your own",
        )
    return _BUILDERS[role, settings.name](settings)

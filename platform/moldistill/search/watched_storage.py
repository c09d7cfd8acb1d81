"""An Optuna storage that says before each thing that is written to it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

from optuna.storages import BaseStorage

WRITES = frozenset(
    {
        "create_new_study",
        "create_new_trial",
        "delete_study",
        "set_study_system_attr",
        "set_study_user_attr",
        "set_trial_intermediate_value",
        "set_trial_param",
        "set_trial_state_values",
        "set_trial_system_attr",
        "set_trial_user_attr",
    }
)
"""Methods of a storage that change it."""


class Killed(BaseException):
    """A driver's process ends in the middle of what it does; nobody's `except Exception` is to hold it up."""


def watched(storage: BaseStorage, before: Callable[[], None]) -> BaseStorage:
    """`storage`, where `before` is called before each write; what it raises keeps the write from being done."""
    return cast(BaseStorage, _Watched(storage, before))


def _passing_on(name: str) -> Callable[..., Any]:
    def method(self: Any, *args: Any, **keywords: Any) -> Any:
        if name in WRITES:
            self.before()
        return getattr(self.inner, name)(*args, **keywords)

    return method


def _initialize(self: Any, inner: BaseStorage, before: Callable[[], None]) -> None:
    self.inner, self.before = inner, before


# Made from what Optuna's base class has: a method that a later version adds is passed on, too.
_Watched: Any = type(
    "_Watched",
    (BaseStorage,),
    {name: _passing_on(name) for name in dir(BaseStorage) if not name.startswith("_")} | {"__init__": _initialize},
)

"""A study whose space has changed: its trials are taken over into a new generation, whose sampler knows them.

Optuna holds one set of choices per parameter for the life of a study. A changed space is a new study of the same
storage, `NAME@2`, with every trial of the last one under its own number; it counts once all are there.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from optuna.distributions import BaseDistribution
from optuna.study import Study
from optuna.trial import FixedTrial, FrozenTrial, create_trial

from moldistill.core.artifacts import hash_object
from moldistill.search.compile import DefineByRun, quiet_optuna
from moldistill.search.pruners import RUNG, rung_values
from moldistill.search.space import Space

UNCOUNTED = frozenset({"refused", "imported", "superseded"})
"""Attributes of trials that are not the study's own, or were never trained (the last: before version 0.2)."""


def searched(space: Space) -> str:
    """Hash of what the storage's generation depends on: parameters, and the rungs of the scheduler."""
    return hash_object([space.mapping["parameters"], space.mapping["scheduler"], space.epochs])


def fitted(space: Space, values: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, BaseDistribution]] | None:
    """Optuna's parameters and distributions of a configuration in this space; None where it lies outside.

    values: by dotted key. A key that the configuration does not name has the base's value: it was trained with that.
    """
    params = dict(_places(space, values))
    recorded = FixedTrial(params)
    try:
        with quiet_optuna():
            named = DefineByRun(space.parameters)(recorded)
    except (ValueError, KeyError):
        return None
    known = {key: _plain(values[key]) for key in values}
    if any(_plain(named.get(key, _base(space, key))) != value for key, value in known.items()):
        return None  # the space has no place for a value that the configuration had
    distributions = dict(recorded.distributions)
    found = {label: params[label] for label in distributions}
    inside = all(kind._contains(kind.to_internal_repr(found[label])) for label, kind in distributions.items())
    return (found, distributions) if inside else None


def _places(space: Space, values: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Labels with the values of a configuration, down the branches that it is in."""
    pending = list(space.parameters)
    while pending:
        parameter = pending.pop(0)
        value = _plain(values.get(parameter.name, _base(space, parameter.name)))
        options = getattr(parameter.domain, "options", None)
        if options is None:
            yield parameter.label, value
            continue
        for option in options:
            if _plain(option.value) == value and type(_plain(option.value)) is type(value):
                yield parameter.label, option.label
                pending = [*option.parameters, *pending]


def _base(space: Space, name: str) -> Any:
    value: Any = space.fixed.get(name)
    if value is None:
        value = space.base
        for part in name.split("."):
            value = value[part]
    return value


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, list | tuple) else value


def take_over(earlier: Study, later: Study, space: Space) -> tuple[int, int]:
    """Copy every trial of a generation into the next, under its number: (those that fit the new space, others).

    Trials that do not fit stay in the ledger; the sampler does not learn from them. The scheduler finds them at its
    rungs, by their values there.
    """
    fits = outside = 0
    for trial in earlier.get_trials(deepcopy=False):
        copy = copied(trial, space)
        fits, outside = fits + bool(copy.params), outside + (not copy.params and bool(trial.params))
        later.add_trial(copy)
    return fits, outside


def copied(trial: FrozenTrial, space: Space) -> FrozenTrial:
    """A trial as the space now has it; without parameters where they do not fit."""
    values = trial.user_attrs.get("parameters")
    found = fitted(space, values) if values is not None else None
    system = {key: value for key, value in trial.system_attrs.items() if not key.startswith(RUNG)}
    if not UNCOUNTED & set(trial.user_attrs):
        system |= rung_values(space, trial.number, trial.intermediate_values)
    return create_trial(
        state=trial.state,
        values=trial.values,
        params=found[0] if found else {},
        distributions=found[1] if found else {},
        user_attrs=trial.user_attrs,
        system_attrs=system,
        intermediate_values=trial.intermediate_values,
    )

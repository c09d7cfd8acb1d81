"""Grids: every combination of a space without branches, each tried once."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import Any

import optuna
from optuna.samplers import GridSampler
from optuna.trial import FrozenTrial, TrialState

from moldistill.core.errors import InputError
from moldistill.core.seeds import named_seed
from moldistill.search.space import Choice, Range, Space

LARGEST = 10_000
"""Points of a grid: each is looked at before the search begins."""


def axes(space: Space) -> dict[str, list[Any]]:
    """What each parameter's label runs through. InputError for branches, ranges without steps, and too many points."""
    found: dict[str, list[Any]] = {}
    for parameter in space.parameters:
        domain, place = parameter.domain, f"{space.where}: parameters.{parameter.name}"
        if isinstance(domain, Choice):
            if domain.branches:
                raise InputError(
                    f"{place}: a grid has no branches: every point holds every parameter",
                    got="sampler grid, and a choice with parameters below it",
                    expected="choices of plain values, and ranges with steps",
                    remedy="use `sampler: {name: tpe}` or random, or one space for each branch",
                )
            found[parameter.label] = [option.label for option in domain.options]
        elif domain.step is None and not domain.whole:
            raise InputError(
                f"{place}: a grid needs steps: the range has no end of numbers",
                got=f"[{domain.low:g}, {domain.high:g}]",
                expected="`step: …`, or a choice of values",
                remedy="write `{uniform: [low, high], step: …}` or `{choice: [...]}`, or use another sampler",
            )
        else:
            count = math.floor((domain.high - domain.low) / (domain.step or 1) + 1e-9) + 1
            found[parameter.label] = [_point(domain, place) for place in range(min(count, LARGEST + 1))]
    size = math.prod(map(len, found.values()))
    if size > LARGEST:
        raise InputError(
            f"{space.where}: sampler: the grid has too many points",
            got=f"{' x '.join(str(len(values)) for values in found.values())}",
            expected=f"at most {LARGEST}",
            remedy="take larger steps, or `sampler: {name: random}`, which tries as many as the budget says",
        )
    return found


def _point(domain: Range, place: int) -> float:
    if domain.whole:
        return int(domain.low) + place * int(domain.step or 1)
    return float(Decimal(repr(domain.low)) + place * Decimal(repr(domain.step)))  # 0.3, and not 0.30000000000000004


def points(space: Space) -> list[tuple[Any, ...]]:
    """The grid's points, in the order of `axes`, without those whose settings contradict each other."""
    values = {
        parameter.label: [_value(parameter.domain, label) for label in labels]
        for parameter, labels in zip(space.parameters, axes(space).values(), strict=True)
    }
    names = [parameter.name for parameter in space.parameters]
    places = [range(len(found)) for found in values.values()]
    good = []
    for combination in itertools.product(*places):
        chosen = [found[place] for found, place in zip(values.values(), combination, strict=True)]
        if _can_be_trained(space, dict(zip(names, (value for value, _ in chosen), strict=True))):
            good.append(tuple(label for _, label in chosen))
    return good


def _value(domain: Range | Choice, label: Any) -> tuple[Any, Any]:
    """A setting, and its label."""
    if isinstance(domain, Range):
        return label, label
    option = next(item for item in domain.options if item.label == label and type(item.label) is type(label))
    return option.value, label


def _can_be_trained(space: Space, values: Mapping[str, Any]) -> bool:
    try:
        space.settings(values)
    except InputError:
        return False
    return True


class Grid(GridSampler):
    """Optuna's grid, without the points that cannot be trained, and for a study that asks and tells.

    The order follows from the seed, and not from how often the study was continued: what is left is known by number.
    """

    def __init__(self, space: Space) -> None:
        super().__init__(axes(space), seed=named_seed(space.sampler.seed, "sampler", 0) % 2**32)
        labels = [parameter.label for parameter in space.parameters]
        order = [labels.index(name) for name in self._param_names]  # Optuna's points are sorted by name
        good = {_typed(point[place] for place in order) for point in points(space)}
        self._all_grids = [point for point in self._all_grids if _typed(point) in good]
        self._n_min_trials = len(self._all_grids)

    def open_points(self, study: optuna.Study) -> int:
        """Points that no trial of the study has been given: after the last one, Optuna's grid would repeat some."""
        given = {
            trial.system_attrs["grid_id"]
            for trial in study.get_trials(deepcopy=False)
            if "grid_id" in trial.system_attrs and self._same_search_space(trial.system_attrs["search_space"])
        }
        return self._n_min_trials - len(given)

    def after_trial(
        self, study: optuna.Study, trial: FrozenTrial, state: TrialState, values: Sequence[float] | None
    ) -> None:
        """Nothing: Optuna's stops `Study.optimize` at the grid's end, and raises where that is not running."""


def _typed(point: Any) -> tuple[tuple[type, Any], ...]:
    """Tells 1, 1.0 and True apart."""
    return tuple((type(value), value) for value in point)

"""What a search goes by: one error, or an error and what else it is traded against."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from moldistill.core.config import build
from moldistill.core.errors import InputError, nearest
from moldistill.search.space_settings import COSTS, METRICS, ObjectiveSettings


@dataclass(frozen=True, slots=True)
class _Single:
    """So that messages name the key `objective.metric`."""

    objective: ObjectiveSettings = field(default_factory=ObjectiveSettings)


def parse_objectives(raw: Mapping[str, Any] | tuple[Any, ...], role: str, where: str) -> tuple[ObjectiveSettings, ...]:
    """The objectives of a role's search, the first of them an error. InputError for a metric that it cannot go by."""
    if isinstance(raw, Mapping):
        single = build(_Single, {"objective": raw}, where).objective
        return (_checked(single, role, f"{where}: objective", first=True),)
    found: list[ObjectiveSettings] = []
    for index, item in enumerate(raw):
        place = f"{where}: objective[{index}]"
        objective = _checked(build(ObjectiveSettings, item, place), role, place, first=index == 0)
        if any(objective.metric == other.metric for other in found):
            raise InputError(f"{place}: the metric stands twice", got=objective.metric, remedy="remove one of the two")
        found.append(objective)
    if not found:
        raise InputError(
            f"{where}: objective: the list is empty", expected="one metric or more", remedy="name one, or drop the key"
        )
    return tuple(found)


def _checked(objective: ObjectiveSettings, role: str, place: str, *, first: bool) -> ObjectiveSettings:
    errors = METRICS[1:] if role == "teacher" else METRICS
    metric = objective.metric or errors[0]
    allowed = errors if first else (*errors, *COSTS)
    place = f"{place}.metric"
    if "test" in metric:
        raise InputError(
            f"{place}: a search never goes by test rows",
            got=metric,
            expected=" or ".join(allowed),
            remedy=f"write `metric: {allowed[0]}`",
        )
    if metric not in allowed:
        near = nearest(metric, allowed)
        why = f"a {role}'s search cannot go by this"
        if metric in METRICS:
            why += " (validation rows have no geometry for a teacher to see)"
        elif metric in COSTS:
            why = "the first objective is an error: trials are ranked by it"
        raise InputError(
            f"{place}: {why}",
            got=metric,
            expected=" or ".join(allowed),
            remedy=f"write `metric: {near or allowed[0]}`" + (" first" if metric in COSTS else ""),
        )
    if objective.direction != "minimize":
        what = "an error" if metric in METRICS else "a cost"
        raise InputError(
            f"{place.removesuffix('.metric')}.direction: {metric} is {what}, which nobody wants large",
            got=objective.direction,
            expected="minimize",
            remedy="write `direction: minimize`",
        )
    return ObjectiveSettings(metric, objective.direction)

"""Starting points: configurations that a search tries first, whole or in part."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import optuna

from moldistill.core.errors import InputError, nearest
from moldistill.search.space import Choice, Option, Parameter, Range, Space, walk


def check_starting_points(space: Space) -> tuple[Mapping[str, Any], ...]:
    """The space's starting points. InputError for what is not searched, not reachable, or outside its domain."""
    seen: list[dict[str, Any]] = []
    for index, point in enumerate(space.starting_points):
        place = f"{space.where}: starting_points[{index}]"
        if not point:
            raise InputError(
                f"{place}: it holds no values", expected="{key: value, …}", remedy="remove it, or give it a value"
            )
        fixed = _labels(space.parameters, point, place)
        _refuse_unreached(space, point, place)
        if fixed in seen:
            raise InputError(f"{place}: the same point stands twice", got=point, remedy="remove one of the two")
        seen.append(fixed)
        if len(fixed) == len(list(_reached(space.parameters, point))):
            try:
                space.settings(point)
            except InputError as error:
                raise InputError(
                    f"{place}: it cannot be trained: {error.what.removeprefix(f'{space.where}: ')}",
                    got=error.got,
                    expected=error.expected,
                    remedy="change its values",
                ) from None
    return space.starting_points


def enqueue(study: optuna.Study, space: Space) -> None:
    """Let a study try the starting points first, in order; what they leave open is sampled.

    Points that it holds already are left out: a driver may have died here, or a space been extended.
    """
    known = [
        trial.system_attrs.get("fixed_params")
        for trial in study.get_trials(deepcopy=False)
        if "starting_point" in trial.user_attrs
    ]
    for index, point in enumerate(space.starting_points):
        labels = _labels(space.parameters, point, f"{space.where}: starting_points[{index}]")
        if labels not in known:
            study.enqueue_trial(labels, user_attrs={"starting_point": index})


def _reached(parameters: Sequence[Parameter], point: Mapping[str, Any]) -> Iterator[Parameter]:
    """Parameters that a configuration with the point's values certainly holds."""
    for parameter in parameters:
        yield parameter
        if isinstance(parameter.domain, Choice) and parameter.name in point:
            option = _option(parameter.domain, point[parameter.name])
            yield from _reached(option.parameters if option else (), point)


def _labels(parameters: Sequence[Parameter], point: Mapping[str, Any], place: str) -> dict[str, Any]:
    """The point's values as Optuna's storage holds them. InputError for one outside its domain."""
    found: dict[str, Any] = {}
    for parameter in _reached(parameters, point):
        if parameter.name not in point:
            continue
        value, domain = point[parameter.name], parameter.domain
        if isinstance(domain, Range):
            found[parameter.label] = _number(domain, value, f"{place}.{parameter.name}")
            continue
        option = _option(domain, value)
        if option is None:
            labels = [str(item.label) for item in domain.options]
            near = nearest(str(value), labels)
            raise InputError(
                f"{place}.{parameter.name}: not one of its choices",
                got=f"{value!r} ({type(value).__name__})",
                expected=", ".join(labels),
                remedy=f"did you mean '{near}'?" if near else "choose one of these",
            )
        found[parameter.label] = option.label
    return found


def _option(domain: Choice, value: Any) -> Option | None:
    """The option of a value: of its own type, or of another one that is equal (1 for 1.0, but not for true)."""
    value = tuple(value) if isinstance(value, list) else value
    same = [option for option in domain.options if option.value == value]
    exact = [option for option in same if type(option.value) is type(value)]
    alike = [option for option in same if isinstance(option.value, bool) == isinstance(value, bool)]
    return next(iter(exact or alike), None)


def _number(domain: Range, value: Any, place: str) -> float:
    wanted = f"a whole number from {domain.low:g}" if domain.whole else f"a number from {domain.low:g}"
    wanted += f" to {domain.high:g}" + (f" in steps of {domain.step:g}" if domain.step else "")
    fits = isinstance(value, int if domain.whole else int | float) and not isinstance(value, bool)
    if fits and domain.low <= value <= domain.high:
        steps = (value - domain.low) / (domain.step or 1)
        if domain.step is None or abs(steps - round(steps)) < 1e-8:  # Optuna's own tolerance
            return int(value) if domain.whole else float(value)
    raise InputError(
        f"{place}: outside its range",
        got=f"{value!r} ({type(value).__name__})",
        expected=wanted,
        remedy="change the value, or the range",
    )


def _refuse_unreached(space: Space, point: Mapping[str, Any], place: str) -> None:
    """InputError for a key that is not searched, or only in branches that the point does not choose."""
    reached = {parameter.name for parameter in _reached(space.parameters, point)}
    for key in point:
        if key in reached:
            continue
        way = next(_ways(space.parameters, key), None)
        if way is not None:
            raise InputError(
                f"{place}.{key}: it exists in a branch that the point does not choose",
                got=", ".join(f"{name}={point[name]}" for name, _ in way if name in point) or "no choice of a branch",
                expected=" and ".join(f"{name}={value}" for name, value in way),
                remedy="add " + ", ".join(f"`{name}: {value}`" for name, value in way) + ", or remove the key",
            )
        near = nearest(str(key), {parameter.name for parameter in walk(space.parameters)})
        raise InputError(
            f"{place}.{key}: the key is " + ("fixed" if key in space.fixed else "not searched"),
            expected="keys of `parameters`",
            remedy=f"did you mean '{near}'?" if near else "remove it",
        )


def _ways(parameters: Sequence[Parameter], key: str) -> Iterator[tuple[tuple[str, Any], ...]]:
    """Choices, from the outside in, that lead to a parameter of that name."""
    for parameter in parameters:
        if parameter.name == key:
            yield ()
        if isinstance(parameter.domain, Choice):
            for option in parameter.domain.options:
                for way in _ways(option.parameters, key):
                    yield ((parameter.name, option.label), *way)

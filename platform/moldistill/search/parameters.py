"""What is searched: keys of the run's settings, each with its range or its choices, and the branches below these."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Range:
    """Numbers from low to high, both included; `whole` ones, on a `log` scale, or in steps."""

    low: float
    high: float
    whole: bool = False
    log: bool = False
    step: float | None = None


@dataclass(frozen=True, slots=True)
class Option:
    """One value of a choice, and the parameters that exist only if it is chosen."""

    value: Any
    parameters: tuple[Parameter, ...] = ()

    @property
    def label(self) -> str | int | float | bool | None:
        """What Optuna's storage holds for the value: itself, or its text where it is a list."""
        return self.value if isinstance(self.value, str | int | float | bool | None) else str(self.value)


@dataclass(frozen=True, slots=True)
class Choice:
    """One of several values."""

    options: tuple[Option, ...]

    @property
    def branches(self) -> bool:
        """Whether some parameters exist only if a certain value is chosen."""
        return any(option.parameters for option in self.options)


@dataclass(frozen=True, slots=True)
class Parameter:
    """A key of the run's settings that is searched.

    label: its name in Optuna's storage: `name`, with the branch where several branches search the key differently.
    """

    name: str
    domain: Range | Choice
    label: str


def walk(parameters: tuple[Parameter, ...]) -> Iterator[Parameter]:
    """Every parameter, those of branches included."""
    for parameter in parameters:
        yield parameter
        if isinstance(parameter.domain, Choice):
            for option in parameter.domain.options:
                yield from walk(option.parameters)


def highest(domain: Range | Choice) -> float:
    """The largest number that it holds."""
    return domain.high if isinstance(domain, Range) else max(option.value for option in domain.options)


Way = tuple[tuple[Parameter, Option], ...]
"""Choices, from the outside in, with the option that was chosen at each."""


def with_ways(parameters: tuple[Parameter, ...], way: Way = ()) -> Iterator[tuple[Parameter, Way]]:
    """Every parameter, with the choices that lead to it: none for those that every configuration holds."""
    for parameter in parameters:
        yield parameter, way
        if isinstance(parameter.domain, Choice):
            for option in parameter.domain.options:
                yield from with_ways(option.parameters, (*way, (parameter, option)))


def follows(values: Mapping[str, Any], way: Way) -> bool:
    """Whether a configuration, by dotted key, makes these choices."""

    def chosen(parameter: Parameter, option: Option) -> bool:
        value = values.get(parameter.name)
        value = tuple(value) if isinstance(value, list) else value
        return value == option.value and type(value) is type(option.value)

    return all(chosen(parameter, option) for parameter, option in way)

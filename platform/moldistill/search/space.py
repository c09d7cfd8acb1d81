"""Records of a search space: what is searched, for what, and with which means.

A space is read by `search.parse`, checked by `search.checks`, compiled by `search.compile` and run by `search.tuner`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from moldistill.core.config import build, merge
from moldistill.core.settings import RunSettings, bounded, folders_of

Direction = Literal["minimize", "maximize"]

METRICS = ("valid_mae", "valid_3d_mae")
"""What a search may go by (eV): errors on rows that nothing trains on and that are not the tests'."""


@dataclass(frozen=True, slots=True)
class ObjectiveSettings:
    """What the search goes by. Default: valid_mae for students, valid_3d_mae for teachers."""

    metric: str | None = None
    direction: Direction = "minimize"


@dataclass(frozen=True, slots=True)
class SamplerSettings:
    """Who proposes: TPE (multivariate, grouped) after `startup_trials` random ones, or random throughout."""

    name: Literal["tpe", "random"] = "tpe"
    startup_trials: int = bounded(4, ge=0)
    seed: int = bounded(0, ge=0)


@dataclass(frozen=True, slots=True)
class SchedulerSettings:
    """Who stops trials early: ASHA at epochs grace · reduction^k, keeping the best 1 / reduction at each, or nobody."""

    name: Literal["asha", "none"] = "asha"
    grace: int = bounded(2, ge=1)
    reduction: float = bounded(3.0, gt=1)


@dataclass(frozen=True, slots=True)
class BudgetSettings:
    """How much is spent. Trials stopped early count, configurations refused before training do not."""

    trials: int = bounded(8, ge=1)


@dataclass(frozen=True, slots=True)
class ResourceSettings:
    """What one trial holds, and how many run at once (fewer where the cluster holds fewer)."""

    cpus: float = bounded(1.0, gt=0)
    gpus: float = bounded(0.0, ge=0)
    concurrent: int = bounded(2, ge=1)


@dataclass(frozen=True, slots=True)
class SpaceSettings:
    """The YAML of a space, key by key. `storage`: `journal` (a file in the study's folder) or a database URL."""

    base: str | Mapping[str, Any]
    parameters: Mapping[str, Any]
    fixed: Mapping[str, Any] = field(default_factory=dict)
    objective: ObjectiveSettings = field(default_factory=ObjectiveSettings)
    sampler: SamplerSettings = field(default_factory=SamplerSettings)
    scheduler: SchedulerSettings = field(default_factory=SchedulerSettings)
    budget: BudgetSettings = field(default_factory=BudgetSettings)
    resources: ResourceSettings = field(default_factory=ResourceSettings)
    storage: str = "journal"


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


@dataclass(frozen=True, slots=True)
class Parameter:
    """A key of the run's settings that is searched.

    label: its name in Optuna's storage: `name`, with the branch where several branches search the key differently.
    """

    name: str
    domain: Range | Choice
    label: str


@dataclass(frozen=True, slots=True)
class Space:
    """A space that has been read: names, types and bounds hold.

    where: its name in messages. base: the run's settings as a mapping, without `fixed`. fixed: dotted keys.
    mapping: the whole as YAML, to be read again.
    """

    where: str
    base: Mapping[str, Any]
    fixed: Mapping[str, Any]
    parameters: tuple[Parameter, ...]
    metric: str
    direction: Direction
    sampler: SamplerSettings
    scheduler: SchedulerSettings
    budget: BudgetSettings
    resources: ResourceSettings
    storage: str
    mapping: Mapping[str, Any]

    @property
    def role(self) -> str:
        """Whether teachers or students are searched."""
        return str(self.base["role"])

    @property
    def epochs(self) -> int:
        """The most epochs that a trial can have."""
        searched = [_highest(item.domain) for item in walk(self.parameters) if item.name == "training.epochs"]
        fixed = self.fixed.get("training.epochs", self.base["training"]["epochs"])
        return int(max(searched, default=fixed))

    @property
    def target_folders(self) -> tuple[str, ...]:
        """Folders of the teachers' targets that trials read."""
        return folders_of(self.fixed.get("targets") or self.base.get("targets"))

    def settings(self, values: Mapping[str, Any]) -> RunSettings:
        """Settings of the trial with these values, by dotted key. InputError where they contradict each other."""
        mapping = merge(merge(self.base, nested(self.fixed)), nested(values))
        if "training.cpus_per_worker" not in self.fixed:
            mapping["training"]["cpus_per_worker"] = max(1, int(self.resources.cpus))
        if folders := self.target_folders:
            mapping["targets"] = absolute(folders)  # Tune changes the working folder
        return build(RunSettings, mapping, self.where)


def absolute(folders: str | Sequence[str]) -> str | list[str]:
    """The value of `targets` for one folder or several, by absolute paths."""
    paths = [str(Path(folder).absolute()) for folder in folders_of(folders)]
    return paths[0] if len(paths) == 1 else paths


def nested(values: Mapping[str, Any]) -> dict[str, Any]:
    """``{"a.b": 1}`` as ``{"a": {"b": 1}}``."""
    result: dict[str, Any] = {}
    for key, value in values.items():
        branch: Any = value
        for part in reversed(key.split(".")):
            branch = {part: branch}
        result = merge(result, branch)
    return result


def walk(parameters: tuple[Parameter, ...]) -> Iterator[Parameter]:
    """Every parameter, those of branches included."""
    for parameter in parameters:
        yield parameter
        if isinstance(parameter.domain, Choice):
            for option in parameter.domain.options:
                yield from walk(option.parameters)


def _highest(domain: Range | Choice) -> float:
    return domain.high if isinstance(domain, Range) else max(option.value for option in domain.options)

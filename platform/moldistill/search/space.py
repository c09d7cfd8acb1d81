"""Records of a search space: what is searched, for what, and with which means.

A space is read by `search.parse`, checked by `search.checks`, compiled by `search.compile` and run by `search.tuner`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moldistill.core.config import build, merge
from moldistill.core.errors import InputError
from moldistill.core.settings import RunSettings, folders_of
from moldistill.search.constraints import parse_constraint
from moldistill.search.parameters import Choice, Option, Parameter, Range, highest, walk
from moldistill.search.space_settings import (
    COSTS,
    METRICS,
    Backend,
    BudgetSettings,
    Direction,
    FailureSettings,
    ObjectiveSettings,
    ReplicateSettings,
    ResourceSettings,
    SamplerSettings,
    SchedulerSettings,
    SpaceSettings,
    TrackingSettings,
)

__all__ = [
    "COSTS",
    "METRICS",
    "Backend",
    "BudgetSettings",
    "Choice",
    "Direction",
    "FailureSettings",
    "ObjectiveSettings",
    "Option",
    "Parameter",
    "Range",
    "ReplicateSettings",
    "ResourceSettings",
    "SamplerSettings",
    "SchedulerSettings",
    "Space",
    "SpaceSettings",
    "TrackingSettings",
    "absolute",
    "nested",
    "walk",
]


@dataclass(frozen=True, slots=True)
class Space:
    """A space that has been read: names, types and bounds hold.

    where: its name in messages. base: the run's settings as a mapping, without `fixed`. fixed: dotted keys.
    mapping: the whole as YAML, to be read again. starting_points: values by dotted key, which are tried first.
    grid_size: points of the grid whose settings go together; None for all other samplers.
    """

    where: str
    base: Mapping[str, Any]
    fixed: Mapping[str, Any]
    parameters: tuple[Parameter, ...]
    objectives: tuple[ObjectiveSettings, ...]
    options: SpaceSettings
    mapping: Mapping[str, Any]
    constraints: tuple[str, ...] = ()
    starting_points: tuple[Mapping[str, Any], ...] = ()
    grid_size: int | None = None

    @property
    def metric(self) -> str:
        """The first objective's, by which trials are ranked."""
        return str(self.objectives[0].metric)

    @property
    def direction(self) -> Direction:
        """The first objective's."""
        return self.objectives[0].direction

    @property
    def sampler(self) -> SamplerSettings:
        """Who proposes."""
        return self.options.sampler

    @property
    def scheduler(self) -> SchedulerSettings:
        """Who stops trials early."""
        return self.options.scheduler

    @property
    def budget(self) -> BudgetSettings:
        """How much is spent."""
        return self.options.budget

    @property
    def most_trials(self) -> int:
        """The trials that the budget allows, and of a grid no more than it has points."""
        return min(self.budget.most_trials, self.budget.most_trials if self.grid_size is None else self.grid_size)

    @property
    def resources(self) -> ResourceSettings:
        """What one trial holds."""
        return self.options.resources

    @property
    def inline(self) -> bool:
        """Whether a trial runs in one process, in the actor itself, and not as a group of Ray Train workers."""
        return self.options.backend == "inline" or (self.options.backend == "auto" and self.resources.workers == 1)

    @property
    def role(self) -> str:
        """Whether teachers or students are searched."""
        return str(self.base["role"])

    @property
    def epochs(self) -> int:
        """The most epochs that a trial can have."""
        searched = [highest(item.domain) for item in walk(self.parameters) if item.name == "training.epochs"]
        fixed = self.fixed.get("training.epochs", self.base["training"]["epochs"])
        return int(max(searched, default=fixed))

    @property
    def target_folders(self) -> tuple[str, ...]:
        """Folders of the teachers' targets that trials read."""
        return folders_of(self.fixed.get("targets") or self.base.get("targets"))

    def settings(self, values: Mapping[str, Any]) -> RunSettings:
        """Settings of the trial with these values, by dotted key.

        InputError where they contradict each other, or violate a constraint.
        """
        settings = self.unconstrained(values)
        for index, text in enumerate(self.constraints):
            constraint = parse_constraint(text, f"{self.where}: constraints[{index}]")
            if not constraint.holds(settings):
                raise InputError(
                    f"{self.where}: constraints[{index}] is violated",
                    got=constraint.values(settings),
                    expected=text,
                    remedy="change these values, or the constraint",
                )
        return settings

    def unconstrained(self, values: Mapping[str, Any]) -> RunSettings:
        """As `settings`, without the constraints of the space."""
        mapping = merge(merge(self.base, nested(self.fixed)), nested(values))
        mapping["training"]["workers"] = self.resources.workers
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

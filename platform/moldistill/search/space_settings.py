"""The settings of a space: its YAML key by key, with bounds and defaults beside each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from moldistill.core.settings import bounded

Direction = Literal["minimize", "maximize"]

METRICS = ("valid_mae", "valid_3d_mae")
"""What a search may go by (eV): errors on rows that nothing trains on and that are not the tests'."""

COSTS = ("parameters", "cpu_seconds")
"""What a further objective may be: the model's size, or the CPU time (s) of its training."""


@dataclass(frozen=True, slots=True)
class ObjectiveSettings:
    """What the search goes by. Default: valid_mae for students, valid_3d_mae for teachers.

    Further objectives of a trade-off may also be `parameters` (of the model) and `cpu_seconds` (of its training).
    """

    metric: str | None = None
    direction: Direction = "minimize"


@dataclass(frozen=True, slots=True)
class SamplerSettings:
    """Who proposes configurations.

    startup_trials: random ones before `tpe`, `gp` and `cmaes` begin. multivariate: whether `tpe` models parameters
    together (with early stopping it was the worse in simulated searches: see tests/benchmarks); group: and those of
    each branch apart. population: of a generation of `nsgaii` and `cmaes` (null: theirs
    to choose).
    """

    name: Literal["tpe", "random", "grid", "cmaes", "gp", "nsgaii"] = "tpe"
    startup_trials: int = bounded(4, ge=0)
    seed: int = bounded(0, ge=0)
    multivariate: bool = False
    group: bool = True
    population: int | None = bounded(None, ge=2)


@dataclass(frozen=True, slots=True)
class SchedulerSettings:
    """Who stops trials early.

    `asha` compares them at epochs grace · reduction^k and keeps the best 1 / reduction; `hyperband` does so in several
    brackets, of which some begin later; `median` stops, from epoch `grace` on, what is worse than the median of the
    trials before it at that epoch, of which there must be `startup_trials`; `none` stops nobody.
    """

    name: Literal["asha", "hyperband", "median", "none"] = "asha"
    grace: int = bounded(2, ge=1)
    reduction: int = bounded(3, ge=2)
    startup_trials: int = bounded(4, ge=1)


@dataclass(frozen=True, slots=True)
class BudgetSettings:
    """How much is spent; whichever ends first. Trials stopped early count, configurations never trained do not.

    trials: in all (8 if nothing is said). hours: wall time of the search, its continuations included. gpu_hours: GPUs
    held by trials, times hours. Once the hours are over, no trial starts, and those that run are stopped at their next
    report, to be continued when the budget grows.
    """

    trials: int | None = bounded(None, ge=1)
    hours: float | None = bounded(None, gt=0)
    gpu_hours: float | None = bounded(None, gt=0)

    @property
    def most_trials(self) -> int:
        """The trials that the budget allows, if nothing else ends it."""
        if self.trials is not None:
            return self.trials
        return 8 if self.hours is None and self.gpu_hours is None else 1_000_000


Backend = Literal["auto", "inline", "ray_train"]


@dataclass(frozen=True, slots=True)
class ResourceSettings:
    """What one trial holds, and how many run at once (fewer where the cluster holds fewer).

    cpus, gpus: of each worker; a share of a GPU lets several trials have it. workers: processes that train a trial
    together. gpu_memory: share of the GPU's memory that a worker may use (null: the share of the GPU).
    """

    cpus: float = bounded(1.0, gt=0)
    gpus: float = bounded(0.0, ge=0)
    workers: int = bounded(1, ge=1)
    concurrent: int = bounded(2, ge=1)
    gpu_memory: float | None = bounded(None, gt=0, le=1)


@dataclass(frozen=True, slots=True)
class FailureSettings:
    """What becomes of trials that fail.

    retries: times that a crashed trial is tried again, from its checkpoint. told: whether the sampler hears of a trial
    that diverged as one whose error is that of a constant prediction (`penalty`), or does not hear of it (`failed`).
    """

    retries: int = bounded(1, ge=0, le=10)
    told: Literal["penalty", "failed"] = "penalty"


@dataclass(frozen=True, slots=True)
class ReplicateSettings:
    """The `top` best trials are trained again with `seeds` other seeds each, to tell a better one from luck."""

    top: int = bounded(0, ge=0, le=100)
    seeds: int = bounded(3, ge=2, le=100)


@dataclass(frozen=True, slots=True)
class TrackingSettings:
    """Where else trials are told to. mlflow: tracking URI. wandb: name of a project."""

    mlflow: str | None = None
    wandb: str | None = None


@dataclass(frozen=True, slots=True)
class SpaceSettings:
    """The YAML of a space, key by key. `storage`: `journal` (a file in the study's folder) or a database URL.

    objective: one, or a list. keep: the best trials whose checkpoints stay on disk.
    """

    base: str | Mapping[str, Any]
    parameters: Mapping[str, Any]
    fixed: Mapping[str, Any] = field(default_factory=dict)
    constraints: tuple[str, ...] = ()
    starting_points: tuple[Mapping[str, Any], ...] = ()
    objective: Mapping[str, Any] | tuple[Mapping[str, Any], ...] = field(default_factory=dict)
    sampler: SamplerSettings = field(default_factory=SamplerSettings)
    scheduler: SchedulerSettings = field(default_factory=SchedulerSettings)
    budget: BudgetSettings = field(default_factory=BudgetSettings)
    backend: Backend = "auto"
    resources: ResourceSettings = field(default_factory=ResourceSettings)
    failures: FailureSettings = field(default_factory=FailureSettings)
    replicates: ReplicateSettings = field(default_factory=ReplicateSettings)
    keep: int = bounded(10, ge=1)
    tracking: TrackingSettings = field(default_factory=TrackingSettings)
    storage: str = "journal"

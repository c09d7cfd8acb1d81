"""What a search would do, told before it does it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from moldistill.core.cluster import usable_cpus
from moldistill.core.errors import InputError
from moldistill.search.checks import check_space
from moldistill.search.compile import tree
from moldistill.search.parse import Source, load_space
from moldistill.search.space import ResourceSettings, Space


@dataclass(frozen=True, slots=True)
class Explanation:
    """A space in words and numbers.

    tree: lines. samples: five configurations by dotted key. concurrent: trials at once here. rungs: epochs at which
    ASHA stops trials. total_epochs: at most, if nothing is stopped. notes: hints.
    """

    where: str
    role: str
    objective: str
    sampler: str
    tree: tuple[str, ...]
    fixed: Mapping[str, Any]
    samples: tuple[dict[str, Any], ...]
    trials: int
    epochs: int
    total_epochs: int
    rungs: tuple[int, ...]
    concurrent: int
    resources: str
    notes: tuple[str, ...]

    def text(self) -> str:
        """The explanation for people."""
        stopping = "nobody stops trials early"
        if self.rungs:
            stopping = "ASHA may stop trials at epochs " + ", ".join(map(str, self.rungs))
        lines = [
            f"{self.where}: {self.trials} trials of a {self.role}, {self.objective}, proposed by {self.sampler}",
            "",
            "searched:",
            *(f"  {line}" for line in self.tree),
        ]
        if self.fixed:
            lines += ["fixed:", *(f"  {key}: {value}" for key, value in self.fixed.items())]
        lines += ["", "five configurations:"]
        for index, values in enumerate(self.samples, 1):
            lines.append(f"  {index}. " + ", ".join(f"{key}={_short(value)}" for key, value in values.items()))
        lines += [
            "",
            f"cost:     {self.trials} trials x {self.epochs} epochs = at most {self.total_epochs} epochs; {stopping}",
            f"at once:  {self.concurrent} ({self.resources})",
            *(f"note:     {note}" for note in self.notes),
        ]
        return "\n".join(lines)


def explain(source: Source, overrides: Sequence[str] = (), *, targets: str | Sequence[str] = ()) -> Explanation:
    """Read, compile and check a space, and say what its search would do on this machine or the cluster it is in.

    InputError for whatever `search` would refuse, dead parameters included.
    """
    return explain_space(load_space(source, overrides, targets=targets))


def explain_space(space: Space) -> Explanation:
    """As `explain`, for a space that has been read."""
    checked = check_space(space)
    notes = list(checked.notes)
    if checked.needs_targets:
        notes.append("trials read a teacher's outputs: give `search` --targets DIR")
    capacity = cluster_capacity()
    concurrent = concurrency(space.resources, capacity, space.where)
    if concurrent < space.resources.concurrent:
        notes.append(f"{space.resources.concurrent} trials at once were asked for; {concurrent} fit here")
    held = space.resources
    sampler: str = space.sampler.name
    if sampler == "tpe":
        sampler = f"TPE after {space.sampler.startup_trials} random trials"
    return Explanation(
        where=space.where,
        role=space.role,
        objective=f"{space.direction} {space.metric} (eV)",
        sampler=f"{sampler}, seed {space.sampler.seed}",
        tree=tuple(tree(space.parameters)),
        fixed=space.fixed,
        samples=checked.configurations,
        trials=space.budget.trials,
        epochs=space.epochs,
        total_epochs=space.budget.trials * space.epochs,
        rungs=rungs(space),
        concurrent=concurrent,
        resources=f"{held.cpus:g} CPUs and {held.gpus:g} GPUs each, of {capacity.cpus:g} and {capacity.gpus:g}",
        notes=tuple(notes),
    )


@dataclass(frozen=True, slots=True)
class Capacity:
    """What the cluster holds in all."""

    cpus: float
    gpus: float


def cluster_capacity() -> Capacity:
    """Of the Ray cluster this process is connected to, else of this machine."""
    import ray
    import torch

    if ray.is_initialized():
        held: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
        return Capacity(held.get("CPU", 0.0), held.get("GPU", 0.0))
    return Capacity(max(usable_cpus(), 2), torch.cuda.device_count())


def concurrency(wanted: ResourceSettings, capacity: Capacity, where: str) -> int:
    """Trials that run at once: as many as asked for, or as fit; InputError where not one does."""
    fits = int(capacity.cpus / wanted.cpus + 1e-9)
    if wanted.gpus:
        fits = min(fits, int(capacity.gpus / wanted.gpus + 1e-9))
    if fits < 1:
        raise InputError(
            f"{where}: resources: a trial holds more than the cluster",
            got=f"{wanted.cpus:g} CPUs and {wanted.gpus:g} GPUs per trial",
            expected=f"at most {capacity.cpus:g} CPUs and {capacity.gpus:g} GPUs",
            remedy="lower `resources: {cpus: …, gpus: …}`, or join a larger cluster",
        )
    return min(wanted.concurrent, fits)


def rungs(space: Space) -> tuple[int, ...]:
    """Epochs at which ASHA compares trials, ascending; empty without it."""
    found: list[int] = []
    if space.scheduler.name == "asha":
        step = float(space.scheduler.grace)
        while step < space.epochs:
            found.append(math.ceil(step))
            step *= space.scheduler.reduction
    return tuple(found)


def _short(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)

"""What a search would do, told before it does it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moldistill.search.capacity import Capacity, cluster_capacity, concurrency
from moldistill.search.checks import check_space
from moldistill.search.compile import tree
from moldistill.search.cost import Share, StudyCost, foreseen_share, study_cost, time_configurations
from moldistill.search.parse import Source, load_space
from moldistill.search.pruners import rungs
from moldistill.search.space import Space
from moldistill.search.wording import (
    backend_words,
    budget_words,
    cost_lines,
    place_words,
    sampler_words,
    scheduler_words,
    short,
)

__all__ = ["Capacity", "Explanation", "cluster_capacity", "concurrency", "explain", "explain_space", "rungs"]

UNLIMITED = 1_000_000


@dataclass(frozen=True, slots=True)
class Explanation:
    """A space in words and numbers.

    tree: lines. samples: five configurations by dotted key. trials: that the budget allows, None if only time limits
    them. rungs: epochs at which trials may be stopped. total_epochs: at most, if none is stopped. share: part of them
    that early stopping is expected to leave. concurrent: trials at once here. cost: None without a store. notes: hints.
    """

    where: str
    role: str
    objectives: tuple[str, ...]
    sampler: str
    scheduler: str
    tree: tuple[str, ...]
    fixed: Mapping[str, Any]
    constraints: tuple[str, ...]
    starting_points: tuple[Mapping[str, Any], ...]
    samples: tuple[dict[str, Any], ...]
    budget: str
    trials: int | None
    epochs: int
    total_epochs: int | None
    rungs: tuple[int, ...]
    share: Share
    backend: str
    concurrent: int
    resources: str
    cost: StudyCost | None
    notes: tuple[str, ...]

    def text(self) -> str:
        """The explanation for people."""
        lines = [
            f"{self.where}: a {self.role} is searched to {' and '.join(self.objectives)}",
            "",
            "searched:",
            *(f"  {line}" for line in self.tree),
        ]
        if self.fixed:
            lines += ["fixed:", *(f"  {key}: {value}" for key, value in self.fixed.items())]
        if self.constraints:
            lines += ["constraints:", *(f"  {text}" for text in self.constraints)]
        if self.starting_points:
            lines += [
                "tried first:",
                *(f"  {index}. {_values(point)}" for index, point in _counted(self.starting_points)),
            ]
        lines += [
            "",
            "five configurations:",
            *(f"  {index}. {_values(each)}" for index, each in _counted(self.samples)),
        ]
        return "\n".join([*lines, "", *self._means()])

    def _means(self) -> list[str]:
        lines = [f"sampler:  {self.sampler}", f"stopping: {self.scheduler}", f"budget:   {self.budget}"]
        lines.append(f"trials:   {self.backend}")
        if self.total_epochs is None:
            lines.append(f"length:   {self.epochs} epochs, and as many trials as the time allows")
        else:
            work = f"{self.trials} trials x {self.epochs} epochs = at most {self.total_epochs} epochs"
            lines.append(f"length:   {work}{self._expected()}")
        if self.cost is not None:
            lines += cost_lines(self.cost, self.budget)
        lines.append(f"at once:  {self.concurrent} ({self.resources})")
        return lines + [f"note:     {note}" for note in self.notes]

    def _expected(self) -> str:
        if self.share.high == 1 or self.total_epochs is None:
            return ""
        low, high = round(self.total_epochs * self.share.low), round(self.total_epochs * self.share.high)
        about = f"{low} to {high}" if low < high else f"{high}"
        return f"; with early stopping about {about} (simulated on made-up curves)"


def explain(
    source: Source,
    overrides: Sequence[str] = (),
    *,
    targets: str | Sequence[str] = (),
    store: Path | None = None,
) -> Explanation:
    """Read, compile and check a space, and say what its search would do on this machine or the cluster it is in.

    store: with it, some steps of five configurations are timed and the costs of the study foreseen. InputError for
    whatever `search` would refuse, dead parameters included.
    """
    return explain_space(load_space(source, overrides, targets=targets), store)


def explain_space(space: Space, store: Path | None = None) -> Explanation:
    """As `explain`, for a space that has been read."""
    checked = check_space(space)
    notes = list(checked.notes)
    if checked.needs_targets and store is None:
        notes.append("trials read a teacher's outputs: give `search` --targets DIR")
    capacity, held = cluster_capacity(), space.resources
    concurrent = concurrency(held, capacity, space.where)
    if concurrent < held.concurrent:
        notes.append(f"{held.concurrent} trials at once were asked for; {concurrent} fit here")
    trials = space.most_trials if space.most_trials < UNLIMITED else None
    shares: dict[int, Share] = {}

    def share(count: int) -> float:
        if count not in shares:
            shares[count] = foreseen_share(space, count, concurrent)
        return shares[count].mean

    cost = None
    if store is not None:
        timed = time_configurations(space, store.expanduser().absolute(), checked.configurations)
        cost = study_cost(space, timed, concurrent, share)
    count = cost.trials if cost is not None else space.most_trials
    share(count)
    return Explanation(
        where=space.where,
        role=space.role,
        objectives=tuple(_objective(item.metric, item.direction) for item in space.objectives),
        sampler=sampler_words(space),
        scheduler=scheduler_words(space),
        tree=tuple(tree(space.parameters)),
        fixed=space.fixed,
        constraints=space.constraints,
        starting_points=space.starting_points,
        samples=checked.configurations,
        budget=budget_words(space),
        trials=trials,
        epochs=space.epochs,
        total_epochs=trials * space.epochs if trials is not None else None,
        rungs=rungs(space),
        share=shares[count],
        backend=backend_words(space),
        concurrent=concurrent,
        resources=place_words(held, capacity),
        cost=cost,
        notes=tuple(notes),
    )


def _objective(metric: str | None, direction: str) -> str:
    units = {"parameters": "", "cpu_seconds": " (CPU-s)"}
    return f"{direction} {metric}{units.get(str(metric), ' (eV)')}"


def _values(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{key}={short(value)}" for key, value in values.items())


def _counted(items: Sequence[Any]) -> enumerate[Any]:
    return enumerate(items, 1)

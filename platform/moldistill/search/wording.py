"""Words for the parts of a space that `explain` tells of."""

from __future__ import annotations

import statistics
from typing import Any

from moldistill.search.capacity import Capacity
from moldistill.search.cost import StudyCost
from moldistill.search.pruners import rungs
from moldistill.search.space import ResourceSettings, Space


def short(value: Any) -> str:
    """A value in a line of many."""
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def sampler_words(space: Space) -> str:
    """Who proposes configurations."""
    settings = space.sampler
    after = f" after {settings.startup_trials} random trials"
    of = f" of {settings.population}" if settings.population else ""
    size = f" of {space.most_trials} points" if settings.name == "grid" else ""
    together = ", parameters modelled together" + (" branch by branch" if settings.group else "")
    words = {
        "tpe": f"TPE{after}{together if settings.multivariate else ', each parameter modelled alone'}",
        "random": "random",
        "grid": f"a grid{size}, every point once",
        "cmaes": f"CMA-ES{after}, generations{of or ' of its own size'}",
        "gp": f"a Gaussian process{after}",
        "nsgaii": f"NSGA-II, generations{of or ' of 50'}",
    }
    return f"{words[settings.name]}; seed {settings.seed}"


def scheduler_words(space: Space) -> str:
    """Who stops trials, and when."""
    settings, epochs = space.scheduler, ", ".join(map(str, rungs(space)))
    part = f"1 in {settings.reduction} goes on"
    if settings.name == "asha":
        return f"ASHA, at epochs {epochs}: {part}"
    if settings.name == "hyperband":
        return f"HyperBand, at epochs {epochs}, by brackets of which some begin later: {part}"
    if settings.name == "median":
        return (
            f"from epoch {settings.grace} on, what is worse than the median of at least {settings.startup_trials} "
            "earlier trials at that epoch"
        )
    return "nobody stops trials early"


def budget_words(space: Space) -> str:
    """What may be spent."""
    budget, words = space.budget, []
    if space.most_trials < 1_000_000:
        words.append(f"{space.most_trials} trials")
    if budget.hours is not None:
        words.append(f"{budget.hours:g} hours")
    if budget.gpu_hours is not None:
        words.append(f"{budget.gpu_hours:g} GPU-hours")
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} or {words[-1]}, whichever ends first"


def backend_words(space: Space) -> str:
    """Where trials run."""
    if space.inline:
        return "each in one process, in actors that are used again"
    return f"each by {space.resources.workers} workers of Ray Train"


def place_words(held: ResourceSettings, capacity: Capacity) -> str:
    """What a trial holds, and of how much."""
    each = f"{held.cpus:g} CPUs and {held.gpus:g} GPUs each"
    if held.workers > 1:
        each = f"{held.workers} workers a trial, {each}"
    nodes = f" on {len(capacity.nodes)} nodes" if len(capacity.nodes) > 1 else ""
    return f"{each}, of {capacity.cpus:g} and {capacity.gpus:g}{nodes}"


def hours(value: float) -> str:
    """A time in hours, or in minutes or seconds where that is more readable."""
    if value >= 1:
        return f"{value:.3g} h"
    return f"{value * 60:.2g} min" if value * 60 >= 1 else f"{value * 3600:.2g} s"


def cost_lines(cost: StudyCost, budget: str) -> list[str]:
    """The estimate of costs for people."""
    low, middle, high = (hours(each) for each in cost.per_trial)
    step = statistics.median(one.step for one in cost.timed)
    lines = [
        f"cost:     an estimate: steps of {len(cost.timed)} configurations were timed here ({step * 1e3:.3g} ms each)",
        f"          a whole trial: {middle} of {cost.unit} time ({low} to {high})",
        f"          the study: at most {hours(cost.at_most)} of {cost.unit} time, {hours(cost.expected)} expected, "
        f"in {hours(cost.wall)} on the clock",
    ]
    if cost.by_time:
        lines.append(f"          at this speed {budget} are about {cost.trials} trials")
    lines += [f"          not timed: {reason}" for reason in cost.failed]
    if cost.unit == "GPU" and not cost.on_gpu:
        lines.append("          timed on a CPU, since this machine has no GPU: GPUs are faster")
    return lines

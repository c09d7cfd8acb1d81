"""Combinations of sampler, scheduler, budget and resources that cannot work, each refused with the reason."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from moldistill.core.errors import InputError
from moldistill.search.compile import POPULATION
from moldistill.search.grid import axes
from moldistill.search.space import Choice, Range, Space, walk

LEAST = 1e-4
"""Ray counts what tasks hold in ten-thousandths."""

MULTI = ("tpe", "random", "grid", "gp", "nsgaii")
"""Samplers that know several objectives."""

NO_SCHEDULERS = {
    "pbt": "population-based training changes settings in the midst of a run, so that a trial has no configuration of "
    "its own that could be trained again",
    "pb2": "like population-based training, it changes settings in the midst of a run, so that a trial has no "
    "configuration of its own that could be trained again",
    "bohb": "its sampler and its scheduler are one: here they are chosen apart",
}
"""Schedulers of Ray Tune that a search has not, and why."""


def refuse_schedulers(raw: Mapping[str, Any], where: str) -> None:
    """InputError for a well-known scheduler that cannot work here; the rest is checked with the other settings."""
    scheduler = raw.get("scheduler")
    name = scheduler.get("name") if isinstance(scheduler, Mapping) else None
    if not isinstance(name, str) or name.lower() not in NO_SCHEDULERS:
        return
    search = "`sampler: {name: tpe}` with `scheduler: {name: hyperband}`"
    schedules = "asha, and search schedules (such as distill.graph.schedule) for what is to change during training"
    raise InputError(
        f"{where}: scheduler.name: {NO_SCHEDULERS[name.lower()]}",
        got=name,
        expected="asha, hyperband, median or none",
        remedy=f"use {search if name.lower() == 'bohb' else schedules}",
    )


def check_combinations(space: Space) -> tuple[str, ...]:
    """Notes on what works and could be better; InputError, with the reason, for what cannot work."""
    for check in CHECKS:
        check(space)
    return tuple(_notes(space))


def _sampler(space: Space) -> None:
    if space.sampler.name == "grid":
        axes(space)
        if space.starting_points:
            raise InputError(
                f"{space.where}: starting_points: a grid tries every point anyway",
                got="sampler grid with starting points",
                expected="one of the two",
                remedy="remove them, or use another sampler",
            )
    if space.sampler.name == "cmaes":
        _cmaes(space)
    if space.sampler.population is not None and space.sampler.name not in ("nsgaii", "cmaes"):
        raise InputError(
            f"{space.where}: sampler.population: nothing reads it",
            got=f"population {space.sampler.population} with {space.sampler.name}",
            expected="a sampler that goes by generations: nsgaii or cmaes",
            remedy="remove it",
        )


def _cmaes(space: Space) -> None:
    branching = [
        parameter.name
        for parameter in walk(space.parameters)
        if isinstance(parameter.domain, Choice) and parameter.domain.branches
    ]
    if branching:
        raise InputError(
            f"{space.where}: sampler.name: CMA-ES needs parameters that every trial has",
            got=f"branches below {branching[0]}",
            expected="ranges and choices without branches",
            remedy="use `sampler: {name: tpe}`, or one space for each branch",
        )
    if not any(isinstance(parameter.domain, Range) for parameter in space.parameters):
        raise InputError(
            f"{space.where}: sampler.name: CMA-ES moves numbers, and all parameters are choices",
            got="cmaes",
            expected="a range among the parameters",
            remedy="use `sampler: {name: tpe}`",
        )


def _objectives(space: Space) -> None:
    if len(space.objectives) < 2:
        return
    if space.scheduler.name != "none":
        raise InputError(
            f"{space.where}: scheduler.name: nobody can stop a trial early by several objectives",
            got=f"{space.scheduler.name} with {len(space.objectives)} objectives",
            expected="none: a trial that is worse in one may be better in the other",
            remedy="write `scheduler: {name: none}`, or keep one objective",
        )
    if space.sampler.name not in MULTI:
        raise InputError(
            f"{space.where}: sampler.name: {space.sampler.name} follows one objective",
            got=f"{len(space.objectives)} objectives",
            expected="one of " + ", ".join(MULTI),
            remedy="write `sampler: {name: nsgaii}` (or tpe), or keep one objective",
        )


def _scheduler(space: Space) -> None:
    if space.scheduler.name != "none" and space.scheduler.grace >= space.epochs:
        raise InputError(
            f"{space.where}: scheduler.grace: no trial could be stopped early",
            got=f"grace {space.scheduler.grace} with {space.epochs} epochs",
            expected="grace below the number of epochs",
            remedy="lower grace, train longer, or write `scheduler: {name: none}`",
        )


def _resources(space: Space) -> None:
    held = space.resources
    place = f"{space.where}: resources"
    if held.workers > 1 and space.options.backend == "inline":
        raise InputError(
            f"{space.where}: backend: a trial of several workers is no one process",
            got=f"inline with {held.workers} workers",
            expected="auto or ray_train",
            remedy="write `backend: auto`, or `resources: {workers: 1}`",
        )
    for name, share in (("cpus", held.cpus), ("gpus", held.gpus)):
        if 0 < share < LEAST:
            raise InputError(
                f"{place}.{name}: Ray knows no smaller share than {LEAST:g}",
                got=f"{share:g}",
                expected=f"{LEAST:g} or more",
                remedy="give a larger share",
            )
    if held.gpus > 1 and held.gpus != int(held.gpus):
        raise InputError(
            f"{place}.gpus: more than one GPU is not shared",
            got=f"{held.gpus:g}",
            expected="a share up to 1, or a whole number",
            remedy=f"write {int(held.gpus)} or {int(held.gpus) + 1}",
        )
    if held.workers > 1 and 0 < held.gpus < 1:
        raise InputError(
            f"{place}.gpus: workers of one trial exchange gradients, which two on one GPU cannot",
            got=f"{held.workers} workers with {held.gpus:g} GPUs each",
            expected="a whole GPU for each worker, or none",
            remedy="write `gpus: 1`, or `workers: 1`",
        )
    if held.gpu_memory is not None:
        _gpu_memory(held.gpus, held.gpu_memory, place)


def _gpu_memory(gpus: float, memory: float, place: str) -> None:
    if gpus == 0:
        raise InputError(
            f"{place}.gpu_memory: the trials hold no GPU",
            got=f"gpu_memory {memory:g} with gpus 0",
            expected="gpus above 0",
            remedy="remove it, or give `gpus`",
        )
    together = int(1 / gpus + 1e-9) if gpus < 1 else 1
    if together * memory > 1 + 1e-9:
        raise InputError(
            f"{place}.gpu_memory: the trials on one GPU would use more than there is",
            got=f"{together} trials, each {memory:.0%} of the memory",
            expected=f"at most {1 / together:.3g}",
            remedy="lower it, or leave it out: each trial then has its share",
        )


def _device(space: Space) -> None:
    fixed = "training.device" in space.fixed
    device = space.fixed["training.device"] if fixed else space.base["training"]["device"]
    place = f"{space.where}: " + ("fixed.training.device" if fixed else "base: training.device")
    if space.resources.gpus > 0 and device == "cpu":
        raise InputError(
            f"{place}: the trials hold GPUs and would not use them",
            got=f"cpu with {space.resources.gpus:g} GPUs each",
            expected="auto or cuda",
            remedy="write `training.device: auto` under `fixed`, or `resources: {gpus: 0}`",
        )
    if space.resources.gpus == 0 and device == "cuda":
        raise InputError(
            f"{place}: the trials hold no GPU",
            got="cuda with `resources: {gpus: 0}`",
            expected="auto or cpu, or a GPU for each trial",
            remedy="write `resources: {gpus: 1}`",
        )


def _budget(space: Space) -> None:
    if space.budget.gpu_hours is not None and space.resources.gpus == 0:
        raise InputError(
            f"{space.where}: budget.gpu_hours: the trials hold no GPU, and would never spend it",
            got=f"{space.budget.gpu_hours:g} GPU-hours with `resources: {{gpus: 0}}`",
            expected="trials that hold GPUs",
            remedy="use budget.hours, or give `resources: {gpus: …}`",
        )
    if space.options.replicates.top > space.most_trials:
        raise InputError(
            f"{space.where}: replicates.top: there are not so many trials",
            got=f"{space.options.replicates.top} of {space.most_trials} trials",
            expected="at most the number of trials",
            remedy="lower it, or raise budget.trials",
        )


def _storage(space: Space) -> None:
    storage = space.options.storage
    if storage != "journal" and "://" not in storage:
        raise InputError(
            f"{space.where}: storage: neither `journal` nor the URL of a database",
            got=storage,
            expected="journal, or a URL such as postgresql://user@host/name",
            remedy="write `storage: journal`, a file in the study's folder",
        )


CHECKS: tuple[Callable[[Space], None], ...] = (
    _sampler,
    _objectives,
    _scheduler,
    _resources,
    _device,
    _budget,
    _storage,
)


def _notes(space: Space) -> Iterator[str]:
    sampler, trials = space.sampler, space.most_trials
    if space.grid_size is not None:
        if (space.budget.trials or 0) > space.grid_size:
            yield f"the grid has {space.grid_size} points, fewer than the {space.budget.trials} trials of the budget"
        elif trials < space.grid_size:
            yield f"the budget holds {trials} of the grid's {space.grid_size} points, drawn at random"
    if sampler.name in ("tpe", "gp", "cmaes") and sampler.startup_trials >= trials:
        yield f"all {trials} trials are random: {sampler.name} begins after {sampler.startup_trials}"
    population = sampler.population or POPULATION
    if sampler.name == "nsgaii" and population >= trials:
        yield f"all {trials} trials are random: nsgaii begins after its first population of {population}"
    yield from _sampler_notes(space)
    if len(space.starting_points) > trials:
        yield f"{len(space.starting_points)} starting points, and {trials} trials: the last are never tried"


def _sampler_notes(space: Space) -> Iterator[str]:
    name = space.sampler.name
    if name == "cmaes" and any(isinstance(item.domain, Choice) for item in space.parameters):
        yield "cmaes moves numbers only: choices are drawn at random"
    if name in ("gp", "nsgaii"):
        if space.scheduler.name != "none":
            yield f"{name} learns from trials that ran to their end only, not from those stopped early"
        if any(item not in space.parameters for item in walk(space.parameters)):
            yield f"{name} draws the parameters of branches at random: tpe models them, too"

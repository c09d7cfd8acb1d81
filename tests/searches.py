"""How long a search takes to find one of the best 1% of configurations, on the frozen curves."""

from __future__ import annotations

import math
from typing import Any

import curves
from moldistill.search.parse import load_space
from moldistill.search.simulator import Ending, Simulator

TRIALS = 256
SCHEDULERS: dict[str, dict[str, Any]] = {
    "none": {"name": "none"},
    "asha": {"name": "asha", "grace": 1, "reduction": 3},
    "hyperband": {"name": "hyperband", "grace": 1, "reduction": 3},
    "median": {"name": "median", "grace": 1, "startup_trials": 5},
}


def epochs_to_best(
    frozen: curves.Frozen,
    sampler: str,
    scheduler: str,
    seed: int,
    *,
    trials: int = TRIALS,
    flat: bool = False,
    **options: Any,
) -> float:
    """Epochs that a study spends, all trials together, until one of the best 1% has been found; infinite if never.

    Found: a trial whose error after the last epoch is no larger than that of the 20 best of the 2,000 frozen curves has
    been trained to its end, so that the search knows its error and can hand it over. Two trials run at a time; the
    epoch that the other one has begun counts. The same for every sampler and scheduler.

    flat: without the choice of a scheme and its branch, for samplers that know numbers only. options: of the sampler.
    """
    told: dict[str, Any] = {"name": sampler, "seed": seed, **options}
    if sampler in ("tpe", "gp", "cmaes"):
        told = {"startup_trials": 10} | told
    raw = curves.raw_space(sampler=told, scheduler=SCHEDULERS[scheduler], budget={"trials": trials})
    if flat:
        scheme = "distill.atom.normalization"
        raw["fixed"][scheme] = "coordinated"
        del raw["parameters"][scheme]

    def is_found(ending: Ending) -> bool:
        return ending.outcome == "complete" and frozen.is_best(ending.settings)

    simulated = Simulator(load_space(raw), frozen, concurrent=2, until=is_found).run()
    return simulated.epochs if any(map(is_found, simulated.endings)) else math.inf

"""The best members whose predictions a budget of time pays for."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from moldistill.core.errors import InputError
from moldistill.core.seeds import generator
from moldistill.delivery.combiners import Integers, Sample
from moldistill.delivery.lad import lad_weights
from moldistill.delivery.selection import Floats

EXACT = 12
"""Candidates up to which the best set is found for certain."""

ROWS = 4_000
"""Most rows that the set is chosen on; weights are fitted on all."""

NODES = 2_000
"""Most linear programmes of the exact search."""

STEPS = (0.5, 0.35, 0.2, 0.1)
"""Shares of a further member that its gain is estimated with."""


@dataclass(frozen=True, slots=True)
class Budget:
    """costs: seconds of each member for all rows. left: seconds that all members together may take. most: members."""

    costs: Floats
    left: float
    most: int

    def members(self, places: Integers) -> Budget:
        """For some of the members."""
        return Budget(self.costs[places], self.left, self.most)


def affordable(sample: Sample, budget: Budget) -> Integers:
    """Places of the members, within the budget, whose least absolute deviation has the smallest MAE; ascending.

    Greedily: by gain per second and by gain alone, whichever ends better. Of up to EXACT members that fit the budget
    alone, the best set is then found by branch and bound: the LAD of more members is a lower bound of that of fewer.
    Raises InputError where no member fits.
    """
    places = np.flatnonzero(budget.costs <= budget.left)
    if not len(places):
        raise InputError(
            "no member fits the budget",
            got=f"{budget.left:.1f} s for the members, the fastest needs {budget.costs.min():.1f} s",
            expected="time for one member at least",
            remedy="raise --budget, or search among smaller models",
        )
    rows = np.sort(generator(len(sample.target), "affordable").permutation(len(sample.target))[:ROWS])
    few, part = sample.rows(rows).members(places), budget.members(places)
    if part.costs.sum() <= part.left and len(places) <= part.most:
        return places
    search = _Search(few.predictions - few.target, part)
    search.offer(np.array([int(few.mae.argmin())]))
    for per_second in (True, False):
        search.offer(search.greedy(per_second))
    if len(places) <= EXACT:
        search.branch(np.ones(len(places), dtype=np.bool_), np.zeros(len(places), dtype=np.bool_))
    return places[np.sort(search.best)]


class _Search:
    """The best set so far. errors: eV, (members, rows)."""

    def __init__(self, errors: Floats, budget: Budget) -> None:
        self.errors, self.budget = errors, budget
        self.best: Integers = np.zeros(0, dtype=np.int64)
        self.value, self.nodes = np.inf, 0

    def fits(self, places: Integers) -> bool:
        return len(places) <= self.budget.most and float(self.budget.costs[places].sum()) <= self.budget.left

    def lad(self, places: Integers) -> tuple[Floats, float]:
        """Weights of these members, and their MAE."""
        weights = lad_weights(self.errors[places], np.zeros(self.errors.shape[1]))
        return weights, float(np.abs(weights @ self.errors[places]).mean())

    def offer(self, places: Integers) -> None:
        """Keep a set that fits, if it is better."""
        weights, value = self.lad(places)
        if value < self.value:
            self.best, self.value = places[weights > 0], value

    def greedy(self, per_second: bool) -> Integers:
        """Members one after another, each the one that gains most (per second), as long as one fits and helps."""
        taken: list[int] = []
        current, mae = self.errors[0], float(np.abs(self.errors).mean(axis=1).max()) * 2
        while True:
            open_to = [
                place
                for place in range(len(self.errors))
                if place not in taken and self.fits(np.array([*taken, place]))
            ]
            gains = np.array([mae - self._blended(current, place, bool(taken)) for place in open_to])
            if not len(gains) or gains.max() <= 0:
                return np.array(taken, dtype=np.int64)
            rated = np.where(gains > 0, gains / (self.budget.costs[open_to] if per_second else 1.0), -np.inf)
            taken.append(open_to[int(rated.argmax())])
            weights, mae = self.lad(np.array(taken))
            current = weights @ self.errors[taken]

    def _blended(self, current: Floats, place: int, begun: bool) -> float:
        """MAE with a further member, at the best of a few shares."""
        if not begun:
            return float(np.abs(self.errors[place]).mean())
        step = self.errors[place] - current
        return min(float(np.abs(current + share * step).mean()) for share in STEPS)

    def branch(self, allowed: Integers | np.ndarray, forced: np.ndarray) -> None:
        """Search the sets that hold all `forced` members and none that is not `allowed` (masks)."""
        room = self.budget.left - float(self.budget.costs[forced].sum())
        full = np.count_nonzero(forced) >= self.budget.most
        allowed = forced | (allowed & (self.budget.costs <= room) & (not full))
        places = np.flatnonzero(allowed)
        self.nodes += 1
        if self.nodes > NODES or not len(places):
            return
        weights, value = self.lad(places)
        if value >= self.value * (1 - 1e-9):
            return
        used = places[weights > 0]
        if self.fits(used):
            self.best, self.value = used, value
            return
        free = ~forced[used]
        heaviest = int(used[free][np.argmax(weights[weights > 0][free])])
        chosen = np.arange(len(forced)) == heaviest
        self.branch(allowed, forced | chosen)
        self.branch(allowed & ~chosen, forced)

"""Choosing among combiners by cross-validation, within the rows that may choose."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from moldistill.core.progress import progress
from moldistill.core.seeds import generator
from moldistill.delivery.affordable import Budget, affordable
from moldistill.delivery.combination import Combination
from moldistill.delivery.combiners import Combiner, Integers, Sample, scattered
from moldistill.delivery.selection import Floats

FOLDS = 5
"""Parts of the choosing rows, each of which judges combiners that are fitted on the others."""

CHOOSING_ROWS = 20_000
"""Most rows that combiners are compared on; the chosen one is fitted on all."""


@dataclass(frozen=True, slots=True)
class Tried:
    """A combiner and its cross-validated MAE (eV) on choosing rows.

    error: standard error (eV) of how much that is above the smallest, row by row. chosen: whether it was taken.
    """

    name: str
    mae: float
    error: float = 0.0
    chosen: bool = False


@dataclass(frozen=True, slots=True)
class Choice:
    """The chosen combiner; how all of them did; its errors and spreads (eV) on `sizes`, out of fold."""

    combiner: Combiner
    tried: tuple[Tried, ...]
    error: Floats
    spread: Floats
    sizes: Integers


def fit_within(combiner: Combiner, sample: Sample, budget: Budget | None) -> Combination:
    """The combination of a sample, of members that fit the budget."""
    return _fit_of(combiner, sample, None if budget is None else affordable(sample, budget))


def _fit_of(combiner: Combiner, sample: Sample, places: Integers | None) -> Combination:
    if places is None:
        return combiner.fit(sample)
    return scattered(combiner.fit(sample.members(places)), places, len(sample.predictions))


def choose(sample: Sample, combiners: Sequence[Combiner], seed: int, budget: Budget | None = None) -> Choice:
    """The first combiner whose cross-validated MAE is within one standard error of the smallest.

    The difference is taken row by row. Where rows are few, the smallest of many estimates is luck, and a steadier rule
    (`combiners.library` begins with the steadiest) does better on new rows; where they are many, the error is small,
    and the best one is taken. Each fold chooses members, within the budget, and weights anew from the other folds, so
    that what judges a combiner has no part in what it judges. One combiner alone is cross-validated, too: its spreads
    are needed for calibration.
    """
    order = generator(seed, "ensemble", "folds").permutation(len(sample.target))[:CHOOSING_ROWS]
    folds = [np.sort(part) for part in np.array_split(order, FOLDS)]
    errors, spreads = np.empty((2, len(combiners), len(order)))
    begin = 0
    with progress("choosing a combiner", FOLDS * len(combiners)) as bar:
        for number, fold in enumerate(folds):
            others = np.sort(np.concatenate([part for place, part in enumerate(folds) if place != number]))
            learnt, judged = sample.rows(others), sample.rows(fold)
            places = None if budget is None else affordable(learnt, budget)
            end = begin + len(fold)
            for place, combiner in enumerate(combiners):
                made = _fit_of(combiner, learnt, places).apply(judged.predictions, judged.sizes)
                errors[place, begin:end] = made.value - judged.target
                spreads[place, begin:end] = made.spread
                bar.advance(1)
            begin = end
    tried, chosen = _judged(combiners, np.abs(errors))
    return Choice(combiners[chosen], tried, errors[chosen], spreads[chosen], sample.sizes[np.concatenate(folds)])


def _judged(combiners: Sequence[Combiner], errors: Floats) -> tuple[tuple[Tried, ...], int]:
    """How each combiner did, and the place of the one to take; errors: |eV|, (combiners, rows)."""
    means = errors.mean(axis=1)
    deviations = (errors - errors[int(means.argmin())]).std(axis=1) / np.sqrt(errors.shape[1])
    chosen = int(np.flatnonzero(means - means.min() <= deviations)[0])
    tried = tuple(
        Tried(item.name, float(mae), float(deviation), place == chosen)
        for place, (item, mae, deviation) in enumerate(zip(combiners, means, deviations, strict=True))
    )
    return tried, chosen

"""Finalists: what training the best trials again with fresh seeds says of which is better, and what is luck."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np

from moldistill.delivery.paired import (
    Estimate,
    holm,
    mean_interval,
    paired_percent,
    seeds_needed,
    two_sided_p,
)
from moldistill.delivery.selection import LEVEL

ALPHA = 1 - LEVEL

WORTH = 2.0
"""Percent: the difference for which the seeds that it would take are told."""


@dataclass(frozen=True, slots=True)
class Finalist:
    """A trial over its fresh seeds. values: the objective (eV) by seed, without those that failed.

    mean: of `values`, with its 95% t-interval. searched: the value that the search chose it by. optimism: percent by
    which that was too good, 100 · (1 - searched / mean); negative where it was too bad.
    """

    trial: int
    values: Mapping[int, float]
    failed: int
    mean: Estimate | None
    searched: float | None
    optimism: float | None


@dataclass(frozen=True, slots=True)
class Pair:
    """Two finalists, `better` with the smaller mean. difference: percent of `worse`, paired by seed; below 0 is better.

    p: of Student's paired t-test; None with fewer than two common seeds. adjusted: p with regard to all pairs (Holm).
    """

    better: int
    worse: int
    difference: Estimate | None
    p: float | None
    adjusted: float

    @property
    def clear(self) -> bool:
        """Whether `better` is better, with at most 5% chance of a single error among all pairs."""
        return self.adjusted < ALPHA


@dataclass(frozen=True, slots=True)
class Finals:
    """What the finalists came to, the best mean first.

    pairs: the winner against each other one, then the rest. needed: seeds that a difference of WORTH percent would take
    to be found with 80% probability, None for one finalist. optimism: percent, mean over the finalists.
    """

    metric: str
    seeds: int
    finalists: tuple[Finalist, ...]
    pairs: tuple[Pair, ...]
    needed: int | None
    optimism: float | None
    conclusion: str

    @property
    def winner(self) -> int | None:
        """The trial with the best mean."""
        return self.finalists[0].trial if self.finalists and self.finalists[0].mean else None


def judge(
    replicates: Sequence[Mapping[str, Any]], searched: Mapping[int, float | None], metric: str, unit: str = "eV"
) -> Finals | None:
    """Statistics of a study's finalists; None where it has none.

    replicates: `trial`, `seed` and `value` (None: it failed) of each, as the study's manifest has them; smaller values
    are better. searched: each trial's value in the search, which is left out of all means: it was chosen for being
    good.

    Pairs are compared seed by seed. Since the winner is chosen by the same figures, all pairs count in Holm's
    adjustment, and not only the winner's.
    """
    trials = list(dict.fromkeys(int(one["trial"]) for one in replicates))
    if not trials:
        return None
    found = [_finalist(trial, replicates, searched.get(trial)) for trial in trials]
    found.sort(key=lambda one: (one.mean is None, one.mean.value if one.mean else 0.0))
    pairs = _pairs(found)
    gains = [one.optimism for one in found if one.optimism is not None]
    seeds = len({int(one["seed"]) for one in replicates})
    needed = _needed(found, len(pairs))
    return Finals(
        metric=metric,
        seeds=seeds,
        finalists=tuple(found),
        pairs=pairs,
        needed=needed,
        optimism=float(np.mean(gains)) if gains else None,
        conclusion=_conclusion(found, pairs, seeds, needed, unit),
    )


def _finalist(trial: int, replicates: Sequence[Mapping[str, Any]], searched: float | None) -> Finalist:
    mine = [one for one in replicates if int(one["trial"]) == trial]
    known = sorted((int(one["seed"]), float(one["value"])) for one in mine if _finite(one["value"]))
    values = dict(known)
    mean = mean_interval(list(values.values()))
    known_optimism = mean is not None and searched is not None and mean.value != 0
    optimism = 100 * (1 - searched / mean.value) if known_optimism and searched is not None and mean else None
    return Finalist(trial, values, len(mine) - len(values), mean, searched, optimism)


def _finite(value: Any) -> bool:
    return value is not None and bool(np.isfinite(value))


def _pairs(found: Sequence[Finalist]) -> tuple[Pair, ...]:
    """All pairs; `found` is sorted, so that the winner's come first."""
    compared = [one for one in found if one.mean is not None]
    tested = [(one, other, _percents(one, other)) for one, other in combinations(compared, 2)]
    p_values = [two_sided_p(percents) for _, _, percents in tested]
    return tuple(
        Pair(one.trial, other.trial, paired_percent(one.values, other.values), p, adjusted)
        for (one, other, _), p, adjusted in zip(tested, p_values, holm(p_values), strict=True)
    )


def _percents(one: Finalist, other: Finalist) -> list[float]:
    """Differences in percent of the other, seed by seed."""
    return [100 * (one.values[seed] / other.values[seed] - 1) for seed in one.values if seed in other.values]


def _needed(found: Sequence[Finalist], pairs: int) -> int | None:
    """Seeds for WORTH percent, from the deviation that all pairs have in common, at the level of the strictest test."""
    every = [_percents(one, other) for one, other in combinations([one for one in found if one.mean], 2)]
    variances = [np.var(percents, ddof=1) for percents in every if len(percents) > 1]
    return seeds_needed(float(np.sqrt(np.mean(variances))), WORTH, ALPHA / pairs) if variances else None


def _conclusion(found: Sequence[Finalist], pairs: Sequence[Pair], seeds: int, needed: int | None, unit: str) -> str:
    """What it comes to, in a sentence or two."""
    compared = [one for one in found if one.mean is not None]
    if not compared:
        return "No finalist came to an end."
    if len(compared) == 1:
        mean = compared[0].mean
        assert mean is not None
        reach = "" if mean.low is None else f" (95% interval {mean.low:.4f} to {mean.high:.4f})"
        return f"Trial {compared[0].trial} has {mean.value:.4f} {unit}{reach} over {_count(mean.count, 'fresh seed')}."
    if needed is None:
        return f"{len(compared)} finalists cannot be compared: fewer than two seeds came to an end in both."
    power = f"about {needed:,} seeds would be needed to tell a difference of {WORTH:g}%"
    winner = compared[0].trial
    clear = [pair for pair in pairs if pair.clear]
    if not clear:
        them = "both" if len(compared) == 2 else f"these {len(compared)}"
        return f"Noise: {them} finalists cannot be told apart with {_count(seeds, 'seed')}; {power}."
    open_to = [pair.worse for pair in pairs if pair.better == winner and not pair.clear]
    parts = (
        [_better(winner, [pair for pair in clear if pair.better == winner])] if len(open_to) < len(compared) - 1 else []
    )
    parts += [_better(pair.better, [pair]) for pair in clear if not parts and pair.better != winner]
    if open_to:
        parts.append(f"Trial {winner} cannot be told from {_trials(open_to)} with {_count(seeds, 'seed')}; {power}.")
    return " ".join(parts)


def _better(trial: int, pairs: Sequence[Pair]) -> str:
    gains = [f"{-pair.difference.value:.1f}%" for pair in pairs if pair.difference is not None]
    return f"Trial {trial} is better than {_trials([pair.worse for pair in pairs])}, by {_listed(gains)}."


def _trials(numbers: Sequence[int]) -> str:
    return f"trial{'s' if len(numbers) > 1 else ''} {_listed([str(number) for number in numbers])}"


def _listed(words: Sequence[str]) -> str:
    return " and ".join(filter(None, [", ".join(words[:-1]), words[-1]]))


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"

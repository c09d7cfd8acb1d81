"""How sure a comparison is: over seeds by Student's t, over molecules by the bootstrap; both paired."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.special import nctdtr, stdtr, stdtrit

from moldistill.core.seeds import generator
from moldistill.delivery.selection import LEVEL, RESAMPLES

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean over `count` seeds with its 95% t-interval; low and high are None for one seed, which has none."""

    value: float
    low: float | None
    high: float | None
    count: int

    @property
    def half(self) -> float | None:
        """Half the width of the interval."""
        return None if self.low is None or self.high is None else (self.high - self.low) / 2


def mean_interval(values: Sequence[float]) -> Estimate | None:
    """Mean ± t · s / √n, with t the quantile of Student's distribution with n - 1 degrees of freedom, s the standard
    deviation with n - 1 in its denominator; None where there is no value.
    """
    count = len(values)
    if not count:
        return None
    mean = float(np.mean(values))
    if count == 1:
        return Estimate(mean, None, None, 1)
    half = float(stdtrit(count - 1, (1 + LEVEL) / 2) * np.std(values, ddof=1) / np.sqrt(count))
    return Estimate(mean, mean - half, mean + half, count)


def paired_percent(arm: Mapping[int, float], baseline: Mapping[int, float]) -> Estimate | None:
    """Mean over common seeds of 100 · (arm / baseline - 1), each seed against itself; None without a common seed."""
    seeds = [seed for seed in arm if seed in baseline]
    return mean_interval([100 * (arm[seed] / baseline[seed] - 1) for seed in seeds])


def closed_percent(arm: Mapping[int, float], baseline: Mapping[int, float], goal: float) -> Estimate | None:
    """Mean over common seeds of 100 · (baseline - arm) / (baseline - goal): the share of the gap that is closed.

    None where the baseline has reached the goal at one of the seeds, so that there is no gap.
    """
    seeds = [seed for seed in arm if seed in baseline]
    if any(baseline[seed] <= goal for seed in seeds):
        return None
    return mean_interval([100 * (baseline[seed] - arm[seed]) / (baseline[seed] - goal) for seed in seeds])


def verdict(difference: Estimate | None) -> str:
    """`lower` or `higher` where the interval of the difference is clear of 0, else `not told apart`."""
    if difference is None:
        return "not compared"
    if difference.low is None or difference.high is None:
        return "one seed"
    if difference.high < 0:
        return "lower"
    return "higher" if difference.low > 0 else "not told apart"


@dataclass(frozen=True, slots=True)
class Gain:
    """By how many percent of one error another one is smaller, with its 95% interval."""

    value: float
    low: float
    high: float

    @property
    def clear(self) -> bool:
        """Whether the interval is clear of 0."""
        return self.low > 0 or self.high < 0

    @property
    def turned(self) -> Gain:
        """The same ratio of errors, seen from the other one."""
        value, low, high = (100 * (1 - 1 / (1 - gain / 100)) for gain in (self.value, self.high, self.low))
        return Gain(value, low, high)

    def __str__(self) -> str:
        return f"{self.value:.1f}% (95% interval {self.low:.1f} to {self.high:.1f})"


def bootstrap_gain(errors: Floats, other: Floats, seed: int = 0, *, resamples: int = RESAMPLES) -> Gain:
    """100 · (1 - mean(errors) / mean(other)) with its percentile interval over molecules drawn again.

    errors, other: absolute errors (eV) of two models for the same rows, each of shape (rows,); a molecule that is drawn
    counts for both, so that what is hard for both does not widen the interval.
    """
    random, rows = generator(seed, "bootstrap"), len(errors)
    gains = np.empty(resamples)
    for resample in range(resamples):
        chosen = random.integers(0, rows, rows)
        gains[resample] = 1 - errors.take(chosen).mean() / other.take(chosen).mean()
    tail = (1 - LEVEL) / 2
    low, high = 100 * np.quantile(gains, [tail, 1 - tail])
    return Gain(float(100 * (1 - errors.mean() / other.mean())), float(low), float(high))


def two_sided_p(values: Sequence[float]) -> float | None:
    """Student's t-test that the mean is 0; None for fewer than two values."""
    count = len(values)
    if count < 2:
        return None
    mean, deviation = float(np.mean(values)), float(np.std(values, ddof=1))
    if deviation == 0:
        return 0.0 if mean else 1.0
    return float(2 * stdtr(count - 1, -abs(mean) * np.sqrt(count) / deviation))


def holm(p_values: Sequence[float | None]) -> list[float]:
    """P-values adjusted for being several (Holm, Scand. J. Statist. 1979), in their order.

    Below 0.05 is what is true with at most 5% chance of a single error among all. None, a test that could not be made,
    counts as 1.
    """
    known = np.array([1.0 if p is None else p for p in p_values])
    order = np.argsort(known, kind="stable")
    adjusted = np.maximum.accumulate(known[order] * (len(known) - np.arange(len(known))))
    result = np.empty(len(known))
    result[order] = np.minimum(adjusted, 1.0)
    return [float(p) for p in result]


MOST_SEEDS = 10_000


def seeds_needed(deviation: float, difference: float, level: float = 1 - LEVEL, power: float = 0.8) -> int:
    """Seeds with which a paired t-test at `level` finds a true `difference` with probability `power`.

    deviation: of the paired differences, in the same unit. The power is that of the noncentral t distribution. At most
    MOST_SEEDS, whatever that means for the power.
    """
    if deviation <= 0:
        return 2

    def enough(count: int) -> bool:
        shift = difference * np.sqrt(count) / deviation
        critical = stdtrit(count - 1, 1 - level / 2)
        return not nctdtr(count - 1, shift, critical) > 1 - power  # NaN is far out, where the power is 1

    return 2 + bisect_left(range(2, MOST_SEEDS), True, key=enough)

"""How sure a comparison over seeds is: Student's t-intervals of means and of paired differences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import stdtrit

from moldistill.delivery.selection import LEVEL


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

"""Intervals from the spread of members: split conformal prediction (Lei et al., JASA 2018), by class of molecule size.

Three sets of rows, none of which is used twice: out-of-fold errors of the choosing half say how errors grow with the
spread (|error| ≈ α + β · spread); one part of the scoring half says by how much that must be stretched for each level;
the other part measures how often the interval then holds.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
import numpy.typing as npt
from scipy.optimize import nnls

from moldistill.delivery.combination import Calibration, size_class
from moldistill.delivery.combiners import CLASS_WIDTH, Integers, size_edges
from moldistill.delivery.selection import LEVEL, Floats, bootstrap_means

LEVELS = (0.5, 0.8, 0.95)
"""Coverage of the intervals that are calibrated."""

CLASS_ROWS = 100
"""Fewest rows that a class of sizes is calibrated on: 95% leave five of them outside."""

SHOWN_ROWS = 20
"""Fewest rows of a class of sizes in the summary."""


@dataclass(frozen=True, slots=True)
class Coverage:
    """How often an interval of a level held: a share of `rows`, with its 95% interval (Wilson's)."""

    level: float
    rows: int
    covered: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class SizeClass:
    """Molecules of `smallest` to `largest` heavy atoms on unseen rows.

    mae: eV over all `rows` of the scoring half, with its 95% interval. coverage: on those of them that calibrated
    nothing, one for each level; none where there are no such rows.
    """

    smallest: int
    largest: int
    rows: int
    mae: float
    low: float
    high: float
    coverage: tuple[Coverage, ...]


@dataclass(frozen=True, slots=True)
class Judged:
    """Rows that a combination was not made on. error: combined minus target, eV; spread: eV; sizes: heavy atoms."""

    error: Floats
    spread: Floats
    sizes: Integers

    def rows(self, places: Integers | npt.NDArray[np.bool_]) -> Judged:
        """Some of the rows."""
        return Judged(self.error[places], self.spread[places], self.sizes[places])


def calibrate(shape: Judged, stretch: Judged, levels: Sequence[float] = LEVELS) -> Calibration:
    """Half-widths a + b · spread by class of sizes, so that a share `level` of new rows lies within.

    shape, stretch: two sets of rows. With n rows in a class, an interval is stretched to the ⌈(n + 1) level⌉-th
    smallest ratio of error and width, and covers a new row of that class with probability `level` at least; if there
    are fewer rows than that, to the largest.
    """
    edges = size_edges(stretch.sizes, CLASS_ROWS)
    a, b = [], []
    for number in range(len(edges) + 1):
        alike = shape.rows(size_class(edges, shape.sizes) == number)
        line = _line(alike if len(alike.error) >= CLASS_ROWS else shape)
        inside = stretch.rows(size_class(edges, stretch.sizes) == number)
        ratios = np.sort(np.abs(inside.error) / (line[0] + line[1] * inside.spread))
        factors = [ratios[min(math.ceil((len(ratios) + 1) * level), len(ratios)) - 1] for level in levels]
        a.append(tuple(float(factor * line[0]) for factor in factors))
        b.append(tuple(float(factor * line[1]) for factor in factors))
    return Calibration(tuple(levels), edges, tuple(a), tuple(b))


def _line(rows: Judged) -> tuple[float, float]:
    """α > 0 and β ≥ 0 of |error| ≈ α + β · spread by least squares."""
    size = np.abs(rows.error)
    typical = max(float(size.mean()), 1e-12)
    deviation = max(float(rows.spread.mean()), 1e-12)
    columns = np.stack([np.full(len(size), typical), rows.spread * (typical / deviation)], axis=1)
    (alpha, beta), _ = nnls(columns, size)
    # A width of 0 where the members agree would never hold; 1% of the typical error is narrow enough.
    return max(alpha, 0.01) * typical, beta * typical / deviation


def coverage(calibration: Calibration, rows: Judged) -> tuple[Coverage, ...]:
    """How often the interval of each level held on these rows."""
    if not len(rows.error):
        return ()
    held = np.abs(rows.error) <= calibration.half_width(rows.spread, rows.sizes)
    return tuple(
        _share(level, int(np.count_nonzero(line)), line.size)
        for level, line in zip(calibration.levels, held, strict=True)
    )


def _share(level: float, hits: int, rows: int) -> Coverage:
    """A share of rows with Wilson's interval."""
    z = NormalDist().inv_cdf((1 + LEVEL) / 2)
    share = hits / rows
    middle = (share + z**2 / (2 * rows)) / (1 + z**2 / rows)
    half = z / (1 + z**2 / rows) * math.sqrt(share * (1 - share) / rows + z**2 / (4 * rows**2))
    return Coverage(level, rows, share, max(middle - half, 0.0), min(middle + half, 1.0))


def by_size(calibration: Calibration, judged: Judged, measured: Integers, seed: int) -> tuple[SizeClass, ...]:
    """Errors on all judged rows, and coverage on those at the places `measured`, by class of CLASS_WIDTH sizes.

    Classes of fewer than SHOWN_ROWS rows are joined with the next.
    """
    edges = size_edges(judged.sizes, SHOWN_ROWS)
    ends = [0, *edges, max(int(judged.sizes.max()), CLASS_WIDTH)]
    of_row = size_class(edges, judged.sizes)
    unused = np.zeros(len(of_row), dtype=np.bool_)
    unused[measured] = True
    found = []
    for number, (before, end) in enumerate(itertools.pairwise(ends)):
        inside = of_row == number
        (mae,) = bootstrap_means(np.abs(judged.error[inside])[None], seed)
        held = coverage(calibration, judged.rows(inside & unused))
        found.append(SizeClass(before + 1, end, int(inside.sum()), mae.value, mae.low, mae.high, held))
    return tuple(found)

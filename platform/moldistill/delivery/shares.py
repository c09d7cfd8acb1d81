"""What drives a student: shares of its loss terms in the gradient, over training and over molecule size."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from moldistill.delivery import plots
from moldistill.distill.diagnostics import shares_by_size


def share_figures(curve: Sequence[Mapping[str, Any]]) -> list[plots.Figure]:
    """Plots of a run's metrics by epoch: all molecules over the epochs that tell, and sizes as told last; or none."""
    told = [(record["epoch"], shares) for record in curve if (shares := shares_by_size(record))]
    if not told:
        return []
    figures = [plots.gradient_shares(_lines([(epoch, shares[None]) for epoch, shares in told if None in shares]))]
    sizes = sorted((sum(size) / 2, shares) for size, shares in told[-1][1].items() if size is not None)
    if len(sizes) > 1:
        figures.append(plots.gradient_shares(_lines(sizes), "heavy atoms"))
    return figures


def _lines(points: Sequence[tuple[float, Mapping[str, float]]]) -> list[plots.Line]:
    """A line for each term through the points (x, shares by term) that know it."""
    names = dict.fromkeys(name for _, shares in points for name in shares)
    known = {name: [(x, shares[name]) for x, shares in points if name in shares] for name in names}
    arrays = {name: np.array(own, dtype=np.float64).T for name, own in known.items()}
    return [plots.Line(name, "other", x, values) for name, (x, values) in arrays.items()]

"""Huber's regression with weights that are not negative: stacking that outlying rows do not rule.

    minimize over w ≥ 0, b (and Σ w = 1)   Σ_i h(Σ_j w_j p_ji + b - y_i)

where h(r) is r²/2 within ±delta, and delta (|r| - delta/2) beyond, by a semismooth Newton method: each step minimizes
the quadratic model of the rows within ±delta and the slope of the others, by NNLS on the Cholesky factor of its small
matrix, and is halved until the loss falls.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.optimize import nnls

from moldistill.delivery.selection import Floats

STEPS = 100
"""Most Newton steps; a handful is usual."""

TINY = 1e-14
"""Relative fall of the loss at which the search ends."""

RIDGE = 1e-10
"""Share of the mean curvature that keeps equal members from making the quadratic model singular."""


@dataclass(frozen=True, slots=True)
class Stacked:
    """Weights (members,), and the intercept (eV; 0 where none was asked for)."""

    weights: Floats
    intercept: float


def huber_weights(
    predictions: Floats, target: Floats, delta: float, *, sum_to_one: bool = True, intercept: bool = False
) -> Stacked:
    """The non-negative weights, and the intercept, with the smallest Huber loss.

    predictions: eV, of shape (members, rows). target: eV, of shape (rows,). delta: eV, above 0.
    """
    members, rows = predictions.shape
    # With weights of sum 1 the residual is the weighted error, which needs no target of its own.
    matrix = predictions - target if sum_to_one else predictions
    wanted = np.zeros(rows) if sum_to_one else target
    free = np.concatenate([matrix, np.ones((int(intercept), rows))])
    scale = max(float(np.abs(matrix.mean(axis=0) - wanted).mean()), 1e-9)
    problem = _Problem(free / scale, wanted / scale, delta / scale, members, sum_to_one)
    start = np.zeros(len(free))
    start[:members] = 1 / members
    found = problem.minimize(start)
    return Stacked(found[:members], float(found[members]) if intercept else 0.0)


@dataclass(frozen=True, slots=True)
class _Problem:
    """Lines of `matrix` (members, then 1 for the intercept), all in units of the typical residual."""

    matrix: Floats
    wanted: Floats
    delta: float
    members: int
    sum_to_one: bool

    def minimize(self, x: Floats) -> Floats:
        loss = self._loss(x)
        for _ in range(STEPS):
            towards, step = self._newton(x) - x, 1.0
            while (new := self._loss(x + step * towards)) > loss and step > 1e-10:
                step /= 2
            if new > loss:
                break
            x, fall, loss = x + step * towards, loss - new, new
            if fall <= TINY * max(loss, 1e-300):
                break
        x[: self.members] = np.maximum(x[: self.members], 0.0)
        if self.sum_to_one:
            x[: self.members] /= x[: self.members].sum()
        return x

    def _loss(self, x: Floats) -> float:
        residual = x @ self.matrix - self.wanted
        held = np.clip(residual, -self.delta, self.delta)
        return float(held @ (residual - held / 2)) / len(residual)

    def _newton(self, x: Floats) -> Floats:
        """Where the quadratic model at `x` has its minimum within the bounds."""
        residual = x @ self.matrix - self.wanted
        slope = self.matrix @ np.clip(residual, -self.delta, self.delta) / len(residual)
        curved = self.matrix[:, np.abs(residual) < self.delta]
        curvature = curved @ curved.T / len(residual)
        size = max(float(np.trace(curvature)) / len(curvature), float(np.mean(self.matrix[: self.members] ** 2)) * 1e-6)
        curvature[np.diag_indices_from(curvature)] += RIDGE * size
        factor = np.asarray(np.linalg.cholesky(curvature).T, dtype=np.float64)
        # The model is |factor · v - at|² / 2 and a constant.
        at = np.asarray(factor @ x - np.linalg.solve(factor.T, slope), dtype=np.float64)
        return self._bounded(factor, at)

    def _bounded(self, factor: Floats, at: Floats) -> Floats:
        """argmin |factor · v - at|² over v with weights ≥ 0 (and of sum 1)."""
        weights, extra = factor[:, : self.members], factor[:, self.members :]
        if not self.sum_to_one:
            solved, _ = nnls(np.concatenate([weights, extra, -extra], axis=1), at)
            return self._joined(solved)
        # With Σ w = 1, |A w - at|² = |(A - at 1ᵀ) w|² is homogeneous, and so w is proportional to the minimum of it
        # plus (Σ w - 1)² over all w ≥ 0.
        inner = np.concatenate([weights - at[:, None], extra, -extra], axis=1)
        level = max(float(np.sqrt(np.mean(inner**2))), 1e-12)
        row = np.zeros((1, inner.shape[1]))
        row[0, : self.members] = level
        solved, _ = nnls(np.concatenate([inner, row]), np.append(np.zeros(len(at)), level))
        return self._joined(solved / solved[: self.members].sum())

    def _joined(self, solved: Floats) -> Floats:
        """Weights and intercept from what NNLS solved for: weights, and both signs of the intercept."""
        extra = (len(solved) - self.members) // 2
        positive = solved[self.members : self.members + extra]
        negative = solved[self.members + extra :]
        return np.concatenate([solved[: self.members], positive - negative])

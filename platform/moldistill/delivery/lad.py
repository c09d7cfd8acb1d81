"""Least absolute deviation with weights that are not negative, exactly: a linear programme, solved by its dual.

    minimize over w ≥ 0 (and Σ w = 1)   Σ_i |Σ_j w_j p_ji - y_i|

has one dual variable per row, -1 ≤ z_i ≤ 1, and one constraint per member, so that its bases are as small as the number
of members. At the optimum z_i is the sign of the residual wherever that is not 0; rows that lie far from the fit are
therefore given their sign, summed up, and left out of the programme, and the signs are checked afterwards (Portnoy and
Koenker, Statistical Science 12, 1997). A row whose sign was wrong joins the programme, which is solved again; when all
signs hold, the weights are optimal for all rows.
"""

from __future__ import annotations

import numpy as np
from scipy.optimize import linprog

from moldistill.core.errors import RunError
from moldistill.delivery.huber import huber_weights
from moldistill.delivery.selection import Floats

DIRECT = 4_000
"""Rows up to which all of them are in the programme."""

BAND = 20
"""Rows per member that are in the programme at first, where there are more than DIRECT."""

NARROW = 0.05
"""Bend of the loss that gives the first guess, as a share of the typical residual."""

NOTHING = 1e-12
"""A weight below this is 0."""


def lad_weights(predictions: Floats, target: Floats, *, sum_to_one: bool = True) -> Floats:
    """Weights (members,) ≥ 0 that make the mean absolute error of the weighted sum as small as it can be.

    predictions: eV, of shape (members, rows). target: eV, of shape (rows,). sum_to_one: whether the weights must be
    those of a mean. Where several weights are optimal (equal members), the solver's vertex is taken.
    Raises RunError where the solver gives up, which no input is known to make it do.
    """
    # With weights of sum 1 the residual is the weighted error; errors are small numbers, and the programme is easier.
    matrix = predictions - target if sum_to_one else predictions
    wanted = np.zeros(len(target)) if sum_to_one else target
    rows = len(target)
    if rows <= DIRECT:
        return _solve(matrix, wanted, sum_to_one, np.zeros(len(matrix)))
    weights = _first_guess(matrix, wanted, sum_to_one)
    residual = weights @ matrix - wanted
    inside = np.zeros(rows, dtype=np.bool_)
    inside[np.argsort(np.abs(residual), kind="stable")[: max(DIRECT // 2, BAND * len(matrix))]] = True
    signs = np.sign(residual)
    while True:
        outer = ~inside
        fixed = matrix[:, outer] @ signs[outer]
        weights = _solve(matrix[:, inside], wanted[inside], sum_to_one, fixed)
        wrong = outer & (np.sign(weights @ matrix - wanted) != signs)
        if not wrong.any():
            return weights
        inside |= wrong


def _first_guess(matrix: Floats, wanted: Floats, sum_to_one: bool) -> Floats:
    """Weights close to the optimum: of Huber's loss with a small delta, which is |r| but for a narrow bend at 0."""
    typical = float(np.abs(matrix.mean(axis=0) - wanted).mean())
    return huber_weights(matrix, wanted, max(NARROW * typical, 1e-9), sum_to_one=sum_to_one).weights


def _solve(matrix: Floats, wanted: Floats, sum_to_one: bool, fixed: Floats) -> Floats:
    """Weights for these rows and others whose signs are given; fixed: the sum of the others' columns, with their signs.

    With the sum: maximize t - y·z over t and |z| ≤ 1, subject to t ≤ (P z + fixed)_j for each member j; without it t is
    0 throughout. The weights are the multipliers of these constraints.
    """
    members, rows = matrix.shape
    level = np.ones((members, int(sum_to_one)))
    found = linprog(
        np.concatenate([wanted, -np.ones(int(sum_to_one))]),
        A_ub=np.concatenate([-matrix, level], axis=1),
        b_ub=fixed,
        bounds=[(-1.0, 1.0)] * rows + [(None, None)] * int(sum_to_one),
        method="highs-ds",
        options={"primal_feasibility_tolerance": 1e-10, "dual_feasibility_tolerance": 1e-10},
    )
    if found.status != 0:
        raise RunError("the weights of least absolute deviation were not found", got=found.message)
    weights: Floats = np.maximum(-found.ineqlin.marginals, 0.0)
    weights[weights < NOTHING] = 0.0
    return weights / weights.sum() if sum_to_one else weights

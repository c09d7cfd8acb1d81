"""Choosing and weighing ensemble members: greedy forward selection, and how sure its score is."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from moldistill.core.seeds import generator

Floats = npt.NDArray[np.float64]

ROUNDS = 100
"""Most picks of the greedy selection; a weight is a multiple of 1 / picks."""

PATIENCE = 25
"""Picks without a better mean after which the selection ends."""

RESAMPLES = 2000
"""Bootstrap resamples behind an interval."""

LEVEL = 0.95
"""Coverage of an interval."""


@dataclass(frozen=True, slots=True)
class Score:
    """A mean over rows (eV) with its bootstrap 95% interval."""

    value: float
    low: float
    high: float


def greedy_weights(
    predictions: Floats, target: Floats, *, max_members: int, rounds: int = ROUNDS, patience: int = PATIENCE
) -> Floats:
    """Weights (members, sum 1) by greedy forward selection with replacement (Caruana et al., ICML 2004).

    predictions: eV, of shape (members, rows). target: eV, of shape (rows,).
    Each pick adds the member that makes the MAE of the picks' mean smallest, the first of equals; the picks made until
    the best mean of the whole way are counted. At most `max_members` different members are picked.
    """
    errors = predictions - target
    total = np.zeros_like(target)
    buffer = np.empty_like(target)
    counts = np.zeros(len(errors), dtype=np.int64)
    best_counts, best, best_round = counts, np.inf, 0
    for picks in range(1, rounds + 1):
        full = np.count_nonzero(counts) >= max_members
        open_to = np.flatnonzero(counts) if full else np.arange(len(errors))
        scores = np.empty(len(open_to))
        for place, member in enumerate(open_to):
            # One row of errors at a time stays in the processor's cache; the whole table at once does not.
            np.add(total, errors[member], out=buffer)
            np.abs(buffer, out=buffer)
            scores[place] = buffer.mean()
        place = int(scores.argmin())
        pick = open_to[place]
        total += errors[pick]
        counts = counts.copy()
        counts[pick] += 1
        mae = scores[place] / picks
        if mae < best:
            best_counts, best, best_round = counts, mae, picks
        elif picks - best_round >= patience:
            break
    weights: Floats = best_counts / best_counts.sum()
    return weights


def halves(rows: int, seed: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Two seeded random halves of `rows` places, each ascending: one to choose on, one to score on."""
    order = generator(seed, "ensemble", "halves").permutation(rows)
    return np.sort(order[: rows // 2]), np.sort(order[rows // 2 :])


def bootstrap_means(values: Floats, seed: int, *, resamples: int = RESAMPLES) -> tuple[Score, ...]:
    """Mean of each line of `values` (lines, rows) with its 95% percentile interval over rows drawn again.

    All lines share the resamples, so that lines of paired rows, and their differences, are comparable.
    """
    random = generator(seed, "bootstrap")
    rows = values.shape[1]
    means = np.empty((resamples, len(values)))
    for resample in range(resamples):
        chosen = random.integers(0, rows, rows)
        means[resample] = values.take(chosen, axis=1).mean(axis=1)
    tail = (1 - LEVEL) / 2
    low, high = np.quantile(means, [tail, 1 - tail], axis=0)
    return tuple(
        Score(float(value), float(a), float(b)) for value, a, b in zip(values.mean(axis=1), low, high, strict=True)
    )

"""How much each searched parameter mattered: fANOVA where it can be computed, rank correlation elsewhere."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution

from moldistill.search.compile import quiet_optuna

MIN_TRIALS = 8
"""Fewest finished trials for which an importance is told at all."""

Finished = Sequence[tuple[Mapping[str, Any], float]]
"""Parameters and value of each finished trial."""


def parameter_importance(trials: Finished) -> tuple[list[tuple[str, float]], str] | None:
    """Share (sum 1) of each parameter that all these trials have and that varies, and the method's name.

    None where there are fewer than `MIN_TRIALS` trials, or nothing varies.
    """
    trials = [(params, value) for params, value in trials if math.isfinite(value)]
    if len(trials) < MIN_TRIALS:
        return None
    names = [name for name in trials[0][0] if all(name in params for params, _ in trials)]
    names = [name for name in names if len({str(params[name]) for params, _ in trials}) > 1]
    values = np.array([value for _, value in trials])
    if not names or not np.ptp(values) > 0:
        return None
    try:
        shares, method = _fanova(trials, names), "fANOVA"
    except (ImportError, ValueError, RuntimeError):
        shares, method = (
            [(name, _association([p[name] for p, _ in trials], values)) for name in names],
            "rank correlation",
        )
    total = sum(share for _, share in shares)
    return ([(name, share / total) for name, share in shares], method) if total > 0 else None


def _fanova(trials: Finished, names: Sequence[str]) -> list[tuple[str, float]]:
    """Importances by Optuna's fANOVA on a study rebuilt from the table."""
    distributions = {name: _distribution([params[name] for params, _ in trials]) for name in names}
    with quiet_optuna(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        study = optuna.study.create_study(storage=optuna.storages.InMemoryStorage())
        for params, value in trials:
            known = {name: _plain(params[name], distributions[name]) for name in names}
            study.add_trial(optuna.trial.create_trial(params=known, distributions=distributions, value=value))
        evaluator = optuna.importance.FanovaImportanceEvaluator(seed=0)
        return list(optuna.importance.get_param_importances(study, evaluator=evaluator).items())


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _plain(value: Any, distribution: BaseDistribution) -> Any:
    return float(value) if isinstance(distribution, FloatDistribution) else str(value)


def _distribution(values: Sequence[Any]) -> BaseDistribution:
    """A distribution that the values could be of; logarithmic where positive values span more than a factor of 30."""
    if all(map(_is_number, values)):
        low, high = float(min(values)), float(max(values))
        return FloatDistribution(low, high, log=low > 0 and high / low > 30)
    return CategoricalDistribution(sorted({str(value) for value in values}))


def _association(parameter: Sequence[Any], values: np.ndarray[Any, Any]) -> float:
    """Squared rank correlation of a number, or the share of rank variance between the classes of a category."""
    ranks = values.argsort().argsort().astype(float)
    if all(map(_is_number, parameter)):
        return float(np.corrcoef(np.asarray(parameter, dtype=float).argsort().argsort(), ranks)[0, 1] ** 2)
    classes = np.array([str(value) for value in parameter])
    between = sum(
        (classes == name).sum() * (ranks[classes == name].mean() - ranks.mean()) ** 2 for name in set(classes)
    )
    return float(between / ((ranks - ranks.mean()) ** 2).sum())

"""A space as an Optuna define-by-run function, and samples of it."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import optuna
from optuna.samplers import BaseSampler, CmaEsSampler, GPSampler, NSGAIISampler, RandomSampler, TPESampler
from optuna.trial import BaseTrial

from moldistill.core.seeds import named_seed
from moldistill.search.grid import Grid
from moldistill.search.space import Parameter, Range, Space

POPULATION = 50
"""Of a generation of NSGA-II, where the space does not say: Optuna's own."""


class DefineByRun:
    """Asks an Optuna trial for every parameter of the branch it is in. Picklable: Ray ships it to other processes."""

    def __init__(self, parameters: tuple[Parameter, ...]) -> None:
        self.parameters = parameters

    def __call__(self, trial: BaseTrial) -> dict[str, Any]:
        """The sampled values by dotted key of the run's settings."""
        values: dict[str, Any] = {}
        pending = list(self.parameters)
        while pending:
            parameter = pending.pop(0)
            if isinstance(parameter.domain, Range):
                values[parameter.name] = _number(trial, parameter.label, parameter.domain)
                continue
            options = {_key(option.label): option for option in parameter.domain.options}
            labels = [option.label for option in parameter.domain.options]
            chosen = options[_key(trial.suggest_categorical(parameter.label, labels))]
            values[parameter.name] = list(chosen.value) if isinstance(chosen.value, tuple) else chosen.value
            pending = [*chosen.parameters, *pending]
        return values


def _key(label: Any) -> tuple[type, Any]:
    """Tells 1, 1.0 and True apart, which are one key of a dict."""
    return type(label), label


def _number(trial: BaseTrial, label: str, domain: Range) -> float:
    if domain.whole:
        step = int(domain.step or 1)
        return trial.suggest_int(label, int(domain.low), int(domain.high), step=step, log=domain.log)
    return trial.suggest_float(label, domain.low, domain.high, step=domain.step, log=domain.log)


def make_sampler(space: Space, *, earlier: int = 0) -> BaseSampler:
    """The sampler of a study that holds `earlier` trials: each continuation draws from a stream of its own.

    `grid` and `cmaes` go on where they were, by what the storage holds. InputError for a grid of a space that has none.
    """
    settings = space.sampler
    seed = named_seed(settings.seed, "sampler", earlier) % 2**32
    startup = settings.startup_trials
    with quiet_optuna():
        if settings.name == "random":
            return RandomSampler(seed=seed)
        if settings.name == "grid":
            return Grid(space)
        if settings.name == "cmaes":
            # What was stopped early counts where every trial is compared at the same epochs (Optuna's own advice).
            stopped = space.scheduler.name in ("asha", "hyperband")
            return CmaEsSampler(
                seed=seed,
                n_startup_trials=startup,
                popsize=settings.population,
                consider_pruned_trials=stopped,
                warn_independent_sampling=False,
            )
        if settings.name == "gp":
            return GPSampler(seed=seed, n_startup_trials=startup, warn_independent_sampling=False)
        if settings.name == "nsgaii":
            return NSGAIISampler(seed=seed, population_size=settings.population or POPULATION)
        # Grouped: parameters that occur together are modelled together, branch by branch. The constant liar keeps
        # trials that run at the same time apart.
        return TPESampler(
            seed=seed,
            n_startup_trials=startup,
            multivariate=settings.multivariate,
            group=settings.multivariate and settings.group,
            constant_liar=True,
        )


def sample(
    parameters: tuple[Parameter, ...], count: int, seed: int = 0, *, fixed: Mapping[str, Any] | None = None
) -> list[dict[str, Any]]:
    """`count` random configurations, the same for the same seed. fixed: values by label that all of them have."""
    with quiet_optuna():
        study = optuna.create_study(sampler=RandomSampler(seed=seed))
        for _ in range(count if fixed else 0):
            study.enqueue_trial(dict(fixed or {}))
        define = DefineByRun(parameters)
        return [define(study.ask()) for _ in range(count)]


@contextmanager
def quiet_optuna() -> Iterator[None]:
    """Optuna without its own log lines and notes on experimental features."""
    verbosity = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", category=optuna.exceptions.ExperimentalWarning)
            warnings.simplefilter("ignore", category=UserWarning)
            warnings.simplefilter("ignore", category=FutureWarning)
            yield
    finally:
        optuna.logging.set_verbosity(verbosity)


def tree(parameters: tuple[Parameter, ...], indent: str = "") -> list[str]:
    """The compiled space as lines, each branch below its value."""
    lines = []
    for parameter in parameters:
        domain = parameter.domain
        if isinstance(domain, Range):
            lines.append(f"{indent}{parameter.name}: {_range_text(domain)}")
            continue
        lines.append(f"{indent}{parameter.name}: one of")
        for option in domain.options:
            lines.append(f"{indent}  - {option.label}" + (":" if option.parameters else ""))
            lines += tree(option.parameters, indent + "      ")
    return lines


def _range_text(domain: Range) -> str:
    kind = "whole number" if domain.whole else "number"
    scale = ", log scale" if domain.log else f", steps of {domain.step:g}" if domain.step else ""
    return f"{kind} in [{domain.low:g}, {domain.high:g}]{scale}"

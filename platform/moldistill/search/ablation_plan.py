"""What each arm of an ablation will train, fixed once: weights, and steps at equal cost, saved as `plan.json`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from moldistill.core.artifacts import read_json, write_json
from moldistill.core.config import build, to_mapping
from moldistill.core.errors import InputError, RunError
from moldistill.core.progress import progress
from moldistill.core.settings import RunSettings, TrainingSettings
from moldistill.data.store import Store
from moldistill.search.ablation import Ablation
from moldistill.search.equal_weight import Weighted, with_equal_weights
from moldistill.search.space import absolute
from moldistill.training.budget import LONG, Cost, fast_bf16
from moldistill.training.loop import Trainer
from moldistill.training.turns import ROUNDS, TURNS, measure_in_turns
from moldistill.trial.run import check_run, choose_device, make_trainer, open_targets
from moldistill.trial.spec import TrialSpec

PLAN = "plan.json"

NEVER = 10**9
"""Epochs that no run has."""


@dataclass(frozen=True, slots=True)
class ArmPlan:
    """What an arm trains.

    settings: of its runs, but for seed, steps and evaluations; the plan's file leaves out the path of the targets.
    mean_weight: of its atom term, see `equal_weight`. step, evaluation: seconds. steps_per_epoch: of this store.
    steps: by fraction of the length. reason: why it cannot train.
    """

    name: str
    settings: RunSettings
    mean_weight: float | None
    step: float
    evaluation: float
    steps_per_epoch: int
    steps: Mapping[float, int]
    reason: str | None = None

    def run(self, fraction: float, seed: int, evaluations: int) -> RunSettings:
        """Settings of one run, with its length decided."""
        steps = self.steps[fraction]
        epochs = -(-steps // self.steps_per_epoch)
        training = replace(
            self.settings.training,
            steps=steps,
            seed=seed,
            evaluate_every=max(1, -(-epochs // evaluations)),
            compile=self._compiled(steps),
        )
        return replace(self.settings, training=training)

    def _compiled(self, steps: int) -> Any:
        asked = self.settings.training.compile
        return asked if asked != "auto" else ("always" if steps * self.step > LONG else "never")

    def seconds(self, fraction: float, evaluations: int) -> float:
        """What a run of this fraction is foreseen to take."""
        return self.steps[fraction] * self.step + evaluations * self.evaluation if self.steps else 0.0


@dataclass(frozen=True, slots=True)
class Plan:
    """The plans of all arms. inputs: identities of store and targets. clock: what its seconds are."""

    inputs: Mapping[str, str]
    clock: str
    arms: tuple[ArmPlan, ...]

    def save(self, out: Path) -> None:
        """Write it into the ablation's folder."""
        arms = [asdict(arm) | {"settings": to_mapping(arm.settings) | {"targets": None}} for arm in self.arms]
        write_json(out / PLAN, {"inputs": dict(self.inputs), "clock": self.clock, "arms": arms})


def load_plan(out: Path, targets: Mapping[str, Any]) -> Plan | None:
    """The saved plan, its arms reading `targets` (by arm); None where there is none yet."""
    path = out / PLAN
    if not path.is_file():
        return None
    raw = read_json(path)
    try:
        arms = []
        for told in raw["arms"]:
            mapping = told["settings"] | {"targets": targets[told["name"]]}
            settings = build(RunSettings, mapping, f"{path}: {told['name']}")
            steps = {float(part): int(count) for part, count in told["steps"].items()}
            arms.append(ArmPlan(**told | {"settings": settings, "steps": steps}))
        return Plan(raw["inputs"], raw["clock"], tuple(arms))
    except (KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"{path} is not a plan", got=repr(error), remedy="start a new ablation in another folder"
        ) from error


def find_inputs(ablation: Ablation, store: Store, targets: tuple[str, ...]) -> tuple[dict[str, RunSettings], Plan]:
    """Each arm's settings with its targets, and an empty plan that says what they read.

    `targets` are read by the arms that learn from a teacher and name none. InputError for data that does not fit.
    """
    found, identities = {}, {"store": store.identity}
    for arm in ablation.arms:
        settings = arm.settings
        if not settings.distill.needs_teacher:
            settings = replace(settings, targets=None)
        elif folders := settings.target_folders or targets:
            named = absolute(folders)
            settings = replace(settings, targets=named if isinstance(named, str) else tuple(named))
        with _naming(ablation, arm.name):
            check_run(TrialSpec(settings, store.path, Path()))
            opened = open_targets(settings, store)
        if opened is not None:
            key = "targets" if not arm.settings.target_folders else f"targets of {arm.name}"
            identities[key] = opened.identity
        found[arm.name] = settings
    clock = {choose_device(settings).type for settings in found.values()}
    if len(clock) > 1:
        raise InputError(
            f"{ablation.where}: arms on different devices cannot be compared at equal cost",
            got=", ".join(sorted(clock)),
            expected="one device",
            remedy="give all arms the same training.device",
        )
    return found, Plan(identities, "elapsed s" if clock == {"cuda"} else "CPU-s", ())


def make_plan(ablation: Ablation, store: Store, arms: Mapping[str, RunSettings], empty: Plan) -> Plan:
    """Time the arms against each other, in this process, and share the budget out. InputError for what cannot train."""
    weighted = with_equal_weights(arms, ablation.settings.equal_mean_weight, store, ablation.where)
    settled = {name: replace(arm, settings=_precise(arm.settings)) for name, arm in weighted.items()}
    per_epoch: dict[str, int] = {}

    def make(name: str) -> Trainer:
        settings = settled[name].settings
        plain = replace(settings, training=replace(settings.training, compile="never"))
        with _naming(ablation, name):
            trainer = make_trainer(TrialSpec(plain, store.path, Path()))
        per_epoch[name] = trainer.steps_per_epoch
        return trainer

    rounds = ROUNDS if ablation.settings.budget_seconds is not None else 1
    with progress("timing", total=rounds * TURNS * len(arms)) as bar:
        makers = {name: partial(make, name) for name in arms}
        costs = measure_in_turns(makers, rounds, lambda name: bar.advance(1, name))
    plans = [_arm_plan(ablation, name, settled[name], cost, per_epoch[name]) for name, cost in costs.items()]
    return replace(empty, arms=tuple(plans))


def _precise(settings: RunSettings) -> RunSettings:
    """What `training.budget.settle` decides without a clock."""
    if settings.training.precision != "auto":
        return settings
    precision: Any = "bf16" if fast_bf16(choose_device(settings)) else "fp32"
    return replace(settings, training=replace(settings.training, precision=precision))


def _arm_plan(ablation: Ablation, name: str, arm: Weighted, cost: Cost | RunError, per_epoch: int) -> ArmPlan:
    if isinstance(cost, RunError):
        return ArmPlan(name, arm.settings, arm.mean, 0.0, 0.0, per_epoch, {}, cost.what)
    steps = {
        fraction: _steps(ablation, name, arm.settings.training, cost, per_epoch, fraction)
        for fraction in ablation.fractions
    }
    return ArmPlan(name, arm.settings, arm.mean, cost.step, cost.evaluation, per_epoch, steps)


def _steps(
    ablation: Ablation, name: str, training: TrainingSettings, cost: Cost, per_epoch: int, fraction: float
) -> int:
    """Steps of a fraction of the length: of the budget, its evaluations paid from it, or of the epochs."""
    settings = ablation.settings
    if settings.budget_seconds is None:
        return max(1, round(fraction * training.total_steps(per_epoch)))
    seconds = fraction * settings.budget_seconds
    needed = cost.step + settings.evaluations * cost.evaluation
    if seconds < needed:
        raise InputError(
            f"{ablation.where}: budget_seconds is too short for arms.{name}",
            got=f"{seconds:g} s" + (f" ({fraction:g} of {settings.budget_seconds:g} s)" if fraction != 1 else ""),
            expected=f"more than {needed:.2g} s: one step and {settings.evaluations} evaluations",
            remedy="give more seconds, or a smaller model",
        )
    return cost.steps_within(seconds - (settings.evaluations - 1) * cost.evaluation, per_epoch, NEVER)


@contextmanager
def _naming(ablation: Ablation, arm: str) -> Iterator[None]:
    """The arm's name in front of what is wrong with its input."""
    try:
        yield
    except InputError as error:
        told = f"{ablation.where}: arms.{arm}: {error.what}"
        raise InputError(told, got=error.got, expected=error.expected, remedy=error.remedy) from error

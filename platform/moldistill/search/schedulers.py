"""Tune's schedulers as the search needs them: going by our epochs, and keeping the reasons of failures."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

from optuna.trial import TrialState
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler, TrialScheduler

from moldistill.search.space import Space
from moldistill.search.study import Ledger


class EpochFIFO(FIFOScheduler):
    """Stops nobody. Remembers why trials' actors failed: Tune tells its searchers only that they did."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.reasons: dict[str, str] = {}

    def on_trial_error(self, tune_controller: Any, trial: Any) -> None:
        """The trial's actor failed for the last time. Tune's hook, called before the searcher's."""
        self.reasons[trial.trial_id] = failure_reason(trial.error_file)


class EpochASHA(ASHAScheduler):
    """ASHA over our epochs, which never stops a trial at its last one: it still has to write its predictions."""

    def __init__(self, metric: str, epochs: int, grace: int, reduction: float) -> None:
        super().__init__(
            time_attr="epoch",
            metric=metric,
            mode="min",
            max_t=epochs,
            grace_period=grace,
            reduction_factor=reduction,
            # A trial that goes on from a checkpoint is not held to rungs below those it has passed.
            stop_last_trials=False,
        )
        self.reasons: dict[str, str] = {}

    def on_trial_error(self, tune_controller: Any, trial: Any) -> None:
        """As in `EpochFIFO`. Tune's hook."""
        self.reasons[trial.trial_id] = failure_reason(trial.error_file)
        self._trial_info.pop(trial.trial_id, None)

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        """Whether the trial goes on. Tune's hook."""
        if "outcome" in result or result.get("epoch", 0) >= trial.config["job"].spec.settings.training.epochs:
            return str(TrialScheduler.CONTINUE)
        return str(super().on_trial_result(tune_controller, trial, result))

    def on_trial_complete(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> None:
        """Forget the trial; its rungs stay. Tune's hook."""
        self._trial_info.pop(trial.trial_id, None)

    def on_trial_remove(self, tune_controller: Any, trial: Any) -> None:
        """As when it completes. Tune's hook."""
        self._trial_info.pop(trial.trial_id, None)

    def replay(self, ledger: Ledger) -> None:
        """Fill the rungs with what earlier trials of the study reported."""
        for trial in ledger.trials(TrialState.COMPLETE, TrialState.PRUNED):
            for epoch, value in sorted(trial.intermediate_values.items()):
                if epoch < self._max_t:
                    earlier: Any = SimpleNamespace(trial_id=f"earlier-{trial.number}")  # all that a rung reads
                    self._brackets[0].on_result(earlier, epoch, -value)


Scheduler = EpochASHA | EpochFIFO


def make_scheduler(space: Space, ledger: Ledger) -> Scheduler:
    """The space's scheduler, which knows what the study's earlier trials reported."""
    if space.scheduler.name == "none":
        return EpochFIFO()
    scheduler = EpochASHA(space.metric, space.epochs, space.scheduler.grace, space.scheduler.reduction)
    scheduler.replay(ledger)
    return scheduler


def failure_reason(error_file: str | None) -> str:
    """The reason in the file that Tune writes when an actor fails: the exception's line, or that the process died."""
    path = Path(error_file) if error_file else None
    if path is None or not path.is_file():
        return "the trial's process ended without a reason"
    text = path.read_text(encoding="utf-8", errors="replace")
    if "ActorDiedError" in text or "actor died" in text.lower():
        return "the trial's process died, twice (killed, or out of memory?)"
    return next((line.strip() for line in reversed(text.splitlines()) if line.strip()), "no reason given")

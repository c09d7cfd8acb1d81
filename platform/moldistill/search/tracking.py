"""Trials told to MLflow or Weights & Biases as they go, where the user has them. The ledger stays the truth."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

from moldistill.core.errors import InputError
from moldistill.core.progress import log
from moldistill.search.space import Space


class Tracker(Protocol):
    """Something that trials are told to."""

    def begin(self, number: int, parameters: Mapping[str, Any]) -> None:
        """A trial begins, or goes on."""

    def report(self, number: int, metrics: Mapping[str, Any]) -> None:
        """A trial's figures at the end of an epoch."""

    def end(self, number: int, outcome: str) -> None:
        """A trial has ended."""


def check_tracking(space: Space) -> None:
    """InputError where a tracker is asked for whose package is not there."""
    for name in ("mlflow", "wandb"):
        if getattr(space.options.tracking, name) is not None and importlib.util.find_spec(name) is None:
            raise InputError(
                f"{space.where}: tracking.{name}: the package is not installed",
                expected=f"{name} in this environment",
                remedy=f"pip install {name}, or remove the key",
            )


class Trackers:
    """The trackers that a space asks for. One that fails is told no more, and the search goes on."""

    def __init__(self, space: Space, out: Path) -> None:
        tracking = space.options.tracking
        self.all: list[Tracker] = []
        if tracking.mlflow is not None:
            self._add(lambda: MlflowTracker(str(tracking.mlflow), out))
        if tracking.wandb is not None:
            self._add(lambda: WandbTracker(str(tracking.wandb), out))

    def _add(self, make: Callable[[], Tracker]) -> None:
        try:
            self.all.append(make())
        except Exception as error:
            log(f"tracking: {type(error).__name__}: {error}; the search goes on without it")

    def tell(self, call: Callable[[Tracker], None]) -> None:
        """Call every tracker."""
        for tracker in list(self.all):
            try:
                call(tracker)
            except Exception as error:
                self.all.remove(tracker)
                log(f"tracking: {type(tracker).__name__}: {error}; nothing more is told to it")


def numbers(metrics: Mapping[str, Any]) -> dict[str, float]:
    """The metrics that are numbers."""
    told = {name: value for name, value in metrics.items() if isinstance(value, int | float)}
    return {name: float(value) for name, value in told.items() if not isinstance(value, bool)}


class MlflowTracker:
    """One MLflow run per trial, in an experiment with the study's name."""

    def __init__(self, uri: str, out: Path) -> None:
        mlflow = importlib.import_module("mlflow")
        self.client = mlflow.MlflowClient(tracking_uri=uri)
        known = self.client.get_experiment_by_name(out.name)
        self.experiment = known.experiment_id if known else self.client.create_experiment(out.name)
        self.out = out
        self.runs: dict[int, str] = {}

    def begin(self, number: int, parameters: Mapping[str, Any]) -> None:
        """See `Tracker`."""
        tags = {"mlflow.runName": f"trial {number}", "study": str(self.out), "trial": str(number)}
        run = self.client.create_run(self.experiment, tags=tags)
        self.runs[number] = run.info.run_id
        for key, value in parameters.items():
            self.client.log_param(run.info.run_id, key, value)

    def report(self, number: int, metrics: Mapping[str, Any]) -> None:
        """See `Tracker`."""
        for name, value in numbers(metrics).items():
            self.client.log_metric(self.runs[number], name, value, step=int(metrics["epoch"]))

    def end(self, number: int, outcome: str) -> None:
        """See `Tracker`."""
        status = {"complete": "FINISHED", "stopped": "KILLED"}.get(outcome, "FAILED")
        self.client.set_tag(self.runs[number], "outcome", outcome)
        self.client.set_terminated(self.runs.pop(number), status=status)


class WandbTracker:
    """One run of Weights & Biases per trial, grouped by the study."""

    def __init__(self, project: str, out: Path) -> None:
        self.wandb = importlib.import_module("wandb")
        self.project, self.out = project, out
        self.runs: dict[int, Any] = {}

    def begin(self, number: int, parameters: Mapping[str, Any]) -> None:
        """See `Tracker`."""
        self.runs[number] = self.wandb.init(
            project=self.project,
            group=self.out.name,
            name=f"{self.out.name}-{number:04d}",
            config=dict(parameters),
            reinit="create_new",
        )

    def report(self, number: int, metrics: Mapping[str, Any]) -> None:
        """See `Tracker`."""
        self.runs[number].log(numbers(metrics), step=int(metrics["epoch"]))

    def end(self, number: int, outcome: str) -> None:
        """See `Tracker`."""
        run = self.runs.pop(number)
        run.summary["outcome"] = outcome
        run.finish(exit_code=0 if outcome in ("complete", "stopped") else 1)

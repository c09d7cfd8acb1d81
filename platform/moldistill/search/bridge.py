"""Between Ray Tune and the conductor: Tune holds actors and resources, the conductor decides."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ray.tune import Callback
from ray.tune.schedulers import FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher

from moldistill.search.conductor import Conductor, Proposal
from moldistill.search.space import ResourceSettings
from moldistill.search.tracking import Tracker, Trackers
from moldistill.search.trainable import Job, Runner, memory_reason, shrunk
from moldistill.trial.ray_train import release_workers
from moldistill.trial.spec import TrialSpec

DIED = "the trial's process died: it was killed, or crashed"


@dataclass(frozen=True, slots=True)
class Plan:
    """What every trial has in common: the store (absolute path) and the function that runs it."""

    store: Path
    runner: Runner


@dataclass(slots=True)
class Crew:
    """What the hooks of Tune share. numbers: trials by Tune's identifier; watch: called after every change.

    crashes: why the actors of a trial died, by the count of its failures. lost: why the search must end at once.
    """

    conductor: Conductor
    plan: Plan
    trackers: Trackers | None = None
    watch: Callable[[], None] = lambda: None
    numbers: dict[str, int] = field(default_factory=dict)
    crashes: dict[str, dict[int, str]] = field(default_factory=dict)
    lost: Exception | None = None

    def job(self, proposal: Proposal) -> Job:
        """The proposal as the actor gets it."""
        space = self.conductor.space
        spec = TrialSpec(
            settings=proposal.settings, store=self.plan.store, out=proposal.folder, gpus=space.resources.gpus
        )
        return Job(
            proposal.number,
            spec,
            self.plan.runner,
            space.metric,
            retries=space.options.failures.retries,
            accumulate=proposal.accumulate,
            gpu_memory=gpu_share(space.resources),
        )

    def tell(self, call: Callable[[Tracker], None]) -> None:
        """Tell trackers, and whoever watches."""
        if self.trackers is not None:
            self.trackers.tell(call)
        self.watch()

    def guard(self, call: Callable[[], Any]) -> Any:
        """What `call` returns. An error ends the search in order: Tune would swallow what is raised in its hooks."""
        try:
            return call()
        except Exception as error:
            self.lost = self.lost or error
            return None

    def crashed(self, trial: Any) -> str:
        """Keep why an actor of a trial died; Tune tells of some deaths twice."""
        reason = failure_reason(trial.error_file)
        self.crashes.setdefault(trial.trial_id, {})[trial.num_failures] = reason
        if not self.conductor.space.inline:
            release_workers(trial.config["job"].spec.out)
        return reason


def gpu_share(resources: ResourceSettings) -> float | None:
    """The share of a GPU's memory that a worker may use: what is asked for, or its share of the GPU."""
    return resources.gpu_memory or (resources.gpus if 0 < resources.gpus < 1 else None)


class Proposer(Searcher):
    """Hands the conductor's proposals to Tune, and the ends of trials to the conductor."""

    def __init__(self, crew: Crew) -> None:
        super().__init__(metric=crew.conductor.space.metric, mode="min")
        self.crew = crew

    def suggest(self, trial_id: str) -> Any:
        """The next trial's job. Tune's hook."""
        crew = self.crew
        proposal = None if crew.lost else crew.guard(crew.conductor.next)
        if proposal is None:
            return Searcher.FINISHED
        number = crew.numbers[trial_id] = proposal.number
        values = crew.conductor.active[number].values
        crew.tell(lambda tracker: tracker.begin(number, values))
        return {"job": crew.job(proposal)}

    def on_trial_complete(self, trial_id: str, result: Mapping[str, Any] | None = None, error: bool = False) -> None:
        """The end of a trial: its own, the conductor's decision, or a crash. Tune's hook."""
        crew, number = self.crew, self.crew.numbers.pop(trial_id, None)
        if number is None or crew.lost:
            return
        said, crashes = dict(result or {}), list(crew.crashes.pop(trial_id, {}).values())
        outcome = "failed" if error else said.get("outcome", "stopped")
        if error:
            said = {"reason": crashes[-1] if crashes else None}
            crashes = crashes[:-1]
        said["attempts"] = [{"reason": reason} for reason in crashes] + list(said.get("attempts", ()))
        crew.guard(lambda: crew.conductor.end(number, outcome, said))
        crew.tell(lambda tracker: tracker.end(number, outcome))

    def save(self, checkpoint_path: str) -> None:
        """Nothing: the ledger is the truth, and Tune's own state is never restored."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing, see `save`."""


class Decider(FIFOScheduler):
    """Asks the conductor at each report whether the trial goes on."""

    def __init__(self, crew: Crew) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.crew = crew

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        """Whether the trial goes on. Tune's hook."""
        crew, number = self.crew, self.crew.numbers.get(trial.trial_id)
        if number is None or "epoch" not in result:
            return str(TrialScheduler.CONTINUE)
        goes_on = not crew.lost and crew.guard(lambda: crew.conductor.report(number, result))
        crew.tell(lambda tracker: tracker.report(number, result))
        return str(TrialScheduler.CONTINUE if goes_on else TrialScheduler.STOP)

    def on_trial_error(self, tune_controller: Any, trial: Any) -> None:
        """The trial's actor failed for the last time. Tune's hook, called before the searcher's."""
        self.crew.crashed(trial)


class Recorder(Callback):
    """Keeps why an actor died when Tune tries its trial again, which happens elsewhere; with less memory if it must."""

    def __init__(self, crew: Crew) -> None:
        self.crew = crew

    def on_trial_recover(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Tune's hook."""
        if memory_reason(self.crew.crashed(trial)):
            trial.config["job"] = shrunk(trial.config["job"])


def failure_reason(error_file: str | None) -> str:
    """The reason in the file that Tune writes when an actor fails: the exception's line, or that the process died."""
    path = Path(error_file) if error_file else None
    if path is None or not path.is_file():
        return "the trial's process ended without a reason"
    text = path.read_text(encoding="utf-8", errors="replace")
    if memory_reason(text):
        return "the node ran out of memory: Ray ended the trial's process"
    if "ActorDiedError" in text or "actor died" in text.lower():
        return DIED
    return next((line.strip() for line in reversed(text.splitlines()) if line.strip()), "no reason given")

"""The search: a space, a store, and a Ray cluster in; a study of run folders out."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from optuna.trial import TrialState
from ray import tune

from moldistill.core.artifacts import MANIFEST, read_manifest, write_text
from moldistill.core.cluster import cluster, ordered_map
from moldistill.core.config import dump_yaml
from moldistill.core.errors import InputError, RunError
from moldistill.core.locking import exclusive
from moldistill.core.progress import log, progress
from moldistill.data.store import Store
from moldistill.data.teachers import check_store, joint_identity
from moldistill.search.bridge import Crew, Decider, Plan, Proposer, Recorder
from moldistill.search.checks import check_space
from moldistill.search.conductor import Conductor
from moldistill.search.continuing import Mode, check_folder, warm_start
from moldistill.search.disk import kept
from moldistill.search.explain import cluster_capacity, concurrency
from moldistill.search.finalists import facts, run_finalists
from moldistill.search.ledger import Ledger
from moldistill.search.live import watched
from moldistill.search.parse import Source, load_space
from moldistill.search.space import Space
from moldistill.search.study import LOCK, SPACE, TRIALS, StudySummary, write_study
from moldistill.search.tracking import Trackers, check_tracking
from moldistill.search.trainable import Runner, TrialActor
from moldistill.training.evaluate import constant_error
from moldistill.trial.ray_train import run_trial_under_ray
from moldistill.trial.run import finish_run, run_trial
from moldistill.trial.spec import TrialSpec

_TUNE_ENVIRONMENT = {
    "RAY_AIR_NEW_OUTPUT": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # Ctrl-C ends the search at once; what is on disk can be resumed
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",  # a failed trial ends without the metric
    "TUNE_RESULT_BUFFER_LENGTH": "1",  # a buffered report reaches the scheduler too late
    "TUNE_GLOBAL_CHECKPOINT_S": "3600",  # Tune's own state is never read again
}
_SPLIT_OF = {"valid_mae": "valid", "valid_3d_mae": "valid-3d"}


def search(
    space_source: Source,
    store: Path,
    out: Path,
    *,
    overrides: Sequence[str] = (),
    targets: str | Sequence[str] = (),
    mode: Mode = "new",
    warm: Sequence[Path] = (),
    dry_run: bool = False,
    runner: Runner | None = None,
    finisher: Runner = finish_run,
) -> StudySummary:
    """Run a space's budget of trials and write the study's folder.

    mode: `resume` continues a study in `out`: finished trials count, interrupted ones go on from their checkpoints;
    `extend` does so with another budget or another space. warm: studies whose trials a new one begins with.
    dry_run: check everything, start and write nothing. runner: what runs one trial, ``runner(spec, report=…)``
    (default: in the actor, or under Ray Train, as the space says). finisher: what completes the folder of one that was
    stopped, ``finisher(spec)``.

    Raises InputError before anything starts for a wrong space, store or folder, and where another search writes the
    study; RunError where every trial failed.
    """
    space = load_space(space_source, overrides, targets=targets)
    store = store.expanduser().absolute()
    inputs = _check_inputs(space, store)
    out = check_folder(out, space, mode)
    if dry_run:
        concurrent = concurrency(space.resources, cluster_capacity(), space.where)
        return StudySummary(out, space.objectives, (), None, (), 0.0, 0.0, concurrent)
    runner = runner or (run_trial if space.inline else run_trial_under_ray)
    with exclusive(out / LOCK, f"another search writes the study {out}"), cluster():
        concurrent = concurrency(space.resources, cluster_capacity(), space.where)
        ledger = _open(out, space, inputs, warm)
        _run(ledger, Plan(store, runner), concurrent)
        _finish_stopped(ledger, store, finisher)
        summary = ledger.summary(concurrent)
        if summary.trials and summary.best is None:
            raise RunError(
                f"all {len(summary.trials)} trials failed; the first: {summary.trials[0].reason}",
                remedy=f"look at {out / TRIALS}, change the space or its base, and start a new study",
            )
        replicates = run_finalists(ledger, store, runner, concurrent)
        write_study(summary, inputs, {"finalists": facts(replicates)})
    return summary


def _check_inputs(space: Space, store: Path) -> dict[str, str]:
    """Identities of what the trials read, after checking that it is there and fits together."""
    checked = check_space(space)
    check_tracking(space)
    inputs = {"store": read_manifest(store, "store").identity}
    if checked.needs_targets:
        raise InputError(
            f"{space.where}: its trials read a teacher's outputs, and no targets are named",
            expected="the folder that `moldistill cache` wrote",
            remedy="add targets=DIR",
        )
    identities = []
    for folder in space.target_folders:
        manifest = read_manifest(Path(folder).absolute(), "targets")
        check_store(folder, manifest, inputs["store"])
        identities.append(manifest.identity)
    if identities:
        inputs["targets"] = joint_identity(identities)
    return inputs


def _open(out: Path, space: Space, inputs: dict[str, str], warm: Sequence[Path]) -> Ledger:
    """The ledger, with this process as its driver."""
    (out / MANIFEST).unlink(missing_ok=True)
    write_text(out / SPACE, dump_yaml(dict(space.mapping)))
    (out / TRIALS).mkdir(exist_ok=True)
    ledger = Ledger.create(out, space, inputs)
    ledger.take()
    warm_start(ledger, warm, inputs)
    return ledger


def _run(ledger: Ledger, plan: Plan, concurrent: int) -> None:
    """Run what the budget leaves."""
    out = ledger.out
    conductor = Conductor(ledger, penalty=lambda: _constant_error(ledger.space, plan.store))
    told, continued = conductor.adopt()
    if told or continued:
        log(f"resuming: {told} trials had finished unnoticed, {continued} go on from their checkpoints")
    if not (conductor.left or continued) or conductor.spending.over():
        return
    with watched(conductor, f"search {out.name}") as watch:
        crew = Crew(conductor, plan, Trackers(ledger.space, out), watch)
        run_tune(crew, concurrent, out / ".tune")
    lost = crew.lost or conductor.failure
    if lost is not None:
        raise lost
    if ledger.trials(TrialState.RUNNING):
        raise RunError("Ray Tune ended before the search did", remedy=f"continue with --resume --out {out}")


def run_tune(crew: Crew, concurrent: int, scratch: Path) -> None:
    """Let Tune run trials until the conductor proposes no more. scratch: for Tune's files, removed at the end."""
    try:
        with _quiet_tune():
            _make_tuner(crew, concurrent, scratch).fit()
    except KeyboardInterrupt:
        log(f"interrupted; continue with --resume --out {crew.conductor.ledger.out}")
        raise
    except tune.TuneError as error:
        raise RunError(
            "Ray Tune gave up",
            got=str(error).strip().splitlines()[-1],
            remedy=f"continue with --resume --out {crew.conductor.ledger.out}",
        ) from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _make_tuner(crew: Crew, concurrent: int, scratch: Path) -> tune.Tuner:
    space = crew.conductor.space
    resources = space.resources
    # Workers of Ray Train hold the resources themselves: an actor that waits for them must hold none, or they starve.
    held = {"cpu": resources.cpus, "gpu": resources.gpus} if space.inline else {"cpu": 0.0}
    return tune.Tuner(
        tune.with_resources(TrialActor, held),
        tune_config=tune.TuneConfig(
            search_alg=Proposer(crew),
            scheduler=Decider(crew),
            num_samples=-1,  # until the conductor proposes no more
            max_concurrent_trials=concurrent,
            reuse_actors=True,
            trial_name_creator=_trial_name,
            trial_dirname_creator=_trial_name,
        ),
        run_config=tune.RunConfig(
            name="tune",
            storage_path=str(scratch),
            verbose=0,
            callbacks=[Recorder(crew)],
            failure_config=tune.FailureConfig(max_failures=space.options.failures.retries),
            checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),  # runs keep their own
        ),
    )


def _trial_name(trial: Any) -> str:
    return str(trial.trial_id)


def _constant_error(space: Space, store: Path) -> float:
    """MAE (eV) of the training median on the rows that the search goes by."""
    return constant_error(Store.open(store), _SPLIT_OF[space.metric])


def _finish_stopped(ledger: Ledger, store: Path, finisher: Runner) -> None:
    """Complete the run folders of kept trials that were stopped early: weights of the last checkpoint, predictions."""
    stay = kept(ledger.rows(), ledger.space.options.keep)
    unfinished = []
    for trial in ledger.trials(TrialState.PRUNED):
        folder = ledger.folder(trial)
        if trial.number in stay and not (folder / MANIFEST).is_file():
            settings = ledger.space.settings(trial.user_attrs["parameters"])
            unfinished.append((finisher, TrialSpec(settings=settings, store=store, out=folder)))
    if not unfinished:
        return
    with progress("predictions of stopped trials", total=len(unfinished)) as bar:
        for (_, spec), reason in zip(unfinished, ordered_map(_finish, unfinished, ahead=1), strict=True):
            if reason is not None:
                log(f"trial {spec.out.name}: no predictions: {reason}")
            bar.advance()


def _finish(item: tuple[Runner, TrialSpec]) -> str | None:
    """Why a folder could not be completed; one of them does not end the search."""
    finisher, spec = item
    try:
        finisher(spec)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return None


@contextmanager
def _quiet_tune() -> Iterator[None]:
    """Tune with the environment it needs, and without its own output: the bar tells, the ledger records."""
    before = {name: os.environ.get(name) for name in _TUNE_ENVIRONMENT}
    loggers = [logging.getLogger(name) for name in ("ray.tune", "ray.train", "ray.air")]
    levels = [logger.level for logger in loggers]
    os.environ.update(_TUNE_ENVIRONMENT)
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value

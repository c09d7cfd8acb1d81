"""The search: a space, a store, and a Ray cluster in; a study of run folders out."""

from __future__ import annotations

import logging
import os
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from optuna.trial import TrialState
from ray import tune

from moldistill.core.artifacts import MANIFEST, check_out, read_manifest, write_text
from moldistill.core.cluster import cluster, ordered_map
from moldistill.core.config import dump_yaml, read_yaml
from moldistill.core.errors import InputError, RunError
from moldistill.core.progress import log, progress
from moldistill.data.teachers import check_store, joint_identity
from moldistill.search.checks import check_space
from moldistill.search.explain import cluster_capacity, concurrency
from moldistill.search.parse import Source, load_space
from moldistill.search.schedulers import Scheduler, make_scheduler
from moldistill.search.searcher import LedgerSearch, Plan
from moldistill.search.space import Space
from moldistill.search.study import JOURNAL, SPACE, TRIALS, Ledger, StudySummary, write_study
from moldistill.search.trainable import Runner, TrialActor
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


def search(
    space_source: Source,
    store: Path,
    out: Path,
    *,
    overrides: Sequence[str] = (),
    targets: str | Sequence[str] = (),
    resume: bool = False,
    dry_run: bool = False,
    runner: Runner = run_trial,
    finisher: Runner = finish_run,
) -> StudySummary:
    """Run a space's budget of trials and write the study's folder.

    resume: continue a study in `out`: finished trials count, interrupted ones go on from their checkpoints.
    dry_run: check everything, start and write nothing. runner: what runs one trial, ``runner(spec, report=…)``.
    finisher: what completes the folder of one that was stopped, ``finisher(spec)``.

    Raises InputError before anything starts for a wrong space, store or folder; RunError where every trial failed.
    """
    space = load_space(space_source, overrides, targets=targets)
    store = store.expanduser().absolute()
    inputs = _check_inputs(space, store)
    out = _check_folder(out, space, resume)
    if dry_run:
        concurrent = concurrency(space.resources, cluster_capacity(), space.where)
        return StudySummary(out, space.metric, space.direction, (), None, 0.0, concurrent)
    started = time.monotonic()
    with cluster():
        concurrent = concurrency(space.resources, cluster_capacity(), space.where)
        (out / MANIFEST).unlink(missing_ok=True)
        write_text(out / SPACE, dump_yaml(dict(space.mapping)))
        (out / TRIALS).mkdir(exist_ok=True)
        ledger = Ledger(out, space, store=inputs["store"], resume=resume)
        _run(ledger, Plan(store, runner), concurrent)
        _finish_stopped(ledger, store, finisher)
    summary = ledger.summary(time.monotonic() - started, concurrent)
    if summary.trials and summary.best is None:
        raise RunError(
            f"all {len(summary.trials)} trials failed; the first: {summary.trials[0].reason}",
            remedy=f"look at {out / TRIALS}, change the space or its base, and start a new study",
        )
    write_study(summary, inputs)
    return summary


def _check_inputs(space: Space, store: Path) -> dict[str, str]:
    """Identities of what the trials read, after checking that it is there and fits together."""
    checked = check_space(space)
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


def _check_folder(out: Path, space: Space, resume: bool) -> Path:
    """Absolute form of the study's folder; InputError unless it is new, or a study of this space to be resumed."""
    out = out.expanduser().absolute()
    begun = out / SPACE
    if not resume:
        if begun.is_file() and (out / TRIALS).is_dir():
            raise InputError(
                f"{out} holds a study",
                expected="a new folder",
                remedy="continue it with --resume, or name another --out",
            )
        return check_out(out)
    if not begun.is_file():
        if out.is_dir() and all(entry.name.startswith(".") for entry in out.iterdir()):
            return out  # the earlier search ended before it wrote anything
        raise InputError(f"{out} holds no study to resume", expected=f"a folder with {SPACE}", remedy="drop --resume")
    # What a trial holds decides its number of threads, and so its last bits: only how many run at once may change.
    earlier, now = (_comparable(mapping) for mapping in (read_yaml(begun), space.mapping))
    changed = [key for key in now if earlier.get(key) != now[key]]
    if changed:
        raise InputError(
            f"{out} was begun with another search space",
            got="other values of " + ", ".join(changed),
            expected=f"the space in {begun} (budget and resources.concurrent may change)",
            remedy=f"resume with that file, or start a new study; its journal is {out / JOURNAL}",
        )
    return out


def _comparable(mapping: Mapping[str, Any]) -> dict[str, Any]:
    held = {key: value for key, value in (mapping.get("resources") or {}).items() if key != "concurrent"}
    return {key: value for key, value in mapping.items() if key != "budget"} | {"resources": held}


def _run(ledger: Ledger, plan: Plan, concurrent: int) -> None:
    """Run what the budget leaves."""
    space, out = ledger.space, ledger.out
    told, continued = ledger.adopt_orphans()
    if told or continued:
        log(f"resuming: {told} trials had finished unnoticed, {continued} go on from their checkpoints")
    left = ledger.left
    if not left:
        return
    scheduler = make_scheduler(space, ledger)
    scratch = out / ".tune"
    try:
        with progress(f"search {out.name}", total=left) as bar, _quiet_tune():
            searcher = LedgerSearch(ledger, plan, scheduler, bar)
            _make_tuner(searcher, scheduler, left, concurrent, scratch).fit()
    except KeyboardInterrupt:
        log(f"interrupted; continue with --resume --out {out}")
        raise
    except tune.TuneError as error:
        raise RunError(
            "Ray Tune gave up", got=str(error).strip().splitlines()[-1], remedy=f"continue with --resume --out {out}"
        ) from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    if searcher.failure is not None:
        raise searcher.failure
    if ledger.trials(TrialState.RUNNING):
        raise RunError("Ray Tune ended before the search did", remedy=f"continue with --resume --out {out}")


def _make_tuner(
    searcher: LedgerSearch, scheduler: Scheduler, trials: int, concurrent: int, scratch: Path
) -> tune.Tuner:
    resources = searcher.space.resources
    return tune.Tuner(
        tune.with_resources(TrialActor, {"cpu": resources.cpus, "gpu": resources.gpus}),
        tune_config=tune.TuneConfig(
            search_alg=searcher,
            scheduler=scheduler,
            num_samples=trials,
            max_concurrent_trials=concurrent,
            reuse_actors=True,
            trial_name_creator=_trial_name,
            trial_dirname_creator=_trial_name,
        ),
        run_config=tune.RunConfig(
            name="tune",
            storage_path=str(scratch),
            verbose=0,
            failure_config=tune.FailureConfig(max_failures=1),
            checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),  # runs keep their own
        ),
    )


def _trial_name(trial: Any) -> str:
    return str(trial.trial_id)


def _finish_stopped(ledger: Ledger, store: Path, finisher: Runner) -> None:
    """Complete the run folders of trials that were stopped early: weights of the last checkpoint, predictions."""
    unfinished = []
    for trial in ledger.trials(TrialState.PRUNED):
        folder = ledger.folder(trial)
        if not (folder / MANIFEST).is_file():
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

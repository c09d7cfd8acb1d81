"""One training run in this process: data and targets by path, the loop, checkpoints, and what is left in the folder."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import replace

import torch

from moldistill.core.artifacts import MANIFEST, read_manifest
from moldistill.core.config import load_run
from moldistill.core.errors import InputError
from moldistill.core.progress import log
from moldistill.core.settings import RunSettings
from moldistill.data.store import Store
from moldistill.data.teachers import TeacherSet
from moldistill.distill.diagnostics import warnings_by_size
from moldistill.models.registry import check_name
from moldistill.training.budget import is_open, settle
from moldistill.training.checkpoint import load_checkpoint, save_checkpoint
from moldistill.training.collective import ALONE, Collective
from moldistill.training.evaluate import training_rows
from moldistill.training.loop import NOT_THE_COURSE, EpochReport, Trainer
from moldistill.trial.boards import Board
from moldistill.trial.cancel import CancelledError, CancelWatch
from moldistill.trial.ending import close, complete
from moldistill.trial.fence import Fence, has_begun
from moldistill.trial.folder import (
    CONFIG,
    LoadedRun,
    append_metrics,
    claim_folder,
    keep_metrics,
    load_run_folder,
    read_metrics,
    write_config,
)
from moldistill.trial.memory import limit_gpu_memory
from moldistill.trial.spec import RunResult, TrialSpec

__all__ = ["EpochReport", "LoadedRun", "finish_run", "load_run_folder", "run_trial"]

Report = Callable[[EpochReport], None]


def choose_device(settings: RunSettings) -> torch.device:
    """The device that the settings ask for; InputError for a GPU that is not there."""
    wanted = settings.training.device
    if wanted == "cuda" and not torch.cuda.is_available():
        raise InputError(
            "training.device is cuda", got="no GPU that PyTorch can use", remedy="set training.device=cpu, or auto"
        )
    use_gpu = torch.cuda.is_available() if wanted == "auto" else wanted == "cuda"
    return torch.device("cuda" if use_gpu else "cpu")


def open_targets(settings: RunSettings, store: Store) -> TeacherSet | None:
    """The teachers' targets that the settings name, checked against the store; InputError where they do not belong."""
    if not settings.distill.needs_teacher:
        return None
    if not settings.target_folders:
        raise InputError(
            "the run is distilled, but no targets are named",
            got="distill weights above 0 and no `targets`",
            expected="targets=DIR, a folder that `moldistill cache` wrote",
            remedy="add targets=DIR, or set the weights of distill.prediction, graph and atom to 0",
        )
    sampled, seed = settings.distill.teachers == "sampled", settings.training.seed
    return TeacherSet.open(settings.target_folders, store.identity, sampled=sampled, seed=seed)


def check_run(spec: TrialSpec) -> None:
    """Raise InputError for what can be known to be wrong before a worker is started: model, device, data."""
    check_name(spec.settings.role, spec.settings.model.name)
    if spec.gpus is None:  # else the GPUs are the workers', and this process sees none
        choose_device(spec.settings)
    store = Store.open(spec.store)
    training_rows(spec.settings, store, open_targets(spec.settings, store))


def make_trainer(spec: TrialSpec, collective: Collective = ALONE) -> Trainer:
    """A trainer for the spec, on its device, at the start of the run."""
    settings = spec.settings
    device = choose_device(settings)
    if device.type == "cpu":
        torch.set_num_threads(settings.training.cpus_per_worker)
    elif settings.training.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # or cuBLAS picks kernels that do not repeat
    if device.type == "cuda":
        limit_gpu_memory(spec.gpu_memory)
    store = Store.open(spec.store)
    return Trainer(settings, store, open_targets(settings, store), collective=collective, device=device)


def settled(spec: TrialSpec, collective: Collective = ALONE) -> TrialSpec:
    """The spec with all that was left to this machine decided (`training.budget`): as before, if the run is begun."""
    if not is_open(spec.settings.training):
        return spec
    saved = spec.out / CONFIG
    if spec.resume and saved.is_file():
        before = load_run(saved)
        decided = {name: getattr(before.training, name) for name in ("steps", "precision", "compile")}
        free = {name: getattr(before.training, name) for name in NOT_THE_COURSE}
        if replace(spec.settings, training=replace(spec.settings.training, **decided | free)) == before:
            if before.training.budget_seconds != spec.settings.training.budget_seconds:
                log(f"the run keeps the {before.training.steps:,} steps that it was begun with: a budget is read once")
            return replace(spec, settings=replace(spec.settings, training=replace(spec.settings.training, **decided)))
    settings = settle(
        spec.settings,
        choose_device(spec.settings),
        lambda asked: make_trainer(replace(spec, settings=asked), collective),
    )
    if collective.leads and settings.training.steps != spec.settings.training.steps:
        log(f"{spec.settings.training.budget_seconds:g} s are {settings.training.steps:,} steps on this machine")
    return replace(spec, settings=settings)


def run_trial(spec: TrialSpec, *, report: Report | None = None, collective: Collective = ALONE) -> RunResult:
    """Train as the spec says and leave a finished run folder.

    `report` is called after every evaluated epoch, when the folder is safe; what it raises ends the run there, to be
    resumed or finished later. With several workers each calls this; the first one claims the folder, and writes.
    Raises SupersededError where another attempt claims the folder meanwhile, and CancelledError (`trial.cancel`).
    """
    fence = _claim(spec) if collective.leads and not _is_finished(spec) else None
    (finished,) = collective.lead(int(_is_finished(spec)))
    if finished:  # perhaps just now, by the attempt that had the folder
        return _result(spec)
    spec = settled(spec, collective)
    trainer = make_trainer(spec, collective)
    checkpoint = load_checkpoint(spec.out, trainer.fingerprint) if spec.resume else None
    if checkpoint is not None:
        trainer.restore(checkpoint)
    collective.wait()
    if fence is not None:
        with fence:
            write_config(spec.out, spec.settings)
            keep_metrics(spec.out, trainer.epoch)
    _train(trainer, spec, report, fence)
    if fence is not None:
        complete(trainer, spec, fence)  # the others do not wait: it may take longer than a process group's patience
    records = read_metrics(spec.out)
    return RunResult(spec.out, records[-1])


def _is_finished(spec: TrialSpec) -> bool:
    return spec.resume and (spec.out / MANIFEST).is_file()


def _result(spec: TrialSpec) -> RunResult:
    return RunResult(spec.out, dict(read_manifest(spec.out, "run").facts["metrics"]))


def _claim(spec: TrialSpec) -> Fence:
    claim_folder(spec.out, spec.resume)
    return Fence.claim(spec.out, spec.owner)


def _train(trainer: Trainer, spec: TrialSpec, report: Report | None, fence: Fence | None) -> None:
    """Train to the end. fence: of the first worker, who writes."""
    training, warned = spec.settings.training, set[str]()
    saver = _Saver(trainer, spec, fence) if fence is not None else None
    watch = CancelWatch(spec.out, trainer.collective)

    def after_step() -> None:
        if saver is not None:
            saver.after_step()
        watch.after_step()

    with Board(spec.out if fence is not None else None) as board:
        try:
            watch.look()
            for state in trainer.fit(after_step):
                if saver is not None:
                    saver.record(state.metrics)
                    board.add(state.epoch, state.metrics)
                    _warn(state, warned)
                    if state.epoch % training.checkpoint_every == 0 or trainer.step == trainer.total_steps:
                        saver.save()
                watch.look()
                if report is not None and state.evaluated:
                    report(state)
        except CancelledError:
            if saver is not None:
                saver.save()
            raise


class _Saver:
    """Writes metrics, and checkpoints: when it is told to, and within an epoch when the last one is old.

    The first worker decides alone, since all workers hold the same state.
    """

    def __init__(self, trainer: Trainer, spec: TrialSpec, fence: Fence) -> None:
        self.trainer, self.run, self.training = trainer, spec.out, spec.settings.training
        self.fence = fence
        self.last = time.monotonic()

    def after_step(self) -> None:
        """A checkpoint, if it is time."""
        if time.monotonic() - self.last >= self.training.checkpoint_seconds:
            self.save()

    def save(self) -> None:
        """A checkpoint."""
        checkpoint = self.trainer.checkpoint()
        with self.fence:
            save_checkpoint(self.run, checkpoint, self.training.keep_checkpoints)
        self.last = time.monotonic()

    def record(self, metrics: dict[str, float]) -> None:
        """The metrics of an epoch."""
        with self.fence:
            append_metrics(self.run, metrics)


def _warn(state: EpochReport, warned: set[str]) -> None:
    for warning in warnings_by_size(state.metrics):
        term = warning.split("'")[1]
        if term not in warned:
            warned.add(term)
            log(f"warning: epoch {state.epoch}: {warning}")


def finish_run(spec: TrialSpec) -> RunResult:
    """Make a run that was stopped early a finished folder, as it stands at its last checkpoint.

    An epoch that was cut short counts as one, with the errors of the weights as they are.

    Raises InputError where there is no checkpoint yet.
    """
    spec = replace(spec, resume=True)
    if _is_finished(spec):
        return _result(spec)
    none = InputError(f"{spec.out} has no checkpoint", remedy="run the trial again")
    if not has_begun(spec.out):
        raise none
    spec = settled(spec)
    fence = _claim(spec)
    if _is_finished(spec):
        return _result(spec)
    trainer = make_trainer(spec)
    checkpoint = load_checkpoint(spec.out, trainer.fingerprint)
    if checkpoint is None:
        raise none
    trainer.restore(checkpoint)
    close(trainer, spec, fence)
    complete(trainer, spec, fence)
    return RunResult(spec.out, read_metrics(spec.out)[-1])

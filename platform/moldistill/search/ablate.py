"""Running an ablation: its folder, its runs in the order of seeds, in this process or several at a time under Ray."""

from __future__ import annotations

import shutil
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moldistill.core.artifacts import MANIFEST, check_out, write_text
from moldistill.core.cluster import cluster
from moldistill.core.config import dump_yaml, read_yaml
from moldistill.core.errors import InputError, MoldistillError
from moldistill.core.progress import log, progress
from moldistill.data.store import Store
from moldistill.search.ablation import FREE, Ablation, load_ablation
from moldistill.search.ablation_plan import PLAN, Plan, find_inputs, load_plan, make_plan
from moldistill.search.explain import cluster_capacity, concurrency
from moldistill.search.parse import Source
from moldistill.search.space import ResourceSettings
from moldistill.search.trainable import Runner
from moldistill.training.checkpoint import FOLDER as CHECKPOINTS
from moldistill.trial.run import choose_device
from moldistill.trial.spec import TrialSpec

CONFIG = "ablation.yaml"
RUNS = "runs"


@dataclass(frozen=True, slots=True)
class Run:
    """One training: an arm with a seed and a fraction of the length. spec is None where the arm cannot train."""

    arm: str
    fraction: float
    seed: int
    spec: TrialSpec | None
    reason: str | None = None

    @property
    def name(self) -> str:
        """For people."""
        part = f", {self.fraction:g} of the length" if self.fraction != 1 else ""
        return f"{self.arm}, seed {self.seed}{part}"

    @property
    def finished(self) -> bool:
        """Whether its folder is complete."""
        return self.spec is not None and (self.spec.out / MANIFEST).is_file()


@dataclass(frozen=True, slots=True)
class Prepared:
    """An ablation that is ready to run: checked against its data, with a plan. out: its folder, absolute."""

    ablation: Ablation
    plan: Plan
    store: Store
    out: Path

    @property
    def runs(self) -> list[Run]:
        """All trainings in their order: seeds outermost, so that after one round every arm has a result."""
        settings = self.ablation.settings
        found = []
        for seed in settings.known_seeds:
            for fraction in self.ablation.fractions:
                for arm in self.plan.arms:
                    if arm.reason is not None:
                        found.append(Run(arm.name, fraction, seed, None, arm.reason))
                        continue
                    part = "" if fraction == 1 else f"part-{fraction:g}"
                    place = self.out / RUNS / arm.name / part / f"seed-{seed}"
                    spec = TrialSpec(arm.run(fraction, seed, settings.evaluations), self.store.path, place, resume=True)
                    found.append(Run(arm.name, fraction, seed, spec))
        return found

    @property
    def seconds(self) -> float:
        """What all trainings are foreseen to take, one after another."""
        settings = self.ablation.settings
        return len(settings.known_seeds) * sum(
            arm.seconds(fraction, settings.evaluations)
            for arm in self.plan.arms
            for fraction in self.ablation.fractions
        )


def prepare_ablation(
    source: Source,
    store: Path,
    out: Path,
    *,
    overrides: Sequence[str] = (),
    targets: Sequence[str] = (),
    resume: bool = False,
    dry_run: bool = False,
) -> Prepared:
    """Check everything, time the arms unless a plan is there, and write ablation and plan into `out` (not `dry_run`).

    Raises InputError for a wrong ablation, store, targets or folder.
    """
    ablation = load_ablation(source, overrides)
    opened = Store.open(store)
    arms, empty = find_inputs(ablation, opened, tuple(targets))
    out = _check_folder(out, ablation, resume)
    plan = load_plan(out, {name: settings.targets for name, settings in arms.items()}) if resume else None
    if plan is None:
        plan = make_plan(ablation, opened, arms, empty)
    elif dict(plan.inputs) != dict(empty.inputs):
        raise InputError(
            f"{out} was begun with other data",
            got=", ".join(f"{name} {identity}" for name, identity in empty.inputs.items()),
            expected=", ".join(f"{name} {identity}" for name, identity in plan.inputs.items()),
            remedy="name that store and those targets, or start a new ablation",
        )
    if not dry_run:
        write_text(out / CONFIG, dump_yaml(dict(ablation.mapping)))
        plan.save(out)
    return Prepared(ablation, plan, opened, out)


def _check_folder(out: Path, ablation: Ablation, resume: bool) -> Path:
    """Absolute form of the folder; InputError unless it is new, or holds this ablation and is to be resumed."""
    out = out.expanduser().absolute()
    begun = out / CONFIG
    if not resume:
        if begun.is_file():
            raise InputError(
                f"{out} holds an ablation",
                expected="a new folder",
                remedy="go on with it by --resume, or name another --out",
            )
        return check_out(out)
    if not begun.is_file():
        raise InputError(
            f"{out} holds no ablation to resume", expected=f"a folder with {CONFIG}", remedy="drop --resume"
        )
    earlier, now = read_yaml(begun), ablation.mapping
    changed = [key for key in now if key not in FREE and earlier.get(key) != now[key]]
    if changed:
        raise InputError(
            f"{out} was begun as another ablation",
            got="other values of " + ", ".join(changed),
            expected=f"the one in {begun} ({', '.join(FREE)} may change)",
            remedy="resume with that file, or start a new ablation",
        )
    return out


@dataclass(frozen=True, slots=True)
class Ended:
    """A training that ended, by itself or before. reason: why it failed."""

    run: Run
    reason: str | None


def train_all(prepared: Prepared, runner: Runner) -> Iterator[Ended]:
    """Every run as it ends, those that were finished before first. A run that fails does not stop the others."""
    runs = prepared.runs
    for run in runs:
        if run.finished or run.spec is None:
            yield Ended(run, run.reason)
    waiting = [run for run in runs if run.spec is not None and not run.finished]
    if len(waiting) < len(runs):
        log(f"{len(runs) - len(waiting)} of {len(runs)} trainings are done")
    at_once = min(prepared.ablation.settings.concurrent, max(1, len(waiting)))
    with progress("trainings", total=len(runs), done=len(runs) - len(waiting)) as bar:
        ended = _under_ray(prepared, waiting, runner, at_once) if at_once > 1 else _here(waiting, runner)
        for one in ended:
            bar.advance(1, one.run.name)
            log(f"{one.run.name}: {one.reason or 'done'}")
            yield one


def _here(runs: Sequence[Run], runner: Runner) -> Iterator[Ended]:
    for run in runs:
        yield Ended(run, _train((runner, run)))


def _train(item: tuple[Runner, Run]) -> str | None:
    """Train, and say why it failed, if it did."""
    runner, run = item
    assert run.spec is not None  # arms that cannot train are told without it
    try:
        runner(run.spec)
    except MoldistillError as error:
        return error.what if error.got is None else f"{error.what}: {error.got}"
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    if run.finished:
        # Dozens of runs: their checkpoints are ten times as large as all else, and nobody goes on from them.
        shutil.rmtree(run.spec.out / CHECKPOINTS, ignore_errors=True)
    return None


def _under_ray(prepared: Prepared, runs: Sequence[Run], runner: Runner, at_once: int) -> Iterator[Ended]:
    """Each run is a task of its own on the cluster that is there, or one that is started for the time."""
    import ray

    settings = [arm.settings for arm in prepared.plan.arms]
    gpus = float(any(choose_device(one).type == "cuda" for one in settings))
    cpus = max(one.training.cpus_per_worker for one in settings)
    with cluster():
        wanted = ResourceSettings(cpus=cpus, gpus=gpus, concurrent=at_once)
        limit = concurrency(wanted, cluster_capacity(), prepared.ablation.where)
        if limit < at_once:
            log(f"{at_once} trainings at a time were asked for; {limit} fit here")
        task: Any = ray.remote(num_cpus=cpus, num_gpus=gpus, max_retries=1)(_train)
        waiting, under_way = deque(runs), dict[Any, Run]()
        while waiting or under_way:
            while waiting and len(under_way) < limit:
                run = waiting.popleft()
                under_way[task.remote((runner, run))] = run
            (ready, *_), _ = ray.wait(list(under_way), num_returns=1)
            run = under_way.pop(ready)
            try:
                yield Ended(run, ray.get(ready))
            except ray.exceptions.RayError as error:
                yield Ended(run, f"its process ended: {str(error).splitlines()[0]}")


__all__ = ["CONFIG", "PLAN", "RUNS", "Ended", "Prepared", "Run", "prepare_ablation", "train_all"]

"""The best trials again, with other seeds: one training tells little, several tell a better configuration from luck."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from moldistill.core.artifacts import MANIFEST
from moldistill.core.cluster import ordered_map
from moldistill.core.errors import MoldistillError
from moldistill.core.progress import log, progress
from moldistill.core.seeds import named_seed
from moldistill.core.settings import RunSettings
from moldistill.search.ledger import Ledger
from moldistill.search.study import FINALISTS, TrialRow, final_metrics, finalists
from moldistill.search.trainable import Runner
from moldistill.trial.spec import TrialSpec


@dataclass(frozen=True, slots=True)
class Replicate:
    """A finalist trained again. seed: 1, 2, …, the same for all. value: the objective (eV), None if it failed."""

    trial: int
    seed: int
    folder: str
    value: float | None


def replicate_settings(settings: RunSettings, seed: int) -> RunSettings:
    """The settings with the seed of replicate `seed` (from 1); it depends on that and on the trial's seed alone."""
    fresh = named_seed(settings.training.seed, "replicate", seed) % 2**31
    return replace(settings, training=replace(settings.training, seed=fresh))


def run_finalists(ledger: Ledger, store: Path, runner: Runner, concurrent: int) -> tuple[Replicate, ...]:
    """Train what the space's `replicates` ask for and is not there yet. One that fails is reported, and left out."""
    asked = ledger.space.options.replicates
    planned = [
        (row, seed, ledger.out / FINALISTS / f"{row.number:04d}-seed{seed}")
        for row in finalists(ledger.rows(), asked.top)
        for seed in range(1, asked.seeds + 1)
    ]
    missing = [
        (runner, _spec(ledger, row, seed, folder, store))
        for row, seed, folder in planned
        if not (folder / MANIFEST).is_file()
    ]
    if missing:
        inline, resources = ledger.space.inline, ledger.space.resources
        cpus, gpus = (resources.cpus, resources.gpus) if inline else (0.0, 0.0)  # workers of Ray Train hold their own
        with progress("finalists", total=len(planned), done=len(planned) - len(missing)) as bar:
            results = ordered_map(_train, missing, at_once=concurrent, cpus=cpus, gpus=gpus)
            for (_, spec), reason in zip(missing, results, strict=True):
                if reason is not None:
                    log(f"finalist {spec.out.name}: {reason}")
                bar.advance(1, spec.out.name)
    return tuple(
        Replicate(row.number, seed, str(folder.relative_to(ledger.out)), final_metrics(folder).get(ledger.space.metric))
        for row, seed, folder in planned
    )


def _spec(ledger: Ledger, row: TrialRow, seed: int, folder: Path, store: Path) -> TrialSpec:
    settings = replicate_settings(ledger.space.settings(row.parameters), seed)
    return TrialSpec(settings=settings, store=store, out=folder, resume=folder.is_dir())


def _train(item: tuple[Runner, TrialSpec]) -> str | None:
    """Why a replicate failed; one of them does not end the search."""
    runner, spec = item
    try:
        runner(spec, report=None)
    except MoldistillError as error:
        return error.what
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return None


def facts(replicates: tuple[Replicate, ...]) -> list[Mapping[str, Any]]:
    """The replicates as the study's manifest has them."""
    return [{"trial": one.trial, "seed": one.seed, "folder": one.folder, "value": one.value} for one in replicates]

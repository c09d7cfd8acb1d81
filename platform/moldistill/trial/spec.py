"""What one trial is: settings, data and a place for its files."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from moldistill.core.settings import RunSettings


@dataclass(frozen=True, slots=True)
class TrialSpec:
    """A run to be made: its settings, the store's folder, and the run folder (both absolute).

    resume: go on from the folder's checkpoint if there is one; else a folder that holds a run is refused.
    owner: whose claim on the folder this run is a part of (`trial.fence`); without it, the run claims it for itself.
    gpus: what each worker of Ray Train gets of a GPU (None: a whole one, where the settings ask for GPUs).
    gpu_memory: the share of the GPU's memory that a worker's tensors may take.
    """

    settings: RunSettings
    store: Path
    out: Path
    resume: bool = False
    owner: str | None = None
    gpus: float | None = None
    gpu_memory: float | None = None


@dataclass(frozen=True, slots=True)
class RunResult:
    """What came of a run: its folder and the metrics of its last epoch (MAE in eV)."""

    path: Path
    metrics: dict[str, float]

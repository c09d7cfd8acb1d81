"""The run folder: what is in it, how it is written, and how it is read back."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from moldistill.core.artifacts import Manifest, atomic_path, read_manifest, write_manifest, write_text
from moldistill.core.config import dump_yaml, load_run, to_mapping
from moldistill.core.errors import InputError
from moldistill.core.records import TargetScale
from moldistill.core.settings import RunSettings
from moldistill.models.registry import build_model
from moldistill.training.checkpoint import WEIGHTS, load_weights

CONFIG = "config.yaml"
METRICS = "metrics.jsonl"
PREDICTIONS = "predictions"


@dataclass(frozen=True, slots=True)
class LoadedRun:
    """A finished run: settings, the model with its final weights in evaluation mode, and the scale of its targets."""

    path: Path
    settings: RunSettings
    model: nn.Module
    scale: TargetScale
    manifest: Manifest


def load_run_folder(path: Path) -> LoadedRun:
    """Read a finished run; InputError where it is missing, unfinished or damaged."""
    path = Path(path).expanduser().absolute()
    manifest = read_manifest(path, "run")
    settings = load_run(path / CONFIG)
    model = build_model(settings.role, settings.model)
    load_weights(model, path / WEIGHTS)
    scale = TargetScale(**manifest.facts["scale"])
    return LoadedRun(path, settings, model.eval(), scale, manifest)


def write_config(run: Path, settings: RunSettings) -> None:
    """Save the resolved settings of a run."""
    write_text(run / CONFIG, dump_yaml(to_mapping(settings)))


def read_metrics(run: Path) -> list[dict[str, float]]:
    """One record per epoch, in order. A last line cut short by a crash is left out."""
    path = run / METRICS
    if not path.is_file():
        return []
    records = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return records


def keep_metrics(run: Path, epochs: int) -> None:
    """Drop the records of epochs after `epochs`, which will be trained again."""
    kept = [record for record in read_metrics(run) if record["epoch"] <= epochs]
    with atomic_path(run / METRICS) as temporary:
        temporary.write_text("".join(json.dumps(record) + "\n" for record in kept), encoding="utf-8")


def append_metrics(run: Path, record: dict[str, float]) -> None:
    """Add the record of an epoch."""
    with (run / METRICS).open("a", encoding="utf-8") as stream:
        stream.write(json.dumps(record) + "\n")


def claim_folder(run: Path, resume: bool) -> None:
    """Make the run folder; InputError where it holds another run and `resume` is not asked for."""
    holds = [name for name in (CONFIG, METRICS, "checkpoint", "manifest.json") if (run / name).exists()]
    if holds and not resume:
        raise InputError(
            f"{run} holds a run",
            got=", ".join(holds),
            expected="a new folder",
            remedy="add --resume to go on with it, or name another --out",
        )
    run.mkdir(parents=True, exist_ok=True)


def finish(run: Path, *, inputs: dict[str, str], facts: dict[str, Any]) -> Manifest:
    """Write the manifest over all files that readers rely on."""
    files = [CONFIG, METRICS, WEIGHTS]
    files += [str(path.relative_to(run)) for path in sorted((run / PREDICTIONS).glob("*.npz"))]
    return write_manifest(run, "run", files=files, inputs=inputs, facts=facts)

"""Checkpoints: everything that the rest of a run depends on, each in one file that appears whole or not at all."""

from __future__ import annotations

import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from moldistill.core.artifacts import atomic_path
from moldistill.core.errors import InputError
from moldistill.core.progress import log

VERSION = 2
FOLDER = "checkpoint"
WEIGHTS = "weights.safetensors"


@dataclass(slots=True)
class Checkpoint:
    """State after `step` steps, `epoch` whole epochs among them.

    fingerprint: of settings and data; a checkpoint continues only the run that it came from, on any number of workers.
    states: state dictionaries by part (model, averaged, objective, optimizer). sums: of the epoch that is under way.
    There are no generators in it: all randomness is drawn from seeds and places (step, row), not from streams.
    """

    fingerprint: str
    epoch: int
    step: int
    seconds: float
    states: dict[str, dict[str, Any]]
    sums: dict[str, Any]


def checkpoints(run: Path) -> list[Path]:
    """Checkpoint files of a run folder, the newest first."""
    return sorted((run / FOLDER).glob("step-*.pt"), reverse=True)


def save_checkpoint(run: Path, checkpoint: Checkpoint, keep: int = 1) -> Path:
    """Write a checkpoint into a run folder; of the others, the `keep` - 1 before it stay. The file that it became."""
    content = {"version": VERSION} | {name: getattr(checkpoint, name) for name in Checkpoint.__slots__}
    path = run / FOLDER / f"step-{checkpoint.step:010d}.pt"
    with atomic_path(path) as temporary:
        torch.save(content, temporary)
    # Later ones are damaged, or of an attempt that was given up.
    kept = [other for other in checkpoints(run) if other <= path][:keep]
    for other in set(checkpoints(run)) - set(kept):
        other.unlink(missing_ok=True)
    return path


def load_checkpoint(run: Path, fingerprint: str | None = None) -> Checkpoint | None:
    """The newest whole checkpoint of a run folder, or None where there is none yet.

    A damaged file is passed over, with a line in the log, where an older one is whole. Raises InputError where all are
    damaged, for another version, or (with `fingerprint`) another run's checkpoint.
    """
    if (run / FOLDER / "state.pt").is_file() and not checkpoints(run):
        raise _other_version(run / FOLDER / "state.pt", 1)
    damage: InputError | None = None
    for path in checkpoints(run):
        try:
            checkpoint = _read(path)
        except InputError as error:
            damage = damage or error
            continue
        if damage is not None:
            log(f"warning: {damage.what}: going on from {path.name}")
        if fingerprint is not None and checkpoint.fingerprint != fingerprint:
            raise InputError(
                f"{path} was made with other settings or data",
                got=checkpoint.fingerprint,
                expected=fingerprint,
                remedy="resume with the same settings and store, or name another --out",
            )
        return checkpoint
    if damage is not None:
        raise damage
    return None


def _read(path: Path) -> Checkpoint:
    remedy = f"remove {path.parent}, to start the run anew"
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
        version = content.pop("version")
        if version == VERSION:
            return Checkpoint(**content)
    except (TypeError, RuntimeError, EOFError, KeyError, AttributeError, OSError, pickle.UnpicklingError) as error:
        raise InputError(f"{path} is damaged", got=error, remedy=remedy) from error
    raise _other_version(path, version)


def _other_version(path: Path, version: object) -> InputError:
    return InputError(
        f"{path} is of another version",
        got=version,
        expected=VERSION,
        remedy=f"finish the run with the version that began it, or remove {path.parent} to start the run anew",
    )


def save_weights(model: nn.Module, path: Path) -> None:
    """Write a model's weights as safetensors, atomically."""
    from safetensors.torch import save_model

    with atomic_path(path) as temporary:
        save_model(model, str(temporary))  # weights that a model uses twice are written once


def load_weights(model: nn.Module, path: Path) -> None:
    """Fill a model from a safetensors file; InputError where it does not fit."""
    from safetensors import SafetensorError
    from safetensors.torch import load_model

    try:
        load_model(model, path)
    except (SafetensorError, RuntimeError, OSError) as error:
        raise InputError(
            f"{path} does not hold this model's weights", got=error, remedy="train the run again with this version"
        ) from error

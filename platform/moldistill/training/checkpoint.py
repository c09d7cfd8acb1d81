"""Checkpoints: everything that the rest of a run depends on, in one file that appears whole or not at all."""

from __future__ import annotations

import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from moldistill.core.artifacts import atomic_path
from moldistill.core.errors import InputError

VERSION = 1
STATE = Path("checkpoint") / "state.pt"
WEIGHTS = "weights.safetensors"


@dataclass(slots=True)
class Checkpoint:
    """State after `epoch` whole epochs and `step` steps.

    fingerprint: of settings, data and workers; a checkpoint continues only the run that it came from.
    states: state dictionaries by part (model, averaged, objective, optimizer). rng: torch's generator, per worker.
    """

    fingerprint: str
    epoch: int
    step: int
    seconds: float
    states: dict[str, dict[str, Any]]
    rng: list[Tensor]


def save_checkpoint(run: Path, checkpoint: Checkpoint) -> None:
    """Write the checkpoint of a run folder, replacing the one before."""
    content = {"version": VERSION} | {name: getattr(checkpoint, name) for name in Checkpoint.__slots__}
    with atomic_path(run / STATE) as temporary:
        torch.save(content, temporary)


def load_checkpoint(run: Path, fingerprint: str | None = None) -> Checkpoint | None:
    """The checkpoint of a run folder, or None where there is none yet.

    Raises InputError for a damaged file, another version, or (with `fingerprint`) another run's checkpoint.
    """
    path = run / STATE
    if not path.is_file():
        return None
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
        version = content.pop("version")
    except (RuntimeError, EOFError, KeyError, AttributeError, pickle.UnpicklingError) as error:
        raise InputError(f"{path} is damaged", got=error, remedy="remove it, to start the run anew") from error
    if version != VERSION:
        raise InputError(
            f"{path} is of another version", got=version, expected=VERSION, remedy="remove it, to start the run anew"
        )
    checkpoint = Checkpoint(**content)
    if fingerprint is not None and checkpoint.fingerprint != fingerprint:
        raise InputError(
            f"{path} was made with other settings, data or workers",
            got=checkpoint.fingerprint,
            expected=fingerprint,
            remedy="resume with the same settings and store, or name another --out",
        )
    return checkpoint


def save_weights(model: nn.Module, path: Path) -> None:
    """Write a model's weights as safetensors, atomically."""
    from safetensors.torch import save_file

    tensors = {name: tensor.contiguous().cpu() for name, tensor in model.state_dict().items()}
    with atomic_path(path) as temporary:
        save_file(tensors, temporary)


def load_weights(model: nn.Module, path: Path) -> None:
    """Fill a model from a safetensors file; InputError where it does not fit."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        model.load_state_dict(load_file(path))
    except (SafetensorError, RuntimeError, OSError) as error:
        raise InputError(
            f"{path} does not hold this model's weights", got=error, remedy="train the run again with this version"
        ) from error

"""Noise on a teacher's training positions, and the auxiliary task of predicting it (Noisy Nodes, arXiv 2106.07971).

The noise of an atom depends on seed, epoch, store row and atom alone: neither batch, worker, padding nor a restart
changes it. So it is no stream of a generator but a hash of these numbers.
"""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor

from moldistill.core.hashing import mixed
from moldistill.core.records import Batch
from moldistill.core.seeds import named_seed
from moldistill.core.shapes import Float, Int
from moldistill.core.vocabulary import MAX_ATOMS

_GOLDEN = 0x9E3779B97F4A7C15 - 2**64


def normal(seed: int, rows: Int[Tensor, "batch"], places: Int[Tensor, "atoms"]) -> Float[Tensor, "batch atoms 3"]:
    """Independent standard normal numbers for each row and place, by Box and Muller's formula."""
    start = mixed(rows[:, None] * _GOLDEN + seed)
    keys = mixed(start[:, :, None] + 2 * places[:, None] + torch.arange(2, device=rows.device))
    keys = mixed(keys * _GOLDEN)
    low, high = (keys & 0xFFFFFFFF).double(), ((keys >> 32) & 0xFFFFFFFF).double()
    radius = (-2 * torch.log((low + 0.5) * 2.0**-32)).sqrt()
    angle = high * (2 * math.pi * 2.0**-32)
    return torch.cat([radius * angle.cos(), (radius * angle.sin())[..., :1]], -1).float()


def noised(batch: Batch, *, std: float, seed: int, epoch: int) -> tuple[Batch, Float[Tensor, "batch atoms 3"]]:
    """The batch with Gaussian noise of `std` Å on the positions of all atoms, and the noise of the heavy ones."""
    stream, rows = named_seed(seed, "noise", epoch), batch.molecules.rows
    places = torch.arange(batch.positions.shape[1], device=rows.device)
    shift = std * normal(stream, rows, places)
    hydrogens = batch.hydrogens
    if hydrogens is not None:
        behind = MAX_ATOMS + torch.arange(hydrogens.positions.shape[1], device=rows.device)
        hydrogens = replace(hydrogens, positions=hydrogens.positions + std * normal(stream, rows, behind))
    return replace(batch, positions=batch.positions + shift, hydrogens=hydrogens), shift


def denoising_loss(
    predicted: Float[Tensor, "batch atoms 3"], noise: Float[Tensor, "batch atoms 3"], batch: Batch, std: float
) -> Float[Tensor, ""]:
    """Σ over molecules with positions of the mean squared error of the noise, in units of `std`.

    The mean noise of a molecule's heavy atoms is taken off: no model that ignores translations can know it.
    """
    real = batch.molecules.real[..., None]
    size = batch.molecules.size[:, None, None].clamp(min=1)
    centred = noise - torch.where(real, noise, 0.0).sum(1, keepdim=True) / size
    error = torch.where(real, (predicted.float() - centred) / std, 0.0).square().sum((1, 2)) / (3 * size[:, 0, 0])
    return torch.where(batch.has_positions, error, 0.0).sum()

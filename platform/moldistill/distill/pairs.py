"""The geometry term: from the student's 2D states, tell how far apart two atoms lie in space."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from moldistill.core.records import Batch, ModelOutput
from moldistill.core.settings import PairTermSettings
from moldistill.core.shapes import Float, Int
from moldistill.models.fused import Linear


class PairTerm(nn.Module):
    """Σ over molecules with positions of the mean cross-entropy of binned distances over their pairs of atoms.

    The bins are equal up to `max_distance` (Å); the last takes what lies beyond. Pairs are symmetric: the head reads
    the sum of both atoms' projected states.
    """

    HIDDEN = 64

    def __init__(self, settings: PairTermSettings, width: int) -> None:
        super().__init__()
        self.settings = settings
        self.project = Linear(width, self.HIDDEN)
        self.classify = Linear(self.HIDDEN, settings.bins)

    def bins(self, positions: Float[Tensor, "batch atoms 3"]) -> Int[Tensor, "batch atoms atoms"]:
        """Bin of each pair's distance."""
        distance = (positions[:, :, None] - positions[:, None]).norm(dim=-1)
        step = self.settings.max_distance / self.settings.bins
        bins: Tensor = (distance / step).long().clamp(max=self.settings.bins - 1)
        return bins

    def forward(self, output: ModelOutput, batch: Batch) -> Float[Tensor, ""]:
        """The sum over this worker's molecules; 0 for those without positions or with one atom."""
        hidden = self.project(output.atom_states[-1]).float()
        logits = self.classify(nn.functional.gelu(hidden[:, :, None] + hidden[:, None]))
        loss = nn.functional.cross_entropy(logits.flatten(0, 2), self.bins(batch.positions).flatten(), reduction="none")
        real = batch.molecules.real
        pairs = real[:, :, None] & real[:, None] & batch.has_positions[:, None, None]
        pairs = pairs & ~torch.eye(real.shape[1], dtype=torch.bool, device=real.device)
        per_molecule = torch.where(pairs, loss.view(pairs.shape), 0.0).sum((1, 2)) / pairs.sum((1, 2)).clamp(min=1)
        return per_molecule.sum()

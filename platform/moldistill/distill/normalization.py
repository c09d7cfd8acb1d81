"""Normalization: of states before they are compared, and of the local term over molecule size."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from moldistill.core.settings import AtomTermSettings, FeatureScheme
from moldistill.core.shapes import Float, Int
from moldistill.data.targets import StateStatistics


def normalize_states(
    scheme: FeatureScheme,
    student: Float[Tensor, "*rest width"],
    teacher: Float[Tensor, "*rest width"],
    statistics: StateStatistics,
    layer: int,
) -> tuple[Float[Tensor, "*rest width"], Float[Tensor, "*rest width"]]:
    """Student (already projected) and teacher states, ready to be compared.

    none: as they are.  layer_norm: each state to mean 0 and variance 1 over its channels.  unit: each state to length
    √width.  standardize, whiten: the teacher's channels by their statistics over the training molecules; the student's
    affine projection learns the same frame, so its side stays as it is.
    """
    match scheme:
        case "none":
            return student, teacher
        case "layer_norm":
            shape = student.shape[-1:]
            return nn.functional.layer_norm(student, shape), nn.functional.layer_norm(teacher, shape)
        case "unit":
            length = student.shape[-1] ** 0.5
            ours = nn.functional.normalize(student, dim=-1, eps=1e-6) * length
            return ours, nn.functional.normalize(teacher, dim=-1, eps=1e-6) * length
        case "standardize":
            return student, (teacher - statistics.mean[layer]) / statistics.std[layer]
        case "whiten":
            return student, (teacher - statistics.mean[layer]) @ statistics.whitening[layer]


def size_weights(
    settings: AtomTermSettings,
    size: Int[Tensor, "batch"],
    *,
    molecules: Tensor | float,
    atoms: Tensor | float,
    mean_atoms: float,
) -> Float[Tensor, "batch"]:
    """c(N): weight of the sum over a molecule's atoms, by its number of atoms N.

    sum: 1.  molecule_mean: 1/N.  coordinated: 1/N² (arXiv 2211.16712, for a transformer).  power: N^-p.
    batch_mean: B/ΣN over the `molecules` and `atoms` of the global batch.  dataset_mean: N̄^-p with N̄ = `mean_atoms`.
    `gradient_matched` is not a function of N alone: see `GradientMatcher`.
    """
    count = size.clamp(min=1).float()
    match settings.normalization:
        case "sum":
            return torch.ones_like(count)
        case "molecule_mean":
            return count.reciprocal()
        case "coordinated":
            return count.square().reciprocal()
        case "power":
            return count.pow(-settings.power)
        case "batch_mean":
            return torch.ones_like(count) * (molecules / atoms)
        case "dataset_mean":
            return torch.full_like(count, mean_atoms**-settings.power)
        case "gradient_matched":
            raise AssertionError("gradient_matched has a module of its own")


class GradientMatcher(nn.Module):
    """c(N) that holds a molecule's local gradient at a chosen share of the global one, whatever its size.

    For each size N it follows G(N), the sum over atoms of the norm of the local distance's derivative with respect to
    the projected state, and g, the same norm for the graph token (both exponential means). Then
    c(N) = share · g / G(N): by the triangle inequality the local term moves shared parameters at most `share` times as
    far as the global one.
    """

    CLASSES = 64
    DECAY = 0.95

    def __init__(self, share: float) -> None:
        super().__init__()
        self.share = share
        self.register_buffer("local", torch.zeros(self.CLASSES))
        self.register_buffer("overall", torch.zeros(1))
        self.local: Tensor
        self.overall: Tensor

    def classes(self, size: Int[Tensor, "batch"]) -> Int[Tensor, "batch"]:
        """Size class: the number of atoms, the largest in one class."""
        return size.clamp(max=self.CLASSES - 1)

    @torch.no_grad()
    def observe(
        self,
        size: Int[Tensor, "known"],
        local: Float[Tensor, "known"],
        overall: Float[Tensor, "known"],
        reduce: Callable[[Tensor], Tensor],
    ) -> None:
        """Take in the gradient norms of one batch's known molecules; `reduce` sums over workers."""
        classes = self.classes(size)
        sums = torch.zeros(2, self.CLASSES + 1, device=local.device)
        sums[0].index_add_(0, classes, torch.ones_like(local))
        sums[1].index_add_(0, classes, local)
        sums[0, -1], sums[1, -1] = len(overall), overall.sum()
        count, total = reduce(sums)
        mean = total / count.clamp(min=1)
        self._follow(self.local, mean[:-1], count[:-1] > 0)
        self._follow(self.overall, mean[-1:], count[-1:] > 0)

    def _follow(self, state: Tensor, seen: Tensor, present: Tensor) -> None:
        mixed = torch.where(state == 0, seen, self.DECAY * state + (1 - self.DECAY) * seen)
        state.copy_(torch.where(present, mixed, state))

    def forward(self, size: Int[Tensor, "batch"]) -> Float[Tensor, "batch"]:
        """c(N) from what was observed so far.

        A size that was not seen yet is taken to have the mean gradient per atom of those that were; 0 where none moves.
        """
        seen, atoms = self.local > 0, torch.arange(self.CLASSES, device=size.device)
        per_atom = torch.where(seen, self.local / atoms.clamp(min=1), 0.0).sum() / seen.sum().clamp(min=1)
        local = torch.where(seen, self.local, per_atom * atoms)[self.classes(size)]
        return torch.where(local > 0, self.share * self.overall / local.clamp(min=1e-12), 0.0)

"""Distances between student and teacher states. Teachers are constants: their side carries no gradient."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from moldistill.core.shapes import Bool, Float

ChannelDistance = Literal["mse", "smooth_l1", "l1", "cosine"]


def channel_distance(
    kind: ChannelDistance, student: Float[Tensor, "*rest width"], teacher: Float[Tensor, "*rest width"]
) -> Float[Tensor, "*rest"]:
    """Distance per state, a mean over channels.

    mse: mean of squares.  l1: mean of absolute values.  smooth_l1: Huber's with threshold 1.  cosine: 1 - cosine.
    """
    teacher = teacher.detach()
    difference = student - teacher
    match kind:
        case "mse":
            return difference.square().mean(-1)
        case "l1":
            return difference.abs().mean(-1)
        case "smooth_l1":
            return torch.nn.functional.smooth_l1_loss(student, teacher, reduction="none").mean(-1)
        case "cosine":
            return 1.0 - torch.nn.functional.cosine_similarity(student, teacher, dim=-1, eps=1e-6)


def relational_distance(
    student: Float[Tensor, "*rest items width"],
    teacher: Float[Tensor, "*rest items width"],
    real: Bool[Tensor, "*rest items"],
) -> Float[Tensor, "*rest items"]:
    """Squared difference of cosine similarities between items, a mean over each item's partners (itself included).

    What matters is how items lie to each other, not where they lie (relational distillation, arXiv 1904.05068).
    """
    ours = torch.nn.functional.normalize(student, dim=-1, eps=1e-6)
    theirs = torch.nn.functional.normalize(teacher.detach(), dim=-1, eps=1e-6)
    squared = (ours @ ours.mT - theirs @ theirs.mT).square()
    squared = torch.where(real[..., None, :], squared, 0.0)
    partners = real.sum(-1, keepdim=True).clamp(min=1)
    return squared.sum(-1) / partners

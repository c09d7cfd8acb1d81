"""The optimizer, the learning rate over the steps, and averaged weights."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable

import torch
from torch import nn

from moldistill.core.settings import OptimizerSettings


def build_optimizer(modules: Iterable[nn.Module], settings: OptimizerSettings) -> torch.optim.AdamW:
    """AdamW; matrices decay, embeddings, biases and norms do not."""
    decayed: list[nn.Parameter] = []
    kept: list[nn.Parameter] = []
    for root in modules:
        for module in root.modules():
            for parameter in module.parameters(recurse=False):
                matrix = isinstance(module, nn.Linear) and parameter.ndim == 2
                (decayed if matrix else kept).append(parameter)
    groups = [{"params": decayed, "weight_decay": settings.weight_decay}, {"params": kept, "weight_decay": 0.0}]
    betas = (settings.beta1, settings.beta2)
    return torch.optim.AdamW(groups, lr=settings.learning_rate, betas=betas, fused=True)


def learning_rate(settings: OptimizerSettings, step: int, total: int) -> float:
    """Rate of step `step` (from 0) of `total`: a linear warm-up, then a cosine down to `final` of the peak."""
    warm = max(1, round(settings.warmup * total))
    if step < warm:
        return settings.learning_rate * (step + 1) / warm
    share = (step - warm) / max(1, total - warm)
    low = settings.final
    return settings.learning_rate * (low + (1 - low) * 0.5 * (1 + math.cos(math.pi * share)))


class AveragedWeights:
    """Exponential mean of a model's weights, which is evaluated and kept.

    The decay grows as (1 + step) / (10 + step) up to `decay`, so that the first, random weights are soon forgotten.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.model = copy.deepcopy(model).eval().requires_grad_(False)

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        """Take in the weights after step `step` (from 0)."""
        decay = min(self.decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(list(self.model.parameters()), list(model.parameters()), 1 - decay)
        for ours, theirs in zip(self.model.buffers(), model.buffers(), strict=True):
            ours.copy_(theirs)

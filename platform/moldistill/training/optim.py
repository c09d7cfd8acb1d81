"""The optimizer, the learning rate over the steps, and the averaged weights that are evaluated and kept."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from moldistill.core.errors import InputError
from moldistill.core.settings import OptimizerSettings


def parameter_groups(modules: Iterable[nn.Module], weight_decay: float) -> list[dict[str, Any]]:
    """Two groups: matrices of linear layers decay; embeddings, biases, norms and everything else do not."""
    decayed: list[nn.Parameter] = []
    kept: list[nn.Parameter] = []
    for root in modules:
        for module in root.modules():
            for parameter in module.parameters(recurse=False):
                matrix = isinstance(module, nn.Linear) and parameter.ndim == 2
                (decayed if matrix else kept).append(parameter)
    return [{"params": decayed, "weight_decay": weight_decay}, {"params": kept, "weight_decay": 0.0}]


def build_optimizer(modules: Iterable[nn.Module], settings: OptimizerSettings) -> torch.optim.Optimizer:
    """AdamW, fused into one kernel, or its schedule-free kind."""
    groups = [group for group in parameter_groups(modules, settings.weight_decay) if group["params"]]
    betas = (settings.beta1, settings.beta2)
    if settings.kind == "adamw":
        return torch.optim.AdamW(groups, lr=settings.learning_rate, betas=betas, fused=True)
    try:
        from schedulefree import AdamWScheduleFree
    except ImportError:
        raise InputError(
            "optimizer.kind is schedule_free",
            got="no package schedulefree",
            expected="schedulefree 1.4 or newer",
            remedy="pip install schedulefree, or set optimizer.kind=adamw",
        ) from None
    optimizer: torch.optim.Optimizer = AdamWScheduleFree(groups, lr=settings.learning_rate, betas=betas)
    return optimizer


def learning_rate(settings: OptimizerSettings, step: int, total: int) -> float:
    """Rate of step `step` (from 0) of `total`: a linear warm-up, then a cosine down to `final` of the peak.

    Schedule-free, it stays at the peak.
    """
    warm = max(1, round(settings.warmup * total))
    if step < warm:
        return settings.learning_rate * (step + 1) / warm
    if settings.kind == "schedule_free":
        return settings.learning_rate
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
        self._copy_buffers(model)

    @torch.no_grad()
    def take(self, model: nn.Module) -> None:
        """Be the weights as they are: those of a schedule-free optimizer are a mean already."""
        torch._foreach_copy_(list(self.model.parameters()), list(model.parameters()))
        self._copy_buffers(model)

    def _copy_buffers(self, model: nn.Module) -> None:
        for ours, theirs in zip(self.model.buffers(), model.buffers(), strict=True):
            ours.copy_(theirs)

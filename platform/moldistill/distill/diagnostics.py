"""Which terms move the student: shares of the gradient norm, and warnings about dead and drowning terms."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from moldistill.core.shapes import Float

DEAD = 1e-3
DROWNED = 0.1

_KEY = re.compile(r"share_(?P<term>[a-z]+)(?:_(?P<smallest>\d+)to(?P<largest>\d+))?$")


def gradients(terms: Mapping[str, Tensor], parameters: Sequence[Tensor]) -> dict[str, Float[Tensor, "parameters"]]:
    """The gradient of each weighted term, all parameters in one vector; zeros where it moves none."""
    found = {}
    for name, term in terms.items():
        if not term.requires_grad:
            found[name] = torch.zeros(sum(parameter.numel() for parameter in parameters), device=term.device)
            continue
        parts = torch.autograd.grad(term, parameters, retain_graph=True, allow_unused=True)
        zeros = (
            part if part is not None else torch.zeros_like(own) for part, own in zip(parts, parameters, strict=True)
        )
        found[name] = torch.cat([part.flatten().float() for part in zeros])
    return found


def shares_of(parts: Mapping[str, Float[Tensor, "parameters"]]) -> dict[str, float]:
    """Norm of each gradient over the sum of these norms; they add up to 1 (all 0 where none moves)."""
    norms = {name: float(part.double().norm()) for name, part in parts.items()}
    total = sum(norms.values())
    return {name: norm / total if total > 0 else 0.0 for name, norm in norms.items()}


def shares_by_size(metrics: Mapping[str, Any]) -> dict[tuple[int, int] | None, dict[str, float]]:
    """The shares among a run's metrics: of all molecules (key None), and of those of `smallest` to `largest` atoms."""
    found: dict[tuple[int, int] | None, dict[str, float]] = {}
    for name, value in metrics.items():
        if match := _KEY.match(name):
            size = (int(match["smallest"]), int(match["largest"])) if match["smallest"] else None
            found.setdefault(size, {})[match["term"]] = value
    return found


def warnings_for(shares: Mapping[str, float], where: str = "") -> list[str]:
    """A sentence for each term that does nothing, and one where the label is drowned, `where`: for which molecules."""
    found = [
        f"the term '{name}' does nothing{where}: {share:.2%} of the gradient; raise its weight or set it to 0"
        for name, share in shares.items()
        if name != "label" and share < DEAD
    ]
    label = shares.get("label", 1.0)
    if label < DROWNED and len(shares) > 1:
        loudest = max((name for name in shares if name != "label"), key=lambda name: shares[name])
        found.append(
            f"the term '{loudest}' drowns the label{where}, which has {label:.1%} of the gradient; lower its weight"
        )
    return found


def warnings_by_size(metrics: Mapping[str, Any]) -> list[str]:
    """Warnings about all molecules, and about sizes of which what is true of all molecules does not tell."""
    shares = shares_by_size(metrics)
    general = warnings_for(shares.pop(None, {}))
    named = {warning.split("'")[1] for warning in general}
    special = [
        warning
        for size, found in shares.items()
        if size is not None
        for warning in warnings_for(found, f" for molecules of {size[0]} to {size[1]} atoms")
        if warning.split("'")[1] not in named
    ]
    return general + special

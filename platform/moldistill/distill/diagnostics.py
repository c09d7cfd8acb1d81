"""Which terms move the student: shares of the gradient norm, and warnings about dead and drowning terms."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

DEAD = 1e-3
DROWNED = 0.1


def gradient_shares(terms: Mapping[str, Tensor], parameters: Sequence[Tensor]) -> dict[str, float]:
    """Norm of each weighted term's gradient over the sum of these norms; they add up to 1 (all 0 where none moves)."""
    norms = {}
    for name, term in terms.items():
        if not term.requires_grad:
            norms[name] = 0.0
            continue
        gradients = torch.autograd.grad(term, parameters, retain_graph=True, allow_unused=True)
        squares = [gradient.double().square().sum() for gradient in gradients if gradient is not None]
        norms[name] = float(torch.stack(squares).sum().sqrt()) if squares else 0.0
    total = sum(norms.values())
    return {name: norm / total if total > 0 else 0.0 for name, norm in norms.items()}


def warnings_for(shares: Mapping[str, float]) -> list[str]:
    """A sentence for each term that does nothing, and one where the label is drowned."""
    found = [
        f"the term '{name}' does nothing: {share:.2%} of the gradient; raise its weight or set it to 0"
        for name, share in shares.items()
        if name != "label" and share < DEAD
    ]
    label = shares.get("label", 1.0)
    if label < DROWNED and len(shares) > 1:
        loudest = max((name for name in shares if name != "label"), key=lambda name: shares[name])
        found.append(f"the term '{loudest}' drowns the label, which has {label:.1%} of the gradient; lower its weight")
    return found

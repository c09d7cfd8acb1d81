"""Random walks over the bonds of a molecule: where each atom stands, beyond what message passing can tell."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from moldistill.core.records import Molecules
from moldistill.core.shapes import Float


@torch.no_grad()
def return_probabilities(
    molecules: Molecules, steps: int, dtype: torch.dtype = torch.float32
) -> Float[Tensor, "batch atoms steps"]:
    """Of a walk from each atom, the probability of being back after k = 1 .. `steps` steps; each bond is as likely.

    Random walk structural encodings (arXiv 2110.07875): the diagonals of Pᵏ, P = D⁻¹ A. 0 for atoms without bonds, and
    where padded. S = D^-½ A D^-½ has powers of the same diagonals and is symmetric, so that (Sᵃ⁺ᵇ)ᵢᵢ = Σⱼ (Sᵃ)ᵢⱼ (Sᵇ)ᵢⱼ
    and half of the powers are enough.
    """
    bonded = molecules.bonded
    degree = bonded.sum(2, dtype=dtype)
    scale = torch.where(degree > 0, degree, 1.0).rsqrt()
    walk = bonded.to(dtype) * scale[:, :, None] * scale[:, None]
    returns = [walk.diagonal(dim1=1, dim2=2)]
    power = walk
    while len(returns) < steps:
        returns.append(power.square().sum(2))
        further = power @ walk
        returns.append((power * further).sum(2))
        power = further
    return torch.stack(returns[:steps], 2)


class WalkEmbedding(nn.Module):
    """What the return probabilities of an atom add to its token."""

    def __init__(self, width: int, steps: int) -> None:
        super().__init__()
        self.steps = steps
        self.weight = nn.Parameter(torch.empty(steps, width))
        nn.init.normal_(self.weight, std=0.1)

    def forward(self, molecules: Molecules) -> Float[Tensor, "batch atoms width"]:
        """In the precision of the parameters, for walks differ by little: no 16 bits under autocast."""
        with torch.autocast(self.weight.device.type, enabled=False):
            dtype = torch.promote_types(self.weight.dtype, torch.float32)
            returns = return_probabilities(molecules, self.steps, dtype)
            added: Tensor = returns @ self.weight.to(dtype)
        return added

"""How a teacher's states are kept: in fewer channels (principal components), and in 16 or 8 bits.

Both are fitted on a sample of the training molecules before anything is written, per layer, and separately for the
graph token and the atoms.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from moldistill.core.shapes import Float
from moldistill.training.moments import Moments

KINDS = ("graph", "atom")

HALF_MAX = float(np.finfo(np.float16).max)

BYTE_MAX = 127
"""Largest whole number that 8 bits hold with either sign."""

HEADROOM = 1.2
"""Largest number that 8 bits hold, over the largest of the sample."""

LEAST_SCALE = 1e-6
"""Of a layer's largest scale: that of channels which are 0 in the whole sample."""


@dataclass(frozen=True, slots=True)
class Coding:
    """From states of one kind to what is kept of them, and back.

    centre, basis: kept channels are (t - centre) basis, orthonormal, by falling variance; None keeps all as they are.
    scale: value of one step of a channel in 8 bits; None: 16-bit floats.
    """

    centre: Float[Tensor, "layers width"] | None = None
    basis: Float[Tensor, "layers width channels"] | None = None
    scale: Float[Tensor, "layers channels"] | None = None

    def project(self, states: Float[Tensor, "layers items width"]) -> Float[Tensor, "layers items channels"]:
        """The kept channels of states."""
        if self.centre is None or self.basis is None:
            return states
        return (states - self.centre[:, None]) @ self.basis

    def restore(self, projected: Float[Tensor, "layers items channels"]) -> Float[Tensor, "layers items width"]:
        """What kept channels say of the states, in the teacher's channels."""
        if self.centre is None or self.basis is None:
            return projected
        return projected @ self.basis.mT + self.centre[:, None]

    def round(self, projected: Float[Tensor, "layers items channels"]) -> tuple[Tensor, int]:
        """Kept channels as they are written (float16 or int8), and how many numbers were beyond 8 bits."""
        if self.scale is None:
            return projected.half(), 0
        steps = (projected / self.scale[:, None]).round()
        clipped = int((steps.abs() > BYTE_MAX).sum())
        return steps.clamp(-BYTE_MAX, BYTE_MAX).to(torch.int8), clipped

    def read(self, written: Tensor) -> Float[Tensor, "layers items channels"]:
        """Kept channels as they are read back."""
        return written.float() if self.scale is None else written * self.scale[:, None]

    def arrays(self, kind: str) -> dict[str, NDArray[np.float32]]:
        """What the targets' statistics file keeps of it."""
        parts = {"centre": self.centre, "basis": self.basis, "scale": self.scale}
        return {f"{kind}_{name}": part.numpy() for name, part in parts.items() if part is not None}


Sample = Callable[[], Iterator[Mapping[str, Float[Tensor, "layers items width"]]]]
"""One pass over the sample: states by kind, batch by batch."""


def fit_codings(sample: Sample, *, layers: int, width: int, channels: int | None, bits: int) -> dict[str, Coding]:
    """The coding of each kind of state; the sample is passed over once for fewer channels and once for 8 bits."""
    codings = dict.fromkeys(KINDS, Coding())
    if channels is not None:
        moments = {kind: Moments.empty(layers, width) for kind in KINDS}
        for states in sample():
            for kind in KINDS:
                moments[kind].add(states[kind])
        codings = {kind: principal(moments[kind], channels) for kind in KINDS}
    if bits == 8:
        largest = {kind: torch.zeros(layers, channels or width) for kind in KINDS}
        for states in sample():
            for kind in KINDS:
                size = codings[kind].project(states[kind]).abs()
                if size.shape[1]:
                    largest[kind] = torch.maximum(largest[kind], size.amax(1))
        codings = {kind: Coding(codings[kind].centre, codings[kind].basis, scales(largest[kind])) for kind in KINDS}
    return codings


def principal(moments: Moments, channels: int) -> Coding:
    """The `channels` principal components of each layer, each with its largest entry positive."""
    _, vectors = torch.linalg.eigh(moments.covariance)
    basis = vectors.flip(-1)[..., :channels]
    largest = basis.gather(1, basis.abs().argmax(1, keepdim=True))
    return Coding(moments.mean.float(), (basis * largest.sign()).float().contiguous())


def scales(largest: Float[Tensor, "layers channels"]) -> Float[Tensor, "layers channels"]:
    """Value of one step in 8 bits, from the largest number of each channel."""
    # What is read back must fit 16 bits, too.
    found = (largest * HEADROOM).clamp(max=HALF_MAX) / BYTE_MAX
    found = torch.maximum(found, LEAST_SCALE * found.amax(1, keepdim=True))
    return torch.where(found > 0, found, torch.ones_like(found))

"""Statistics of a teacher's states, and what is lost by the way they are kept: sums over all that was written."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from moldistill.core.shapes import Float

LEAST_SHARE = 1e-3
"""Of the largest spread of a layer: channels (by standard deviation) and directions (by variance) with less count as
having so much, so that nothing without meaning is blown up."""

NOISE = 1e-6
"""A spread below this share of the states' size is rounding."""


@dataclass(slots=True)
class Moments:
    """Sums for mean and covariance per layer, in double precision.

    They are of the differences to a `shift`, the first mean that was seen: a state that hardly varies around a large
    constant would otherwise drown in rounding.
    """

    count: int
    shift: Float[Tensor, "layers width"]
    total: Float[Tensor, "layers width"]
    squares: Float[Tensor, "layers width width"]

    @classmethod
    def empty(cls, layers: int, width: int) -> Moments:
        """Of nothing yet."""
        flat = torch.zeros(layers, width, dtype=torch.float64)
        return cls(0, flat, flat.clone(), torch.zeros(layers, width, width, dtype=torch.float64))

    def add(self, states: Float[Tensor, "layers items width"]) -> None:
        """Take in states."""
        if not states.shape[1]:
            return
        if not self.count:
            self.shift = states.mean(1, dtype=torch.float64)
        self.count += states.shape[1]
        for layer, whole in enumerate(states):  # one by one, to stay in the cache
            centred = whole.double() - self.shift[layer]
            self.total[layer] += centred.sum(0)
            self.squares[layer].addmm_(centred.T, centred)

    @property
    def mean(self) -> Float[Tensor, "layers width"]:
        """Mean of what was taken in."""
        return self.shift + self.total / max(self.count, 1)

    @property
    def covariance(self) -> Float[Tensor, "layers width width"]:
        """Covariance (over count, not count - 1), symmetric to the bit."""
        drift = self.total / max(self.count, 1)
        covariance = self.squares / max(self.count, 1) - drift[:, :, None] * drift[:, None]
        return (covariance + covariance.mT) / 2

    def statistics(self) -> dict[str, NDArray[np.float32]]:
        """Mean, standard deviation and ZCA whitening; directions without variance are not blown up."""
        mean, covariance = self.mean, self.covariance
        std = covariance.diagonal(dim1=1, dim2=2).clamp(min=0).sqrt()
        # What does not vary at all, as the states of a constant teacher or of a single molecule, stays as it is.
        least = NOISE * mean.square().mean(1).sqrt()
        std = _floored(std, torch.maximum(LEAST_SHARE * std.amax(1), least))
        values, vectors = torch.linalg.eigh(covariance)
        values = _floored(values, torch.maximum(LEAST_SHARE * values.amax(1), least.square()))
        whitening = vectors @ (values.rsqrt()[:, :, None] * vectors.mT)
        return {name: part.float().numpy() for name, part in (("mean", mean), ("std", std), ("whitening", whitening))}


def _floored(spread: Float[Tensor, "layers width"], least: Float[Tensor, "layers"]) -> Float[Tensor, "layers width"]:
    """`spread`, but at least `least`; 1 in a layer of nothing but zeros."""
    return torch.where(least[:, None] > 0, torch.maximum(spread, least[:, None]), torch.ones_like(spread))


def _energy(states: Float[Tensor, "items width"]) -> Float[Tensor, ""]:
    """Sum of squares."""
    length: Tensor = torch.linalg.vector_norm(states)
    return length.double().square()


@dataclass(slots=True)
class Loss:
    """Sums per layer over what the teacher said and what is kept of it, in double precision.

    total, squares: Σ (t - s) and Σ |t - s|² of the states t, with a shift s as in `Moments`. size: Σ |t|².
    dropped: Σ |t - t'|² with t' in the kept channels, not rounded yet. error: Σ |t - t''|² with t'' as it is read back.
    clipped, numbers: kept numbers beyond 8 bits, and all of them.
    """

    count: int
    shift: Float[Tensor, "layers width"]
    total: Float[Tensor, "layers width"]
    squares: Float[Tensor, "layers"]
    size: Float[Tensor, "layers"]
    dropped: Float[Tensor, "layers"]
    error: Float[Tensor, "layers"]
    clipped: int = 0
    numbers: int = 0

    @classmethod
    def empty(cls, layers: int, width: int) -> Loss:
        """Of nothing yet."""
        shift, total = torch.zeros(2, layers, width, dtype=torch.float64)
        squares, size, dropped, error = torch.zeros(4, layers, dtype=torch.float64)
        return cls(0, shift, total, squares, size, dropped, error)

    def add(
        self,
        states: Float[Tensor, "layers items width"],
        projected: Float[Tensor, "layers items width"] | None,
        read: Float[Tensor, "layers items width"],
    ) -> None:
        """Take in states, what their kept channels say of them, and what is read back.

        All are in the teacher's channels; projected: None where all channels are kept.
        """
        if not states.shape[1]:
            return
        if not self.count:
            self.shift = states.mean(1, dtype=torch.float64)
        self.count += states.shape[1]
        for layer, (said, again) in enumerate(zip(states, read, strict=True)):  # one by one, to stay in the cache
            centred = said - self.shift[layer].float()
            self.total[layer] += centred.sum(0)
            self.squares[layer] += _energy(centred)
            self.size[layer] += _energy(said)
            self.error[layer] += _energy(said - again)
            if projected is not None:
                self.dropped[layer] += _energy(said - projected[layer])

    def facts(self) -> dict[str, list[float | None] | float]:
        """Figures per layer, None where nothing varies.

        kept: share of the variance in the kept channels. explained: the same of what is read back. error: root mean
        square of what is read back minus what was said, relative to that of what was said. clipped: share of numbers.
        """
        variance = self.squares - self.total.square().sum(1) / max(self.count, 1)
        variance = torch.where(variance > NOISE**2 * self.size, variance, torch.nan)
        found = {
            "kept": 1 - self.dropped / variance,
            "explained": 1 - self.error / variance,
            "error": (self.error / self.size).sqrt(),
        }
        lists: dict[str, list[float | None] | float] = {
            name: [round(value, 6) if np.isfinite(value) else None for value in values.tolist()]
            for name, values in found.items()
        }
        return lists | {"clipped": self.clipped / max(self.numbers, 1)}

"""What one step is made of: parts of a batch, running sums, and a stop for gradients that are not finite.

Nothing here asks a GPU for a number within the step: sums stay on the device until the epoch's end, and the optimizer
itself is told not to move.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from moldistill.core.errors import RunError
from moldistill.core.records import Batch

CHECK_EVERY = 32
"""Steps after which a GPU is asked whether all gradients were finite."""


def parts(batch: Batch, count: int) -> list[Batch]:
    """`count` batches of as equal numbers of molecules as can be; views, of the same padding. Some may be empty."""
    if count == 1:
        return [batch]
    edges = [len(batch.target) * part // count for part in range(count + 1)]
    return [batch.part(start, stop) for start, stop in itertools.pairwise(edges)]


@dataclass(slots=True)
class EpochSums:
    """Running sums of the epoch under way, of all workers: weighted terms, steps, and what was seen at its start."""

    steps: int = 0
    rate: float = 0.0
    names: tuple[str, ...] = ()
    total: Tensor | None = None
    shares: dict[str, float] = field(default_factory=dict)

    def add(self, names: Sequence[str], values: Tensor, rate: float) -> None:
        """Take in the terms of one step."""
        self.steps, self.rate, self.names = self.steps + 1, rate, tuple(names)
        self.total = values.double() if self.total is None else self.total + values

    def metrics(self) -> dict[str, float]:
        """Means over the steps; their sum is the loss."""
        totals = self.total.tolist() if self.total is not None else []
        means = {f"loss_{name}": value / self.steps for name, value in zip(self.names, totals, strict=True)}
        shares = {f"share_{name}": share for name, share in self.shares.items()}
        return {"train_loss": sum(means.values())} | means | {"learning_rate": self.rate} | shares

    def state(self) -> dict[str, Any]:
        """Plain values for a checkpoint."""
        total = None if self.total is None else self.total.cpu()
        names = list(self.names)
        return {"steps": self.steps, "rate": self.rate, "names": names, "total": total, "shares": dict(self.shares)}

    @classmethod
    def of(cls, state: Mapping[str, Any], device: torch.device) -> EpochSums:
        """Sums from a checkpoint."""
        total = None if state["total"] is None else state["total"].to(device)
        return cls(state["steps"], state["rate"], tuple(state["names"]), total, dict(state["shares"]))


class FiniteGuard:
    """Stops a run at the first gradient that is not finite, before the optimizer moves.

    On a CPU at once. On a GPU the optimizer is handed a flag that holds it still from that step on (`found_inf`, which
    fused optimizers know), and the host looks every CHECK_EVERY steps, and before anything is kept.
    """

    def __init__(self, device: torch.device, optimizer: torch.optim.Optimizer) -> None:
        self.device, self.optimizer = device, optimizer
        self.waits = device.type == "cuda" and isinstance(optimizer, torch.optim.AdamW)
        self.found = torch.zeros((), device=device)
        self.step = torch.full((), -1.0, device=device)
        self.terms: Tensor | None = None
        self.names: tuple[str, ...] = ()

    def see(self, norm: Tensor, step: int, names: Sequence[str], terms: Tensor) -> None:
        """Look at the gradient norm and the terms of step `step` (from 0). RunError where it is known to be bad."""
        bad = ~norm.isfinite()
        new = bad & (self.found == 0)
        self.step = torch.where(new, float(step), self.step)
        self.terms = terms if self.terms is None else torch.where(new, terms, self.terms)
        self.names = tuple(names)
        self.found = torch.maximum(self.found, bad.to(self.found.dtype))
        if self.waits:
            self.optimizer.found_inf = self.found  # type: ignore[attr-defined]
        if not self.waits or step % CHECK_EVERY == CHECK_EVERY - 1:
            self.check()

    def check(self) -> None:
        """RunError if any gradient so far was not finite. Waits for the device."""
        if float(self.found) == 0:
            return
        assert self.terms is not None
        values = ", ".join(f"{name} {value:g}" for name, value in zip(self.names, self.terms.tolist(), strict=True))
        raise RunError(
            f"training diverged at step {int(self.step)}",
            got=f"a gradient that is not finite; terms: {values}",
            remedy="lower optimizer.learning_rate or the weight of the term that is not finite",
        )


@contextmanager
def exact_kernels(wanted: bool) -> Iterator[None]:
    """Only kernels that repeat to the bit, where wanted; as it was before, behind the block."""
    if not wanted:
        yield
        return
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)

"""Sums over the workers of a run: nothing at all for one worker, torch.distributed for several."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn


@dataclass(frozen=True, slots=True)
class Collective:
    """Rank of this worker and number of all. The process group must be up if there are several."""

    rank: int = 0
    world_size: int = 1

    @property
    def leads(self) -> bool:
        """Whether this worker writes files."""
        return self.rank == 0

    def sum(self, tensor: Tensor) -> Tensor:
        """The sum over workers, as a new tensor."""
        if self.world_size == 1:
            return tensor
        total = tensor.clone()
        dist.all_reduce(total)
        return total

    def sum_gradients(self, parameters: list[nn.Parameter], more: Tensor) -> Tensor:
        """Replace each gradient by its sum over workers, in one message that also sums `more`, which is returned."""
        if self.world_size == 1:
            return more
        gradients = [p.grad if p.grad is not None else torch.zeros_like(p) for p in parameters]
        flat = torch.cat([gradient.reshape(-1) for gradient in gradients] + [more.to(gradients[0].dtype)])
        dist.all_reduce(flat)
        start = 0
        for parameter in parameters:
            count = parameter.numel()
            parameter.grad = flat[start : start + count].view_as(parameter).clone()
            start += count
        return flat[start:].to(more.dtype)

    def lead(self, *numbers: int) -> tuple[int, ...]:
        """The first worker's numbers, at every worker."""
        if self.world_size == 1:
            return numbers
        device = "cuda" if dist.get_backend() == "nccl" else "cpu"
        told = torch.tensor(numbers, dtype=torch.int64, device=device)
        dist.broadcast(told, src=0)
        return tuple(told.tolist())

    def wait(self) -> None:
        """Return when every worker has come here."""
        if self.world_size > 1:
            dist.barrier()


ALONE = Collective()

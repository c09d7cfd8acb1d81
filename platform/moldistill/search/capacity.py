"""How many trials run at once: as many as the cluster holds, node by node, so that none waits for another for ever."""

from __future__ import annotations

from dataclasses import dataclass

from moldistill.core.cluster import usable_cpus
from moldistill.core.errors import InputError
from moldistill.search.space import ResourceSettings

_SLACK = 1e-9


@dataclass(frozen=True, slots=True)
class Capacity:
    """What the cluster holds in all, and (CPUs, GPUs) of each node; no nodes: it is one."""

    cpus: float
    gpus: float
    nodes: tuple[tuple[float, float], ...] = ()

    def places(self, wanted: ResourceSettings) -> int:
        """Workers that fit at once. A worker is on one node, and a share of a GPU on one GPU."""
        return sum(_places(*node, wanted) for node in self.nodes or ((self.cpus, self.gpus),))


def _places(cpus: float, gpus: float, wanted: ResourceSettings) -> int:
    fits = int(cpus / wanted.cpus + _SLACK)
    if wanted.gpus >= 1:
        return min(fits, int(gpus / wanted.gpus + _SLACK))
    if wanted.gpus > 0:
        return min(fits, int(gpus + _SLACK) * int(1 / wanted.gpus + _SLACK))
    return fits


def cluster_capacity() -> Capacity:
    """Of the Ray cluster this process is connected to, else of this machine."""
    import ray
    import torch

    if not ray.is_initialized():
        return Capacity(max(usable_cpus(), 2), torch.cuda.device_count())
    nodes = tuple(
        (float(node["Resources"].get("CPU", 0.0)), float(node["Resources"].get("GPU", 0.0)))
        for node in ray.nodes()  # type: ignore[no-untyped-call]
        if node["Alive"]
    )
    return Capacity(sum(cpus for cpus, _ in nodes), sum(gpus for _, gpus in nodes), nodes)


def concurrency(wanted: ResourceSettings, capacity: Capacity, where: str) -> int:
    """Trials that run at once: as many as asked for, or as fit; InputError where not one does."""
    fits = capacity.places(wanted) // wanted.workers
    if fits < 1:
        each = f"{wanted.cpus:g} CPUs and {wanted.gpus:g} GPUs"
        raise InputError(
            f"{where}: resources: a trial holds more than the cluster",
            got=f"{wanted.workers} workers of {each} each" if wanted.workers > 1 else f"{each} per trial",
            expected=f"at most {capacity.cpus:g} CPUs and {capacity.gpus:g} GPUs"
            + (f" on {len(capacity.nodes)} nodes, each worker on one of them" if len(capacity.nodes) > 1 else ""),
            remedy="lower `resources: {cpus: …, gpus: …, workers: …}`, or join a larger cluster",
        )
    return min(wanted.concurrent, fits)

"""Windows of SMILES → predictions, in order: featurized ahead of the models, or all of it as tasks of a Ray cluster."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator
from itertools import chain, islice
from typing import Any

import torch

from moldistill.chem.featurize import featurize
from moldistill.core.cluster import cluster, ordered_map, usable_cpus
from moldistill.delivery.engine import Engine, Predicted
from moldistill.delivery.featurizing import AHEAD, Ahead, Window

WINDOW = 4096
"""Rows that are featurized together and sorted by size."""

GPU_SHARE = 0.25
"""Of a GPU, that a task of a cluster holds: one runs the models while others featurize."""


def windows(rows: Iterable[str], size: int) -> Iterator[Window]:
    """Consecutive rows, `size` at a time."""
    iterator, first = iter(rows), 0
    while part := tuple(islice(iterator, size)):
        yield Window(first, part)
        first += len(part)


def predict_windows(engine: Engine, parts: Iterator[Window], *, processes: int | None = None) -> Iterator[Predicted]:
    """Predictions of each window, in order; the next ones are featurized meanwhile, in other processes.

    processes: that featurize; 0: a thread of this one; by default what the device can keep busy. A single window is
    featurized here. Raises RunError where a process dies.
    """
    first, second = next(parts, None), next(parts, None)
    if first is None:
        return
    if second is None:
        yield engine.predict(first, featurize(first.smiles), measure=True)
        return
    count = _default_processes(engine.device) if processes is None else processes
    measure = True
    with Ahead(count) as ahead:
        for window, graphs in ahead.featurized(chain([first, second], parts)):
            yield engine.predict(window, graphs, measure=measure)
            measure = False


def _default_processes(device: torch.device) -> int:
    """On a CPU featurizers share the cores with the models, and wait when they are ahead."""
    cpus = usable_cpus()
    return min(max(cpus - 1, 1), 32) if device.type == "cuda" else min(max(cpus // 2, 1), 8)


def cluster_is_near() -> bool:
    """Whether a Ray cluster is joined, or named by RAY_ADDRESS; Ray is not imported to find out."""
    ray: Any = sys.modules.get("ray")
    return bool(os.environ.get("RAY_ADDRESS")) or (ray is not None and ray.is_initialized())


def predict_on_ray(engine: Engine, parts: Iterator[Window]) -> Iterator[Predicted]:
    """Predictions of each window, in order, by tasks of the cluster that is there, or of one on this machine.

    Tasks take a share of a GPU where the cluster has any, else a CPU. The models travel with the first task to each
    process: machines need no disk in common.
    """
    with cluster():
        import ray

        has_gpu = ray.cluster_resources().get("GPU", 0) > 0  # type: ignore[no-untyped-call]
        settings = engine.precision, engine.level, "cuda" if has_gpu else "cpu"
        reference = ray.put(engine.predictor_on_cpu())
        items = ((reference, *settings, window, place == 0) for place, window in enumerate(parts))
        yield from ordered_map(_task, items, ahead=AHEAD, gpus=GPU_SHARE if has_gpu else 0)


_engines: dict[tuple[object, ...], Engine] = {}
"""Of this worker of a cluster: one, for the models of the last task."""


def _task(item: tuple[Any, Any, int, str, Window, bool]) -> Predicted:
    """One window, in any process of the cluster."""
    import ray

    reference, precision, level, device, window, measure = item
    key = reference.hex(), precision, device
    if key not in _engines:
        _engines.clear()
        if device == "cpu":
            torch.set_num_threads(1)
        _engines[key] = Engine(ray.get(reference), device, precision)
    engine = _engines[key]
    engine.level = level
    return engine.predict(window, featurize(window.smiles), measure=measure)

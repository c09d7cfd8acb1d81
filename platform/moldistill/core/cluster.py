"""Ray: join the cluster that is there, or start one on this machine for as long as a block lasts.

Beside `config`, the only module of `core` with a heavy import: Ray, and only inside the functions.
"""

from __future__ import annotations

import logging
import os
import shutil
import tempfile
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from moldistill.core.errors import RunError

T = TypeVar("T")
R = TypeVar("R")

# Ray puts sockets below its temporary folder, and their paths are limited to 107 bytes.
_SHORT_FOLDER = "/tmp"

QUIET_WORKERS = {
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",  # else each report of a Train worker takes 2 s
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_DEDUP_LOGS": "1",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "OMP_NUM_THREADS": "1",
}


def usable_cpus() -> int:
    """Number of processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1)


def is_up() -> bool:
    """Whether this process is connected to a Ray cluster, or RAY_ADDRESS names one that it can join."""
    if os.environ.get("RAY_ADDRESS"):
        return True
    import ray

    return bool(ray.is_initialized())


@contextmanager
def cluster(cpus: int | None = None) -> Iterator[None]:
    """A block in which Ray is up.

    Joins the cluster that this process is connected to, or that RAY_ADDRESS names (so inside `ray job submit`); else
    starts one on 127.0.0.1 with `cpus` logical CPUs (default: the processors at hand, at least 2), and ends it.
    """
    import ray

    if ray.is_initialized():
        yield
        return
    for name, value in QUIET_WORKERS.items():
        os.environ.setdefault(name, value)
    if os.environ.get("RAY_ADDRESS"):
        ray.init(log_to_driver=False, logging_level=logging.ERROR)
        try:
            yield
        finally:
            ray.shutdown()
        return
    folder = tempfile.mkdtemp(prefix="ray", dir=_SHORT_FOLDER)
    try:
        _start_local(folder, cpus or max(usable_cpus(), 2))
        yield
    finally:
        ray.shutdown()
        shutil.rmtree(folder, ignore_errors=True)


def _start_local(folder: str, cpus: int) -> None:
    import ray

    try:
        ray.init(
            address="local",
            num_cpus=cpus,
            include_dashboard=True,  # without it, Train runs nested in Tune leak their placement groups
            dashboard_host="127.0.0.1",
            _node_ip_address="127.0.0.1",
            _temp_dir=folder,
            object_store_memory=max(200, 40 * cpus) * 2**20,
            log_to_driver=False,
            logging_level=logging.ERROR,
            configure_logging=True,
        )
    except Exception as error:
        raise RunError(
            "Ray did not start on this machine",
            got=error,
            remedy="run `moldistill doctor`; check free memory and disk in /tmp",
        ) from error


def ordered_map(
    function: Callable[[T], R],
    items: Iterable[T],
    *,
    ahead: int = 4,
    at_once: int | None = None,
    cpus: float = 1,
    gpus: float = 0,
) -> Iterator[R]:
    """Results of `function` over `items`, in order, computed by Ray tasks where Ray is up, else in this process.

    At most `at_once` items (default: `ahead` per CPU) are under way, so that memory stays bounded whatever the number
    of items. cpus, gpus: what one holds.
    """
    import ray

    if not ray.is_initialized():
        yield from map(function, items)
        return
    task: Any = ray.remote(num_cpus=cpus, num_gpus=gpus, max_retries=3)(function)
    resources: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
    limit = at_once or max(1, int(resources.get("CPU", 1))) * ahead
    pending: deque[Any] = deque()
    for item in items:
        pending.append(task.remote(item))
        if len(pending) >= limit:
            yield _result(pending.popleft())
    while pending:
        yield _result(pending.popleft())


def _result(reference: Any) -> Any:
    import ray

    try:
        return ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        # The task's own exception, not Ray's wrapper with the remote traceback in its text.
        raise error.cause if isinstance(error.cause, Exception) else error from None

"""What works on this machine: each check is one line, with the remedy where something is amiss."""

from __future__ import annotations

import importlib.metadata
import os
import shutil
import socket
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from moldistill.core.cluster import cluster, ordered_map, usable_cpus
from moldistill.core.errors import MoldistillError

PACKAGES = ("ray", "torch", "torch-geometric", "rdkit", "optuna", "numba", "numpy", "pydantic", "safetensors")
GIB = 2**30


@dataclass(frozen=True, slots=True)
class Finding:
    """One check: ok, warning (something is missing that one can do without), or failed."""

    name: str
    result: Literal["ok", "warning", "failed"]
    detail: str


def examine(store: Path | None = None, *, start_ray: bool = True) -> list[Finding]:
    """Run all checks; `store` is verified byte by byte if given."""
    checks: list[Callable[[], Finding]] = [_python, _packages, _label, _memory, _disk, _sample, _gpu, _port]
    if start_ray:
        checks.append(_ray)
    found = [_guarded(check) for check in checks]
    if store is not None:
        found.append(_guarded(lambda: _store(store)))
    return found


def _guarded(check: Callable[[], Finding]) -> Finding:
    try:
        return check()
    except MoldistillError as error:
        return Finding(check.__name__.strip("_<>"), "failed", str(error))
    except Exception as error:
        return Finding(check.__name__.strip("_<>"), "failed", f"{type(error).__name__}: {error}")


def _python() -> Finding:
    version = ".".join(map(str, sys.version_info[:3]))
    good = sys.version_info >= (3, 11)
    return Finding("python", "ok" if good else "failed", version if good else f"{version}; 3.11 or newer is needed")


def _packages() -> Finding:
    versions = []
    for name in PACKAGES:
        try:
            versions.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            return Finding("packages", "failed", f"{name} is not installed: pip install moldistill -c constraints.txt")
    return Finding("packages", "ok", ", ".join(versions))


def _label() -> Finding:
    try:
        return Finding("label", "ok", f"tblite {importlib.metadata.version('tblite')}")
    except importlib.metadata.PackageNotFoundError:
        return Finding(
            "label", "warning", "tblite is not installed: pip install 'moldistill[label]' for the verb label"
        )


def _memory() -> Finding:
    pages, size = os.sysconf("SC_AVPHYS_PAGES"), os.sysconf("SC_PAGE_SIZE")
    free = pages * size / GIB
    detail = f"{free:.1f} GiB free, {usable_cpus()} processors"
    return Finding("machine", "ok" if free > 2 else "warning", detail + ("" if free > 2 else "; 2 GiB are advised"))


def _disk() -> Finding:
    lines, worst = [], 1e9
    for folder in dict.fromkeys((Path.cwd(), Path(tempfile.gettempdir()))):
        free = shutil.disk_usage(folder).free / GIB
        worst = min(worst, free)
        with tempfile.NamedTemporaryFile(dir=folder):
            lines.append(f"{folder} {free:.1f} GiB free")
    return Finding("disk", "ok" if worst > 2 else "warning", ", ".join(lines))


def _sample() -> Finding:
    from moldistill.chem.sample import sample_root
    from moldistill.core.artifacts import verify_hashes

    damaged = verify_hashes(sample_root())
    return Finding("sample", "failed" if damaged else "ok", f"damaged: {damaged}" if damaged else "as it was made")


def _gpu() -> Finding:
    import torch

    if not torch.cuda.is_available():
        return Finding("gpu", "warning", "none that PyTorch can use; training runs on the processors")
    names = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return Finding("gpu", "ok", ", ".join(names))


def _port() -> Finding:
    with socket.socket() as listener:
        if listener.connect_ex(("127.0.0.1", 8265)) == 0:
            return Finding("port", "warning", "8265 is taken: Ray's dashboard will choose another port")
    return Finding("port", "ok", "8265 is free for Ray's dashboard")


def _double(value: int) -> int:
    return 2 * value


def _ray() -> Finding:
    start = time.monotonic()
    with cluster():
        import ray

        up = time.monotonic() - start
        right = list(ordered_map(_double, range(4))) == [0, 2, 4, 6]
        resources: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
    detail = f"up in {up:.1f} s with {resources.get('CPU', 0):g} CPUs, {resources.get('GPU', 0):g} GPUs"
    return Finding("ray", "ok" if right else "failed", detail)


def _store(path: Path) -> Finding:
    from moldistill.core.artifacts import verify_hashes
    from moldistill.data.store import Store

    store = Store.open(path)
    damaged = verify_hashes(path)
    if damaged:
        return Finding("store", "failed", f"{path}: damaged: {', '.join(damaged)}; prepare it again")
    return Finding("store", "ok", f"{path}: {len(store):,} rows, every checksum right")

"""Side-by-side timing: two pieces of work in turn, several rounds, and the ratio of each round.

A machine that others use gives no honest seconds, but two neighbours in time share its weather: what is kept is the
ratio within a round, its median and its spread. Needs the standard library and numpy alone.
"""

from __future__ import annotations

import gc
import json
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

PACKAGES = ("moldistill", "torch", "torch-geometric", "ogb", "rdkit", "numpy", "numba")


@dataclass(frozen=True, slots=True)
class Figure:
    """One result: a median with its spread over the rounds, or a single value (then low and high equal it).

    reading says what the value is ("ogb's time / ours"); detail holds what it was made from.
    """

    name: str
    data: str
    reading: str
    value: float
    low: float
    high: float
    detail: Mapping[str, Any] = field(default_factory=dict)


def single(name: str, data: str, reading: str, value: float, **detail: Any) -> Figure:
    """A figure without spread."""
    return Figure(name, data, reading, value, value, value, detail)


def _timed(work: Callable[[], object]) -> tuple[float, float]:
    """Wall seconds and CPU seconds (of all threads) of one call."""
    gc.collect()
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - wall, time.process_time() - cpu


def side_by_side(
    name: str,
    data: str,
    reading: str,
    above: Callable[[], object],
    below: Callable[[], object],
    *,
    rounds: int,
    **detail: Any,
) -> Figure:
    """Ratio of the wall time of `above` to that of `below`, round by round, after one call of each to warm up.

    Who goes first changes from round to round, so that a machine that grows slower favours neither. The ratio of CPU
    times, which counts helper threads, stands in the detail.
    """
    above()
    below()
    wall, cpu = np.zeros((2, rounds)), np.zeros((2, rounds))
    for turn in range(rounds):
        for place in (0, 1) if turn % 2 == 0 else (1, 0):
            wall[place, turn], cpu[place, turn] = _timed((above, below)[place])
    ratios = wall[0] / wall[1]
    measured = {
        "rounds": rounds,
        "ratios": ratios.tolist(),
        "cpu_ratio": float(np.median(cpu[0] / np.maximum(cpu[1], 1e-9))),
        "seconds_above": float(np.median(wall[0])),
        "seconds_below": float(np.median(wall[1])),
    }
    return Figure(
        name, data, reading, float(np.median(ratios)), float(ratios.min()), float(ratios.max()), measured | detail
    )


def table(figures: Sequence[Figure]) -> str:
    """The figures as lines of text, columns aligned."""
    cells = [("figure", "data", "value", "min to max", "CPU time", "is")]
    for item in figures:
        spread = f"{item.low:.3g} to {item.high:.3g}" if "rounds" in item.detail else ""
        cpu = f"{item.detail['cpu_ratio']:.3g}" if "cpu_ratio" in item.detail else ""
        cells.append((item.name, item.data, f"{item.value:.3g}", spread, cpu, item.reading))
    widths = [max(len(row[column]) for row in cells) for column in range(len(cells[0]))]
    return "\n".join("  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)) for row in cells)


def save(path: Path, figures: Sequence[Figure], **more: Any) -> None:
    """Write figures, machine and versions as JSON."""
    content = {"machine": machine(), "versions": versions(), **more, "figures": [asdict(item) for item in figures]}
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    partial.replace(path)


def machine() -> dict[str, Any]:
    """Model and number of the processors."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.is_file() else []
    models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return {"cpu": models[0] if models else "unknown", "cores": os.cpu_count()}


def versions() -> dict[str, str]:
    """Versions of Python and of those packages that are installed."""
    found = {"python": sys.version.split()[0]}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found

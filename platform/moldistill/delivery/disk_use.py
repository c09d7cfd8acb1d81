"""What of a study's disk goes where, and what of it can be freed."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from moldistill.search.disk import CHECKPOINTS
from moldistill.search.study import JOURNAL
from moldistill.training.checkpoint import WEIGHTS
from moldistill.trial.folder import PREDICTIONS

LEFTOVERS = "leftovers"
SCRATCH = ".tune"
"""Tune's files, which a search removes when it ends in order."""

_FOLDERS = {CHECKPOINTS: "checkpoints", PREDICTIONS: "predictions", "tensorboard": "TensorBoard", SCRATCH: LEFTOVERS}
_FILES = {WEIGHTS: "weights", JOURNAL: "storage"}


@dataclass(frozen=True, slots=True)
class DiskUse:
    """Files of one kind, and their bytes."""

    kind: str
    files: int
    bytes: int


def usage(folder: Path) -> tuple[DiskUse, ...]:
    """Disk use of a study or a run by kind, the largest first. Files that vanish meanwhile do not count."""
    found: dict[str, list[int]] = {}
    for path, size in walk(folder):
        found.setdefault(kind_of(path.relative_to(folder)), []).append(size)
    uses = (DiskUse(kind, len(sizes), sum(sizes)) for kind, sizes in found.items())
    return tuple(sorted(uses, key=lambda use: (-use.bytes, use.kind)))


def walk(folder: Path) -> Iterator[tuple[Path, int]]:
    """Every file below a folder with its size; links are not followed."""
    for place, _, names in os.walk(folder):
        for name in names:
            path = Path(place, name)
            try:
                yield path, path.lstat().st_size
            except FileNotFoundError:  # a run under way replaces its files
                continue


def bytes_of(folder: Path) -> int:
    """Bytes of all files below a folder."""
    return sum(size for _, size in walk(folder))


def kind_of(path: Path) -> str:
    """What a file of a study is, by its path in it."""
    if is_leftover(path):
        return LEFTOVERS
    for part in path.parts[:-1]:
        if part in _FOLDERS:
            return _FOLDERS[part]
    return _FILES.get(path.name, "storage" if path.suffix in (".db", ".sqlite", ".sqlite3") else "records")


def is_leftover(path: Path) -> bool:
    """Whether a file was to be renamed, and its writer died (`artifacts.atomic_path`)."""
    return path.name.startswith(".") and path.name.endswith(".partial")


def human(count: int) -> str:
    """Bytes for people, in decimal units."""
    for unit, size in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count} bytes"

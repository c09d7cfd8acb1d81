"""Run folders of trials that train nothing, as far as a search reads them: in memory, or on disk."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from moldistill.core.artifacts import write_manifest
from moldistill.trial.folder import METRICS, append_metrics, keep_metrics, read_metrics


class Folders(Protocol):
    """What trials keep of their own: a record per epoch, and the mark of the end."""

    def records(self, folder: Path) -> list[dict[str, Any]]:
        """Records of the epochs that a resumed trial does not train again."""

    def keep(self, folder: Path, epochs: int) -> None:
        """Drop what was recorded after `epochs`."""

    def append(self, folder: Path, record: dict[str, Any]) -> None:
        """Record an epoch."""

    def close(self, folder: Path, record: Mapping[str, Any]) -> None:
        """Mark the end, after an epoch with this record."""


@dataclass(slots=True)
class Memory:
    """Run folders as a mapping: quick, and lost on a conductor that looks for files. For studies that nobody kills."""

    kept: dict[Path, list[dict[str, Any]]] = field(default_factory=dict)

    def records(self, folder: Path) -> list[dict[str, Any]]:
        """As `Folders`."""
        return self.kept.get(folder, [])

    def keep(self, folder: Path, epochs: int) -> None:
        """As `Folders`."""
        self.kept[folder] = self.records(folder)[:epochs]

    def append(self, folder: Path, record: dict[str, Any]) -> None:
        """As `Folders`."""
        self.kept.setdefault(folder, []).append(record)

    def close(self, folder: Path, record: Mapping[str, Any]) -> None:
        """As `Folders`."""


class Disk:
    """Run folders as real trials leave them, as far as a search reads them: `metrics.jsonl` and the manifest."""

    def records(self, folder: Path) -> list[dict[str, Any]]:
        """As `Folders`."""
        return read_metrics(folder)

    def keep(self, folder: Path, epochs: int) -> None:
        """As `Folders`."""
        keep_metrics(folder, epochs)

    def append(self, folder: Path, record: dict[str, Any]) -> None:
        """As `Folders`."""
        folder.mkdir(parents=True, exist_ok=True)
        append_metrics(folder, record)

    def close(self, folder: Path, record: Mapping[str, Any]) -> None:
        """As `Folders`."""
        write_manifest(folder, "run", files=[METRICS], facts={"metrics": dict(record)})

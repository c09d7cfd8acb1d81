"""TensorBoard events of a run, where the package is installed."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

GROUPS = {"share": "gradient share", "loss": "loss", "valid": "error (eV)"}


class Board:
    """Writes scalars below `folder`/tensorboard; does nothing without a folder or without TensorBoard."""

    def __init__(self, folder: Path | None) -> None:
        self.writer: Any = None
        if folder is None:
            return
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            return
        self.writer = SummaryWriter(str(folder / "tensorboard"))

    def add(self, epoch: int, metrics: Mapping[str, float]) -> None:
        """The figures of an epoch, in groups by the first word of their names."""
        if self.writer is None:
            return
        for name, value in metrics.items():
            group = GROUPS.get(name.split("_")[0], "run")
            by_size = " by size" if group == GROUPS["share"] and name.count("_") > 1 else ""
            self.writer.add_scalar(f"{group}{by_size}/{name}", value, epoch)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.writer is not None:
            self.writer.close()

"""What of a study stays on disk: checkpoints of the best trials and of those that are not finished."""

from __future__ import annotations

import shutil
from pathlib import Path

from moldistill.search.ledger import Ledger
from moldistill.search.study import TrialRow, best_first

CHECKPOINTS = "checkpoint"


def kept(rows: tuple[TrialRow, ...], count: int) -> set[int]:
    """Numbers of the trials whose checkpoints stay: the best `count`."""
    return {row.number for row in best_first(rows)[:count]}


class Keeper:
    """Removes checkpoints of trials that ended and are not among the best `keep` (default: what the space says)."""

    def __init__(self, ledger: Ledger, keep: int | None = None) -> None:
        self.ledger, self.keep = ledger, ledger.space.options.keep if keep is None else keep
        self.looked_at: set[int] = set()

    def tidy(self) -> int:
        """Remove what need not stay; bytes freed. Each trial is looked at once."""
        rows = self.ledger.rows()
        stay, freed = kept(rows, self.keep), 0
        for row in rows:
            if row.number in stay or row.number in self.looked_at:
                continue
            self.looked_at.add(row.number)
            folder = self.ledger.out / row.folder / CHECKPOINTS
            if folder.is_dir():
                freed += size_of(folder)
                shutil.rmtree(folder, ignore_errors=True)
        return freed


def size_of(folder: Path) -> int:
    """Bytes of all files below a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())

"""A store as large as one likes: the columns of another, over and over."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moldistill.core.artifacts import write_manifest
from moldistill.data.columns import COLUMNS, ColumnSpec, ColumnWriter
from moldistill.data.store import Store


def tile_store(source: Store, rows: int, out: Path) -> Store:
    """Write a store of `rows` rows to `out`: those of `source` in their order, repeated, the last time cut off."""
    out.mkdir()
    whole, rest = divmod(rows, len(source))
    for spec in COLUMNS:
        values, cut = getattr(source, spec.name), _entries(source, spec, rest)
        with ColumnWriter(out, spec) as writer:
            if spec.per == "row + 1":
                writer.append(np.zeros(1, values.dtype))
                for turn in range(whole):
                    writer.append(values[1:] + turn * values[-1])
                writer.append(values[1 : rest + 1] + whole * values[-1])
            else:
                step = len(source) if spec.name == "row" else None  # rows are numbered on
                for turn in range(whole):
                    writer.append(_moved(values, step, turn))
                writer.append(_moved(values[:cut], step, whole))
    facts = {**source.manifest.facts, "rows": rows}
    write_manifest(out, "store", files=[spec.file for spec in COLUMNS], facts=facts)
    return Store.open(out)


def _moved(values: NDArray[Any], step: int | None, turn: int) -> NDArray[Any]:
    return values if step is None else values + step * turn


def _entries(source: Store, spec: ColumnSpec, rows: int) -> int:
    """How many entries of a column the first `rows` rows have."""
    if spec.per in ("row", "row + 1"):
        return rows
    per = "smiles" if spec.per == "byte" else spec.per
    return int(getattr(source, f"{per}_offsets")[rows])

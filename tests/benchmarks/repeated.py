"""A root as large as one likes: the rows of another, many times over. Also a script: SOURCE TIMES OUT."""

from __future__ import annotations

import csv
import gzip
import sys
from pathlib import Path

import numpy as np
import torch

from moldistill.chem.reader import SOURCE_SPLITS, read_splits
from moldistill.chem.sdf import read_sdf


def repeat_root(source: Path, times: int, out: Path) -> Path:
    """Write the root `out` with `times` times the rows of `source`, all of them real; returns it."""
    (out / "raw").mkdir(parents=True)
    with gzip.open(source / "raw" / "data.csv.gz", "rt", encoding="utf-8", newline="") as stream:
        header, *rows = list(csv.reader(stream))
    place = header.index("idx")
    with gzip.open(out / "raw" / "data.csv.gz", "wt", compresslevel=1, encoding="utf-8", newline="") as stream:
        table = csv.writer(stream, lineterminator="\n")
        table.writerow(header)
        for turn in range(times):
            for row in rows:
                row[place] = str(turn * len(rows) + int(row[place]) % len(rows))
            table.writerows(rows)
    split = np.tile(read_splits(source / "split_dict.pt", len(rows)), times)
    torch.save({name: np.flatnonzero(split == code) for code, name in enumerate(SOURCE_SPLITS)}, out / "split_dict.pt")
    # Archives of gzip may be joined.
    packed = gzip.compress(b"".join(record + b"$$$$\n" for record in read_sdf(_geometries(source))), 1)
    with (out / "pcqm4m-v2-train.sdf.gz").open("wb") as archive:
        for _ in range(times):
            archive.write(packed)
    return out


def _geometries(source: Path) -> Path:
    return next(path for path in sorted(source.glob("pcqm4m-v2-train.sdf*")))


if __name__ == "__main__":
    repeat_root(Path(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))

"""What the benchmarks run on: real data where MOLDISTILL_DATA points to it, else the embedded sample."""

from __future__ import annotations

import io
import os
from contextlib import redirect_stderr
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from ogb.utils.mol import smiles2graph  # type: ignore[import-untyped]
from torch_geometric.data import Data

from moldistill.chem.sample import sample_root
from moldistill.core.settings import PrepareSettings
from moldistill.data.prepare import prepare
from moldistill.data.store import Store

REAL = ("xtb_24k", "qm9_24k")


@dataclass
class Inputs:
    """Stores of the sources, each prepared once into `scratch`, with at most `limit` rows.

    preset: size of the models that steps are timed with, `small` or `tiny`.
    """

    scratch: Path
    limit: int
    preset: str
    rounds: int
    stores: dict[str, Store] = field(default_factory=dict)

    @property
    def names(self) -> list[str]:
        """Sources at hand, the one to prefer first."""
        return list(roots())

    def store(self, name: str) -> Store:
        """The store of a source."""
        return self._prepared(name, name, self.limit)

    def whole(self, name: str) -> Store:
        """The store of all rows of a source; of `limit` rows where the benchmarks only show that they run."""
        return self.store(name) if self.quick else self._prepared(f"{name}-whole", name, None)

    @property
    def quick(self) -> bool:
        """Whether the benchmarks only show that they run."""
        return self.preset == "tiny"

    def _prepared(self, key: str, name: str, limit: int | None) -> Store:
        if key not in self.stores:
            quietly_prepare(roots()[name], self.scratch / key, limit)
            self.stores[key] = Store.open(self.scratch / key)
        return self.stores[key]

    def smiles(self, name: str) -> list[str]:
        """SMILES of the rows that every featurizer takes."""
        store = self.store(name)
        return [store.smiles(int(row)) for row in fine_rows(store)]


def roots() -> dict[str, Path]:
    """Folders of the sources by name."""
    folder = Path(os.environ.get("MOLDISTILL_DATA", "/nowhere"))
    found = {name: folder / name for name in REAL if (folder / name / "raw").is_dir()}
    return found or {"sample": sample_root()}


def quietly_prepare(source: Path, out: Path, limit: int | None) -> None:
    """`prepare` in this process, its log unseen."""
    with redirect_stderr(io.StringIO()):
        prepare(source, out, PrepareSettings(limit=limit))


def fine_rows(store: Store) -> NDArray[np.int64]:
    """Rows that RDKit sanitizes: ogb's featurization fails on the others."""
    return np.flatnonzero(store.flag == 0)


def pyg_data(smiles: str, target: float = 0.0) -> Data:
    """One molecule as PyG keeps it, in the way of ogb's PygPCQM4Mv2Dataset."""
    graph: dict[str, Any] = smiles2graph(smiles)
    return Data(
        x=torch.from_numpy(graph["node_feat"]),
        edge_index=torch.from_numpy(graph["edge_index"]),
        edge_attr=torch.from_numpy(graph["edge_feat"]),
        y=torch.tensor([target]),
    )

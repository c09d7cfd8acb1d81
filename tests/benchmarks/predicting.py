"""`predict`: an ensemble on shared batches against one pass per member, its memory, and the time of the full tests."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from inputs import Inputs, fine_rows, pyg_data
from numpy.typing import NDArray
from step import GraphGPS
from timing import Figure, side_by_side, single
from torch import nn
from torch_geometric.data import Data
from torch_geometric.loader import DataLoader
from torch_geometric.utils import to_dense_adj, to_dense_batch

from moldistill.chem.featurize import Graphs, featurize
from moldistill.core.records import Molecules, TargetScale
from moldistill.core.settings import ModelSettings, RunSettings
from moldistill.data.store import Store
from moldistill.delivery.combination import Combination
from moldistill.delivery.engine import Engine
from moldistill.delivery.predictor import Member, Predictor
from moldistill.models.registry import build_model

MEMBERS = 4
WHOLE = ModelSettings(width=256, depth=6, heads=8, feedforward=2.0)
QUICK = ModelSettings(width=32, depth=2, heads=4, feedforward=2.0)
LEAST = ModelSettings(width=16, depth=1, heads=2)
MOLECULES = 512
BATCH = 256
TESTS = 147_037 + 147_432
"""Molecules of test-dev and test-challenge."""

BUDGET = 4 * 3600
"""Seconds that the leaderboard allows for them, on one GPU."""

ROWS = 1_000_000


def ensemble_inference(inputs: Inputs) -> list[Figure]:
    """Four members over molecules in memory, no SMILES read: shared batches against a pass for each of them."""
    name = inputs.names[0]
    shape = QUICK if inputs.quick else WHOLE
    store, rows = inputs.store(name), fine_rows(inputs.store(name))
    rows = np.random.default_rng(0).permutation(rows)[: 200 if inputs.quick else MOLECULES]
    graphs = featurize([store.smiles(int(row)) for row in rows])
    places = np.arange(len(rows))
    engines = {precision: Engine(_predictor(shape), "cpu", precision) for precision in ("fp32", "bf16")}  # type: ignore[arg-type]
    data = [_data(store, int(row)) for row in rows]
    members = [item.model for item in engines["fp32"].predictor.members]
    separate, peers = _separate(members, data), _peers(shape, data)
    apart = np.abs(separate() - engines["fp32"].values(graphs, places)).max()
    assert apart < 1e-4, f"the two ways predict differently: {apart}"
    figures = []
    for what, above in (("four fp32 passes of the members, PyG loader", separate), ("four GPSConv, fp32", peers)):
        for precision, engine in engines.items():
            reading = f"time of {what} / shared batches, {precision}"
            below = _values(engine, graphs, places)
            title = f"ensemble of {MEMBERS}: {what.split(',')[0]}, {precision}"
            kept = {"rounds": inputs.rounds, "width": shape.width, "molecules": len(rows)}
            figures.append(side_by_side(title, name, reading, above, below, **kept))
    return figures


def _values(engine: Engine, graphs: Graphs, places: NDArray[np.int64]) -> Callable[[], object]:
    return lambda: engine.values(graphs, places)


def _predictor(shape: ModelSettings) -> Predictor:
    """Untrained members, which take as long as trained ones; their predictions are far from equal."""
    members = []
    for seed in range(MEMBERS):
        torch.manual_seed(seed)
        model, settings = build_model("student", shape).eval(), RunSettings(model=shape)
        members.append(Member(Path(), str(seed), settings, model, TargetScale(5.0, 1.0, 5.0), {}))
    weights = (1 / MEMBERS,) * MEMBERS
    return Predictor(Path(), "ensemble", "", tuple(members), Combination(weights), 5.0, (1, 51), None)


def _data(store: Store, row: int) -> Data:
    """A molecule as PyG keeps it, with what our students read in addition."""
    data, molecule = pyg_data(store.smiles(row)), store.molecule(row)
    bonds = store.bonds[store.bond_offsets[row] : store.bond_offsets[row + 1]].astype(np.int64)
    ends = torch.from_numpy(bonds[:, :2])
    data.bond_index = torch.cat([ends, ends.flip(1)]).t().contiguous()
    data.bond_code = torch.from_numpy(bonds[:, 2]).repeat(2)
    data.paths = torch.from_numpy(molecule.shortest_paths).flatten()
    return data


def _separate(models: list[nn.Module], data: list[Data]) -> Callable[[], NDArray[np.float64]]:
    """Our members one after the other, each over PyG's loader, in the order of the rows, padded as Graphormer does."""

    def work() -> NDArray[np.float64]:
        found = []
        with torch.inference_mode():
            for model in models:
                parts = [model(_molecules(batch)).prediction + 5.0 for batch in DataLoader(data, BATCH)]
                found.append(torch.cat(parts).double().numpy())
        return np.stack(found)

    return work


def _molecules(batch: Any) -> Molecules:
    features, real = to_dense_batch(batch.x, batch.batch)
    codes = to_dense_adj(batch.bond_index, batch.batch, batch.bond_code, max_num_nodes=features.shape[1])
    paths, size = torch.full(codes.shape, 255, dtype=torch.uint8), real.sum(1)
    for place, (count, own) in enumerate(zip(size.tolist(), batch.paths.split(size.square().tolist()), strict=True)):
        paths[place, :count, :count] = own.view(count, count)
    return Molecules(torch.arange(len(size)), size, features.to(torch.uint8), paths, codes.to(torch.uint8))


def _peers(shape: ModelSettings, data: list[Data]) -> Callable[[], object]:
    """Four of PyG's GPSConv models of the same shape, each over PyG's loader."""
    models = [GraphGPS(RunSettings(role="student", model=shape)).eval() for _ in range(MEMBERS)]
    plain = [Data(x=item.x, edge_index=item.edge_index, edge_attr=item.edge_attr) for item in data]

    def work() -> None:
        with torch.inference_mode():
            for model in models:
                for batch in DataLoader(plain, BATCH):
                    model(batch)

    return work


def predict_memory(inputs: Inputs) -> list[Figure]:
    """Private memory of `predict` on few and on many SMILES, all processes together, each time in a fresh one."""
    counts = (500, 2000) if inputs.quick else (20_000, ROWS)
    figures = []
    for rows in counts:
        found = _predicted(inputs, rows, LEAST, "fp32")
        reading = f"MB at the peak of {rows:,} SMILES beyond the {found['before']:.0f} with models and imports"
        figures.append(single(f"memory of predict, {rows:,} rows", inputs.names[0], reading, found["beyond"], **found))
    return figures


def predict_time(inputs: Inputs) -> list[Figure]:
    """Hours for both tests of PCQM4Mv2 from raw SMILES on this machine, by a few thousand rows of a like set."""
    figures = []
    rows = 300 if inputs.quick else 16_384
    for precision in ("fp32", "bf16"):
        found = _predicted(inputs, rows, QUICK if inputs.quick else WHOLE, precision)
        seconds = found["seconds"] / found["rows"] * TESTS
        reading = (
            f"hours for {TESTS:,} molecules from raw SMILES with {MEMBERS} members of width {found['width']}, "
            f"{found['cores']} cores shared with other work (budget: 4 h on a GPU)"
        )
        title = f"extrapolated time of the tests, {precision}"
        kept = found | {"hours": seconds / 3600, "of_budget": seconds / BUDGET}
        figures.append(single(title, inputs.names[0], reading, seconds / 3600, **kept))
    return figures


def _predicted(inputs: Inputs, rows: int, shape: ModelSettings, precision: str) -> dict[str, Any]:
    """One `predict` by `predict_run.py` over repeated SMILES; what it says of itself."""
    source = inputs.scratch / f"{rows}.csv"
    if not source.is_file():
        smiles = inputs.smiles(inputs.names[0])
        with source.open("w", encoding="utf-8") as stream:
            stream.write("smiles\n")
            stream.writelines(f"{text}\n" for text in _repeated(smiles, rows))
    script = Path(__file__).with_name("predict_run.py")
    shaped = json.dumps({"width": shape.width, "depth": shape.depth, "heads": shape.heads})
    command = [sys.executable, str(script), str(source), str(inputs.scratch / "out.csv"), shaped, precision]
    threads = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
    environment = {name: value for name, value in os.environ.items() if name not in threads}
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    found: dict[str, Any] = json.loads(done.stdout)
    return found | {"width": shape.width}


def _repeated(smiles: list[str], rows: int) -> Iterator[str]:
    return (smiles[place % len(smiles)] for place in range(rows))

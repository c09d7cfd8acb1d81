"""Store rows as datasets of PyTorch and PyTorch Geometric: ogb's graphs, pickled by path, fed to real models."""

from __future__ import annotations

import itertools
import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ogb.graphproppred.mol_encoder import AtomEncoder, BondEncoder  # type: ignore[import-untyped]
from ogb.utils.mol import smiles2graph  # type: ignore[import-untyped]
from torch import Tensor, nn
from torch.utils.data import ConcatDataset, DataLoader, Subset
from torch_geometric.data import Data, Dataset
from torch_geometric.loader import DataLoader as PygLoader
from torch_geometric.nn import GINEConv, global_add_pool
from torch_geometric.nn.models import SchNet

from moldistill.chem.sample import sample_root
from moldistill.core.errors import InputError
from moldistill.core.records import Batch
from moldistill.core.settings import PrepareSettings
from moldistill.data.batches import collate, epoch_batches
from moldistill.data.prepare import prepare
from moldistill.data.store import Molecule, Store
from moldistill.data.views import BatchPlanSampler, TorchView

View = Callable[[Store, np.ndarray], Any]

VIEWS: dict[str, View] = {
    "torch": lambda store, rows: store.to_torch(rows),
    "pyg": lambda store, rows: store.to_pyg(rows, geometry=False),
}


@pytest.fixture(params=list(VIEWS))
def view(request: pytest.FixtureRequest) -> View:
    return VIEWS[request.param]


@pytest.fixture
def store(tiny_store: Path) -> Store:
    return Store.open(tiny_store)


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> Store:
    out = tmp_path_factory.mktemp("stores") / "sample"
    prepare(sample_root(), out, PrepareSettings())
    return Store.open(out)


@pytest.fixture
def rows(store: Store) -> np.ndarray:
    return store.usable(np.arange(len(store)))


def _row(item: Any) -> int:
    assert isinstance(item, Molecule | Data)
    return int(item.row)


# What both views promise.


def test_masks_and_impossible_batches_are_refused(tiny_store: Path) -> None:
    # In another process: in this one, shapes and types are checked before.
    code = "from moldistill.data.store import Store; s = Store.open({!r}); s.{}(s.has_positions)"
    for name in ("to_pyg", "to_torch"):
        command = [sys.executable, "-c", code.format(str(tiny_store), name)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert "InputError: rows are numbers of rows" in done.stderr
    for size in (0, -5):
        with pytest.raises(InputError, match="holds nothing"):
            BatchPlanSampler(np.array([3, 4]), batch_size=size)
    with pytest.raises(InputError, match="no such worker"):
        BatchPlanSampler(np.array([3, 4]), batch_size=2, rank=2, world_size=2)


def test_items_are_the_rows_in_their_order(view: View, store: Store, rows: np.ndarray) -> None:
    chosen = rows[[7, 3, 3, 60]]
    dataset = view(store, chosen)
    assert isinstance(dataset, torch.utils.data.Dataset)
    assert len(dataset) == 4
    assert [_row(dataset[place]) for place in range(4)] == chosen.tolist()
    assert _row(dataset[-1]) == chosen[-1]
    assert len(view(store, rows[:0])) == 0


def test_rows_without_a_graph_and_rows_that_are_not_there_are_refused(view: View, store: Store) -> None:
    with pytest.raises(InputError, match=r"1 of 83 rows have no graph(.|\n)*refused(.|\n)*store\.usable\(rows\)"):
        view(store, np.arange(len(store)))
    for wrong in (-1, len(store)):
        with pytest.raises(InputError, match=f"row {wrong} is not in"):
            view(store, np.array([0, wrong]))


def test_a_view_travels_as_a_path(view: View, store: Store, rows: np.ndarray) -> None:
    dataset = view(store, rows)
    sent = pickle.dumps(dataset)
    assert len(sent) < 3000 + 8 * len(rows)
    again = pickle.loads(sent)
    assert [_row(again[place]) for place in range(len(again))] == rows.tolist()


@pytest.mark.parametrize("context", ["fork", "spawn"])
def test_two_processes_load_what_one_does(view: View, store: Store, rows: np.ndarray, context: str) -> None:
    dataset = view(store, rows)
    if isinstance(dataset, Dataset):
        plain, shared = (
            PygLoader(dataset, batch_size=16, num_workers=count, multiprocessing_context=context if count else None)
            for count in (0, 2)
        )
        for one, other in zip(plain, shared, strict=True):
            assert all(torch.equal(one[key], other[key]) for key in ("x", "edge_index", "edge_attr", "batch", "row"))
            assert one.smiles == other.smiles
        return
    sampler = BatchPlanSampler(store.size(rows), 16)
    loader = DataLoader(
        dataset, batch_sampler=sampler, collate_fn=dataset.collate, num_workers=2, multiprocessing_context=context
    )
    for batch, places in zip(loader, sampler, strict=True):
        _check_same(batch, collate(store, rows[places]))


def test_a_store_that_changed_is_not_opened_again(store: Store, rows: np.ndarray, tmp_path: Path) -> None:
    path = shutil.copytree(store.path, tmp_path / "store")
    sent = pickle.dumps(Store.open(path).to_torch(rows))
    shutil.rmtree(path)
    (tmp_path / "other.csv").write_text("smiles\nC\nCC\n")
    prepare(tmp_path / "other.csv", path, PrepareSettings())
    with pytest.raises(InputError, match="has changed since it was opened"):
        pickle.loads(sent)


# PyTorch Geometric.


@pytest.mark.parametrize("name", ["tiny", "sample"])
def test_graphs_are_ogbs(name: str, store: Store, sample: Store) -> None:
    """Every row that ogb can read, edges in ogb's order and types included."""
    opened = store if name == "tiny" else sample
    rows = np.flatnonzero(opened.flag == 0)
    assert len(rows) > 80
    for data in opened.to_pyg(rows, geometry=False):
        theirs = smiles2graph(data.smiles)
        for ours, name_of_theirs in (
            (data.x, "node_feat"),
            (data.edge_index, "edge_index"),
            (data.edge_attr, "edge_feat"),
        ):
            expected = torch.from_numpy(theirs[name_of_theirs])
            assert ours.dtype == expected.dtype
            assert torch.equal(ours, expected), data.smiles
        assert data.num_nodes == theirs["num_nodes"]
        assert data.validate()


def test_the_other_attributes_are_the_stores(store: Store) -> None:
    for data in store.to_pyg(store.rows("train")):
        molecule = store.molecule(int(data.row))
        assert data.smiles == molecule.smiles
        assert torch.equal(data.y, torch.tensor([molecule.target], dtype=torch.float32))
        assert molecule.positions is not None
        assert torch.equal(data.pos, torch.from_numpy(molecule.positions.copy()))
    unknown = store.to_pyg(store.usable(store.rows("test-dev")))[0]
    assert unknown.y.isnan().all()
    assert "pos" not in unknown


def test_a_molecule_without_bonds(tmp_path: Path) -> None:
    (tmp_path / "one.csv").write_text("smiles\nC\n[Na+].[Cl-]\n")
    prepare(tmp_path / "one.csv", tmp_path / "store", PrepareSettings())
    store = Store.open(tmp_path / "store")
    methane, salt = store.to_pyg(np.arange(2))
    assert (methane.edge_index.shape, methane.edge_attr.shape) == ((2, 0), (0, 3))
    assert (salt.num_nodes, salt.num_edges) == (2, 0)
    assert next(iter(PygLoader([methane, salt], batch_size=2))).num_graphs == 2


def test_positions_are_there_for_all_rows_or_for_none(store: Store, rows: np.ndarray) -> None:
    with pytest.raises(InputError, match=r"25 of 82 rows without positions(.|\n)*has_positions\[rows\]"):
        store.to_pyg(rows)
    with pytest.raises(InputError, match="without positions"):
        store.to_pyg(store.rows("valid"), geometry=True)
    assert "pos" not in store.to_pyg(rows, geometry=False)[0]
    assert all("pos" in data for data in store.to_pyg(rows[store.has_positions[rows]]))
    assert not any("pos" in data for data in store.to_pyg(store.rows("valid")))


def _count_atoms(data: Data) -> Data:
    data.atoms = data.num_nodes
    return data


def test_selections_and_transforms_survive_pickling(store: Store, rows: np.ndarray) -> None:
    dataset = store.to_pyg(rows, geometry=False, transform=_count_atoms)
    some = dataset[torch.tensor([5, 2, 9])]
    for each in (some, pickle.loads(pickle.dumps(some))):
        assert [int(data.row) for data in each] == rows[[5, 2, 9]].tolist()
        assert each[0].atoms == each[0].num_nodes
    assert len(dataset) == len(rows)


class _Gine(nn.Module):
    """ogb's encoders, two GINE layers and a sum: the baseline of OGB-LSC in small."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.atoms = AtomEncoder(width)
        self.bonds = nn.ModuleList(BondEncoder(width) for _ in range(2))
        self.layers = nn.ModuleList(GINEConv(nn.Sequential(nn.Linear(width, width), nn.ReLU())) for _ in range(2))
        self.head = nn.Linear(width, 1)

    def forward(self, data: Data) -> Tensor:
        states = self.atoms(data.x)
        for bonds, layer in zip(self.bonds, self.layers, strict=True):
            states = layer(states, data.edge_index, bonds(data.edge_attr))
        predicted: Tensor = self.head(global_add_pool(states, data.batch))[:, 0]
        return predicted


def test_a_graph_network_learns_from_the_view(store: Store) -> None:
    torch.manual_seed(0)
    model = _Gine()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    loader = PygLoader(store.to_pyg(store.rows("train")), batch_size=16, shuffle=True)
    losses = []
    for _ in range(12):
        errors = []
        for data in loader:
            error = (model(data) - data.y).abs().mean()
            optimizer.zero_grad()
            error.backward()
            optimizer.step()
            errors.append(float(error.detach()))
        losses.append(sum(errors) / len(errors))
    assert losses[-1] < 0.5 * losses[0]


def _all_pairs(positions: Tensor, batch: Tensor) -> tuple[Tensor, Tensor]:
    """Every pair of atoms of a molecule and its distance: SchNet's own needs torch_cluster, which is not installed."""
    same = (batch[:, None] == batch) & ~torch.eye(len(batch), dtype=torch.bool)
    edges = same.nonzero().t()
    return edges, (positions[edges[0]] - positions[edges[1]]).norm(dim=-1)


def test_schnet_reads_the_geometry(store: Store) -> None:
    torch.manual_seed(0)
    model = SchNet(
        hidden_channels=16, num_filters=16, num_interactions=2, num_gaussians=10, interaction_graph=_all_pairs
    )
    rows = store.rows("train")
    data = next(iter(PygLoader(store.to_pyg(rows, geometry=True), batch_size=len(rows))))
    elements = data.x[:, 0] + 1  # OGB counts elements from 0
    predicted = model(elements, data.pos, data.batch)
    assert predicted.shape == (len(rows), 1)
    rotation = torch.linalg.qr(torch.randn(3, 3))[0]
    torch.testing.assert_close(model(elements, data.pos @ rotation, data.batch), predicted, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(model(elements, data.pos * 1.1, data.batch), predicted, rtol=1e-4)
    predicted.sum().backward()


# PyTorch.


def _check_same(one: Batch, other: Batch) -> None:
    """Equal in content, padding and types."""
    for left, right in ((one, other), (one.molecules, other.molecules)):
        for name in left.__slots__:
            mine, theirs = getattr(left, name), getattr(right, name)
            if isinstance(mine, Tensor):
                torch.testing.assert_close(mine, theirs, rtol=0, atol=0, equal_nan=True)


def test_items_are_molecules_and_batches_are_padded(store: Store, rows: np.ndarray) -> None:
    dataset = store.to_torch(rows)
    assert isinstance(dataset, TorchView)
    molecule = dataset[4]
    assert isinstance(molecule, Molecule)
    assert np.array_equal(molecule.atom_features, store.molecule(int(rows[4])).atom_features)
    wanted = collate(store, rows[[4, 9, 2]])
    _check_same(dataset.__getitems__([4, 9, 2]), wanted)
    _check_same(dataset.collate([dataset[4], dataset[9], dataset[2]]), wanted)


@pytest.mark.parametrize("workers", [0, 2])
def test_pytorchs_own_shuffling(store: Store, rows: np.ndarray, workers: int) -> None:
    dataset = store.to_torch(rows)
    loader = DataLoader(dataset, batch_size=16, shuffle=True, collate_fn=dataset.collate, num_workers=workers)
    seen = [row for batch in loader for row in batch.molecules.rows.tolist()]
    assert sorted(seen) == rows.tolist()
    assert seen != rows.tolist()


@pytest.mark.parametrize("wrap", ["subset", "concat"])
def test_wrapped_datasets(store: Store, rows: np.ndarray, wrap: str) -> None:
    dataset = store.to_torch(rows)
    wrapped = (
        Subset(dataset, [8, 1, 5])
        if wrap == "subset"
        else ConcatDataset([Subset(dataset, [8, 1]), Subset(dataset, [5])])
    )
    (batch,) = DataLoader(wrapped, batch_size=3, collate_fn=dataset.collate)
    _check_same(batch, collate(store, rows[[8, 1, 5]]))


def test_without_our_collate_a_loader_fails_aloud(store: Store, rows: np.ndarray) -> None:
    with pytest.raises(TypeError):
        next(iter(DataLoader(store.to_torch(rows), batch_size=3)))


@pytest.mark.parametrize("cut", [{"batch_size": 16}, {"atoms_per_batch": 256}])
def test_the_sampler_gives_the_batches_of_the_loop(store: Store, rows: np.ndarray, cut: dict[str, int]) -> None:
    """The same molecules in the same order, for each epoch, worker and place to start from."""
    sampler = BatchPlanSampler(store.size(rows), seed=3, **cut)
    dataset = store.to_torch(rows)
    loader = DataLoader(dataset, batch_sampler=sampler, collate_fn=dataset.collate)
    for epoch, start in ((0, 0), (1, 0), (1, 3), (1, 99)):
        sampler.set_epoch(epoch, start)
        ours = list(epoch_batches(store, rows, seed=3, epoch=epoch, start=start, shuffle=True, **cut))
        assert len(loader) == len(sampler) == len(ours)
        for one, other in zip(loader, ours, strict=True):
            _check_same(one, other)
    shares = [list(BatchPlanSampler(store.size(rows), seed=3, rank=rank, world_size=2, **cut)) for rank in (0, 1)]
    sampler.set_epoch(0)
    for whole, *parts in zip(sampler, *shares, strict=True):
        assert sorted(itertools.chain(*parts)) == sorted(whole)


def test_the_sampler_serves_pytorch_geometric_too(store: Store, rows: np.ndarray) -> None:
    loader = PygLoader(store.to_pyg(rows, geometry=False), batch_sampler=BatchPlanSampler(store.size(rows), 16))
    assert sorted(int(row) for data in loader for row in data.row) == rows.tolist()


def test_a_batch_can_be_pinned_by_a_loader(store: Store, rows: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    """PyTorch's DataLoader pins what has a `pin_memory`."""
    from torch.utils.data._utils.pin_memory import pin_memory

    asked: list[Tensor] = []
    monkeypatch.setattr(Tensor, "pin_memory", lambda tensor: asked.append(tensor) or tensor)
    assert isinstance(pin_memory(collate(store, rows[:3])), Batch)
    assert len(asked) == 8

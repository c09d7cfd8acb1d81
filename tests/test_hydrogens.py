"""Hydrogens in batches, and as atoms of a teacher: each where the store has it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from batches import training_batch
from moldistill.core.config import load_run
from moldistill.core.records import Batch, Hydrogens, Molecules, TargetScale
from moldistill.core.settings import ModelSettings
from moldistill.core.vocabulary import bond_code
from moldistill.data import batches as module
from moldistill.data.batches import collate, epoch_batches
from moldistill.data.store import Store
from moldistill.data.targets import TargetStore
from moldistill.models.hydrogens import with_hydrogens
from moldistill.models.registry import build_model
from moldistill.pipeline import cache_teacher
from moldistill.training import cache, evaluate
from moldistill.training.asking import Teacher
from moldistill.training.noise import denoising_loss, noised
from moldistill.trial.run import run_trial
from moldistill.trial.spec import TrialSpec


@pytest.fixture
def store(tiny_store: Path) -> Store:
    return Store.open(tiny_store)


def known(store: Store, row: int) -> tuple[np.ndarray, np.ndarray]:
    """Parents and positions that a batch may hold of a row, read from the columns one by one."""
    begin, end = store.hydrogen_offsets[row : row + 2]
    parent, positions = store.hydrogen_parent[begin:end], store.hydrogen_positions[begin:end]
    size = store.atom_offsets[row + 1] - store.atom_offsets[row]
    if not (store.has_positions[row] and np.isfinite(positions).all() and (parent < size).all()):
        return parent[:0], positions[:0]
    return parent, positions


def check_hydrogens(store: Store, batch: Batch) -> None:
    """Those of a plain loop over the rows, and zeros."""
    assert batch.hydrogens is not None
    rows = batch.molecules.rows.tolist()
    found = [known(store, row) for row in rows]
    width = max((len(parent) for parent, _ in found), default=0)
    assert batch.hydrogens.count.tolist() == [len(parent) for parent, _ in found]
    assert batch.hydrogens.parent.shape == (len(rows), width)
    assert batch.hydrogens.positions.shape == (len(rows), width, 3)
    for place, (parent, positions) in enumerate(found):
        missing = width - len(parent)
        assert batch.hydrogens.parent[place].tolist() == parent.tolist() + [0] * missing
        assert np.array_equal(batch.hydrogens.positions[place].numpy(), np.pad(positions, ((0, missing), (0, 0))))
        assert int(batch.hydrogens.real[place].sum()) == len(parent)


@pytest.mark.parametrize("batch_size", [1, 5, 16, 100])
def test_hydrogens_are_those_of_the_store(store: Store, batch_size: int) -> None:
    """All batches are held until the end: none is overwritten by a later one."""
    rows = store.usable(np.arange(len(store)))
    held = list(epoch_batches(store, rows, batch_size=batch_size, shuffle=True, hydrogens=True))
    plain = list(epoch_batches(store, rows, batch_size=batch_size, shuffle=True))
    for batch, without in zip(held, plain, strict=True):
        check_hydrogens(store, batch)
        assert torch.equal(batch.positions, without.positions)
        assert torch.equal(batch.molecules.rows, without.molecules.rows)
        assert without.hydrogens is None
    counts = [int(batch.hydrogens.count.sum()) for batch in held if batch.hydrogens is not None]
    assert sum(counts) == len(store.hydrogen_parent) > 200


def test_workers_share_hydrogens_as_they_share_molecules(store: Store) -> None:
    rows = store.usable(np.arange(len(store)))
    for rank in range(3):
        for batch in epoch_batches(store, rows, batch_size=7, rank=rank, world_size=3, start=2, hydrogens=True):
            check_hydrogens(store, batch)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_molecule_whose_hydrogens_have_no_place_has_none(store: Store, value: float) -> None:
    rows = store.rows("train")[:6]
    positions, parent = store.hydrogen_positions.copy(), store.hydrogen_parent.copy()
    positions[store.hydrogen_offsets[rows[1]] + 1, 2] = value
    parent[store.hydrogen_offsets[rows[3]]] = 200
    has_positions = store.has_positions.copy()
    has_positions[rows[4]] = False
    damaged = replace(store, hydrogen_positions=positions, hydrogen_parent=parent, has_positions=has_positions)
    batch = collate(damaged, rows, hydrogens=True)
    check_hydrogens(damaged, batch)
    assert batch.hydrogens is not None
    assert (batch.hydrogens.count > 0).tolist() == [True, False, True, False, False, True]


def test_batches_without_hydrogens_have_a_place_for_none(store: Store) -> None:
    rows = store.rows("valid")[:3]
    assert not store.has_positions[rows].any()
    for chosen in (rows, rows[:0]):
        batch = collate(store, chosen, hydrogens=True)
        check_hydrogens(store, batch)
        assert batch.hydrogens is not None
        assert batch.hydrogens.parent.shape == (len(chosen), 0)


def test_memory_of_hydrogens_is_used_again_once_nothing_holds_it(store: Store) -> None:
    module._spare_hydrogens.clear()
    rows = store.rows("train")
    held = collate(store, rows[:9], hydrogens=True).hydrogens
    assert held is not None
    place, kept = held.positions.data_ptr(), held.parent[2:]
    before = kept.clone()
    del held
    other = collate(store, rows[9:18], hydrogens=True)
    assert other.hydrogens is not None and other.hydrogens.positions.data_ptr() != place
    assert torch.equal(kept, before)
    del kept
    assert len(module._spare_hydrogens) == 1
    again = collate(store, rows[:9], hydrogens=True)
    assert again.hydrogens is not None and again.hydrogens.positions.data_ptr() == place
    check_hydrogens(store, again)
    check_hydrogens(store, other)


def test_hydrogens_move_and_are_pinned_with_their_batch(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    pinned = []
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: pinned.append(tensor.shape) or tensor.clone())
    rows = store.rows("train")[:4]
    batch = next(iter(epoch_batches(store, rows, batch_size=4, hydrogens=True, pin=True)))
    check_hydrogens(store, batch)
    assert batch.hydrogens is not None and batch.hydrogens.positions.shape in pinned
    moved = batch.to(torch.device("meta")).hydrogens
    assert moved is not None and moved.count.device.type == moved.parent.device.type == "meta"


@pytest.mark.parametrize("wanted", [True, False])
def test_evaluation_and_the_teachers_pass_ask_for_what_the_model_reads(
    wanted: bool, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = build_model("teacher", ModelSettings(width=16, depth=1, heads=2, hydrogens=wanted))
    seen = []

    def watched(*given: object) -> object:
        seen.append(len(given) == 3)
        return forward(*given)

    forward = model.forward
    monkeypatch.setattr(model, "forward", watched)
    scale = TargetScale(0.0, 1.0, 0.0)
    rows = store.rows("train")[:5]
    evaluate.predict(model, store, rows, role="teacher", scale=scale)
    assert seen == [wanted]
    cache.cache_targets(Teacher(model, scale, "test"), store, tmp_path / "targets")
    assert len(seen) == 3
    assert set(seen) == {wanted}


def methane_and_more() -> tuple[Molecules, torch.Tensor, Hydrogens]:
    """C-O with three hydrogens on C and one on O, then a lone atom in the same batch, then two fragments."""
    codes = torch.zeros(3, 3, 3, dtype=torch.uint8)
    codes[0, 0, 1] = codes[0, 1, 0] = 7
    paths = torch.full((3, 3, 3), 255, dtype=torch.uint8)
    paths[:, range(3), range(3)] = 0
    paths[0, 0, 1] = paths[0, 1, 0] = 1
    paths[:, 2] = paths[:, :, 2] = 9  # rubbish in padding
    molecules = Molecules(
        torch.arange(3), torch.tensor([2, 1, 2]), torch.ones(3, 3, 9, dtype=torch.uint8) * 5, paths, codes
    )
    positions = torch.arange(27.0).reshape(3, 3, 3)
    positions[:, 2] = torch.nan
    parent = torch.tensor([[0, 0, 0, 1], [200, 200, 200, 200], [1, 200, 200, 200]], dtype=torch.uint8)
    places = -torch.arange(36.0).reshape(3, 4, 3) - 1
    places[1], places[2, 1:] = torch.nan, torch.nan
    return molecules, positions, Hydrogens(torch.tensor([4, 0, 1]), parent, places)


def test_hydrogens_follow_on_their_heavy_atoms() -> None:
    molecules, positions, hydrogens = methane_and_more()
    known = with_hydrogens(molecules, positions, hydrogens)
    joined, single = known.molecules, bond_code(0, 0, 0)
    assert joined.size.tolist() == [6, 1, 3]
    assert known.hydrogen.int().tolist() == [[0, 0, 1, 1, 1, 1, 0], [0] * 7, [0, 0, 1, 0, 0, 0, 0]]
    assert joined.shortest_paths[0, :6, :6].tolist() == [
        [0, 1, 1, 1, 1, 2],
        [1, 0, 2, 2, 2, 1],
        [1, 2, 0, 2, 2, 3],
        [1, 2, 2, 0, 2, 3],
        [1, 2, 2, 2, 0, 3],
        [2, 1, 3, 3, 3, 0],
    ]
    assert joined.bond_codes[0, 0].tolist() == [0, 7, single, single, single, 0, 0]
    assert joined.bond_codes[0, 5].tolist() == [0, single, 0, 0, 0, 0, 0]
    assert torch.equal(joined.bond_codes, joined.bond_codes.mT)
    assert joined.shortest_paths[2, :3, :3].tolist() == [[0, 255, 255], [255, 0, 1], [255, 1, 0]]
    assert torch.equal(known.positions[0, 2:6], hydrogens.positions[0])
    assert torch.equal(known.positions[:, 0], positions[:, 0])
    assert torch.equal(known.positions[2, 2], hydrogens.positions[2, 0])
    assert joined.atom_features[0, :, 0].tolist() == [5, 5, 0, 0, 0, 0, 0]
    real = joined.real
    assert not known.positions[~real].any()
    assert not joined.atom_features[~real].any()
    pairs = real[:, :, None] & real[:, None]
    assert (joined.shortest_paths[~pairs] == 255).all()
    assert not joined.bond_codes[~pairs].any()


def test_the_longest_paths_stay_paths() -> None:
    """254 bonds and a hydrogen at each end: far, but not unreachable."""
    molecules, positions, hydrogens = methane_and_more()
    paths = molecules.shortest_paths.clone()
    paths[0, 0, 1] = paths[0, 1, 0] = 254
    known = with_hydrogens(replace(molecules, shortest_paths=paths), positions, hydrogens)
    assert known.molecules.shortest_paths[0, 2, 5] == 254


def test_no_hydrogens_change_nothing(tiny_store: Path) -> None:
    batch = training_batch(tiny_store)
    torch.manual_seed(0)
    model = build_model("teacher", ModelSettings(width=32, depth=2, heads=4, hydrogens=True)).eval()
    count = len(batch.target)
    none = Hydrogens(torch.zeros(count, dtype=torch.int64), torch.zeros(count, 0).byte(), torch.zeros(count, 0, 3))
    with torch.no_grad():
        without, empty = model(batch.molecules, batch.positions), model(batch.molecules, batch.positions, none)
    torch.testing.assert_close(without.prediction, empty.prediction)


def test_a_teacher_reads_where_hydrogens_are(store: Store) -> None:
    batch = collate(store, store.rows("train")[:8], hydrogens=True)
    torch.manual_seed(0)
    model = build_model("teacher", ModelSettings(width=32, depth=2, heads=4, hydrogens=True)).eval()
    assert batch.hydrogens is not None
    moved = replace(batch.hydrogens, positions=batch.hydrogens.positions + 0.3)
    with torch.no_grad():
        here, there = (
            model(batch.molecules, batch.positions, hydrogens).prediction for hydrogens in (batch.hydrogens, moved)
        )
    assert float((here - there).abs()[batch.hydrogens.count > 0].min()) > 1e-5


@pytest.mark.parametrize("hydrogens", [False, True])
def test_noise_on_positions_is_learned(hydrogens: bool, store: Store) -> None:
    """Four molecules with the same noise each time; the mean of it no model can know that ignores translations."""
    batch = collate(store, store.rows("train")[:4], hydrogens=hydrogens)
    shifted, noise = noised(batch, std=0.1, seed=0, epoch=0)
    torch.manual_seed(0)
    options = {"hydrogens": hydrogens, "angles": True, "denoising": 1.0}
    model = build_model("teacher", ModelSettings(width=32, depth=2, heads=4, kernels=8, **options))
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    losses = []
    for _ in range(150):
        optimizer.zero_grad()
        output = evaluate.forward(model, "teacher", shifted)
        assert output.noise is not None
        loss = denoising_loss(output.noise, noise, batch, 0.1) / 4
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[0] < 2
    assert losses[-1] < 0.3


def test_a_teacher_with_everything_is_trained_and_said_again(tiny_store: Path, tmp_path: Path) -> None:
    """A run with all options, its evaluation and its pass over the training molecules."""
    model = {"width": 16, "depth": 1, "heads": 2, "kernels": 8, "walks": 3}
    options = {"hydrogens": True, "angles": True, "denoising": 0.5}
    training = {"epochs": 2, "position_noise": 0.05}
    settings = load_run({"role": "teacher", "model": model | options, "training": training})
    run_trial(TrialSpec(settings, tiny_store, tmp_path / "run"))
    cache_teacher(tmp_path / "run", tiny_store, tmp_path / "targets")
    targets = TargetStore.open(tmp_path / "targets")
    assert np.isfinite(targets.gather(targets.rows[:5], 30).atom_states.numpy()).all()

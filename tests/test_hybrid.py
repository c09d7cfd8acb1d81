"""The hybrid student: messages pass over bonds and nowhere else, beside attention."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from batches import padded, training_batch
from moldistill.core.records import Molecules
from moldistill.core.settings import ModelSettings
from moldistill.models.biases import look_up, pair_codes
from moldistill.models.hybrid import BondGates, HybridBlock, HybridStudent

SETTINGS = ModelSettings(name="hybrid", width=16, depth=2, heads=2, max_path=3)


@pytest.fixture(scope="module")
def molecules(tiny_store: Path) -> Molecules:
    return padded(training_batch(tiny_store, 4), 2).molecules


def gates_of(gates: BondGates, molecules: Molecules) -> Tensor:
    return look_up(gates.table(), pair_codes(molecules, gates.max_path))


def test_gates_open_to_bonds_and_to_the_atom_itself(molecules: Molecules) -> None:
    gates = BondGates(1, 2, SETTINGS.max_path)
    found = gates_of(gates, molecules)
    itself = torch.eye(molecules.bond_codes.shape[1], dtype=torch.bool)
    real = molecules.real[:, :, None] & molecules.real[:, None]
    expected = ((molecules.bond_codes > 0) | itself) & real
    open_pairs = found[:, :, 1:, 1:] * real
    torch.testing.assert_close(open_pairs, expected.float().expand_as(open_pairs))
    assert not found[:, :, 0].any()  # to the graph token: closed at first
    assert not found[:, :, :, 0].any()


def test_each_bond_has_a_gate_of_its_own(molecules: Molecules) -> None:
    gates = BondGates(1, 2, SETTINGS.max_path)
    nn.init.normal_(gates.bond)
    found = gates_of(gates, molecules)
    for molecule, i, j in molecules.bond_codes.nonzero().tolist():
        code = int(molecules.bond_codes[molecule, i, j])
        torch.testing.assert_close(found[:, molecule, i + 1, j + 1], gates.bond[:, code - 1])


def test_messages_come_from_neighbours_alone(molecules: Molecules) -> None:
    """With attention silenced, an atom depends on itself and on what it is bonded to, and on all of that."""
    torch.manual_seed(0)
    block = HybridBlock(SETTINGS).double()
    with torch.no_grad():
        block.merge.weight[:, : SETTINGS.width] = 0.0
    gates = gates_of(BondGates(1, 2, SETTINGS.max_path).double(), molecules)
    atoms = gates.shape[-1]
    tokens = torch.randn(len(molecules.size), atoms, SETTINGS.width, dtype=torch.float64).requires_grad_()
    after = block(tokens, torch.zeros_like(gates), gates)
    heard = torch.stack(
        [torch.autograd.grad(after[:, i].square().sum(), tokens, retain_graph=True)[0] for i in range(atoms)], 1
    )
    depends = heard.abs().sum(-1) > 0
    real = molecules.real[:, :, None] & molecules.real[:, None]
    bonded = (molecules.bond_codes > 0) | torch.eye(atoms - 1, dtype=torch.bool)
    assert torch.equal(depends[:, 1:, 1:] & real, bonded & real)
    assert not (depends[:, 1:, 1:] & ~molecules.real[:, None])[molecules.real].any()


def test_the_graph_token_may_learn_to_hear_atoms(molecules: Molecules) -> None:
    model = HybridStudent(SETTINGS)
    model(molecules).prediction.square().sum().backward()
    slope = model.gates.token.grad
    assert slope is not None
    assert slope.abs().max() > 0


def test_all_of_its_settings_are_read(molecules: Molecules) -> None:
    model = HybridStudent(replace(SETTINGS, depth=3, walks=4, feedforward=1.5, dropout=0.5))
    assert len(model.body.blocks) == 3
    assert model.embedding.walks is not None
    assert [layer.out_features for layer in model.modules() if isinstance(layer, nn.Linear)].count(24) == 3
    assert not torch.equal(model(molecules).prediction, model(molecules).prediction)
    model.eval()
    assert torch.equal(model(molecules).prediction, model(molecules).prediction)

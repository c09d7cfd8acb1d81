"""One contract for all students and teachers of the registry: symmetries, padding, gradients, sizes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from batches import padded, permuted, rotation, training_batch
from moldistill.core.errors import InputError
from moldistill.core.records import Batch, ModelOutput, Molecules
from moldistill.core.settings import ModelSettings, Role
from moldistill.models.registry import build_model, model_names
from moldistill.training.evaluate import forward

SETTINGS = ModelSettings(width=32, depth=3, heads=4, kernels=8)
MODELS = [(role, name) for role in ("student", "teacher") for name in model_names(role)]
TEACHERS = [name for role, name in MODELS if role == "teacher"]
STUDENTS = [name for role, name in MODELS if role == "student"]


def build(role: Role, name: str) -> nn.Module:
    """A model in double precision, so that invariance is told from rounding."""
    torch.manual_seed(0)
    return build_model(role, replace(SETTINGS, name=name)).double().eval()


def doubled(batch: Batch) -> Batch:
    return replace(batch, positions=batch.positions.double())


@pytest.fixture(scope="module")
def batch(tiny_store: Path) -> Batch:
    return doubled(training_batch(tiny_store))


def assert_same(one: ModelOutput, other: ModelOutput, tolerance: float = 1e-5) -> None:
    torch.testing.assert_close(one.prediction, other.prediction, rtol=tolerance, atol=tolerance)
    for mine, yours in zip(one.graph_states, other.graph_states, strict=True):
        torch.testing.assert_close(mine, yours, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize(("role", "name"), MODELS)
def test_states_have_the_promised_shapes(role: Role, name: str, batch: Batch) -> None:
    output = forward(build(role, name), role, batch)
    count, atoms = batch.positions.shape[:2]
    assert output.prediction.shape == (count,)
    assert [state.shape for state in output.graph_states] == [(count, 32)] * 3
    assert [state.shape for state in output.atom_states] == [(count, atoms, 32)] * 3


@pytest.mark.parametrize(("role", "name"), MODELS)
def test_the_order_of_atoms_does_not_matter(role: Role, name: str, batch: Batch) -> None:
    model = build(role, name)
    smallest = int(batch.molecules.size.min())
    order = torch.arange(batch.positions.shape[1])
    order[:smallest] = torch.randperm(smallest, generator=torch.Generator().manual_seed(1))
    before, after = forward(model, role, batch), forward(model, role, permuted(batch, order))
    assert_same(before, after, 1e-9)
    for mine, yours in zip(before.atom_states, after.atom_states, strict=True):
        torch.testing.assert_close(mine[:, order[:smallest]], yours[:, :smallest], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", TEACHERS)
def test_teacher_ignores_rotation_translation_and_reflection(name: str, batch: Batch) -> None:
    model = build("teacher", name)
    for turn in (rotation(3), -torch.eye(3, dtype=torch.float64)):
        moved = batch.positions @ turn.T + torch.tensor([5.0, -3.0, 40.0], dtype=torch.float64)
        assert_same(forward(model, "teacher", batch), forward(model, "teacher", replace(batch, positions=moved)), 1e-7)


@pytest.mark.parametrize("name", TEACHERS)
def test_teacher_does_read_the_geometry(name: str, batch: Batch) -> None:
    model = build("teacher", name)
    stretched = replace(batch, positions=batch.positions * 1.3)
    change = forward(model, "teacher", batch).prediction - forward(model, "teacher", stretched).prediction
    assert float(change.detach().abs().min()) > 1e-6


@pytest.mark.parametrize("name", STUDENTS)
def test_student_sees_no_positions(name: str, batch: Batch) -> None:
    model = build("student", name)
    strange = replace(batch, positions=torch.full_like(batch.positions, float("nan")))
    assert torch.equal(forward(model, "student", batch).prediction, forward(model, "student", strange).prediction)
    assert "positions" not in Molecules.__slots__


@pytest.mark.parametrize(("role", "name"), MODELS)
def test_padding_never_leaks(role: Role, name: str, batch: Batch) -> None:
    model = build(role, name)
    before, after = forward(model, role, batch), forward(model, role, padded(batch, 5))
    assert_same(before, after, 1e-9)
    real = batch.molecules.real
    for mine, yours in zip(before.atom_states, after.atom_states, strict=True):
        torch.testing.assert_close(mine[real], yours[:, : real.shape[1]][real], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(("role", "name"), MODELS)
def test_a_molecule_does_not_see_its_neighbours_in_the_batch(role: Role, name: str, batch: Batch) -> None:
    model = build(role, name)
    together = forward(model, role, batch).prediction
    part = Molecules(*(getattr(batch.molecules, field)[3:4] for field in Molecules.__slots__))
    alone = forward(model, role, replace(batch, molecules=part, positions=batch.positions[3:4])).prediction
    torch.testing.assert_close(together[3:4], alone, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(("role", "name"), MODELS)
def test_gradients_reach_every_parameter(role: Role, name: str, batch: Batch) -> None:
    model = build(role, name)
    forward(model, role, batch).prediction.square().sum().backward()
    dead = [key for key, parameter in model.named_parameters() if parameter.grad is None]
    assert not dead
    assert all(torch.isfinite(parameter.grad).all() for parameter in model.parameters() if parameter.grad is not None)


@pytest.mark.parametrize(("role", "name"), MODELS)
@pytest.mark.parametrize("atoms", [1, 255])
def test_smallest_and_largest_molecules(role: Role, name: str, atoms: int) -> None:
    """One atom, and 255 atoms in a row, all of them at one place (where a square root has no derivative)."""
    places = torch.arange(atoms)
    paths = (places[:, None] - places).abs().clamp(max=254).to(torch.uint8)[None]
    molecules = Molecules(
        rows=torch.zeros(1, dtype=torch.int64),
        size=torch.tensor([atoms]),
        atom_features=torch.ones(1, atoms, 9, dtype=torch.uint8),
        shortest_paths=paths,
        bond_codes=(paths == 1).to(torch.uint8),
    )
    model = build(role, name)
    positions = torch.zeros(1, atoms, 3, dtype=torch.float64)
    output = model(molecules, positions) if role == "teacher" else model(molecules)
    output.prediction.sum().backward()
    assert torch.isfinite(output.prediction).all()
    assert all(torch.isfinite(parameter.grad).all() for parameter in model.parameters() if parameter.grad is not None)


def test_unknown_model_names_the_nearest() -> None:
    with pytest.raises(InputError, match="transformer"):
        build_model("student", ModelSettings(name="tranformer"))


def test_attention_bias_reaches_across_fragments(batch: Batch) -> None:
    """Atoms of different fragments get the bias of their own, not that of a long path."""
    from moldistill.models.biases import GraphBias

    bias = GraphBias(2, max_path=4)
    molecules = Molecules(
        torch.zeros(1, dtype=torch.int64),
        torch.tensor([2]),
        torch.ones(1, 2, 9, dtype=torch.uint8),
        torch.tensor([[[0, 255], [255, 0]]], dtype=torch.uint8),
        torch.zeros(1, 2, 2, dtype=torch.uint8),
    )
    expected = bias.path.weight[5] + bias.bond.weight[0]
    torch.testing.assert_close(bias(molecules)[0, 1, 2], expected)

"""One contract for all students and teachers of the registry, with options: symmetries, padding, gradients, sizes.

Most of it is `models.contract`, on made-up molecules; here it is run, shown to find faults, and repeated on real ones.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from batches import padded, permuted, rotation
from moldistill.core.errors import InputError
from moldistill.core.records import Batch, Hydrogens, ModelOutput, Molecules
from moldistill.core.settings import ModelSettings, Role
from moldistill.data.batches import collate
from moldistill.data.store import Store
from moldistill.models.contract import PROMISES, broken_promises, check_model
from moldistill.models.embeddings import AtomEmbedding
from moldistill.models.geometry import AngleFeatures, Displacements, NoiseHead
from moldistill.models.made_up import made_up_batch
from moldistill.models.registry import build_model, model_names
from moldistill.models.student import TransformerStudent
from moldistill.models.teacher import TransformerTeacher
from moldistill.models.walks import return_probabilities
from moldistill.training.evaluate import forward

SETTINGS = ModelSettings(width=32, depth=3, heads=4, kernels=8)
Variant = tuple[Role, str, dict[str, Any]]
OPTIONS: dict[tuple[Role, str], list[dict[str, Any]]] = {
    ("student", "transformer"): [{"walks": 4}],
    ("teacher", "transformer"): [
        {"walks": 4},
        {"hydrogens": True},
        {"angles": True},
        {"denoising": 1.0},
        {"walks": 3, "hydrogens": True, "angles": True, "denoising": 1.0, "dropout": 0.1},
    ],
}
"""What is tried beside the defaults; of other teachers, hydrogens and denoising."""


def _variants() -> list[Variant]:
    found: list[Variant] = []
    for role in ("student", "teacher"):
        for name in model_names(role):
            other = [{"hydrogens": True, "denoising": 1.0}] if role == "teacher" else []
            found += [(role, name, options) for options in ({}, *OPTIONS.get((role, name), other))]
    return found


def _named(variant: Variant) -> str:
    role, name, options = variant
    return "-".join([role, name, *options])


VARIANTS = _variants()
TEACHERS = [variant for variant in VARIANTS if variant[0] == "teacher"]
STUDENTS = [variant for variant in VARIANTS if variant[0] == "student"]
every = pytest.mark.parametrize("variant", VARIANTS, ids=_named)


def build(variant: Variant) -> nn.Module:
    """A model in double precision, so that invariance is told from rounding."""
    role, name, options = variant
    torch.manual_seed(0)
    return build_model(role, replace(SETTINGS, name=name, **options)).double().eval()


def run(model: nn.Module, variant: Variant, batch: Batch) -> ModelOutput:
    """As the training loop does: with hydrogens only where the model reads them."""
    return forward(model, variant[0], batch if getattr(model, "hydrogens", False) else replace(batch, hydrogens=None))


@pytest.fixture(scope="module")
def batch(tiny_store: Path) -> Batch:
    opened = Store.open(tiny_store)
    known = collate(opened, opened.rows("train")[:12], hydrogens=True)
    assert known.hydrogens is not None
    hydrogens = replace(known.hydrogens, positions=known.hydrogens.positions.double())
    return replace(known, positions=known.positions.double(), hydrogens=hydrogens)


def assert_same(one: ModelOutput, other: ModelOutput, tolerance: float = 1e-5) -> None:
    torch.testing.assert_close(one.prediction, other.prediction, rtol=tolerance, atol=tolerance)
    for mine, yours in zip(one.graph_states, other.graph_states, strict=True):
        torch.testing.assert_close(mine, yours, rtol=tolerance, atol=tolerance)


@every
def test_every_promise_is_kept(variant: Variant) -> None:
    role, name, options = variant
    assert check_model(role, replace(SETTINGS, name=name, **options)) == []


@every
def test_states_have_the_promised_shapes(variant: Variant, batch: Batch) -> None:
    output = run(build(variant), variant, batch)
    count, atoms = batch.positions.shape[:2]
    assert output.prediction.shape == (count,)
    assert [state.shape for state in output.graph_states] == [(count, 32)] * 3
    assert [state.shape for state in output.atom_states] == [(count, atoms, 32)] * 3
    assert (output.noise is not None) == (variant[2].get("denoising", 0) > 0)


@every
def test_the_order_of_atoms_does_not_matter(variant: Variant, batch: Batch) -> None:
    model = build(variant)
    smallest = int(batch.molecules.size.min())
    order = torch.arange(batch.positions.shape[1])
    order[:smallest] = torch.randperm(smallest, generator=torch.Generator().manual_seed(1))
    assert batch.hydrogens is not None
    parents = order.argsort()[batch.hydrogens.parent.long()].to(torch.uint8)
    other = replace(permuted(batch, order), hydrogens=replace(batch.hydrogens, parent=parents))
    before, after = run(model, variant, batch), run(model, variant, other)
    assert_same(before, after, 1e-9)
    for mine, yours in zip(before.atom_states, after.atom_states, strict=True):
        torch.testing.assert_close(mine[:, order[:smallest]], yours[:, :smallest], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("variant", TEACHERS, ids=_named)
@pytest.mark.parametrize("mirrored", [False, True])
def test_teacher_ignores_rotation_translation_and_reflection(variant: Variant, mirrored: bool, batch: Batch) -> None:
    """And the noise turns with the molecule: ε(x Rᵀ + t) = ε(x) Rᵀ."""
    model = build(variant)
    turn = -rotation(3) if mirrored else rotation(3)
    shift = torch.tensor([5.0, -3.0, 40.0], dtype=torch.float64)
    assert batch.hydrogens is not None
    hydrogens = replace(batch.hydrogens, positions=batch.hydrogens.positions @ turn.T + shift)
    moved = replace(batch, positions=batch.positions @ turn.T + shift, hydrogens=hydrogens)
    before, after = run(model, variant, batch), run(model, variant, moved)
    assert_same(before, after, 1e-7)
    if before.noise is not None:
        assert after.noise is not None
        assert float(before.noise.detach()[batch.molecules.real].norm(dim=1).min()) > 1e-6
        torch.testing.assert_close(after.noise, before.noise @ turn.T, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("variant", STUDENTS, ids=_named)
def test_student_sees_no_positions(variant: Variant, batch: Batch) -> None:
    model = build(variant)
    strange = replace(batch, positions=torch.full_like(batch.positions, float("nan")))
    assert torch.equal(run(model, variant, batch).prediction, run(model, variant, strange).prediction)
    assert "positions" not in Molecules.__slots__


@every
@pytest.mark.parametrize("fill", [7.0, float("nan")])
def test_padding_never_leaks(variant: Variant, fill: float, batch: Batch) -> None:
    model = build(variant)
    wide = padded(batch, 5)
    wide = replace(wide, positions=torch.where(wide.molecules.real[..., None], wide.positions, fill).requires_grad_())
    before, after = run(model, variant, batch), run(model, variant, wide)
    assert_same(before, after, 1e-9)
    real = batch.molecules.real
    for mine, yours in zip(before.atom_states, after.atom_states, strict=True):
        torch.testing.assert_close(mine[real], yours[:, : real.shape[1]][real], rtol=1e-9, atol=1e-9)
    loss = after.prediction.sum() if after.noise is None else after.prediction.sum() + after.noise.square().sum()
    loss.backward()
    assert all(parameter.grad is None or torch.isfinite(parameter.grad).all() for parameter in model.parameters())
    if variant[0] == "teacher":
        assert wide.positions.grad is not None
        assert torch.isfinite(wide.positions.grad).all()
        assert not wide.positions.grad[~wide.molecules.real].any()


@every
@pytest.mark.parametrize("atoms", [1, 255])
def test_smallest_and_largest_molecules(variant: Variant, atoms: int) -> None:
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
    model = build(variant)
    positions = torch.zeros(1, atoms, 3, dtype=torch.float64, requires_grad=True)
    one = Hydrogens(torch.tensor([1]), torch.zeros(1, 1, dtype=torch.uint8), torch.zeros(1, 1, 3, dtype=torch.float64))
    known = Batch(molecules, torch.zeros(1), positions, torch.ones(1, dtype=torch.bool), hydrogens=one)
    output = run(model, variant, known)
    loss = output.prediction.sum() if output.noise is None else output.prediction.sum() + output.noise.sum()
    loss.backward()
    assert torch.isfinite(loss)
    assert positions.grad is None or torch.isfinite(positions.grad).all()
    assert all(torch.isfinite(parameter.grad).all() for parameter in model.parameters() if parameter.grad is not None)


@every
def test_weights_on_disk_are_all_that_a_model_knows(variant: Variant, batch: Batch, tmp_path: Path) -> None:
    model = build(variant)
    save_file(model.state_dict(), tmp_path / "weights.safetensors")
    role, name, options = variant
    torch.manual_seed(1)
    other = build_model(role, replace(SETTINGS, name=name, **options)).double().eval()
    other.load_state_dict(load_file(tmp_path / "weights.safetensors"))
    one, two = run(model, variant, batch), run(other, variant, batch)
    assert torch.equal(one.prediction, two.prediction)
    assert all(map(torch.equal, one.atom_states, two.atom_states))
    assert one.noise is None or (two.noise is not None and torch.equal(one.noise, two.noise))


@pytest.mark.parametrize("options", [{}, {"hydrogens": True, "angles": True, "denoising": 1.0, "walks": 4}])
def test_sixteen_bits_are_near(options: dict[str, Any], batch: Batch) -> None:
    variant: Variant = ("teacher", "transformer", options)
    model = build(variant).float()
    assert batch.hydrogens is not None
    hydrogens = replace(batch.hydrogens, positions=batch.hydrogens.positions.float())
    single = replace(batch, positions=batch.positions.float(), hydrogens=hydrogens)
    exact = run(model, variant, single)
    with torch.autocast("cpu", torch.bfloat16):
        rough = run(model, variant, single)
    values = [(exact.prediction, rough.prediction), (exact.atom_states[-1], rough.atom_states[-1])]
    if exact.noise is not None and rough.noise is not None:
        values.append((exact.noise, rough.noise))
    for mine, yours in values:
        assert float((mine - yours).detach().norm() / mine.detach().norm()) < 0.05


class _Broken(nn.Module):
    """A sound model, and what is done to its output."""

    def __init__(self, role: Role, spoil: Callable[..., ModelOutput], **options: Any) -> None:
        super().__init__()
        settings = replace(SETTINGS, **options)
        self.inner = TransformerStudent(settings) if role == "student" else TransformerTeacher(settings)
        self.hydrogens = settings.hydrogens
        self.spoil = spoil
        self.unused = nn.Parameter(torch.zeros(1)) if options.get("dropout") else None
        self.secret = torch.rand(1)

    def forward(self, molecules: Molecules, *geometry: Any) -> ModelOutput:
        return self.spoil(self, self.inner(molecules, *geometry), molecules, *geometry)


def _plus(output: ModelOutput, change: Tensor) -> ModelOutput:
    return replace(output, prediction=output.prediction + change)


def _of_positions(output: ModelOutput, molecules: Molecules, value: Tensor) -> ModelOutput:
    """`value` [batch, atoms], summed over the atoms that exist."""
    return _plus(output, torch.where(molecules.real, value, 0.0).sum(1))


def _no_single(model: _Broken, output: ModelOutput, molecules: Molecules, *geometry: Any) -> ModelOutput:
    if molecules.bond_codes.shape[1] == 1 and len(molecules.rows) == 1:
        raise ValueError("no atoms to pair")
    return output


def _needs_molecules(model: _Broken, output: ModelOutput, molecules: Molecules, *geometry: Any) -> ModelOutput:
    return _plus(output, 0.0 * output.graph_states[0].max())


def _roots(model: _Broken, output: ModelOutput, molecules: Molecules, positions: Tensor) -> ModelOutput:
    known = torch.where(molecules.real[..., None], positions, 0.0)
    distance = (known[:, :, None] - known[:, None]).square().sum(-1).sqrt() * model.inner.surroundings.bias.sum()
    return _plus(output, (distance + 1e-9 / distance.clamp(min=1e-9).log().abs()).sum((1, 2)) / distance.detach().sum())


FAULTS: list[tuple[str, Role, Callable[..., ModelOutput], dict[str, Any]]] = [
    ("have the shapes", "student", lambda m, o, g: replace(o, graph_states=o.graph_states[:2]), {}),
    ("same batch gives the same", "student", lambda m, o, g: _plus(o, torch.rand(1)), {}),
    (
        "order of atoms",
        "student",
        lambda m, o, g: _of_positions(o, g, o.atom_states[-1][..., 0] * torch.arange(g.real.shape[1])),
        {},
    ),
    ("padding leaks", "student", lambda m, o, g: _plus(o, o.atom_states[-1].mean((1, 2))), {}),
    ("padding leaks", "teacher", lambda m, o, g, p: _plus(o, (p * g.real[..., None]).sum((1, 2))), {}),
    ("does not see its neighbours", "student", lambda m, o, g: _plus(o, o.prediction.mean()), {}),
    ("gradients reach every parameter", "student", lambda m, o, g: o, {"dropout": 0.1}),
    ("one atom is read", "student", _no_single, {}),
    ("no molecules is read", "student", _needs_molecules, {}),
    ("atoms at one place", "teacher", _roots, {}),
    ("state_dict is all", "student", lambda m, o, g: _plus(o, m.secret), {}),
    ("rotation or translation", "teacher", lambda m, o, g, p: _of_positions(o, g, p[..., 0]), {}),
    (
        "rotation or translation",
        "teacher",
        lambda m, o, g, p: replace(o, noise=o.noise * torch.tensor([1.0, 2.0, 1.0])),
        {"denoising": 1.0},
    ),
    (
        "reflection",
        "teacher",
        lambda m, o, g, p: _plus(o, torch.linalg.det(p[:, 1:4] - p[:, :1]) if p.shape[1] > 3 else p.new_zeros(len(p))),
        {},
    ),
    ("reads the geometry", "teacher", lambda m, o, g, p: m.inner(g, torch.zeros_like(p)), {}),
    ("gives noise just when", "teacher", lambda m, o, g, p: replace(o, noise=torch.zeros_like(p)), {}),
    ("gives noise just when", "teacher", lambda m, o, g, p, h: replace(o, noise=None), {"hydrogens": True}),
]


@pytest.mark.parametrize(("words", "role", "spoil", "options"), FAULTS)
def test_the_contract_finds_faults(
    words: str, role: Role, spoil: Callable[..., ModelOutput], options: dict[str, Any]
) -> None:
    settings = replace(SETTINGS, **options)
    if options.get("hydrogens"):
        settings = replace(settings, denoising=1.0)
    broken = broken_promises(lambda: _Broken(role, spoil, **options), role, settings)
    assert any(words in promise for promise in broken), broken


def test_each_promise_is_broken_by_some_fault() -> None:
    assert all(any(words in promise for words, *_ in FAULTS) for promise in PROMISES)


def test_what_cannot_be_built_is_said() -> None:
    [reason] = check_model("student", replace(SETTINGS, name="tranformer"))
    assert "InputError: model.name: no student of that name" in reason


def test_the_contract_needs_neither_ray_nor_rdkit_nor_pydantic() -> None:
    code = """
import sys
for name in ("ray", "rdkit", "pydantic", "optuna", "rich", "beartype", "jaxtyping", "typer", "yaml", "safetensors"):
    sys.modules[name] = None
from moldistill.core.settings import ModelSettings
from moldistill.models.contract import check_model
assert check_model("student", ModelSettings(width=16, depth=2, heads=2)) == []
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_unknown_model_names_the_nearest() -> None:
    with pytest.raises(InputError, match="transformer"):
        build_model("student", ModelSettings(name="tranformer"))


def test_attention_bias_reaches_across_fragments() -> None:
    """Atoms of different fragments get the bias of their own, not that of a long path."""
    from moldistill.models.biases import GraphBiases

    biases = GraphBiases(depth=1, heads=2, max_path=4)
    molecules = Molecules(
        torch.zeros(1, dtype=torch.int64),
        torch.tensor([2]),
        torch.ones(1, 2, 9, dtype=torch.uint8),
        torch.tensor([[[0, 255], [255, 0]]], dtype=torch.uint8),
        torch.zeros(1, 2, 2, dtype=torch.uint8),
    )
    expected = biases.path[:, 5] + biases.bond[:, 0]
    torch.testing.assert_close(biases(molecules)[0, :, 0, 1, 2], expected)


def test_angles_are_sums_over_neighbours() -> None:
    """Against a loop over atoms and their bonds, with Legendre polynomials of the angle itself."""
    torch.manual_seed(0)
    batch = made_up_batch(torch.float64, [7, 4])
    module = AngleFeatures(kernels=5, channels=2).double()
    pairs = torch.randn(2, 7, 7, 5, dtype=torch.float64)
    real = batch.molecules.real
    bonded = (batch.molecules.bond_codes > 0) & real[:, :, None] & real[:, None]
    apart = Displacements.between(batch.positions)
    found = module.sums(pairs, apart.direction, bonded).detach()
    weights = module.radial(pairs).detach()
    for b, size in enumerate(batch.molecules.size.tolist()):
        x = batch.positions[b].numpy()
        for i in range(size):
            for j in set(range(size)) - {i}:
                expected = np.zeros((2, 2))
                for k in range(size):
                    if bonded[b, i, k]:
                        one, other = x[j] - x[i], x[k] - x[i]
                        cosine = one @ other / np.linalg.norm(one) / np.linalg.norm(other)
                        angle = np.arccos(np.clip(cosine, -1, 1))
                        polynomials = np.array([np.cos(angle), (3 * np.cos(angle) ** 2 - 1) / 2])
                        expected += polynomials[:, None] * weights[b, i, k].numpy()
                np.testing.assert_allclose(found[b, i, j].reshape(2, 2), expected, rtol=1e-3, atol=1e-3)


def test_angles_tell_apart_what_distances_of_a_pair_do_not() -> None:
    """The features of a pair that stays where it is change when a neighbour turns about an atom."""
    torch.manual_seed(0)
    model = build(("teacher", "transformer", {"angles": True}))
    batch = made_up_batch(torch.float64, [3])
    codes = torch.zeros(1, 3, 3, dtype=torch.uint8)
    codes[0, 0, 1:] = codes[0, 1:, 0] = 1
    molecules = replace(batch.molecules, bond_codes=codes)
    first = torch.tensor([[[0.0, 0, 0], [1.5, 0, 0], [0, 1.5, 0]]], dtype=torch.float64)
    second = torch.tensor([[[0.0, 0, 0], [1.5, 0, 0], [-1.5, 0, 0]]], dtype=torch.float64)
    one, other = (model.pair_features(molecules, Displacements.between(x))[0, 0, 1].detach() for x in (first, second))
    assert float((one - other).abs().max()) > 1e-3
    model.angles = None
    one, other = (model.pair_features(molecules, Displacements.between(x))[0, 0, 1].detach() for x in (first, second))
    assert torch.equal(one, other)


@pytest.mark.parametrize("apart", [0.0, 1e-9, 1e-5, 1e-2])
def test_directions_fade_where_atoms_meet(apart: float) -> None:
    positions = torch.zeros(1, 2, 3, dtype=torch.float64)
    positions[0, 1, 0] = apart
    positions.requires_grad_()
    known = Displacements.between(positions)
    known.direction[0, 0, 1].sum().backward()
    assert float(known.direction.detach().norm(dim=-1).max()) < 1
    assert positions.grad is not None and float(positions.grad.abs().max()) < 200


def test_noise_is_a_sum_of_vectors_to_other_atoms() -> None:
    """Of two atoms: along their axis; of one atom: none."""
    torch.manual_seed(0)
    head = NoiseHead(16, 2, 5).double()
    positions = torch.tensor([[[0.0, 0, 0], [0, 0, 2]], [[1.0, 1, 1], [0, 0, 0]]], dtype=torch.float64)
    states, pairs = torch.randn(2, 2, 16, dtype=torch.float64), torch.randn(2, 2, 2, 5, dtype=torch.float64)
    real = torch.tensor([[True, True], [True, False]])
    noise = head(states, real, pairs, Displacements.between(positions)).detach()
    assert not noise[0, :, :2].any() and noise[0, :, 2].all()
    assert not noise[1].any()


def _graph(edges: list[tuple[int, int]], atoms: int, padding: int = 0) -> Molecules:
    """Carbon atoms and single bonds; rubbish bonds within padding."""
    width = atoms + padding
    codes = torch.zeros(1, width, width, dtype=torch.uint8)
    for one, other in edges:
        codes[0, one, other] = codes[0, other, one] = 1
    codes[:, atoms:, atoms:] = 9
    features = torch.ones(1, width, 9, dtype=torch.uint8)
    paths = torch.where(codes > 0, 1, 255).to(torch.uint8)
    return Molecules(torch.zeros(1, dtype=torch.int64), torch.tensor([atoms]), features, paths, codes)


@pytest.mark.parametrize("steps", [1, 2, 3, 4, 7, 16])
def test_random_walks_are_powers_of_the_transition_matrix(steps: int) -> None:
    """A ring with a tail, and an atom without bonds, beside padding that is full of bonds."""
    edges = [(0, 1), (1, 2), (2, 0), (2, 3), (3, 4)]
    found = return_probabilities(_graph(edges, 6, padding=3), steps, torch.float64)
    adjacency = np.zeros((6, 6))
    for one, other in edges:
        adjacency[one, other] = adjacency[other, one] = 1
    walk = adjacency / np.maximum(adjacency.sum(1, keepdims=True), 1)
    expected = np.stack([np.diag(np.linalg.matrix_power(walk, k)) for k in range(1, steps + 1)], 1)
    np.testing.assert_allclose(found[0, :6], expected, atol=1e-12)
    assert not found[0, 5:].any()


RING = [(0, 1), (1, 2), (2, 3), (3, 4), (4, 5), (5, 0)]
DECALIN = [*RING, (0, 6), (6, 7), (7, 8), (8, 9), (9, 5)]
BICYCLOPENTYL = [(0, 1), (1, 2), (2, 3), (3, 4), (4, 0), (5, 6), (6, 7), (7, 8), (8, 9), (9, 5), (0, 5)]


def test_random_walks_tell_apart_what_colour_refinement_cannot() -> None:
    """Decalin and bicyclopentyl: each atom sees the same neighbourhoods to any depth, but five-rings close sooner."""

    def refined(edges: list[tuple[int, int]]) -> list[int]:
        colours = [0] * 10
        for _ in range(10):
            near = [sorted(colours[b] for a, b in [*edges, *((b, a) for a, b in edges)] if a == i) for i in range(10)]
            colours = [hash((colour, *around)) for colour, around in zip(colours, near, strict=True)]
        return sorted(colours)

    assert refined(DECALIN) == refined(BICYCLOPENTYL)

    def told_apart(walks: int) -> float:
        torch.manual_seed(0)
        embedding = AtomEmbedding(16, walks=walks)
        one, other = (embedding(_graph(edges, 10))[0].sum(0).detach() for edges in (DECALIN, BICYCLOPENTYL))
        return float((one - other).abs().max())

    assert told_apart(0) < 1e-5
    assert told_apart(4) < 1e-5
    assert told_apart(5) > 1e-3


def test_random_walks_keep_their_precision_under_autocast() -> None:
    torch.manual_seed(0)
    walks = AtomEmbedding(16, walks=8).walks
    assert walks is not None
    molecules = made_up_batch(torch.float32).molecules
    with torch.autocast("cpu", torch.bfloat16):
        rough = walks(molecules)
    assert torch.equal(rough, walks(molecules))
    rough.sum().backward()
    assert walks.weight.grad is not None

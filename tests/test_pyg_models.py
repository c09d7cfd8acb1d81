"""Models on PyTorch Geometric beyond the common contract: flat graphs, GINE by hand, hydrogens, noise."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

pytest.importorskip("torch_geometric")

from batches import padded, rotation, training_batch
from moldistill.core.errors import InputError
from moldistill.core.records import Batch, Hydrogens, ModelOutput, Molecules
from moldistill.core.settings import ModelSettings, Role
from moldistill.data.store import Store
from moldistill.data.views import to_pyg
from moldistill.models.pyg_graphs import Bonds, FlatAtoms, Pairs
from moldistill.models.pyg_teachers import CUTOFF
from moldistill.models.registry import build_model
from moldistill.training.checkpoint import load_weights, save_weights
from moldistill.training.evaluate import forward

SETTINGS = ModelSettings(width=32, depth=3, heads=4, kernels=8)
TEACHERS = ["schnet", "visnet"]
STUDENTS = ["gine", "gps"]
MODELS: list[tuple[Role, str]] = [*(("student", name) for name in STUDENTS), *(("teacher", name) for name in TEACHERS)]
EXACT = {"rtol": 1e-9, "atol": 1e-9}


def build(role: Role, name: str, **changes: object) -> nn.Module:
    """A model in double precision."""
    torch.manual_seed(0)
    return build_model(role, replace(SETTINGS, name=name, **changes)).double().eval()


def states(output: ModelOutput) -> list[Tensor]:
    return [output.prediction, *output.graph_states, *output.atom_states]


def with_hydrogens(batch: Batch) -> Batch:
    """Two hydrogens on the first molecule, none on the second, and so on, about 1 Å from their atoms."""
    generator = torch.Generator().manual_seed(2)
    count = torch.tensor([2, 0, 3, 1] * len(batch.target))[: len(batch.target)]
    parent = (torch.rand(len(count), 3, generator=generator) * batch.molecules.size[:, None]).to(torch.uint8)
    away = nn.functional.normalize(torch.randn(len(count), 3, 3, generator=generator, dtype=torch.float64), dim=2)
    places = batch.positions.gather(1, parent.long()[:, :, None].expand(-1, -1, 3)) + away
    real = torch.arange(3) < count[:, None]
    hydrogens = Hydrogens(count, parent.masked_fill(~real, 0), places.masked_fill(~real[:, :, None], 0.0))
    return replace(batch, hydrogens=hydrogens)


def moved(batch: Batch, turn: Tensor, shift: Tensor) -> Batch:
    hydrogens = batch.hydrogens
    if hydrogens is not None:
        hydrogens = replace(hydrogens, positions=hydrogens.positions @ turn.T + shift)
    return replace(batch, positions=batch.positions @ turn.T + shift, hydrogens=hydrogens)


@pytest.fixture(scope="module")
def batch(tiny_store: Path) -> Batch:
    known = training_batch(tiny_store, 8)
    return replace(known, positions=known.positions.double())


def rubbish(batch: Batch) -> Batch:
    """Three more places whose features, bonds (with real atoms, too) and positions are nonsense."""
    wide = padded(batch, 3)
    molecules, real = wide.molecules, wide.molecules.real
    pairs = real[:, :, None] & real[:, None]
    return replace(
        wide,
        molecules=replace(
            molecules,
            atom_features=molecules.atom_features.masked_fill(~real[:, :, None], 255),
            bond_codes=molecules.bond_codes.masked_fill(~pairs, 255),
        ),
        positions=wide.positions.masked_fill(~real[:, :, None], float("nan")),
    )


def test_flat_graphs_are_those_of_a_loop_over_the_table(batch: Batch) -> None:
    molecules = rubbish(batch).molecules
    atoms = FlatAtoms.of(molecules.real)
    bonds = Bonds.of(atoms, molecules.bond_codes)
    nodes, edges = [], {}
    for molecule, size in enumerate(molecules.size.tolist()):
        first = len(nodes)
        nodes += [molecule] * size
        for i in range(size):
            for j in range(size):
                if code := int(molecules.bond_codes[molecule, i, j]):
                    edges[first + i, first + j] = code
    assert atoms.molecule.tolist() == nodes
    assert dict(zip(map(tuple, bonds.edges.T.tolist()), bonds.codes.tolist(), strict=True)) == edges


def test_states_come_back_to_their_places(batch: Batch) -> None:
    real = nn.functional.pad(batch.molecules.real, (1, 0), value=True)
    real[:, 3] = False  # as before the hydrogens of a smaller molecule
    atoms = FlatAtoms.of(real)
    dense = torch.randn(*real.shape, 5)
    torch.testing.assert_close(atoms.flat(dense), dense[real])
    torch.testing.assert_close(atoms.padded(atoms.flat(dense)), torch.where(real[:, :, None], dense, 0.0))


@pytest.mark.parametrize("loops", [True, False])
def test_pairs_are_those_within_the_cutoff(loops: bool) -> None:
    real = torch.tensor([[True, True, False], [True, False, False], [True, True, True]])
    positions = torch.tensor([[0.0, 0, 0], [0, 3, 4], [9, 9, 9], [0, 0, 0], [0, 0, 0], [0, 0, 2.5]])
    pairs = Pairs.of(FlatAtoms.of(real), positions, 5.0, loops)
    found = dict(zip(map(tuple, pairs.edges.T.tolist()), pairs.distance.tolist(), strict=True))
    own = {(node, node): 0.0 for node in range(6)} if loops else {}
    # Exactly at the cutoff, at one place, and 2.5 Å apart.
    assert found == {(3, 4): 0.0, (4, 3): 0.0, (3, 5): 2.5, (5, 3): 2.5, (4, 5): 2.5, (5, 4): 2.5} | own
    assert pairs.direction[[*found].index((3, 5))].tolist() == [0, 0, -1]


@pytest.mark.parametrize(("role", "name"), MODELS)
def test_rubbish_in_padding_is_never_read(role: Role, name: str, batch: Batch) -> None:
    model, real = build(role, name), batch.molecules.real
    before, after = forward(model, role, batch), forward(model, role, rubbish(batch))
    torch.testing.assert_close(before.prediction, after.prediction, **EXACT)
    for mine, yours in zip(before.atom_states, after.atom_states, strict=True):
        torch.testing.assert_close(mine[real], yours[:, : real.shape[1]][real], **EXACT)


def test_gine_is_what_its_formulas_say(tiny_store: Path, batch: Batch) -> None:
    """Molecule by molecule and bond by bond, from the graphs that PyTorch Geometric is shown."""
    model = build("student", "gine")
    output = forward(model, "student", batch)
    for place, data in enumerate(to_pyg(Store.open(tiny_store), batch.molecules.rows.numpy())):
        codes = 1 + (data.edge_attr[:, 0] * 6 + data.edge_attr[:, 1]) * 2 + data.edge_attr[:, 2]
        edges = list(zip(*data.edge_index.tolist(), codes.tolist(), strict=True))
        nodes = model.embedding.features(data.x + model.embedding.offsets).sum(1)
        for source, _, code in edges:
            nodes[source] = nodes[source] + model.embedding.bonds[code]
        token = model.predictor.token
        for layer, state in zip(model.layers, output.graph_states, strict=True):
            heard = layer.norm(nodes + token)
            sums = (1 + layer.convolution.eps) * heard
            for source, target, code in edges:
                sums[target] = sums[target] + (heard[source] + layer.bonds.codes.weight[code]).relu()
            nodes = nodes + layer.convolution.nn(sums)
            own = layer.graph_token
            normed = own.atom_norm(nodes)
            heads = zip(own.score(normed).T, normed.split(8, 1), strict=True)
            pooled = torch.cat([torch.softmax(scores, 0) @ part for scores, part in heads])
            token = token + own.update(torch.cat([own.token_norm(token), pooled]))
            torch.testing.assert_close(state[place], token, **EXACT)
        torch.testing.assert_close(output.atom_states[-1][place, : len(nodes)], nodes, **EXACT)


@pytest.mark.parametrize(("role", "name"), MODELS)
def test_training_mixes_no_molecules(role: Role, name: str, batch: Batch) -> None:
    model = build(role, name).train()
    together = forward(model, role, batch)
    part = Molecules(*(getattr(batch.molecules, field)[3:4] for field in Molecules.__slots__))
    alone = forward(model, role, replace(batch, molecules=part, positions=batch.positions[3:4]))
    for mine, yours in zip(states(together), states(alone), strict=True):
        torch.testing.assert_close(mine[3:4], yours, **EXACT)


@pytest.mark.parametrize(("role", "name"), MODELS)
def test_nothing_changes_without_gradients(role: Role, name: str, batch: Batch) -> None:
    """torch has another path for attention then."""
    model = build(role, name)
    with torch.no_grad():
        fast = forward(model, role, batch)
    for mine, yours in zip(states(forward(model, role, batch)), states(fast), strict=True):
        torch.testing.assert_close(mine, yours, **EXACT)


@pytest.mark.parametrize(("role", "name"), MODELS)
def test_each_layer_updates_the_graph_state(role: Role, name: str, batch: Batch) -> None:
    graph_states = forward(build(role, name), role, batch).graph_states
    for before, after in pairwise(graph_states):
        assert float((before - after).detach().abs().amax(1).min()) > 1e-3


@pytest.mark.parametrize(("role", "name"), MODELS)
def test_settings_are_honoured(role: Role, name: str, batch: Batch) -> None:
    def shapes(**changes: object) -> list[torch.Size]:
        return [parameter.shape for parameter in build(role, name, **changes).parameters()]

    changes = [{"width": 16}, {"depth": 1}, {"feedforward": 1.0}, {"walks": 4}]
    changes += [{"kernels": 5}, {"hydrogens": True}, {"denoising": 1.0}] if role == "teacher" else []
    assert all(shapes() != shapes(**change) for change in changes)
    one, four = (forward(build(role, name, heads=heads, depth=1), role, batch).prediction for heads in (1, 4))
    assert not torch.allclose(one, four)


@pytest.mark.parametrize(("role", "name"), MODELS)
def test_weights_are_saved_and_read(role: Role, name: str, batch: Batch, tmp_path: Path) -> None:
    changes = {"hydrogens": True, "denoising": 1.0} if role == "teacher" else {}
    model, other = build(role, name, **changes), build(role, name, **changes)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.01)
    save_weights(model, tmp_path / "weights.safetensors")
    load_weights(other, tmp_path / "weights.safetensors")
    assert torch.equal(forward(model, role, batch).prediction, forward(other, role, batch).prediction)
    names = [id(parameter) for _, parameter in model.named_parameters(remove_duplicate=False)]
    assert len(names) == len(set(names))


@pytest.mark.parametrize(("role", "name"), MODELS)
def test_dropout_is_for_training(role: Role, name: str, batch: Batch) -> None:
    model = build(role, name, dropout=0.3)
    quiet, again = (forward(model, role, batch).prediction for _ in range(2))
    assert torch.equal(quiet, again)
    model.train()
    loud, again = (forward(model, role, batch) for _ in range(2))
    assert not torch.allclose(loud.prediction, again.prediction)
    assert not torch.allclose(loud.atom_states[-1], again.atom_states[-1])


@pytest.mark.parametrize("name", TEACHERS)
def test_hydrogens_are_atoms_in_any_order(name: str, batch: Batch) -> None:
    model = build("teacher", name, hydrogens=True)
    known = with_hydrogens(batch)
    hydrogens = known.hydrogens
    assert hydrogens is not None
    bare, full = forward(model, "teacher", batch), forward(model, "teacher", known)
    assert full.atom_states[-1].shape == bare.atom_states[-1].shape
    change = (bare.prediction - full.prediction).detach().abs()
    assert float(change[hydrogens.count > 0].min()) > 1e-6
    torch.testing.assert_close(bare.prediction[hydrogens.count == 0], full.prediction[hydrogens.count == 0], **EXACT)

    order = torch.tensor([1, 0, 2])  # real ones of those that have two or three, else padding changes places
    swapped = hydrogens.positions.clone()
    swapped[hydrogens.count > 1] = hydrogens.positions[hydrogens.count > 1][:, order]
    nowhere = nn.functional.pad(swapped, (0, 0, 0, 2)).masked_fill(
        ~nn.functional.pad(hydrogens.real, (0, 2))[:, :, None], float("nan")
    )
    other = Hydrogens(hydrogens.count, nn.functional.pad(hydrogens.parent, (0, 2), value=200), nowhere)
    again = forward(model, "teacher", replace(known, hydrogens=other))
    for mine, yours in zip(states(full), states(again), strict=True):
        torch.testing.assert_close(mine, yours, **EXACT)


@pytest.mark.parametrize("name", TEACHERS)
def test_every_parameter_learns_from_hydrogens_and_noise(name: str, batch: Batch) -> None:
    model = build("teacher", name, hydrogens=True, denoising=1.0)
    none = Hydrogens(batch.molecules.size * 0, torch.zeros(8, 0, dtype=torch.uint8), torch.zeros(8, 0, 3).double())
    for known in (with_hydrogens(batch), replace(batch, hydrogens=none)):
        model.zero_grad()
        output = forward(model, "teacher", known)
        assert output.noise is not None
        (output.prediction.sum() + output.noise.square().sum()).backward()
        assert not [key for key, parameter in model.named_parameters() if parameter.grad is None]


@pytest.mark.parametrize("name", TEACHERS)
@pytest.mark.parametrize("mirrored", [False, True])
def test_noise_turns_with_the_molecule(name: str, mirrored: bool, batch: Batch) -> None:
    model, known = build("teacher", name, hydrogens=True, denoising=1.0), with_hydrogens(batch)
    turn = rotation(5) * (-1.0 if mirrored else 1.0)
    shift = torch.tensor([7.0, -2.0, 3.0], dtype=torch.float64)
    before, after = forward(model, "teacher", known), forward(model, "teacher", moved(known, turn, shift))
    assert before.noise is not None and after.noise is not None
    real = batch.molecules.real
    assert float(before.noise[real].detach().norm(dim=1).min()) > 1e-6
    assert float(before.noise[~real].detach().abs().max()) == 0
    torch.testing.assert_close(after.noise, before.noise @ turn.T, **EXACT)
    torch.testing.assert_close(after.prediction, before.prediction, **EXACT)


def test_a_teacher_that_does_not_denoise_says_no_noise(batch: Batch) -> None:
    assert all(forward(build("teacher", name), "teacher", batch).noise is None for name in TEACHERS)


@pytest.mark.parametrize("name", TEACHERS)
@pytest.mark.parametrize("apart", [0.0, 1e-7, 1e-3])
def test_atoms_at_one_place_are_harmless(name: str, apart: float, batch: Batch) -> None:
    model = build("teacher", name, denoising=1.0)
    positions = batch.positions.clone()
    positions[:, 1] = positions[:, 0] + apart
    positions.requires_grad_()
    output = model(batch.molecules, positions)
    (output.prediction.sum() + output.noise.square().sum()).backward()
    assert all(torch.isfinite(value).all() for value in (*states(output), output.noise, positions.grad))
    assert float(positions.grad.abs().max()) < 1e4
    assert all(torch.isfinite(parameter.grad).all() for parameter in model.parameters())


@pytest.mark.parametrize("name", TEACHERS)
def test_a_pair_fades_out_at_the_cutoff(name: str, batch: Batch) -> None:
    model = build("teacher", name, denoising=1.0)
    pair = replace(
        Molecules(*(getattr(batch.molecules, field)[:1] for field in Molecules.__slots__)), size=torch.tensor([2])
    )
    positions = torch.zeros(3, 1, batch.positions.shape[1], 3, dtype=torch.float64)
    positions[:, 0, 1, 0] = torch.tensor([CUTOFF - 1e-4, CUTOFF + 1e-4, 3.0])
    inside, outside, near = (model(pair, place) for place in positions)
    for field in ("graph_states", "atom_states"):
        torch.testing.assert_close(getattr(inside, field)[-1], getattr(outside, field)[-1], rtol=0, atol=1e-6)
    torch.testing.assert_close(inside.noise, outside.noise, rtol=0, atol=1e-6)
    assert not torch.allclose(near.prediction, outside.prediction, rtol=0, atol=1e-5)


@pytest.mark.parametrize(("role", "name"), MODELS)
def test_a_handful_of_molecules_is_learned_by_heart(role: Role, name: str, tiny_store: Path) -> None:
    batch = training_batch(tiny_store, 8)
    torch.manual_seed(0)
    model = build_model(role, replace(SETTINGS, name=name))
    target = (batch.target - batch.target.mean()) / batch.target.std()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(80):
        optimizer.zero_grad()
        loss = (forward(model, role, batch).prediction - target).square().mean()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    assert float(loss.detach()) < 0.01


@pytest.mark.parametrize("name", TEACHERS)
def test_noise_is_learned(name: str, tiny_store: Path) -> None:
    """Four molecules with the same shifts each time, whose mean no model can know that ignores translations."""
    batch = training_batch(tiny_store, 4)
    torch.manual_seed(0)
    model = build_model("teacher", replace(SETTINGS, name=name, kernels=32, denoising=1.0))
    real = batch.molecules.real
    noise = torch.randn(batch.positions.shape, generator=torch.Generator().manual_seed(1)) * 0.1
    noise = noise.masked_fill(~real[:, :, None], 0.0)
    noise = noise - noise.sum(1, keepdim=True) / batch.molecules.size[:, None, None]
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(200):
        optimizer.zero_grad()
        loss = (model(batch.molecules, batch.positions + noise).noise - noise)[real].square().mean()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    assert float(loss.detach()) < 0.3 * float(noise[real].square().mean())


@pytest.mark.parametrize(("role", "name"), MODELS)
def test_sixteen_bits_are_near(role: Role, name: str, tiny_store: Path) -> None:
    batch = training_batch(tiny_store, 8)
    torch.manual_seed(0)
    model = build_model(role, replace(SETTINGS, name=name, denoising=float(role == "teacher")))
    exact = forward(model, role, batch)
    with torch.autocast("cpu", torch.bfloat16):
        rough = forward(model, role, batch)
    for mine, yours in zip(states(exact), states(rough), strict=True):
        assert yours.dtype == torch.float32
        assert float((mine - yours).detach().norm() / mine.detach().norm()) < 0.03
    rough.prediction.square().sum().backward()
    used = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    assert all(torch.isfinite(gradient).all() for gradient in used)


def test_pyg_is_imported_only_when_a_model_of_it_is_built() -> None:
    code = """
import sys
from moldistill.models.registry import model_names
assert {"gine", "gps"} <= set(model_names("student")) and {"schnet", "visnet"} <= set(model_names("teacher"))
assert "torch_geometric" not in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_angles_are_refused_where_nothing_reads_them() -> None:
    for name in ("schnet", "visnet"):
        with pytest.raises(InputError, match=f"{name} does not read it"):
            build_model("teacher", ModelSettings(name=name, width=16, depth=1, heads=2, angles=True))

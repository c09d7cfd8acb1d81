"""The fast forms of the models say what the plain formulas say: values, derivatives, precisions, compilation."""

from __future__ import annotations

import copy
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from batches import padded, training_batch
from moldistill.core.records import Batch, Molecules
from moldistill.core.settings import ModelSettings
from moldistill.core.vocabulary import ATOM_SIZES
from moldistill.models import fused
from moldistill.models.attention import mix
from moldistill.models.biases import HIDDEN, GraphBiases
from moldistill.models.embeddings import AtomEmbedding
from moldistill.models.fused import Linear
from moldistill.models.registry import build_model
from moldistill.models.student import TransformerStudent
from moldistill.training.evaluate import forward

ROOT = Path(__file__).parents[1]
SETTINGS = ModelSettings(width=32, depth=3, heads=4)
STUDENTS = ("transformer", "hybrid")


@pytest.fixture(scope="module")
def batch(tiny_store: Path) -> Batch:
    return padded(training_batch(tiny_store, 8), 3)


def plain_biases(biases: GraphBiases, molecules: Molecules) -> Tensor:
    """Pair by pair, for each layer and head [depth, heads, batch, tokens, tokens]."""
    count, atoms = molecules.atom_features.shape[:2]
    found = torch.zeros(len(biases.path), count, atoms + 1, atoms + 1, dtype=biases.path.dtype)
    for molecule in range(count):
        size = int(molecules.size[molecule])
        found[:, molecule, :, size + 1 :] = -torch.inf
        found[:, molecule, 0, 0] = biases.token[:, 2]
        for i in range(atoms):
            found[:, molecule, i + 1, 0] = biases.token[:, 1]
            for j in range(size):
                steps, bond = (int(part[molecule, i, j]) for part in (molecules.shortest_paths, molecules.bond_codes))
                row = biases.max_path + 1 if steps == 255 else min(steps, biases.max_path)
                found[:, molecule, 0, j + 1] = biases.token[:, 0]
                found[:, molecule, i + 1, j + 1] = biases.path[:, row] + biases.bond[:, bond]
    return found.view(biases.depth, biases.heads, *found.shape[1:])


def plain_atoms(embedding: AtomEmbedding, molecules: Molecules) -> Tensor:
    features = embedding.features(molecules.atom_features.long() + embedding.offsets).sum(2)
    bonds = torch.where(molecules.bond_codes[..., None] > 0, embedding.bonds[molecules.bond_codes.long()], 0.0)
    return features + bonds.sum(2)


def plain_student(model: TransformerStudent, molecules: Molecules) -> Tensor:
    """Predictions by PyTorch's own layers, attention written out."""
    atoms = plain_atoms(model.embedding, molecules)
    tokens: Tensor = torch.cat([model.body.graph_token.expand(len(atoms), 1, -1), atoms], 1)
    for block, bias in zip(_modules(model.body.blocks), plain_biases(model.biases, molecules), strict=True):
        query, key, value = _plain(block.projections, block.attention_norm(tokens)).chunk(3, -1)
        heads = zip(*(part.chunk(len(bias), -1) for part in (query, key, value)), bias, strict=True)
        mixed = [torch.softmax(q @ k.mT / q.shape[-1] ** 0.5 + b, -1) @ v for q, k, v, b in heads]
        tokens = tokens + _plain(block.merge, torch.cat(mixed, -1))
        norm, wide, act, narrow = _modules(block.feedforward)
        tokens = tokens + _plain(narrow, act(_plain(wide, norm(tokens))))
    norm, first, act, last = _modules(model.body.head)
    return _plain(last, act(_plain(first, norm(tokens[:, 0]))))[:, 0]


def _modules(parent: Any) -> list[Any]:
    return list(parent)


def _plain(layer: nn.Linear, values: Tensor) -> Tensor:
    return nn.functional.linear(values, layer.weight, layer.bias)


def gradients(model: nn.Module, loss: Tensor) -> dict[str, Tensor]:
    found = torch.autograd.grad(loss, list(model.parameters()), allow_unused=True)
    named = zip(dict(model.named_parameters()), found, strict=True)
    return {name: slope for name, slope in named if slope is not None}


def test_the_student_is_the_plain_transformer(batch: Batch) -> None:
    torch.manual_seed(0)
    model = TransformerStudent(replace(SETTINGS, max_path=3)).double()
    nn.init.normal_(model.biases.path)
    nn.init.normal_(model.biases.bond)
    nn.init.normal_(model.biases.token)
    fast, plain = model(batch.molecules).prediction, plain_student(model, batch.molecules)
    torch.testing.assert_close(fast.double(), plain, rtol=1e-6, atol=1e-6)  # predictions are in 32 bits
    mine, theirs = (gradients(model, values.double().square().sum()) for values in (fast, plain))
    assert mine.keys() == theirs.keys()
    for name, slope in mine.items():
        torch.testing.assert_close(slope, theirs[name], rtol=1e-5, atol=1e-6, msg=name)


def test_biases_are_those_of_each_pair(batch: Batch) -> None:
    torch.manual_seed(0)
    biases = GraphBiases(2, 3, max_path=2).double()
    nn.init.normal_(biases.token)
    fast, plain = biases(batch.molecules), plain_biases(biases, batch.molecules)
    assert fast.isfinite().all()
    torch.testing.assert_close(fast.masked_fill(fast == HIDDEN, -torch.inf), plain, rtol=0, atol=1e-15)


@pytest.mark.parametrize("gated", [False, True])
def test_mixing_is_the_formula_and_so_are_its_derivatives(gated: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    heads, count, tokens, width = 2, 3, 5, 8

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).requires_grad_()

    projected, bias = random(count, tokens, (4 if gated else 3) * width), random(heads, count, tokens, tokens)
    gates = random(heads, count, tokens, tokens) if gated else None
    parts = [part.view(count, tokens, heads, -1).permute(2, 0, 1, 3) for part in torch.split(projected, width, -1)]
    results = [torch.softmax(parts[0] @ parts[1].mT * (width // heads) ** -0.5 + bias, -1) @ parts[2]]
    results += [torch.relu(gates @ parts[3])] if gates is not None else []
    expected = torch.cat([result.permute(1, 2, 0, 3).flatten(2) for result in results], -1)
    torch.testing.assert_close(mix(projected, bias, gates), expected)
    inputs = [projected, bias] if gates is None else [projected, bias, gates]
    assert torch.autograd.gradcheck(mix, inputs)


@pytest.mark.parametrize("biased", [True, False])
@pytest.mark.parametrize("shape", [(5, 7), (2, 3, 7), (0, 7), (1, 7)])
def test_linear_is_pytorchs(biased: bool, shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    ours, theirs = Linear(7, 4, bias=biased), nn.Linear(7, 4, bias=biased)
    theirs.load_state_dict(ours.state_dict())
    values = [torch.randn(shape).requires_grad_() for _ in range(1)] * 2
    found = [layer(value) for layer, value in zip((ours, theirs), values, strict=True)]
    torch.testing.assert_close(*found, rtol=1e-5, atol=1e-6)
    slopes = [
        torch.autograd.grad(result.square().sum(), [value, *layer.parameters()])
        for layer, value, result in zip((ours, theirs), values, found, strict=True)
    ]
    for mine, yours in zip(*slopes, strict=True):
        torch.testing.assert_close(mine, yours, rtol=1e-5, atol=1e-5)


def test_linear_reads_transposed_values_and_weights() -> None:
    torch.manual_seed(0)
    values, weight = torch.randn(6, 9).t().requires_grad_(), torch.randn(6, 5).t().requires_grad_()
    torch.testing.assert_close(fused.linear(values, weight), values @ weight.t())
    mine = torch.autograd.grad(fused.linear(values, weight).square().sum(), (values, weight))
    yours = torch.autograd.grad((values @ weight.t()).square().sum(), (values, weight))
    torch.testing.assert_close(mine, yours)


def test_without_onednn_pytorch_multiplies(monkeypatch: pytest.MonkeyPatch, batch: Batch) -> None:
    torch.manual_seed(0)
    model = build_model("student", SETTINGS)
    before = model(batch.molecules).prediction
    monkeypatch.setattr(fused, "_ONEDNN", None)
    torch.testing.assert_close(model(batch.molecules).prediction, before, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", STUDENTS)
def test_bf16_is_near_fp32(name: str, batch: Batch) -> None:
    """Predictions within 2% of their spread, and gradients that point the same way; 16 bits have 8 of precision."""
    torch.manual_seed(0)
    model = build_model("student", replace(SETTINGS, name=name))
    whole = forward(model, "student", batch).prediction
    with torch.autocast("cpu", torch.bfloat16):
        half = forward(model, "student", batch).prediction
    assert half.dtype == torch.float32
    assert not torch.equal(half, whole)
    assert float((half - whole).detach().abs().max()) < 0.02 * max(1.0, float(whole.detach().std()))
    exact, rough = (gradients(model, values.square().sum()) for values in (whole, half))
    assert exact.keys() == rough.keys()
    mine, theirs = (torch.cat([slope.flatten() for slope in found.values()]) for found in (exact, rough))
    assert float(nn.functional.cosine_similarity(mine, theirs, 0)) > 0.999
    assert 0.97 < float(theirs.norm() / mine.norm()) < 1.03


@pytest.mark.parametrize("name", STUDENTS)
@pytest.mark.parametrize("change", [copy.deepcopy, lambda model: model.double().float()])
def test_copies_say_the_same(name: str, change: Callable[[nn.Module], nn.Module], batch: Batch) -> None:
    torch.manual_seed(0)
    model = build_model("student", replace(SETTINGS, name=name))
    before = model(batch.molecules).prediction.detach().clone()
    assert torch.equal(change(model)(batch.molecules).prediction, before)


@pytest.mark.parametrize("name", STUDENTS)
def test_rubbish_in_padding_is_not_read(name: str, batch: Batch) -> None:
    torch.manual_seed(0)
    model = build_model("student", replace(SETTINGS, name=name)).double()
    old = batch.molecules
    gone = ~(old.real[:, :, None] & old.real[:, None])
    rubbish = replace(
        old,
        atom_features=old.atom_features.masked_fill(~old.real[..., None], 255),
        shortest_paths=old.shortest_paths.masked_fill(gone, 1),
        bond_codes=old.bond_codes.masked_fill(gone, 255),
    )
    before, after = (model(molecules) for molecules in (old, rubbish))
    torch.testing.assert_close(before.prediction, after.prediction, rtol=1e-9, atol=1e-9)
    assert all(state.isfinite().all() for state in after.atom_states)
    assert int(old.atom_features.max()) < max(ATOM_SIZES)


_COMPILED = """
import sys
from pathlib import Path
import torch
from batches import training_batch
from moldistill.core.settings import ModelSettings
from moldistill.models.registry import build_model

molecules = training_batch(Path(sys.argv[1]), 8).molecules
for name in ("transformer", "hybrid"):
    for mixed in (False, True):
        model = build_model("student", ModelSettings(name, width=32, depth=2, heads=4))
        traced = torch.compile(model, backend="aot_eager", fullgraph=True)
        with torch.autocast("cpu", torch.bfloat16, enabled=mixed):
            values = [run(molecules).prediction for run in (model, traced)]
        torch.testing.assert_close(*values, rtol=1e-5, atol=1e-5)
        slopes = [torch.autograd.grad(value.square().sum(), model.body.parameters()) for value in values]
        torch.testing.assert_close(*slopes, rtol=1e-4, atol=1e-5)
        torch._dynamo.reset()
"""


def test_the_compiler_meets_no_obstacle(tiny_store: Path) -> None:
    """One graph, without a break, whose derivatives are those of the model; nothing is generated.

    In a process without the shape checks of this suite, which the compiler cannot read.
    """
    path = os.pathsep.join(str(folder) for folder in (ROOT / "platform", ROOT / "tests"))
    done = subprocess.run(
        [sys.executable, "-c", _COMPILED, tiny_store],
        env=os.environ | {"PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr

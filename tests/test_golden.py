"""Seeded learning curves: what every step of a tiny teacher and student has always given."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from golden import FILE, RUNS, STEPS, curve, sample_store
from moldistill.data.store import Store

CURVES = json.loads(FILE.read_text())


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return sample_store(tmp_path_factory.mktemp("golden"))


@pytest.mark.parametrize("name", RUNS)
@pytest.mark.parametrize("kind", ["cpu", "cuda"])
def test_the_learning_curve_is_as_before(name: str, kind: str, store: Store) -> None:
    if kind == "cuda" and not torch.cuda.is_available():
        pytest.skip("no GPU here")
    if kind not in CURVES:
        pytest.skip(f"no curves of {kind} have been recorded: python tests/golden.py")
    found, expected = curve(name, store, torch.device(kind)), CURVES[kind][name]
    assert len(found) == STEPS
    assert found[-1] < found[0]
    np.testing.assert_allclose(found, expected, rtol=2e-3, atol=2e-4)

"""Noise on positions: normal, independent, the same whatever the batch; and the task of predicting it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats

from batches import padded, training_batch
from moldistill.core.records import Batch
from moldistill.data.batches import collate
from moldistill.data.store import Store
from moldistill.training.noise import denoising_loss, noised, normal


@pytest.fixture(scope="module")
def batch(tiny_store: Path) -> Batch:
    return training_batch(tiny_store)


def test_numbers_are_normal_and_independent() -> None:
    found = normal(7, torch.arange(2000), torch.arange(20)).double().numpy()
    assert stats.kstest(found.ravel(), "norm").pvalue > 1e-3
    assert abs(stats.kurtosis(found.ravel())) < 0.05
    columns = found.reshape(2000, -1)
    correlations = np.corrcoef(columns.T) - np.eye(60)
    assert np.abs(correlations).max() < 0.12  # 5 standard deviations of 1,770 pairs of 2,000 numbers
    rows = np.corrcoef(columns[:60]) - np.eye(60)
    assert np.abs(rows).max() < 0.65
    assert len(np.unique(found)) > 0.99 * found.size


def test_seeds_and_epochs_give_other_noise(batch: Batch) -> None:
    shifts = [noised(batch, std=0.1, seed=seed, epoch=epoch)[1] for seed, epoch in ((0, 0), (0, 1), (1, 0))]
    for one, other in ((0, 1), (0, 2), (1, 2)):
        correlation = np.corrcoef(shifts[one].flatten(), shifts[other].flatten())[0, 1]
        assert abs(correlation) < 0.2


def test_a_molecules_noise_depends_on_nothing_but_its_row(tiny_store: Path, batch: Batch) -> None:
    """Neither padding nor company nor order."""
    _, shift = noised(batch, std=0.1, seed=0, epoch=3)
    _, wide = noised(padded(batch, 4), std=0.1, seed=0, epoch=3)
    assert torch.equal(wide[:, : shift.shape[1]], shift)
    rows = batch.molecules.rows.numpy()
    for place in (0, 5):
        alone = collate(Store.open(tiny_store), rows[place : place + 1])
        _, own = noised(alone, std=0.1, seed=0, epoch=3)
        assert torch.equal(own[0], shift[place, : own.shape[1]])


def test_positions_move_by_the_noise(batch: Batch) -> None:
    moved, shift = noised(batch, std=0.05, seed=0, epoch=0)
    torch.testing.assert_close(moved.positions, batch.positions + shift)
    assert float(shift.std()) == pytest.approx(0.05, rel=0.1)
    assert torch.equal(moved.target, batch.target)


def test_denoising_loss_by_hand(batch: Batch) -> None:
    size = batch.molecules.size
    real = batch.molecules.real[..., None]
    _, noise = noised(batch, std=0.1, seed=0, epoch=0)
    expected, centred = 0.0, torch.zeros_like(noise)
    for place, count in enumerate(size.tolist()):
        own = noise[place, :count] - noise[place, :count].mean(0)
        centred[place, :count] = own
        expected += float((own / 0.1).square().mean())
    nothing = torch.zeros_like(noise)
    assert float(denoising_loss(nothing, noise, batch, 0.1)) == pytest.approx(expected, rel=1e-5)
    rubbish = torch.where(real, centred, torch.nan)
    assert float(denoising_loss(rubbish, noise, batch, 0.1)) == pytest.approx(0.0, abs=1e-9)
    unplaced = replace(batch, has_positions=torch.zeros_like(batch.has_positions))
    assert float(denoising_loss(nothing, noise, unplaced, 0.1)) == 0.0

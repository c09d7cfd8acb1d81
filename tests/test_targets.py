"""The teacher's targets: against singular values, rounding by hand and teachers whose every state is known."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from manifests import edit_manifest
from moldistill.cli import main
from moldistill.core.artifacts import read_json
from moldistill.core.config import load_run
from moldistill.core.errors import InputError, RunError
from moldistill.core.hashing import fold_of
from moldistill.core.locking import exclusive
from moldistill.core.records import Hydrogens, ModelOutput, Molecules, TargetScale
from moldistill.data.batches import collate
from moldistill.data.store import Store
from moldistill.data.targets import TargetStore
from moldistill.pipeline import cache_teacher
from moldistill.training import cache as module
from moldistill.training.asking import Teacher
from moldistill.training.cache import Cached, CacheSettings, cache_targets
from moldistill.training.evaluate import predict
from moldistill.training.moments import Moments
from moldistill.training.noise import noised
from moldistill.trial.run import load_run_folder, run_trial
from moldistill.trial.spec import TrialSpec

LAYERS, WIDTH = 2, 8
SCALE = TargetScale(5.0, 2.0, 5.0)


class Table(nn.Module):
    """A teacher whose answers stand in a table, per store row; channels of unlike size, around a mean."""

    def __init__(self, store: Store) -> None:
        super().__init__()
        draw = torch.Generator().manual_seed(3)
        rows, atoms = len(store), int(store.size(np.arange(len(store))).max())
        mixing = torch.randn(LAYERS, WIDTH, WIDTH, generator=draw) * 0.5 ** torch.arange(WIDTH)[:, None]
        self.prediction = torch.randn(rows, generator=draw)
        self.graph = torch.einsum("rlw,lwv->rlv", torch.randn(rows, LAYERS, WIDTH, generator=draw), mixing) + 3.0
        self.atom = (
            torch.einsum("ralw,lwv->ralv", torch.randn(rows, atoms, LAYERS, WIDTH, generator=draw), mixing) - 1.0
        )

    def forward(self, molecules: Molecules, positions: Tensor) -> ModelOutput:
        rows, atoms = molecules.rows, positions.shape[1]
        graph = tuple(self.graph[rows, layer] for layer in range(LAYERS))
        return ModelOutput(
            self.prediction[rows], graph, tuple(self.atom[rows, :atoms, layer] for layer in range(LAYERS))
        )


class Echo(nn.Module):
    """A teacher that says the positions that it was shown: of atoms, and the sum of the hydrogens' as graph token."""

    hydrogens = True

    def forward(self, molecules: Molecules, positions: Tensor, hydrogens: Hydrogens) -> ModelOutput:
        summed = torch.where(hydrogens.real[..., None], hydrogens.positions, 0.0).sum(1)
        return ModelOutput(positions[:, 0, 0], (summed,), (positions,))


@pytest.fixture(scope="module")
def store(tiny_store: Path) -> Store:
    return Store.open(tiny_store)


@pytest.fixture
def table(store: Store) -> Table:
    return Table(store)


Cache = Callable[..., TargetStore]


@pytest.fixture
def cached(store: Store, table: Table, tmp_path: Path) -> Cache:
    """Caches the table's answers, with the given settings."""

    def work(name: str = "targets", **settings: object) -> TargetStore:
        made = cache_targets(Teacher(table, SCALE, "table"), store, tmp_path / name, settings=CacheSettings(**settings))  # type: ignore[arg-type]
        assert made.made
        return TargetStore.open(made.path)

    return work


def said(table: Table, store: Store, rows: NDArray[np.int64], kind: str) -> NDArray[np.float64]:
    """What the table says of rows: [items, layers, width]."""
    if kind == "graph":
        return table.graph[rows.tolist()].double().numpy()
    sizes = store.size(rows)
    return np.concatenate([table.atom[int(row), :size].double().numpy() for row, size in zip(rows, sizes, strict=True)])


def kept(targets: TargetStore, kind: str) -> NDArray[np.float64]:
    """What is kept, as it is read back: [items, layers, channels]."""
    states = np.asarray(targets.graph_states if kind == "graph" else targets.atom_states, np.float64)
    return states * targets.scales[f"{kind}_scale"] if targets.bits == 8 else states


KINDS = pytest.mark.parametrize("kind", ["graph", "atom"])


@KINDS
def test_channels_are_principal_components(kind: str, cached: Cache, table: Table, store: Store) -> None:
    """Against the singular values of the centred states; kept variance and statistics follow from them."""
    targets = cached(channels=3)
    truth, stored = said(table, store, targets.rows, kind), kept(targets, kind)
    summary = targets.summary()
    statistics = summary.graph if kind == "graph" else summary.atoms
    assert (summary.width, summary.depth, stored.shape[1:]) == (3, LAYERS, (LAYERS, 3))
    for layer in range(LAYERS):
        centred = truth[:, layer] - truth[:, layer].mean(0)
        left, singular, _ = np.linalg.svd(centred, full_matrices=False)
        ours = left[:, :3] * singular[:3]
        signs = np.sign((ours * stored[:, layer]).sum(0))
        np.testing.assert_allclose(stored[:, layer], ours * signs, atol=5e-3)
        share = float((singular[:3] ** 2).sum() / (singular**2).sum())
        facts = targets.manifest.facts["states"][kind]
        assert facts["kept"][layer] == pytest.approx(share, abs=1e-4)
        assert facts["explained"][layer] == pytest.approx(share, abs=1e-4)
        error = np.sqrt((singular[3:] ** 2).sum() / (truth[:, layer] ** 2).sum())
        assert facts["error"][layer] == pytest.approx(error, rel=1e-3)
        np.testing.assert_allclose(statistics.mean[layer], stored[:, layer].mean(0), atol=1e-4)
        np.testing.assert_allclose(statistics.std[layer], singular[:3] / np.sqrt(len(truth)), rtol=1e-3)
    whitened = (torch.from_numpy(stored).float() - statistics.mean)[:, 0] @ statistics.whitening[0]
    torch.testing.assert_close(torch.cov(whitened.T, correction=0), torch.eye(3), atol=1e-2, rtol=0)


@KINDS
def test_all_components_keep_every_distance(kind: str, cached: Cache, table: Table, store: Store) -> None:
    targets = cached(channels=WIDTH)
    truth, stored = said(table, store, targets.rows, kind)[:60], kept(targets, kind)[:60]
    for states, again in zip(truth.swapaxes(0, 1), stored.swapaxes(0, 1), strict=True):
        distances, ours = (np.linalg.norm(some[:, None] - some[None], axis=-1) for some in (states, again))
        np.testing.assert_allclose(ours, distances, atol=1e-2)
    facts = targets.manifest.facts["states"][kind]
    assert facts["kept"] == pytest.approx([1.0, 1.0], abs=1e-5)


def test_components_are_fitted_on_a_seeded_sample(cached: Cache, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = cached("whole", channels=2)
    monkeypatch.setattr(module, "SAMPLE", 20)
    part, again, other = cached("part", channels=2), cached("again", channels=2), cached("other", channels=2, seed=1)
    assert part.identity == again.identity
    assert len({targets.identity for targets in (whole, part, other)}) == 3
    # The sample's components keep less of all rows than their own, and it is measured over all rows.
    shares = [np.array(targets.manifest.facts["states"]["atom"]["kept"]) for targets in (whole, part)]
    assert (shares[1] < shares[0]).all()
    assert (shares[1] > shares[0] - 0.1).all()


@pytest.mark.parametrize("channels", [None, 4])
@KINDS
def test_eight_bits_are_within_half_a_step(
    kind: str, channels: int | None, cached: Cache, table: Table, store: Store
) -> None:
    exact, targets = cached("exact", channels=channels), cached(channels=channels, bits=8)
    scale = targets.scales[f"{kind}_scale"]
    truth, wide, read = said(table, store, targets.rows, kind), kept(exact, kind), kept(targets, kind)
    np.testing.assert_allclose(scale, np.abs(wide).max(0) * 1.2 / 127, rtol=1e-3)
    assert (np.abs(read - wide) <= scale * 0.5 + 4e-3).all()  # 16 bits are rounded, too
    facts = targets.manifest.facts["states"][kind]
    assert facts["clipped"] == 0
    before = exact.manifest.facts["states"][kind]
    lost = ((read - wide) ** 2).sum((0, 2))
    variance = ((truth - truth.mean(0)) ** 2).sum((0, 2))
    np.testing.assert_allclose(np.subtract(before["explained"], facts["explained"]), lost / variance, atol=2e-5)
    if channels is None:
        np.testing.assert_allclose(facts["error"], np.sqrt(lost / (truth**2).sum((0, 2))), rtol=1e-2)
    statistics = targets.summary()
    mean = (statistics.graph if kind == "graph" else statistics.atoms).mean
    np.testing.assert_allclose(mean, read.mean(0), atol=1e-5)  # of what is handed out


def test_what_lies_beyond_the_scales_is_clipped_and_counted(
    cached: Cache, table: Table, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "SAMPLE", 5)
    targets = cached(bits=8)
    for kind in ("graph", "atom"):
        steps = np.round(said(table, store, targets.rows, kind) / targets.scales[f"{kind}_scale"])
        beyond = np.abs(steps) > 127
        assert beyond.any()
        assert targets.manifest.facts["states"][kind]["clipped"] == pytest.approx(beyond.mean())
        stored = targets.graph_states if kind == "graph" else targets.atom_states
        np.testing.assert_allclose(stored, steps.clip(-127, 127), atol=1)  # a half is rounded either way


@pytest.mark.parametrize(
    "settings", [{}, {"bits": 8}, {"channels": 3, "bits": 8}, {"views": 3, "noise": 0.1, "bits": 8}]
)
def test_gathering_hands_out_what_is_kept(settings: dict[str, object], cached: Cache, store: Store) -> None:
    targets = cached(**settings)
    rows = np.concatenate([targets.rows[[7, 2, 30]], store.rows("valid")[:2], targets.rows[[11]]])
    taught, narrow = targets.gather(rows, 25, draw=4), targets.gather(rows, 25, draw=4, widen=False)
    graph, atoms = kept(targets, "graph"), kept(targets, "atom")
    assert taught.known.tolist() == [True] * 3 + [False] * 2 + [True]
    assert (taught.graph_states.dtype, narrow.atom_states.dtype) == (torch.float32, torch.float16)
    for place, entry in enumerate(targets.entries(rows, 4).tolist()):
        begin, end = targets.atom_offsets[entry : entry + 2] if entry >= 0 else (0, 0)
        expected = torch.zeros(25, *atoms.shape[1:])
        expected[: end - begin] = torch.from_numpy(atoms[begin:end])
        assert torch.equal(taught.atom_states[:, place].transpose(0, 1), expected)
        token = torch.from_numpy(graph[entry]).float() if entry >= 0 else torch.zeros(graph.shape[1:])
        assert torch.equal(taught.graph_states[:, place], token)
        assert float(taught.prediction[place]) == (float(targets.prediction[entry]) if entry >= 0 else 0.0)
    assert torch.equal(narrow.atom_states, taught.atom_states.half())
    assert torch.equal(narrow.graph_states, taught.graph_states.half())
    nothing = targets.gather(store.rows("valid")[:2], 3)
    assert not nothing.known.any()
    assert not nothing.atom_states.any()


@pytest.fixture(scope="module")
def seen(store: Store, tmp_path_factory: pytest.TempPathFactory) -> TargetStore:
    """Four noisy views of the positions themselves."""
    settings = CacheSettings(views=4, noise=0.2, seed=7)
    made = cache_targets(
        Teacher(Echo(), SCALE, "echo"), store, tmp_path_factory.mktemp("echo") / "t", settings=settings
    )
    return TargetStore.open(made.path)


def test_views_are_passes_with_noise_of_their_own(seen: TargetStore, store: Store) -> None:
    batch = collate(store, seen.rows, hydrogens=True)
    real = batch.molecules.real
    shifts = []
    for view in range(4):
        shown, _ = noised(batch, std=0.2, seed=7, epoch=view)
        entries = np.arange(len(seen.rows)) * 4 + view
        assert shown.hydrogens is not None
        hydrogens = torch.where(shown.hydrogens.real[..., None], shown.hydrogens.positions, 0.0).sum(1)
        np.testing.assert_allclose(seen.graph_states[entries, 0], hydrogens, rtol=1e-3, atol=1e-2)
        spans = np.concatenate([np.arange(*seen.atom_offsets[entry : entry + 2]) for entry in entries])
        np.testing.assert_allclose(seen.atom_states[spans, 0], shown.positions[real], rtol=1e-3, atol=1e-3)
        expected = shown.positions[:, 0, 0] * SCALE.std + SCALE.mean
        np.testing.assert_allclose(seen.prediction[entries], expected, rtol=1e-5)
        shifts.append(np.asarray(seen.atom_states[spans, 0], np.float64) - batch.positions[real].numpy())
    noise = np.stack(shifts)
    assert noise.std() == pytest.approx(0.2, rel=0.05)
    assert abs(np.corrcoef(noise.reshape(4, -1)) - np.eye(4)).max() < 0.1  # views have nothing in common
    assert seen.summary().mean_atoms == pytest.approx(store.size(seen.rows).mean())
    everything = np.asarray(seen.atom_states, np.float64)[:, 0]
    np.testing.assert_allclose(seen.summary().atoms.mean[0], everything.mean(0), atol=1e-3)
    np.testing.assert_allclose(seen.summary().atoms.std[0], everything.std(0), rtol=1e-3)


def test_a_view_is_drawn_by_seed_and_row_alone(seen: TargetStore) -> None:
    rows = seen.rows
    together = seen.entries(rows, draw=5)
    alone = np.concatenate([seen.entries(rows[[place]], draw=5) for place in range(len(rows))])
    shuffled = np.random.default_rng(0).permutation(len(rows))
    assert (together == alone).all()
    assert (together[shuffled] == seen.entries(rows[shuffled], draw=5)).all()
    assert (together // 4 == np.arange(len(rows))).all()
    drawn = np.stack([seen.entries(rows, draw=draw) % 4 for draw in range(400)])
    counts = np.stack([(drawn == view).sum(0) for view in range(4)])
    assert counts.min() > 60  # of 100 expected: 4.6 standard deviations
    agreement = (drawn[:-1] == drawn[1:]).mean()
    assert agreement == pytest.approx(0.25, abs=0.02)  # neighbouring seeds have nothing in common
    between = (drawn[:, :-1] == drawn[:, 1:]).mean()
    assert between == pytest.approx(0.25, abs=0.02)  # nor have neighbouring rows
    first, second = (seen.gather(rows, 30, draw=draw).atom_states for draw in (5, 6))
    assert torch.equal(first, seen.gather(rows, 30, draw=5).atom_states)
    assert not torch.equal(first, second)


RUN = {"role": "teacher", "model": {"width": 16, "depth": 2, "heads": 2, "kernels": 4}}


@pytest.fixture(scope="module")
def runs(tiny_store: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """A teacher of all rows, and three that each left out a part."""
    folder = tmp_path_factory.mktemp("runs")
    folds = [{}, *({"folds": 3, "fold": fold} for fold in range(3))]
    return [
        run_trial(
            TrialSpec(load_run(RUN | {"training": {"epochs": 1, "batch_size": 16} | fold}), tiny_store, folder / str(k))
        ).path
        for k, fold in enumerate(folds)
    ]


def test_soft_labels_come_from_who_did_not_see_the_row(
    runs: list[Path], tiny_store: Path, store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    teacher, *others = runs
    result = cache_teacher(teacher, tiny_store, tmp_path / "crossed", soft_labels=[others[2], others[0], others[1]])
    log = capsys.readouterr().err
    cache_teacher(teacher, tiny_store, tmp_path / "plain")
    crossed, plain = TargetStore.open(tmp_path / "crossed"), TargetStore.open(tmp_path / "plain")
    assert np.array_equal(crossed.atom_states, plain.atom_states)
    part = fold_of(crossed.rows, 3)
    for fold in range(3):
        run = load_run_folder(others[fold])
        rows = crossed.rows[part == fold]
        assert run.settings.training.fold == fold
        expected = predict(run.model, store, rows, role="teacher", scale=run.scale)
        np.testing.assert_allclose(crossed.prediction[part == fold], expected, atol=1e-5)
    errors = [float(np.abs(targets.prediction - store.target[targets.rows]).mean()) for targets in (crossed, plain)]
    soft = result.facts["soft_labels"]
    assert soft == {
        "folds": 3,
        "labelled": len(plain.rows),
        "mae": pytest.approx(errors[0]),
        "teacher_mae": pytest.approx(errors[1]),
    }
    assert f"{errors[0]:.4f} eV" in log
    assert f"{errors[1]:.4f} eV" in log
    assert plain.manifest.facts["soft_labels"]["mae"] == plain.manifest.facts["soft_labels"]["teacher_mae"]
    assert [name for name in crossed.manifest.inputs if name.startswith("soft")] == [
        f"soft_labels/{k}" for k in range(3)
    ]
    with pytest.raises(InputError, match="they differ in soft labels"):
        cache_teacher(teacher, tiny_store, tmp_path / "crossed")


def test_soft_labels_of_views_are_those_of_the_same_noise(seen: TargetStore, store: Store, tmp_path: Path) -> None:
    """Teachers that say the positions they are shown, each with a scale of its own."""
    scales = [TargetScale(float(fold), 10.0**fold, 0.0) for fold in range(3)]
    folds = [Teacher(Echo(), scale, str(scale.mean)) for scale in scales]
    settings = CacheSettings(views=4, noise=0.2, seed=7)
    made = cache_targets(Teacher(Echo(), SCALE, "echo"), store, tmp_path / "t", settings=settings, soft_labels=folds)
    targets = TargetStore.open(made.path)
    own = ((seen.prediction.astype(np.float64) - SCALE.mean) / SCALE.std).reshape(-1, 4)
    part = fold_of(targets.rows, 3)
    expected = np.stack([own[row] * scales[fold].std + scales[fold].mean for row, fold in enumerate(part)])
    np.testing.assert_allclose(targets.prediction.reshape(-1, 4), expected, rtol=1e-4, atol=1e-4)
    assert np.array_equal(targets.atom_states, seen.atom_states)
    assert made.facts["soft_labels"]["mae"] == pytest.approx(
        np.abs(expected - store.target[targets.rows][:, None]).mean(), rel=1e-4
    )


@pytest.mark.parametrize(
    ("chosen", "message"),
    [
        ([1, 2], "no teacher with training.fold 2 of training.folds 3"),
        ([1, 2, 2, 3], "two teachers left out part 1"),
        ([1, 0, 3], "was trained on all rows"),
        ([1, 2, "halves"], "different numbers of parts"),
        (["student", 1, 2], "is not a teacher's run"),
    ],
)
def test_soft_labels_need_every_part_once(
    chosen: list[int | str], message: str, runs: list[Path], tiny_store: Path, tmp_path: Path
) -> None:
    def run(which: int | str) -> Path:
        if isinstance(which, int):
            return runs[which]
        copy = Path(shutil.copytree(runs[3], tmp_path / which))
        text = (copy / "config.yaml").read_text()
        if which == "halves":
            changed = text.replace("folds: 3", "folds: 4")
        else:
            changed = text.replace("role: teacher", "role: student")
        assert changed != text
        (copy / "config.yaml").write_text(changed)
        edit_manifest(copy, lambda manifest: manifest["files"]["config.yaml"].update(size=len(changed.encode())))
        return copy

    if "student" in chosen:
        student = load_run(
            {"role": "student", "model": {"width": 16, "depth": 1, "heads": 2}, "training": {"epochs": 1}}
        )
        run_trial(TrialSpec(student, tiny_store, tmp_path / "student"))
        paths = [tmp_path / "student", *(run(which) for which in chosen[1:])]
    else:
        paths = [run(which) for which in chosen]
    with pytest.raises(InputError) as caught:
        cache_teacher(runs[0], tiny_store, tmp_path / "targets", soft_labels=paths)
    assert message in str(caught.value)
    assert not (tmp_path / "targets").exists()


@pytest.mark.parametrize("settings", [{}, {"channels": 3}, {"bits": 8}, {"views": 2, "noise": 0.1}])
@pytest.mark.parametrize("where", ["prediction", "graph", "atom"])
@pytest.mark.parametrize("value", [float("nan"), float("-inf"), 7e4])
def test_a_molecule_that_the_teacher_fails_on_is_left_out(
    value: float, where: str, settings: dict[str, object], cached: Cache, table: Table, store: Store
) -> None:
    whole = cached("whole", layers=(2,))
    bad = int(whole.rows[13])
    if where == "prediction":
        table.prediction[bad] = value
    else:
        getattr(table, where)[bad][..., -1, 3] = value
    targets = cached(layers=(2,), **settings)
    assert targets.rows.tolist() == [row for row in whole.rows.tolist() if row != bad]
    left_out = targets.manifest.facts["left_out"]
    assert left_out["rows"] == 1
    assert left_out["first"].startswith(f"row {bad} (")
    taught = targets.gather(np.array([bad, targets.rows[0]]), 20)
    assert taught.known.tolist() == [False, True]
    summary = targets.summary()
    for statistics in (summary.graph, summary.atoms):
        assert all(torch.isfinite(getattr(statistics, name)).all() for name in ("mean", "std", "whitening"))
    if not settings:  # the others keep what was said of them, wherever they moved in the file
        for kind in ("graph", "atom"):
            truth = said(table, store, targets.rows, kind)[:, 1:]
            np.testing.assert_allclose(kept(targets, kind), truth, rtol=1e-3, atol=1e-3)
        expected = table.prediction[targets.rows.tolist()] * SCALE.std + SCALE.mean
        np.testing.assert_allclose(targets.prediction, expected, rtol=1e-6)
        mean = said(table, store, targets.rows, "atom")[:, 1:].mean(0)
        np.testing.assert_allclose(summary.atoms.mean, mean, atol=1e-3)


@pytest.mark.parametrize("bad", [2, None])
def test_a_teacher_that_fails_on_many_is_refused(
    bad: int | None, cached: Cache, table: Table, store: Store, tmp_path: Path
) -> None:
    rows = store.rows("train")
    table.graph[rows[:bad].tolist()] = float("nan")
    with pytest.raises(RunError, match="nothing usable") as caught:
        cached(bits=8, channels=2)
    assert f"row {rows[0]} (nan)" in str(caught.value)
    assert "optimizer.learning_rate" in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_a_fold_teacher_that_fails_is_noticed(store: Store, table: Table, tmp_path: Path) -> None:
    other = Table(store)
    part = fold_of(rows := store.rows("train"), 2)
    bad = rows[part == 1][0]
    other.prediction[bad] = float("nan")
    folds = [Teacher(table, SCALE, "first"), Teacher(other, SCALE, "second")]
    made = cache_targets(Teacher(table, SCALE, "table"), store, tmp_path / "targets", soft_labels=folds)
    targets = TargetStore.open(made.path)
    assert bad not in targets.rows
    assert made.facts["left_out"]["rows"] == 1
    other.prediction[:] = float("nan")
    with pytest.raises(RunError, match="nothing usable"):
        cache_targets(Teacher(table, SCALE, "table"), store, tmp_path / "other", soft_labels=folds)


@pytest.mark.parametrize("settings", [{}, {"channels": 3}, {"bits": 8}, {"channels": WIDTH, "bits": 8}])
@pytest.mark.parametrize("value", [0.0, 2.7, -300.1])
def test_a_constant_teacher_standardizes_to_zero(
    value: float, settings: dict[str, object], cached: Cache, table: Table
) -> None:
    table.graph[:], table.atom[:] = value, value
    targets = cached(**settings)
    summary, taught = targets.summary(), targets.gather(targets.rows, 25)
    for states, statistics in ((taught.graph_states, summary.graph), (taught.atom_states[:, :, 0], summary.atoms)):
        for layer in range(LAYERS):
            centred = states[layer] - statistics.mean[layer]
            assert (centred / statistics.std[layer]).abs().max() < 0.1
            assert (centred @ statistics.whitening[layer]).abs().max() < 0.3
    for facts in targets.manifest.facts["states"].values():
        assert facts["kept"] == facts["explained"] == [None, None]
        assert facts["error"] == [None, None] if value == 0 else max(facts["error"]) < 0.01


@pytest.mark.parametrize("settings", [{}, {"channels": 5, "bits": 8}])
def test_a_single_molecule_is_enough(
    settings: dict[str, object], cached: Cache, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "readable", lambda *given: store.rows("train")[:1])
    targets = cached(**settings)
    assert len(targets.rows) == 1
    summary = targets.summary()
    taught = targets.gather(targets.rows, 20)
    for statistics in (summary.graph, summary.atoms):
        assert all(torch.isfinite(getattr(statistics, name)).all() for name in ("mean", "std", "whitening"))
    assert ((taught.graph_states[:, 0] - summary.graph.mean) / summary.graph.std).abs().max() < 0.1


def test_moments_do_not_drown_in_a_large_mean() -> None:
    draw = torch.Generator().manual_seed(0)
    states = 1e-3 * torch.randn(2, 500, 4, generator=draw, dtype=torch.float64) + 1e4
    moments = Moments.empty(2, 4)
    for part in states.split(64, 1):
        moments.add(part)
    torch.testing.assert_close(moments.covariance[1], torch.cov(states[1].T, correction=0), rtol=1e-6, atol=1e-14)
    torch.testing.assert_close(moments.mean, states.mean(1), rtol=1e-12, atol=0)


@pytest.mark.parametrize(
    ("layers", "expected"), [("all", (1, 2)), ("last", (2,)), ("every 2", (2,)), ("every 1", (1, 2)), ((2, 1), (1, 2))]
)
def test_layers_are_named_as_in_the_settings(
    layers: object, expected: tuple[int, ...], cached: Cache, table: Table, store: Store
) -> None:
    targets = cached(layers=layers)
    assert targets.layers == targets.summary().layers == expected
    truth = said(table, store, targets.rows, "graph")[:, [layer - 1 for layer in expected]]
    np.testing.assert_allclose(kept(targets, "graph"), truth, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"layers": (3,)}, "whole numbers from 1 to 2"), ({"channels": 9}, "at most 8, the teacher's width")],
)
def test_what_the_teacher_has_not_cannot_be_kept(settings: dict[str, object], message: str, cached: Cache) -> None:
    with pytest.raises(InputError, match=message):
        cached(**settings)


@pytest.mark.parametrize("settings", [{"layers": "some"}, {"layers": (2, 2)}, {"views": 2}])
def test_settings_that_make_no_sense_are_refused(settings: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"layers|views"):
        CacheSettings(**settings)  # type: ignore[arg-type]


KEPT = CacheSettings(views=2, noise=0.1)
CHANGES: dict[str, dict[str, object]] = {
    "layers": {"layers": "last"},
    "channels": {"channels": 4},
    "bits": {"bits": 8},
    "views": {"views": 3},
    "noise": {"noise": 0.2},
    "seed": {"seed": 1},
}


@pytest.fixture
def finished(store: Store, table: Table, tmp_path: Path) -> Cached:
    return cache_targets(Teacher(table, SCALE, "table"), store, tmp_path / "targets", settings=KEPT)


@pytest.mark.parametrize("key", [*CHANGES, "teacher", "store", "soft labels"])
def test_other_targets_are_refused_by_name(key: str, finished: Cached, store: Store, table: Table) -> None:
    teacher, before = Teacher(table, SCALE, "table"), sorted(finished.path.iterdir())
    if key == "store":
        edit_manifest(finished.path, lambda manifest: manifest["inputs"].update(store="another one"))
    settings = replace(KEPT, **CHANGES.get(key, {}))  # type: ignore[arg-type]
    asked = replace(teacher, identity="another one") if key == "teacher" else teacher
    with pytest.raises(InputError, match=f"holds other targets: they differ in {key}\n") as caught:
        cache_targets(
            asked, store, finished.path, settings=settings, soft_labels=[teacher] * 2 if key == "soft labels" else []
        )
    assert caught.value.remedy is not None and "--out" in caught.value.remedy
    assert key in str(caught.value.got)
    assert key in str(caught.value.expected)
    assert sorted(finished.path.iterdir()) == before


def test_the_same_targets_are_left_alone(
    finished: Cached, store: Store, table: Table, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {path: path.stat().st_mtime_ns for path in finished.path.iterdir()}
    again = cache_targets(Teacher(table, SCALE, "table"), store, finished.path, settings=replace(KEPT, layers=(1, 2)))
    assert again == replace(finished, made=False, facts=again.facts)
    assert {path: path.stat().st_mtime_ns for path in finished.path.iterdir()} == before
    assert "holds these targets already: 41 molecules" in capsys.readouterr().err
    assert list(finished.path.parent.iterdir()) == [finished.path]  # no lock is left


def test_a_damaged_folder_is_not_taken_for_finished(finished: Cached, store: Store, table: Table) -> None:
    column = finished.path / "atom_states.npy"
    content = column.read_bytes()
    column.write_bytes(content[:-1])
    for work in (
        TargetStore.open,
        lambda path: cache_targets(Teacher(table, SCALE, "table"), store, path, settings=KEPT),
    ):
        with pytest.raises(InputError, match="is damaged"):
            work(finished.path)
    column.write_bytes(content)
    offsets = np.load(finished.path / "atom_offsets.npy")
    np.save(finished.path / "atom_offsets.npy", offsets + 1)  # as long as before, and leads out of the column
    with pytest.raises(InputError, match="is damaged"):
        TargetStore.open(finished.path)


def test_targets_of_an_older_version_say_so(finished: Cached, store: Store, table: Table) -> None:
    edit_manifest(finished.path, lambda manifest: manifest["facts"].pop("targets_schema"))
    for work in (
        TargetStore.open,
        lambda path: cache_targets(Teacher(table, SCALE, "table"), store, path, settings=KEPT),
    ):
        with pytest.raises(InputError, match="another version") as caught:
            work(finished.path)
        assert caught.value.remedy is not None and "cache" in caught.value.remedy


def test_what_a_killed_pass_left_is_removed(cached: Cache, tmp_path: Path) -> None:
    (tmp_path / ".targets.ab_1cdef.partial").mkdir()
    (tmp_path / ".targets.ab_1cdef.partial" / "atom_states.npy").write_bytes(b"much")
    (tmp_path / ".targets.more.ab_1cdef.partial").mkdir()  # of another folder
    cached()
    assert sorted(path.name for path in tmp_path.iterdir()) == [".targets.more.ab_1cdef.partial", "targets"]


def test_two_processes_do_not_write_the_same_folder(cached: Cache, tmp_path: Path) -> None:
    with (
        exclusive(tmp_path / ".targets.caching", "held"),
        pytest.raises(InputError, match="is being written already"),
    ):
        cached()


@pytest.mark.parametrize("settings", [{}, {"views": 3, "noise": 0.1}, {"bits": 8, "channels": 4}, {"layers": "last"}])
def test_the_size_is_said_first_and_right(
    settings: dict[str, object], cached: Cache, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    targets = cached("first", **settings)
    assert "teacher's targets take" in capsys.readouterr().err.splitlines()[0]
    size = sum(entry.size for name, entry in targets.manifest.files.items() if name != "statistics.npz")
    headers = 5 * 128
    usage = shutil.disk_usage(targets.path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=int((size - headers) / 0.95) + 8))
    cached("fits", **settings)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=int((size - headers - 16) / 0.95)))
    with pytest.raises(RunError, match="do not fit") as caught:
        cached("too large", **settings)
    for option in ("--layers", "--channels", "--bits 8", "--views", "--out"):
        assert option in str(caught.value)
    assert not (targets.path.parent / "too large").exists()


def test_a_full_disk_is_told(cached: Cache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*given: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(RunError, match="no space left"):
        cached()
    assert list(tmp_path.iterdir()) == []


def test_the_command_line(
    runs: list[Path],
    tiny_store: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def command(*more: str) -> tuple[int, str, str]:
        arguments = ["cache", str(runs[0]), "--store", str(tiny_store), "--out", str(tmp_path / "t"), *more]
        monkeypatch.setattr(sys, "argv", ["moldistill", *arguments])
        code = 0
        try:
            main()
        except SystemExit as stop:
            code = int(stop.code or 0)
        said = capsys.readouterr()
        return code, said.out, said.err

    options = ["--layers", "every 2", "--channels", "4", "--bits", "8", "--views", "2", "--noise", "0.05"]
    options += [word for run in runs[1:] for word in ("--soft-labels", str(run))]
    code, out, log = command(*options, "--json")
    assert code == 0, log
    (tmp_path / "result.json").write_text(out)
    result = read_json(tmp_path / "result.json")
    assert result["made"] is True
    assert result["facts"]["options"] == {"layers": [2], "channels": 4, "bits": 8, "views": 2, "noise": 0.05, "seed": 0}
    assert result["bytes"] == sum(path.stat().st_size for path in (tmp_path / "t").iterdir() if path.suffix != ".json")
    for words in ("atoms, layer 2", "variance kept", "8 bits", "3 teachers that had not seen them", "next:"):
        assert words in log
    code, out, log = command(*options)
    assert (code, out) == (0, "")
    assert "there was nothing to do" in log
    assert "moldistill train student-small-distilled targets=" in log
    assert "wrote" not in log
    code, out, log = command(*options, "--layers", "2,1")
    assert (code, out) == (2, "")
    assert "they differ in layers" in log
    for wrong, word in (
        (["--layers", "0"], "--layers"),
        (["--layers", "2,x"], "--layers"),
        (["--layers", "first"], "--layers"),
        (["--bits", "12"], "bits"),
        (["--channels", "0"], "channels"),
        (["--views", "3"], "noise"),
        (["--noise", "-1"], "noise"),
    ):
        code, out, log = command(*wrong)
        assert (code, out) == (2, "")
        assert word in log
        assert "Traceback" not in log

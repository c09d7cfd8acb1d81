from __future__ import annotations

import csv
import gzip
import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from manifests import edit_manifest
from moldistill.core.artifacts import read_manifest
from moldistill.core.errors import InputError
from moldistill.core.settings import ModelSettings, RunSettings, TrainingSettings
from moldistill.data.predictions import Predictions
from moldistill.data.store import Store
from moldistill.delivery.ensemble import ensemble
from moldistill.delivery.predict import HEADER, predict
from moldistill.trial.run import run_trial
from moldistill.trial.spec import TrialSpec

SMILES = ["CCO", "c1ccccc1O", "C1CC", "F[Si](F)(F)(F)(F)F", "C" * 40, "", "CC(=O)N", "CCO"]


def settings(seed: int, role: str = "student") -> RunSettings:
    model = ModelSettings(width=16, depth=1, heads=2)
    return RunSettings(role=role, model=model, training=TrainingSettings(epochs=1, seed=seed))  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def runs(tiny_store: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("runs")
    for seed in (0, 1):
        run_trial(TrialSpec(settings(seed), tiny_store, folder / str(seed)))
    return [folder / "0", folder / "1"]


def write_smiles(path: Path, smiles: Sequence[str]) -> Path:
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(("name", "smiles"))
    writer.writerows((f"molecule {place}", item) for place, item in enumerate(smiles))
    content = text.getvalue().encode()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return path


def read(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as stream:
        lines = list(csv.DictReader(stream))
    assert not lines or tuple(lines[0]) == HEADER
    return lines


def test_every_row_has_a_row(tmp_path: Path, runs: list[Path]) -> None:
    summary = predict(runs[0], write_smiles(tmp_path / "in.csv", SMILES), tmp_path / "out.csv")
    lines = read(tmp_path / "out.csv")
    assert [line["row"] for line in lines] == [str(place) for place in range(len(SMILES))]
    assert [line["smiles"] for line in lines] == SMILES
    flags = ["fine", "fine", "refused", "unsanitized", "fine", "empty", "fine", "fine"]
    assert [line["flag"] for line in lines] == flags
    median = read_manifest(runs[0]).facts["scale"]["median"]
    for place in (2, 5):
        assert float(lines[place]["prediction"]) == pytest.approx(median, abs=1e-6)
        assert lines[place]["reason"]
    assert lines[3]["reason"]
    assert "40 atoms" in lines[4]["reason"]
    assert lines[0]["prediction"] == lines[7]["prediction"]
    assert {line["spread"] for line in lines} == {""}
    assert (summary.rows, summary.refused, summary.outside, summary.members) == (8, 2, 1, 1)


def test_predictions_are_those_of_the_run_folder_whatever_the_chunks(
    tmp_path: Path, runs: list[Path], tiny_store: Path
) -> None:
    store = Store.open(tiny_store)
    rows = store.rows("valid")
    source = write_smiles(tmp_path / "in.csv.gz", [store.smiles(int(row)) for row in rows])
    saved = Predictions.load(runs[0] / "predictions" / "valid.npz")
    for chunk in (5, 1000):
        predict(runs[0], source, tmp_path / f"{chunk}.csv", chunk=chunk)
        found = [float(line["prediction"]) for line in read(tmp_path / f"{chunk}.csv")]
        np.testing.assert_allclose(found, saved.y_pred, rtol=0, atol=2e-5)


def test_an_ensemble_predicts_the_weighted_mean_and_spread(
    tmp_path: Path, runs: list[Path], tiny_store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("moldistill.delivery.ensemble.MIN_ROWS", 4)
    summary = ensemble(runs, tmp_path / "ensemble", store=tiny_store)
    source = write_smiles(tmp_path / "in.csv", SMILES)
    predict(tmp_path / "ensemble", source, tmp_path / "out.csv")
    singles = []
    for place, member in enumerate(summary.members):
        predict(Path(member.path), source, tmp_path / f"{place}.csv")
        singles.append([float(line["prediction"]) for line in read(tmp_path / f"{place}.csv")])
    weights = np.array([member.weight for member in summary.members])
    mean = weights @ np.array(singles)
    spread = np.sqrt(weights @ (np.array(singles) - mean) ** 2)
    lines = read(tmp_path / "out.csv")
    np.testing.assert_allclose([float(line["prediction"]) for line in lines], mean, atol=2e-5)
    if len(weights) > 1:
        known = [place for place, line in enumerate(lines) if line["spread"]]
        assert len(known) == 6
        np.testing.assert_allclose([float(lines[place]["spread"]) for place in known], spread[known], atol=2e-5)


def test_a_changed_member_is_refused(
    tmp_path: Path, runs: list[Path], tiny_store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("moldistill.delivery.ensemble.MIN_ROWS", 4)
    run = tmp_path / "run"
    run_trial(TrialSpec(settings(3), tiny_store, run))
    ensemble([run], tmp_path / "ensemble", store=tiny_store)
    edit_manifest(run, lambda manifest: next(iter(manifest["files"].values())).update(sha256="0"))
    with pytest.raises(InputError, match="has changed"):
        predict(tmp_path / "ensemble", write_smiles(tmp_path / "in.csv", SMILES), tmp_path / "out.csv")


def test_wrong_models_and_files_are_refused_and_nothing_is_written(
    tmp_path: Path, runs: list[Path], tiny_store: Path
) -> None:
    source, out = write_smiles(tmp_path / "in.csv", SMILES), tmp_path / "out.csv"
    teacher = tmp_path / "teacher"
    run_trial(TrialSpec(settings(0, "teacher"), tiny_store, teacher))
    with pytest.raises(InputError, match="sees 3D geometry"):
        predict(teacher, source, out)
    with pytest.raises(InputError, match="cannot predict"):
        predict(tiny_store, source, out)
    with pytest.raises(InputError, match="does not exist"):
        predict(runs[0], tmp_path / "missing.csv", out)
    with pytest.raises(InputError, match="is the input"):
        predict(runs[0], source, source)
    with pytest.raises(InputError, match="is a folder"):
        predict(runs[0], source, tmp_path)
    (tmp_path / "bare.csv").write_text("name\nCCO\n")
    with pytest.raises(InputError):
        predict(runs[0], tmp_path / "bare.csv", out)
    assert not out.exists()
    assert not list(tmp_path.glob(".*partial"))

"""`export`: a folder that predicts the same to the bit, without study, store or targets, and says where it ends."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from manifests import edit_manifest
from moldistill.chem.featurize import featurize
from moldistill.core.artifacts import read_manifest, verify_hashes
from moldistill.core.errors import InputError, RunError
from moldistill.core.records import TargetScale
from moldistill.core.settings import ModelSettings
from moldistill.delivery import portable
from moldistill.delivery.engine import batches
from moldistill.delivery.export import export
from moldistill.delivery.plain import INPUTS, PlainStudent, inputs_of
from moldistill.delivery.predict import predict
from moldistill.delivery.predictor import load_predictor
from moldistill.models.made_up import made_up_batch
from moldistill.models.registry import build_model
from moldistill.trial.run import run_trial
from moldistill.trial.spec import TrialSpec
from predicting import CALIBRATION, SMILES, column, make_ensemble, settings, write_smiles

NAMES = ("transformer", "hybrid")


@pytest.fixture(scope="module")
def runs(tiny_store: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """One run of each student that has a plain form."""
    folder = tmp_path_factory.mktemp("runs")
    for seed, name in enumerate(NAMES):
        run_trial(TrialSpec(settings(seed, name=name), tiny_store, folder / name))
    return [folder / name for name in NAMES]


def copied(runs: list[Path], folder: Path) -> list[Path]:
    """The runs in another place, whose store is gone: to be removed, too."""
    copies = [Path(shutil.copytree(run, folder / run.name)) for run in runs]
    for copy in copies:
        edit_manifest(copy, lambda manifest: manifest["facts"].update(store_path=str(folder / "gone")))
    return copies


def test_an_export_predicts_the_same_to_the_bit_without_what_it_was_made_of(
    tmp_path: Path, runs: list[Path], tiny_store: Path
) -> None:
    source = write_smiles(tmp_path / "in.csv", SMILES)
    members = copied(runs, tmp_path / "runs")
    keys = {"combination": "weighted", "class_edges": [7], "class_weights": [[0.5, 0.5], [0.1, 0.9]]}
    ensemble = make_ensemble(tmp_path / "ensemble", members, [0.3, 0.7], calibration=CALIBRATION, **keys)
    for model in (ensemble, members[0]):
        predict(model, source, tmp_path / "before.csv", store=tiny_store)
        predict(model, source, tmp_path / "before.parquet", store=tiny_store)
        summary = export(model, tmp_path / f"{model.name}-export", store=tiny_store)
        assert summary.parameters == sum(read_manifest(run).facts["parameters"] for run in members[: summary.members])
        moved = shutil.move(tmp_path / f"{model.name}-export", tmp_path / "elsewhere" / model.name)
        hidden = shutil.move(tmp_path / "runs", tmp_path / "hidden")
        for name in ("csv", "parquet"):
            predict(Path(moved), source, tmp_path / f"after.{name}")
            assert (tmp_path / f"after.{name}").read_bytes() == (tmp_path / f"before.{name}").read_bytes()
        shutil.move(hidden, tmp_path / "runs")


def test_no_place_of_the_machine_is_in_it_and_the_card_says_what_matters(
    tmp_path: Path, runs: list[Path], tiny_store: Path
) -> None:
    folder = tmp_path / "export"
    for kind in ("onnx", "torchscript"):
        shutil.rmtree(folder, ignore_errors=True)
        export(runs[0], folder, graph=kind)
        for path in folder.rglob("*"):
            if path.is_file():
                parts = [path.read_bytes()]
                if zipfile.is_zipfile(path):
                    with zipfile.ZipFile(path) as packed:
                        parts += [packed.read(name) for name in packed.namelist()]
                for place in (tmp_path, tiny_store, runs[0], Path(__file__).parents[1]):
                    assert not any(str(place).encode() in content for content in parts), path
    card, facts = (folder / "README.md").read_text(), read_manifest(runs[0]).facts
    for text in (
        f"{facts['parameters']:,} parameters",
        f"at most {facts['largest_training_molecule']} heavy atoms",
        "C, N, O, F, S, Cl",
        facts["store"],
        f"{facts['training_rows']:,}",
        f"{facts['scale']['median']:.4f} eV",
        "Licence:",
        "members/000/model.torchscript.pt",
    ):
        assert text in card, text
    classes = json.loads((folder / "export.json").read_text())["errors_by_size"]
    for found, expected in zip(classes, facts["errors_by_size"]["valid"], strict=True):
        assert found["mae"] == pytest.approx(expected["mae"], rel=1e-5)
        assert found["low"] <= found["mae"] <= found["high"]
        assert f"| {found['smallest']} to {found['largest']} | {found['rows']} | {found['mae']:.4f} |" in card


def test_without_the_store_the_card_says_less(tmp_path: Path, runs: list[Path]) -> None:
    (run,) = copied(runs[:1], tmp_path / "runs")
    export(run, tmp_path / "export")
    raw = json.loads((tmp_path / "export" / "export.json").read_text())
    assert raw["training_elements"] is None
    assert {item["low"] for item in raw["errors_by_size"]} == {None}
    assert "not known" in (tmp_path / "export" / "README.md").read_text()
    assert load_predictor(tmp_path / "export").elements is None


def test_whatever_was_changed_is_refused_but_for_the_card(tmp_path: Path, runs: list[Path]) -> None:
    folder, source = tmp_path / "export", write_smiles(tmp_path / "in.csv", SMILES)
    export(runs[1], folder, graph="torchscript")
    assert not verify_hashes(folder)
    random = np.random.default_rng(0)
    for path in sorted(folder.rglob("*")):
        if not path.is_file():
            continue
        content = bytearray(path.read_bytes())
        content[int(random.integers(len(content)))] ^= 1
        path.write_bytes(content)
        if path.name == "README.md":
            predict(folder, source, tmp_path / "out.csv")
        else:
            with pytest.raises(InputError):
                predict(folder, source, tmp_path / "never.csv")
            content = bytearray(path.read_bytes())
            shutil.rmtree(folder)
            export(runs[1], folder, graph="torchscript")
    assert not (tmp_path / "never.csv").exists()


def test_an_export_of_another_vocabulary_or_version_is_refused(tmp_path: Path, runs: list[Path]) -> None:
    from moldistill.core.artifacts import hash_file

    for key, value, message in (("vocabulary", "other", "another vocabulary"), ("export_schema", 0, "another version")):
        folder = tmp_path / key
        export(runs[0], folder)
        path = folder / "export.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {key: value}, indent=2) + "\n")
        entry = {"size": path.stat().st_size, "sha256": hash_file(path)}

        def restate(manifest: dict, entry: dict = entry) -> None:
            manifest["files"]["export.json"] = entry

        edit_manifest(folder, restate)
        content = json.loads((folder / "manifest.json").read_text())
        from moldistill.core.artifacts import hash_object

        files = {name: item["sha256"] for name, item in content["files"].items()}
        edit_manifest(
            folder,
            lambda manifest, files=files: manifest.update(
                identity=hash_object([manifest["kind"], manifest["schema"], files])
            ),
        )
        with pytest.raises(InputError, match=message):
            load_predictor(folder)


@pytest.mark.parametrize("walks", [0, 5])
@pytest.mark.parametrize("name", NAMES)
def test_the_plain_form_is_the_student(name: str, walks: int) -> None:
    """Weights far from their beginnings, and molecules of fragments, without bonds, of one atom and of many."""
    torch.manual_seed(walks)
    model = build_model("student", ModelSettings(name, width=32, depth=3, heads=4, walks=walks, max_path=3)).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    plain = PlainStudent(model, TargetScale(5.0, 1.3, 5.0)).double().eval()
    model = model.double()

    @hypothesis_settings(max_examples=25, deadline=None)
    @given(st.lists(st.integers(1, 12), min_size=1, max_size=6), st.integers(0, 1000))
    def held(sizes: list[int], seed: int) -> None:
        molecules = made_up_batch(torch.float64, sizes, seed).molecules
        with torch.no_grad():
            # The model's prediction is in 32 bits whatever it computes in.
            expected = model(molecules).prediction.double() * 1.3 + 5.0
            torch.testing.assert_close(plain(*inputs_of(molecules)), expected, atol=1e-5, rtol=1e-6)

    held()
    with torch.no_grad():
        values = plain(*inputs_of(made_up_batch(torch.float64).molecules))
    assert len(values.round(decimals=4).unique()) == 6


@pytest.mark.parametrize("kind", ["torchscript", "onnx"])
def test_graphs_of_operators_predict_the_same(kind: str, tmp_path: Path, runs: list[Path]) -> None:
    """Real molecules through the files themselves, against `predict` of the exported folder."""
    ensemble = make_ensemble(tmp_path / "ensemble", runs, [0.5, 0.5])
    summary = export(ensemble, tmp_path / "export", graph=kind)
    assert len(summary.graphs) == 2
    smiles = ["CCO", "c1ccccc1O", "CC(=O)N", "C" * 40, "F[Si](F)(F)(F)(F)F", "[Na+].[Cl-]", "C"]
    graphs = featurize(smiles)
    for place, name in enumerate(summary.graphs):
        path = tmp_path / "export" / name
        found = np.zeros(len(smiles), np.float32)
        for rows, molecules in batches(graphs, np.arange(len(smiles)), 1000):
            inputs = inputs_of(molecules)
            if kind == "torchscript":
                found[rows] = torch.jit.load(str(path))(*inputs).numpy()
            else:
                feed = {key: value.numpy() for key, value in zip(INPUTS, inputs, strict=True)}
                found[rows] = onnxruntime.InferenceSession(str(path)).run(None, feed)[0]
        predict(runs[place], write_smiles(tmp_path / "in.csv", smiles), tmp_path / "out.csv")
        np.testing.assert_allclose(found, column(tmp_path / "out.csv", "prediction"), rtol=0, atol=1e-5)


def test_torchscript_runs_without_the_package(tmp_path: Path, runs: list[Path]) -> None:
    (name,) = export(runs[1], tmp_path / "export", graph="torchscript").graphs
    molecules = made_up_batch(torch.float32).molecules
    torch.save(inputs_of(molecules), tmp_path / "inputs.pt")
    code = f"""
import sys
sys.modules["moldistill"] = None
import torch
model = torch.jit.load({str(tmp_path / "export" / name)!r})
print(model(*torch.load({str(tmp_path / "inputs.pt")!r})).tolist())
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path)
    member = load_predictor(runs[1]).members[0]
    with torch.no_grad():
        expected = member.model(molecules).prediction * member.scale.std + member.scale.mean
    np.testing.assert_allclose(json.loads(done.stdout), expected.numpy(), atol=1e-5)


def test_a_graph_that_differs_is_not_kept(tmp_path: Path, runs: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    run = portable._torchscript
    monkeypatch.setattr(portable, "_torchscript", lambda path: lambda inputs: run(path)(inputs) + 1e-3)
    with pytest.raises(RunError, match="does not predict what it does here"):
        export(runs[0], tmp_path / "export", graph="torchscript")
    assert not list(tmp_path.iterdir())


def test_what_cannot_be_exported_is_refused_and_nothing_is_written(
    tmp_path: Path, runs: list[Path], tiny_store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gine, teacher, out = tmp_path / "gine", tmp_path / "teacher", tmp_path / "out" / "export"
    run_trial(TrialSpec(settings(0, name="gine"), tiny_store, gine))
    with pytest.raises(InputError, match="no form in plain operators"):
        export(gine, out, graph="torchscript")
    run_trial(TrialSpec(settings(0, "teacher"), tiny_store, teacher))
    with pytest.raises(InputError, match="sees 3D geometry"):
        export(teacher, out)
    with pytest.raises(InputError, match="no such format"):
        export(runs[0], out, graph="tensorflow")
    monkeypatch.setattr(portable, "find_spec", lambda name: None)
    with pytest.raises(InputError, match="what that takes is not installed"):
        export(runs[0], out, graph="onnx")
    assert not out.parent.exists() or not list(out.parent.iterdir())
    export(gine, out)
    with pytest.raises(InputError, match="is an export"):
        export(out, tmp_path / "twice")
    with pytest.raises(InputError, match="is not empty"):
        export(runs[0], out)


def test_the_command_line_exports(
    tmp_path: Path, runs: list[Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from moldistill.cli import main

    for arguments in (
        ("export", runs[0], "--out", tmp_path / "export", "--format", "torchscript", "--json"),
        ("predict", tmp_path / "export", write_smiles(tmp_path / "in.csv", SMILES), "--out", tmp_path / "out.csv"),
    ):
        monkeypatch.setattr(sys, "argv", ["moldistill", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
        assert not ended.value.code
    said = capsys.readouterr()
    assert json.loads(said.out)["graphs"] == ["members/000/model.torchscript.pt"]
    assert "fill in the licence" in said.err
    assert len(column(tmp_path / "out.csv", "prediction")) == len(SMILES)

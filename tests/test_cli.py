"""The command line as a user meets it: exit codes, messages, what goes to stdout, and wrong input of every kind."""

from __future__ import annotations

import gzip
import json
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

from moldistill.cli import main
from moldistill.core.config import load_run
from moldistill.trial.run import run_trial
from moldistill.trial.spec import TrialSpec

Command = Callable[..., "Ended"]
SMALL = load_run({"role": "student", "model": {"width": 16, "depth": 1, "heads": 2}, "training": {"epochs": 1}})


@dataclass(frozen=True)
class Ended:
    """How a command ended."""

    code: int
    out: str
    err: str


@pytest.fixture
def moldistill(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Command:
    """Runs the command line in this process, in an empty folder."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: object) -> Ended:
        monkeypatch.setattr(sys, "argv", ["moldistill", *map(str, arguments)])
        code = 0
        try:
            main()
        except SystemExit as stop:
            code = int(stop.code or 0)
        said = capsys.readouterr()
        return Ended(code, said.out, said.err)

    return run


@pytest.fixture
def root(tiny_root: Path, tmp_path: Path) -> Path:
    """A root of one's own, to be damaged."""
    return Path(shutil.copytree(tiny_root, tmp_path / "root"))


@pytest.fixture(scope="module")
def run_folder(tiny_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run_trial(TrialSpec(SMALL, tiny_store, tmp_path_factory.mktemp("cli") / "run")).path


def refused(ended: Ended, *words: str) -> None:
    """Exit code 2, a message with these words and a remedy, no traceback, nothing on stdout."""
    assert ended.code == 2, ended.err
    for word in words:
        assert word in ended.err
    assert "Traceback" not in ended.err
    assert ended.out == ""


def write_csv(folder: Path, content: bytes) -> Path:
    path = folder / "molecules.csv"
    path.write_bytes(content)
    return path


def test_version_help_and_unknown_verbs(moldistill: Command) -> None:
    assert moldistill("--version").out.startswith("moldistill ")
    assert "prepare" in moldistill("--help").out
    for verb in ("train", "search", "submit", "pipeline"):
        assert "Example" in moldistill(verb, "--help").out
    assert moldistill("trian").code == 2


def test_prepare_writes_a_store_and_says_what_comes_next(moldistill: Command, root: Path) -> None:
    ended = moldistill("prepare", root, "--store", "store", "--json")
    assert ended.code == 0
    assert json.loads(ended.out)["facts"]["rows"] == 83
    assert "wrote store" in ended.err
    assert "next:  moldistill train" in ended.err
    again = moldistill("prepare", root, "--store", "store", "--json")
    assert (again.code, again.out) == (0, ended.out)
    assert "that store already" in again.err
    refused(moldistill("prepare", root, "--store", "store", "--seed", "1"), "is not empty", "remedy")


def test_prepare_of_a_csv_names_what_can_follow(moldistill: Command, tmp_path: Path) -> None:
    rows = "".join(f"{'C' * (index % 9 + 1)}O,{index}\n" for index in range(40))
    labelled = write_csv(tmp_path, f"smiles,gap\n{rows}".encode())
    ended = moldistill("prepare", labelled, "--target", "gap", "--store", "labelled")
    assert "next:  moldistill train student-small" in ended.err
    ended = moldistill("prepare", labelled, "--store", "bare")
    assert "no training row has a target" in ended.err
    assert "next:  moldistill predict" in ended.err


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", ["empty"]),
        (b"name,gap\nCO,1\n", ["smiles"]),
        (b"smile,homolumogap\nCO,1\n", ["smiles"]),
        (b"smiles,homolumogap\nCO,\xff\xfe\n", ["UTF-8"]),
        (b"smiles,homolumogap\nCO,high\n", ["high", ":2"]),
        (b"smiles,homolumogap\nCO,inf\n", ["inf", ":2"]),
    ],
)
def test_wrong_csv_files(moldistill: Command, tmp_path: Path, content: bytes, words: list[str]) -> None:
    source = write_csv(tmp_path, content)
    refused(moldistill("prepare", source, "--store", "store"), *words)
    assert not (tmp_path / "store").exists()


def test_wrong_targets(moldistill: Command, tmp_path: Path) -> None:
    source = write_csv(tmp_path, b"smiles,homolumogap\nCO,1\n")
    refused(moldistill("prepare", source, "--store", "store", "--target", "homolumo"), "homolumogap")
    refused(moldistill("prepare", source, "--store", "store", "--target", "a,b"), "target")
    refused(moldistill("prepare", source, "--store", "store", "--unit", "kelvin"), "unit")
    refused(moldistill("prepare", source, "--store", "store", "--limit", "0"), "limit")
    refused(moldistill("prepare", tmp_path / "none.csv", "--store", "store"), "does not exist")


def test_an_sdf_shorter_than_the_split_says(moldistill: Command, root: Path) -> None:
    sdf = root / "pcqm4m-v2-train.sdf"
    records = sdf.read_text().split("$$$$\n")
    sdf.write_text("$$$$\n".join(records[:40]) + "$$$$\n")
    refused(moldistill("prepare", root, "--store", "store"), "40", "57")


def test_a_split_that_points_past_the_end(moldistill: Command, root: Path) -> None:
    path = root / "split_dict.pt"
    with torch.serialization.safe_globals(
        [np._core.multiarray._reconstruct, np.ndarray, np.dtype, np.dtypes.Int64DType]
    ):
        splits = torch.load(path, weights_only=True)
    splits["valid"] = splits["valid"] + 1000
    torch.save(splits, path)
    refused(moldistill("prepare", root, "--store", "store"), "points past the end")


def test_a_truncated_table(moldistill: Command, root: Path) -> None:
    path = root / "raw" / "data.csv.gz"
    path.write_bytes(path.read_bytes()[:-50])
    refused(moldistill("prepare", root, "--store", "store"), "data.csv.gz")
    path.write_bytes(gzip.compress(b"idx,smiles,homolumogap\n"))
    refused(moldistill("prepare", root, "--store", "store"))


def test_a_store_cut_short(moldistill: Command, tiny_store: Path, tmp_path: Path) -> None:
    store = Path(shutil.copytree(tiny_store, tmp_path / "store"))
    column = store / "atom_features.npy"
    column.write_bytes(column.read_bytes()[:-10])
    refused(moldistill("train", "student-tiny", "--store", store, "--out", "run"), "atom_features.npy", "is damaged")
    refused(moldistill("train", "student-tiny", "--store", "none", "--out", "run"), "does not exist")
    assert not (tmp_path / "run" / "weights.safetensors").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["student-tiny", "training.epoch=3"], ["unknown key 'training.epoch'", "did you mean 'training.epochs'?"]),
        (["student-tiny", "training.epochs=0"], ["training.epochs", "≥ 1"]),
        (["student-tinny"], ["did you mean 'student-tiny'?"]),
        (["student-tiny-distilled"], ["no targets are named"]),
    ],
)
def test_wrong_runs(moldistill: Command, tiny_store: Path, arguments: list[str], words: list[str]) -> None:
    refused(moldistill("train", *arguments, "--store", tiny_store, "--out", "run"), *words)


def test_output_folders_are_protected(moldistill: Command, tiny_store: Path, run_folder: Path, tmp_path: Path) -> None:
    refused(moldistill("train", "student-tiny", "--store", tiny_store, "--out", run_folder), "is not empty")
    inside = run_folder / "again"
    refused(moldistill("train", "student-tiny", "--store", tiny_store, "--out", inside), "lies inside", "run")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").touch()
    refused(moldistill("demo", "--out", "full"), "is not empty")
    assert (tmp_path / "full" / "thesis.tex").exists()


def test_wrong_spaces(moldistill: Command, tiny_store: Path, tmp_path: Path) -> None:
    space = tmp_path / "space.yaml"
    space.write_text("base: student-tiny\nparameters:\n  optimizer.learning_rat: {log_uniform: [1e-4, 1e-2]}\n")
    refused(
        moldistill("search", space, "--store", tiny_store, "--out", "study"),
        "optimizer.learning_rat",
        "did you mean",
        "optimizer.learning_rate",
    )
    refused(moldistill("explain", "smok"), "smoke")
    assert not (tmp_path / "study").exists()


def test_explain_shows_the_tree(moldistill: Command) -> None:
    ended = moldistill("explain", "smoke")
    assert ended.code == 0
    assert "distill.atom.normalization" in ended.out


def test_teachers_students_and_stores_do_not_get_mixed_up(
    moldistill: Command, run_folder: Path, tiny_store: Path
) -> None:
    refused(moldistill("cache", run_folder, "--store", tiny_store, "--out", "targets"), "is not a teacher's run")
    refused(moldistill("cache", tiny_store, "--store", tiny_store, "--out", "targets"), "is not a run")
    refused(moldistill("cache", run_folder, "--store", run_folder, "--out", "targets"), "is not a store")
    refused(moldistill("cache", run_folder, "--store", tiny_store, "--out", "targets", "--layers", "x"), "--layers")
    refused(moldistill("submit", "--store", tiny_store), "submit needs")


def test_a_run_predicts_reports_and_goes_into_an_ensemble(moldistill: Command, tmp_path: Path) -> None:
    assert moldistill("prepare", "sample", "--limit", "200", "--store", "store").code == 0
    run_folder = run_trial(TrialSpec(SMALL, tmp_path / "store", tmp_path / "run")).path
    source = write_csv(tmp_path, b"smiles\nCCO\nnonsense\nc1ccccc1\n")
    assert moldistill("predict", run_folder, source, "--out", "predictions.csv").code == 0
    lines = (tmp_path / "predictions.csv").read_text().splitlines()
    assert lines[0] == "row,smiles,prediction,spread,flag,reason"
    assert len(lines) == 4
    assert "refused" in lines[2]
    assert moldistill("ensemble", run_folder, "--out", "ensemble").code == 0
    assert moldistill("submit", "ensemble", "--store", "store", "--out", "submission").code == 0
    checked = moldistill("submit", "--check", "submission", "--store", "store", "--json")
    assert checked.code == 0
    assert json.loads(checked.out)["official"] is False
    assert moldistill("report", "ensemble", "--out", "report.html").code == 0
    assert (tmp_path / "report.html").stat().st_size > 10_000


@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
def test_doctor_finds_what_works_and_what_is_damaged(moldistill: Command, tiny_store: Path, tmp_path: Path) -> None:
    ended = moldistill("doctor", "--store", tiny_store, "--json")
    findings = {finding["name"]: finding for finding in json.loads(ended.out)}
    assert ended.code == 0, ended.out
    assert findings["ray"]["result"] == findings["store"]["result"] == findings["sample"]["result"] == "ok"
    store = Path(shutil.copytree(tiny_store, tmp_path / "store"))
    column = store / "target.npy"
    content = bytearray(column.read_bytes())
    content[-3] ^= 1
    column.write_bytes(content)
    ended = moldistill("doctor", "--store", store)
    assert ended.code == 1
    assert "FAILED   store" in ended.out
    assert "target.npy" in ended.out

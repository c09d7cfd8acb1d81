"""`predict`: every input row has an output row, in order, whatever it is and however often the process dies."""

from __future__ import annotations

import gzip
import io
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from manifests import edit_manifest
from moldistill.chem.featurize import featurize
from moldistill.core.artifacts import read_manifest
from moldistill.core.errors import InputError, RunError
from moldistill.core.vocabulary import FLAGS
from moldistill.data.batches import collate
from moldistill.data.elements import training_elements
from moldistill.data.predictions import Predictions
from moldistill.data.store import Store
from moldistill.delivery.engine import Engine, batches
from moldistill.delivery.featurizing import Ahead, Window
from moldistill.delivery.partial import LEDGER, ROWS, work_folder
from moldistill.delivery.predict import HEADER, predict
from moldistill.delivery.predictor import load_predictor
from moldistill.delivery.streaming import WINDOW
from moldistill.trial.run import run_trial
from moldistill.trial.spec import TrialSpec
from predicting import CALIBRATION, SMILES, column, make_ensemble, read, settings, table_of, write_smiles


@pytest.fixture(scope="module")
def runs(tiny_store: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("runs")
    for seed in (0, 1):
        run_trial(TrialSpec(settings(seed), tiny_store, folder / str(seed)))
    return [folder / "0", folder / "1"]


@pytest.fixture(scope="module")
def valid_smiles(tiny_store: Path) -> list[str]:
    store = Store.open(tiny_store)
    return [store.smiles(int(row)) for row in store.rows("valid")]


def test_every_row_has_a_row(tmp_path: Path, runs: list[Path]) -> None:
    summary = predict(runs[0], write_smiles(tmp_path / "in.csv", SMILES), tmp_path / "out.csv")
    lines = read(tmp_path / "out.csv")
    assert tuple(lines[0]) == HEADER
    assert [line["row"] for line in lines] == [str(place) for place in range(len(SMILES))]
    assert [line["smiles"] for line in lines] == SMILES
    flags = ["fine", "fine", "refused", "unsanitized", "fine", "empty", "fine", "fine"]
    assert [line["flag"] for line in lines] == flags
    median = read_manifest(runs[0]).facts["scale"]["median"]
    for place in (2, 5):
        assert float(lines[place]["prediction"]) == pytest.approx(median, abs=1e-6)
        assert lines[place]["reason"]
    assert lines[3]["reason"].endswith("no training molecule has Si")
    assert "40 atoms" in lines[4]["reason"]
    assert not any(lines[place]["reason"] for place in (0, 1, 6, 7))
    assert lines[0]["prediction"] == lines[7]["prediction"]
    assert {line["spread"] for line in lines} == {""}
    assert (summary.rows, summary.refused, summary.outside, summary.members) == (8, 2, 2, 1)


def test_predictions_are_those_of_the_run_folder_whatever_the_chunks(
    tmp_path: Path, runs: list[Path], valid_smiles: list[str]
) -> None:
    saved = Predictions.load(runs[0] / "predictions" / "valid.npz")
    source = write_smiles(tmp_path / "in.csv.gz", valid_smiles)
    for chunk in (5, 1000):
        out = tmp_path / f"{chunk}.parquet"
        predict(runs[0], source, out, chunk=chunk, processes=0)
        found = pq.read_table(out).column("prediction").to_numpy()
        np.testing.assert_allclose(found, saved.y_pred, rtol=0, atol=1e-5)


_texts = st.one_of(
    st.sampled_from(
        [*SMILES, "C" * 300, "C" * 600, "[Fe+2]", "CC\tname", 'a"b', "C,C", "C\r\nC", "C\nO", "\x00", "Cé"]
    ),
    st.text(st.characters(codec="utf-8"), max_size=30),
)


@hypothesis_settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(_texts, min_size=1, max_size=12), st.integers(1, 5))
def test_whatever_is_asked_is_answered_in_order(
    tmp_path: Path, runs: list[Path], smiles: list[str], chunk: int
) -> None:
    """Garbage, quoted line ends, nothing at all, huge molecules: as a CSV, and the same again as Parquet."""
    source, out = tmp_path / "in.csv", tmp_path / "out.csv"
    source.write_bytes(table_of(smiles).encode())
    summary = predict(runs[0], source, out, chunk=chunk, processes=0)
    lines = read(out)
    assert [line["smiles"] for line in lines] == [text.strip() for text in smiles]
    assert [int(line["row"]) for line in lines] == list(range(len(smiles)))
    assert all(np.isfinite(float(line["prediction"])) for line in lines)
    assert all(line["flag"] == "fine" or line["reason"] for line in lines)
    assert all(line["flag"] in FLAGS for line in lines)
    assert summary.rows == len(smiles)
    predict(runs[0], source, tmp_path / "out.parquet", chunk=chunk, processes=0)
    table = pq.read_table(tmp_path / "out.parquet").to_pylist()
    assert [row["smiles"] for row in table] == [line["smiles"] for line in lines]
    assert [row["reason"] for row in table] == [line["reason"] for line in lines]
    assert [f"{row['prediction']:.6f}" for row in table] == [line["prediction"] for line in lines]


@hypothesis_settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.text(st.characters(codec="utf-8", exclude_characters="\n"), max_size=20), min_size=1, max_size=8))
def test_each_line_of_a_list_is_a_row(tmp_path: Path, runs: list[Path], lines: list[str]) -> None:
    source, out = tmp_path / "in.smi", tmp_path / "out.csv"
    source.write_bytes("".join(f"{line}\n" for line in lines).encode())
    predict(runs[0], source, out)
    assert [line["smiles"] for line in read(out)] == [
        line.removeprefix("\ufeff").strip() if place == 0 else line.strip() for place, line in enumerate(lines)
    ]


def test_names_of_any_encoding_stand_beside_a_smiles(tmp_path: Path, runs: list[Path]) -> None:
    (tmp_path / "in.smi").write_bytes("CCO Äthanol\nC\xdfC".encode("latin-1"))
    predict(runs[0], tmp_path / "in.smi", tmp_path / "out.csv")
    lines = read(tmp_path / "out.csv")
    assert [line["flag"] for line in lines] == ["fine", "refused"]
    predict(runs[0], write_smiles(tmp_path / "in.csv", ["CCO"]), tmp_path / "one.csv")
    assert lines[0]["prediction"] == read(tmp_path / "one.csv")[0]["prediction"]


def test_every_form_of_the_table_says_the_same(tmp_path: Path, runs: list[Path]) -> None:
    source = write_smiles(tmp_path / "in.csv", SMILES * 3)
    for name in ("out.csv", "out.csv.gz", "out.parquet"):
        predict(runs[0], source, tmp_path / name, chunk=5, processes=0)
    lines = read(tmp_path / "out.csv")
    assert gzip.decompress((tmp_path / "out.csv.gz").read_bytes()) == (tmp_path / "out.csv").read_bytes()
    table = pq.read_table(tmp_path / "out.parquet")
    assert tuple(table.column_names) == HEADER
    assert table.column("spread").null_count == len(table)
    assert table.column("row").to_pylist() == list(range(len(lines)))
    for name in ("smiles", "flag", "reason"):
        assert table.column(name).to_pylist() == [line[name] for line in lines]
    np.testing.assert_allclose(table.column("prediction"), column(tmp_path / "out.csv", "prediction"), atol=5e-7)


def test_an_ensemble_predicts_the_weighted_mean_spread_and_interval(tmp_path: Path, runs: list[Path]) -> None:
    folder = make_ensemble(tmp_path / "ensemble", runs, [0.25, 0.75], calibration=CALIBRATION)
    source = write_smiles(tmp_path / "in.csv", SMILES)
    singles = []
    for place, run in enumerate(runs):
        predict(run, source, tmp_path / f"{place}.csv")
        singles.append(column(tmp_path / f"{place}.csv", "prediction"))
    values, weights = np.array(singles), np.array([0.25, 0.75])
    mean = weights @ values
    spread = np.sqrt(weights @ (values - mean) ** 2)
    known = np.array([place not in (2, 5) for place in range(len(SMILES))])
    sizes = np.array([3, 7, 0, 7, 40, 0, 4, 3])
    for level, place in ((0.5, 0), (0.9, 1), (None, 1)):
        out = tmp_path / "out.csv"
        summary = predict(folder, source, out, level=level)
        assert summary.level == (level or 0.9)
        np.testing.assert_allclose(column(out, "prediction"), mean, atol=2e-6)
        np.testing.assert_allclose(column(out, "spread"), np.where(known, spread, np.nan), atol=2e-6)
        a, b = (np.array(CALIBRATION[name])[(sizes > 7).astype(int), place] for name in ("a", "b"))
        half = np.where(known, a + b * spread, np.nan)
        np.testing.assert_allclose(column(out, "low"), mean - half, atol=5e-6)
        np.testing.assert_allclose(column(out, "high"), mean + half, atol=5e-6)
    predict(folder, source, tmp_path / "out.parquet")
    assert pq.read_table(tmp_path / "out.parquet").column("low").null_count == 2
    with pytest.raises(InputError, match=r"no intervals of level 0\.7"):
        predict(folder, source, out, level=0.7)
    with pytest.raises(InputError, match="no intervals"):
        predict(runs[0], source, out, level=0.5)


def test_batches_hold_each_row_once_and_are_those_of_a_store(tiny_store: Path) -> None:
    """Against `collate` of the store that was prepared from the same SMILES, whatever the budget."""
    store = Store.open(tiny_store)
    rows = store.usable(np.arange(len(store)))
    graphs = featurize([store.smiles(row) for row in range(len(store))])
    for budget in (1, 150, 2**16):
        seen = []
        for places, molecules in batches(graphs, rows, budget):
            seen += places.tolist()
            peer = collate(store, rows[places]).molecules
            for name in ("size", "atom_features", "shortest_paths", "bond_codes"):
                assert torch.equal(getattr(molecules, name), getattr(peer, name)), name
            largest = int(molecules.size.max())
            assert len(places) == 1 or len(places) * (largest + 1) ** 2 <= budget
        assert sorted(seen) == list(range(len(rows)))


def test_elements_are_those_of_the_training_rows(tiny_store: Path, runs: list[Path], tmp_path: Path) -> None:
    store = Store.open(tiny_store)
    train = store.usable(store.rows("train"))
    atoms = np.concatenate([store.molecule(int(row)).atom_features[:, 0] for row in train])
    expected = tuple(sorted(int(code) + 1 for code in np.unique(atoms)))
    assert training_elements(store) == training_elements(store, train) == expected
    assert load_predictor(runs[0]).elements == expected
    run = shutil.copytree(runs[0], tmp_path / "run")
    edit_manifest(run, lambda manifest: manifest["facts"].update(store_path=str(tmp_path / "gone")))
    assert load_predictor(run).elements is None
    assert load_predictor(run, tiny_store).elements == expected
    edit_manifest(run, lambda manifest: manifest["facts"].update(training_elements=[6, 8]))
    assert load_predictor(run).elements == (6, 8)
    edit_manifest(run, lambda manifest: manifest["facts"].update(store="0" * 32))
    edit_manifest(run, lambda manifest: manifest["facts"].pop("training_elements"))
    with pytest.raises(InputError, match="is not the store"):
        load_predictor(run, tiny_store)


def test_other_processes_featurize_and_change_nothing(tmp_path: Path, runs: list[Path]) -> None:
    source = write_smiles(tmp_path / "in.csv", SMILES * 4)
    for processes in (0, 2):
        predict(runs[0], source, tmp_path / f"{processes}.csv", chunk=6, processes=processes)
    assert (tmp_path / "0.csv").read_bytes() == (tmp_path / "2.csv").read_bytes()


def die(smiles: tuple[str, ...]) -> None:
    os._exit(9)


def test_a_featurizer_that_dies_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("moldistill.delivery.featurizing.featurize", die)
    with pytest.raises(RunError, match="has died"), Ahead(1) as ahead:
        list(ahead.featurized(iter([Window(0, ("C",)), Window(1, ("C",))])))


def test_bf16_is_close_and_its_distance_is_told(tmp_path: Path, runs: list[Path]) -> None:
    source = write_smiles(tmp_path / "in.csv", SMILES)
    for precision in ("fp32", "bf16"):
        summary = predict(runs[0], source, tmp_path / f"{precision}.parquet", precision=precision)
    apart = np.abs(
        np.subtract(*(pq.read_table(tmp_path / f"{name}.parquet")["prediction"] for name in ("fp32", "bf16")))
    )
    assert summary.deviation is not None
    assert summary.deviation.molecules == 6
    assert 0 < apart.max() < 0.1
    assert summary.deviation.largest == pytest.approx(apart.max())
    assert summary.deviation.mean == pytest.approx(apart.sum() / 6)


def test_a_model_that_says_nan_is_told_row_by_row(
    tmp_path: Path, runs: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    values = Engine.values

    def broken(*arguments: Any) -> np.ndarray:
        found = values(*arguments)
        found[:, 0] = np.nan
        return found

    monkeypatch.setattr(Engine, "values", broken)
    summary = predict(runs[0], write_smiles(tmp_path / "in.csv", ["CCO", "CCC"]), tmp_path / "out.csv")
    first, second = read(tmp_path / "out.csv")
    assert first["reason"] == "the model gives no finite value"
    assert not second["reason"]
    assert float(first["prediction"]) == pytest.approx(read_manifest(runs[0]).facts["scale"]["median"], abs=1e-6)
    assert summary.refused == 1


def interrupted(runs: list[Path], source: Path, out: Path, monkeypatch: pytest.MonkeyPatch, after: int) -> None:
    """`predict`, stopped after some windows."""
    with monkeypatch.context() as patch:
        count, whole = [0], Engine.predict

        def stopped(self: Engine, *arguments: Any, **options: Any) -> Any:
            count[0] += 1
            if count[0] > after:
                raise KeyboardInterrupt
            return whole(self, *arguments, **options)

        patch.setattr(Engine, "predict", stopped)
        with pytest.raises(KeyboardInterrupt):
            predict(runs[0], source, out, chunk=3, processes=0)


@pytest.mark.parametrize("suffix", [".csv", ".csv.gz", ".parquet"])
def test_whatever_is_left_is_continued(
    suffix: str, tmp_path: Path, runs: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows and ledger, cut and damaged anywhere: the table is that of an undisturbed process, byte by byte."""
    source = write_smiles(tmp_path / "in.csv", SMILES * 3)
    whole, out = tmp_path / f"whole{suffix}", tmp_path / f"out{suffix}"
    predict(runs[0], source, whole, chunk=3, processes=0)
    random = np.random.default_rng(0)
    for case in ("as it was", "rows cut", "ledger cut", "rows damaged", "no rows", "ledger damaged"):
        interrupted(runs, source, out, monkeypatch, after=4)
        assert not out.exists()
        rows, ledger = work_folder(out) / ROWS, work_folder(out) / LEDGER
        path = ledger if "ledger" in case else rows
        content = bytearray(path.read_bytes())
        place = int(random.integers(len(content)))
        if "cut" in case:
            path.write_bytes(content[:place])
        elif "damaged" in case:
            content[place] ^= 0x15
            path.write_bytes(content)
        elif case == "no rows":
            path.unlink()
        summary = predict(runs[0], source, out, chunk=3, processes=0)
        assert out.read_bytes() == whole.read_bytes(), case
        assert summary.resumed == {"as it was": 12, "no rows": 0}.get(case, summary.resumed)
        assert summary.rows == 24
        assert not work_folder(out).exists()
        out.unlink()


def test_only_what_is_still_asked_is_kept(
    tmp_path: Path, runs: list[Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    source, out = write_smiles(tmp_path / "in.csv", SMILES * 3), tmp_path / "out.csv"
    interrupted(runs, source, out, monkeypatch, after=4)
    changed = SMILES * 3
    changed[7] = "CCN"
    write_smiles(source, changed)
    summary = predict(runs[0], source, out, chunk=3, processes=0)
    assert summary.resumed == 6
    assert "changed from row 6 on" in capsys.readouterr().err
    assert [line["smiles"] for line in read(out)] == changed
    interrupted(runs, source, out, monkeypatch, after=4)
    assert predict(runs[1], source, out, chunk=3, processes=0).resumed == 0
    assert "discarded" in capsys.readouterr().err
    interrupted(runs, source, out, monkeypatch, after=4)
    write_smiles(source, changed[:6])
    assert predict(runs[0], source, out, chunk=3, processes=0).resumed == 6
    assert len(read(out)) == 6
    predict(runs[1], source, tmp_path / "other.csv")
    assert (tmp_path / "other.csv").read_text() != out.read_text()


def test_a_mistake_far_down_keeps_what_is_done(tmp_path: Path, runs: list[Path]) -> None:
    source, out = tmp_path / "in.csv", tmp_path / "out.csv"
    source.write_text("smiles,name\n" + "C,a\n" * 7 + "CC\n")
    with pytest.raises(InputError, match=r"in\.csv:9: a row of another length"):
        predict(runs[0], source, out, chunk=1, processes=0)
    assert not out.exists()
    source.write_text("smiles,name\n" + "C,a\n" * 7 + "CC,b\n")
    summary = predict(runs[0], source, out, chunk=1, processes=0)
    assert (summary.rows, summary.resumed) == (8, len(read(out)) - (8 - summary.resumed))
    assert 0 < summary.resumed < 8


def test_a_second_writer_is_refused(tmp_path: Path, runs: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    source, out = write_smiles(tmp_path / "in.csv", SMILES), tmp_path / "out.csv"
    whole = Engine.predict

    def second(self: Engine, *arguments: Any, **options: Any) -> Any:
        with monkeypatch.context() as patch:
            patch.setattr(Engine, "predict", whole)
            with pytest.raises(InputError, match="is being written already"):
                predict(runs[0], source, out)
        return whole(self, *arguments, **options)

    monkeypatch.setattr(Engine, "predict", second)
    assert predict(runs[0], source, out).rows == len(SMILES)


@pytest.mark.slow
@pytest.mark.parametrize("suffix", [".csv", ".csv.gz", ".parquet"])
def test_killed_at_any_moment_it_ends_as_if_undisturbed(suffix: str, tmp_path: Path, runs: list[Path]) -> None:
    source = write_smiles(
        tmp_path / "in.csv", [f"{'C' * (place % 9 + 1)}{tail}" for place in range(60) for tail in "ON"]
    )
    folder = tmp_path / "work"
    folder.mkdir()
    script = Path(__file__).with_name("killed_predict.py")
    command = [sys.executable, str(script), str(runs[0]), str(source), str(folder), suffix, "8", "3"]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["equal"]
    assert not found["half"]
    assert not found["left"]
    assert len(found["reached"]) == 8
    assert max(found["reached"]) > 0


def children(pid: int) -> list[int]:
    """Processes of that parent, without Python's own that counts their semaphores."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
            if int(fields[1]) == pid and b"resource_tracker" not in (folder / "cmdline").read_bytes():
                found.append(int(folder.name))
        except OSError:
            continue
    return found


@pytest.mark.slow
def test_no_process_outlives_a_kill_and_the_command_goes_on(tmp_path: Path, runs: list[Path]) -> None:
    """The real command, with processes that featurize, in windows of its own size."""
    rows = 3 * WINDOW + 10
    smiles = [f"{'C' * (place % 17 + 1)}{'ONF'[place % 3]}" for place in range(rows)]
    source, out = tmp_path / "in.smi", tmp_path / "out.csv"
    source.write_text("\n".join(smiles))
    command = [sys.executable, "-m", "moldistill", "predict", runs[0], source, "--out", out, "--processes", "2"]
    process = subprocess.Popen([*map(str, command)], stderr=subprocess.DEVNULL)
    ledger, ends = work_folder(out) / LEDGER, time.monotonic() + 120
    while not (ledger.is_file() and ledger.read_text()) and process.poll() is None and time.monotonic() < ends:
        time.sleep(0.01)
    alive = children(process.pid)
    process.kill()
    process.wait()
    assert len(alive) == 2
    ends = time.monotonic() + 20
    while any(Path(f"/proc/{pid}").exists() for pid in alive) and time.monotonic() < ends:
        time.sleep(0.05)
    assert not [pid for pid in alive if Path(f"/proc/{pid}").exists()]
    assert not out.exists()
    done = subprocess.run([*map(str, command), "--json"], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout)["resumed"] >= WINDOW
    assert [line["smiles"] for line in read(out)] == smiles
    predict(runs[0], source, tmp_path / "whole.csv", processes=0)
    assert out.read_bytes() == (tmp_path / "whole.csv").read_bytes()


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """Runs the command line in this process with some stdin; the exit code."""
    from moldistill.cli import main

    def run(*arguments: object, stdin: bytes = b"") -> int:
        monkeypatch.setattr(sys, "argv", ["moldistill", *map(str, arguments)])
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin)))
        try:
            main()
        except SystemExit as stop:
            return int(stop.code or 0)
        return 0

    return run


@pytest.mark.parametrize("packed", [False, True])
def test_stdin_to_stdout(
    packed: bool,
    tmp_path: Path,
    runs: list[Path],
    command: Callable[..., int],
    capfdbinary: pytest.CaptureFixture[bytes],
) -> None:
    predict(runs[0], write_smiles(tmp_path / "in.csv", SMILES), tmp_path / "out.csv")
    expected = (tmp_path / "out.csv").read_bytes()
    texts = [table_of(SMILES).encode(), "\n".join(SMILES).encode()]
    for text in texts:
        capfdbinary.readouterr()
        assert command("predict", runs[0], "-", "--out", "-", stdin=gzip.compress(text) if packed else text) == 0
        assert capfdbinary.readouterr().out == expected
    assert command("predict", runs[0], "-", "--out", tmp_path / "again.csv", stdin=texts[1]) == 0
    assert (tmp_path / "again.csv").read_bytes() == expected


def test_the_command_line_says_what_is_wrong(
    tmp_path: Path, runs: list[Path], command: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    source = write_smiles(tmp_path / "in.csv", SMILES)
    (tmp_path / "other.csv").write_text("name,SMILES\na,CCO\n")
    (tmp_path / "empty.csv").write_text("")
    (tmp_path / "head.csv").write_text("smiles\n")
    out = ("--out", tmp_path / "out.csv")
    cases = (
        ((source, "--out", "-", "--json"), "stdout holds the predictions"),
        ((source, "--out", "-", "--format", "parquet"), "stdout takes a CSV"),
        ((tmp_path / "other.csv", *out), "--smiles-column SMILES"),
        ((source, *out, "--smiles-column", "molecule"), "no column molecule"),
        ((tmp_path / "empty.csv", *out), "is empty"),
        ((tmp_path / "head.csv", *out), "no rows"),
        ((source, *out, "--level", "0.5"), "no intervals of level 0.5"),
        ((source, *out, "--store", tmp_path), "has no manifest.json"),
        *([] if torch.cuda.is_available() else [((source, *out, "--device", "cuda"), "no GPU")]),
    )
    for arguments, message in cases:
        assert command("predict", runs[0], *arguments) == 2, message
        said = capsys.readouterr().err
        assert message in said
        assert "Traceback" not in said
    assert command("predict", runs[0], "-", *out) == 2
    assert "stdin is empty" in capsys.readouterr().err
    assert not (tmp_path / "out.csv").exists()
    assert not list(tmp_path.glob(".*"))
    assert command("predict", runs[0], tmp_path / "other.csv", *out, "--smiles-column", "SMILES", "--json") == 0
    assert json.loads(capsys.readouterr().out)["rows"] == 1


def test_changed_members_are_refused(tmp_path: Path, runs: list[Path], tiny_store: Path) -> None:
    run = shutil.copytree(runs[0], tmp_path / "run")
    folder, source = make_ensemble(tmp_path / "ensemble", [run], [1.0]), write_smiles(tmp_path / "in.csv", SMILES)
    weights = run / "weights.safetensors"
    content = weights.read_bytes()
    weights.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    for model in (run, folder):
        with pytest.raises(InputError, match=r"weights.safetensors has changed"):
            predict(model, source, tmp_path / "out.csv")
    weights.write_bytes(content)
    edit_manifest(run, lambda manifest: manifest["facts"].update(vocabulary="other"))
    with pytest.raises(InputError, match="another vocabulary"):
        predict(run, source, tmp_path / "out.csv")
    edit_manifest(run, lambda manifest: next(iter(manifest["files"].values())).update(sha256="0"))
    with pytest.raises(InputError, match="has changed since it became a member"):
        predict(folder, source, tmp_path / "out.csv")


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
    with pytest.raises(InputError, match="has no column smiles"):
        predict(runs[0], tmp_path / "bare.csv", out)
    (tmp_path / "cut.csv.gz").write_bytes(gzip.compress(table_of(SMILES * 100).encode())[:-20])
    with pytest.raises(InputError, match="cannot be read to its end"):
        predict(runs[0], tmp_path / "cut.csv.gz", out)
    assert not out.exists()
    assert not list(tmp_path.glob(".*partial"))


@pytest.mark.ray
def test_a_cluster_predicts_the_same_in_order(ray_cluster: None, tmp_path: Path, runs: list[Path]) -> None:
    folder = make_ensemble(tmp_path / "ensemble", runs, [0.25, 0.75], calibration=CALIBRATION)
    source = write_smiles(tmp_path / "in.csv", SMILES * 5)
    here = predict(folder, source, tmp_path / "here.csv", chunk=4, processes=0, ray=False)
    there = predict(folder, source, tmp_path / "there.csv", chunk=4, precision="fp32")
    assert (there.rows, there.refused, there.outside) == (here.rows, here.refused, here.outside)
    for name in ("row", "smiles", "flag", "reason"):
        assert [line[name] for line in read(tmp_path / "here.csv")] == [
            line[name] for line in read(tmp_path / "there.csv")
        ]
    for name in ("prediction", "spread", "low", "high"):
        np.testing.assert_allclose(column(tmp_path / "here.csv", name), column(tmp_path / "there.csv", name), atol=2e-6)
    rough = predict(folder, source, tmp_path / "rough.csv", chunk=4, precision="bf16")
    assert rough.deviation is not None
    assert 0 < rough.deviation.largest < 0.1

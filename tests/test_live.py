"""What is seen of a search while it runs, and who else is told."""

from __future__ import annotations

import json
import sys
import types
from pathlib import Path
from typing import Any
from wsgiref.util import setup_testing_defaults

import optuna_dashboard
import pytest
from rich.console import Console

from moldistill.core.errors import InputError
from moldistill.core.units import duration
from moldistill.search.conductor import Conductor
from moldistill.search.live import _Table, drawn, note, snapshot, watched
from moldistill.search.parse import load_space
from moldistill.search.study import open_storage
from moldistill.search.tracking import Trackers, check_tracking
from studies import open_ledger, raw_space, run_all, train


def text_of(what: Any) -> str:
    console = Console(width=110, record=True, file=open("/dev/null", "w", encoding="utf-8"))  # noqa: SIM115, PTH123
    console.print(what)
    return console.export_text()


def half_way(tmp_path: Path, **changes: Any) -> Conductor:
    raw = raw_space(scheduler={"name": "none"}, **changes)
    conductor = Conductor(open_ledger(tmp_path / "study", raw), now=lambda: 60.0)
    for until in (9, 9, 9, 9, 3, 0):
        proposal = conductor.next()
        assert proposal is not None
        train(conductor, proposal, until=until)
    return conductor


class TestTable:
    def test_best_and_running(self, tmp_path: Path) -> None:
        conductor = half_way(tmp_path)
        shot = snapshot(conductor)
        assert (shot.ended, shot.most, len(shot.running), len(shot.best)) == (4, 8, 2, 3)
        values = [line.value for line in shot.best]
        assert values == sorted(values)
        lines = [line for line in text_of(drawn(shot)).splitlines() if line.strip()]
        assert "graph.weight" in lines[0]
        assert lines[2].split()[:4] == [str(shot.best[0].number), "complete", "9/9", f"{values[0]:.4f}"]
        running = [line.split() for line in lines if "running" in line]
        assert [words[2] for words in running] == ["3/9", "0/9"]

    def test_what_is_left(self, tmp_path: Path) -> None:
        conductor = half_way(tmp_path, budget={"hours": 2, "gpu_hours": 3, "trials": 8}, resources={"gpus": 1})
        assert "2.0 h of 2 h left" in note(snapshot(conductor))
        assert "3.00 of 3 GPU-hours left" in note(snapshot(conductor))

    def test_the_head(self, tmp_path: Path) -> None:
        table = _Table(half_way(tmp_path), "search study", snapshot(half_way(tmp_path / "other")))
        seen = text_of(table.draw())
        assert "search study" in seen
        assert "4/8" in seen
        assert "4 complete, 0 pruned, 0 failed" in seen

    def test_plain_lines(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        ledger = open_ledger(tmp_path / "study")
        conductor = Conductor(ledger)
        with watched(conductor, "search study") as tell:
            while (proposal := conductor.next()) is not None:
                train(conductor, proposal)
                tell()
        last = capsys.readouterr().err.strip().splitlines()[-1]
        best = ledger.summary(1).best
        assert best is not None
        assert "search study: 8/8 in" in last
        assert f"best {best.value:.4f} eV, 0 running" in last

    def test_durations(self) -> None:
        assert [duration(seconds) for seconds in (0.4, 119, 121, 7199, 7384)] == [
            "0 s",
            "119 s",
            "2 min",
            "120 min",
            "2.1 h",
        ]


class FakeClient:
    """Stands where MLflow's client does, and remembers."""

    def __init__(self, tracking_uri: str) -> None:
        self.calls: list[tuple[Any, ...]] = [("uri", tracking_uri)]
        self.runs = 0

    def get_experiment_by_name(self, name: str) -> None:
        return None

    def create_experiment(self, name: str) -> str:
        self.calls.append(("experiment", name))
        return "7"

    def create_run(self, experiment: str, tags: dict[str, str]) -> Any:
        self.runs += 1
        return types.SimpleNamespace(info=types.SimpleNamespace(run_id=f"run{self.runs}"))

    def __getattr__(self, name: str) -> Any:
        return lambda *values, **keywords: self.calls.append((name, *values, *keywords.values()))


class TestTracking:
    def test_mlflow_is_told(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        client = FakeClient("file:runs")
        module = types.ModuleType("mlflow")
        module.MlflowClient = lambda tracking_uri: client  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "mlflow", module)
        trackers = Trackers(load_space(raw_space(tracking={"mlflow": "file:runs"})), tmp_path / "study")
        trackers.tell(lambda one: one.begin(3, {"model.depth": 4}))
        trackers.tell(lambda one: one.report(3, {"epoch": 2, "valid_mae": 0.2, "outcome": "x"}))
        trackers.tell(lambda one: one.end(3, "stopped"))
        assert ("log_param", "run1", "model.depth", 4) in client.calls
        assert ("log_metric", "run1", "valid_mae", 0.2, 2) in client.calls
        assert ("set_terminated", "run1", "KILLED") in client.calls
        assert not any("outcome" in call and "log_metric" in call for call in client.calls)

    def test_wandb_is_told(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        told: list[Any] = []
        run = types.SimpleNamespace(
            log=lambda metrics, step: told.append((step, metrics)),
            summary={},
            finish=lambda exit_code: told.append(exit_code),
        )
        module = types.ModuleType("wandb")
        module.init = lambda **keywords: told.append(keywords) or run  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "wandb", module)
        trackers = Trackers(load_space(raw_space(tracking={"wandb": "molecules"})), tmp_path / "study")
        trackers.tell(lambda one: one.begin(3, {"model.depth": 4}))
        trackers.tell(lambda one: one.report(3, {"epoch": 2, "valid_mae": 0.2}))
        trackers.tell(lambda one: one.end(3, "complete"))
        assert (told[0]["project"], told[0]["config"]) == ("molecules", {"model.depth": 4})
        assert told[1:] == [(2, {"epoch": 2.0, "valid_mae": 0.2}), 0]

    def test_a_tracker_that_fails_ends_no_search(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        def refuse(**keywords: Any) -> None:
            raise ConnectionError("no route to host")

        module = types.ModuleType("wandb")
        module.init = refuse  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "wandb", module)
        trackers = Trackers(load_space(raw_space(tracking={"wandb": "molecules"})), tmp_path / "study")
        for _ in range(2):
            trackers.tell(lambda one: one.begin(3, {}))
        assert capsys.readouterr().err.count("no route to host") == 1
        assert trackers.all == []

    def test_a_package_that_is_not_there(self) -> None:
        with pytest.raises(InputError, match=r"tracking\.mlflow: the package is not installed"):
            check_tracking(load_space(raw_space(tracking={"mlflow": "file:runs"})))


def test_dashboards_read_the_storage(tmp_path: Path) -> None:
    """`optuna-dashboard` serves the study from its journal."""
    ledger = run_all(open_ledger(tmp_path / "study")).ledger
    app = optuna_dashboard.wsgi(open_storage(ledger.out, "journal"))

    def get(path: str) -> Any:
        environ: dict[str, Any] = {}
        setup_testing_defaults(environ)
        environ["PATH_INFO"] = path
        return json.loads(b"".join(app(environ, lambda status, headers, error=None: None)))

    (study,) = get("/api/studies")["study_summaries"]
    assert (study["study_name"], study["directions"]) == ("study", ["minimize"])
    trials = get(f"/api/studies/{study['study_id']}")["trials"]
    assert [trial["state"].lower() for trial in trials] == [row.state for row in ledger.rows()]

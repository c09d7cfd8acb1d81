"""Studies whose trials are run folders with predictions: a real ledger, invented numbers, no training."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from delivery_folders import make_run, predicted
from moldistill.core.artifacts import read_manifest
from moldistill.data.store import Store
from moldistill.search.conductor import Conductor
from moldistill.search.ledger import Ledger
from moldistill.search.study import write_study
from studies import EPOCHS, INPUTS, open_ledger, raw_space


def make_trials(out: Path, store: Store, noises: Sequence[float], *, stopped: int = 0, **space: Any) -> Ledger:
    """A study whose trials predict `valid` with Gaussian errors of these sizes, and then `stopped` ones without a run's
    end; nobody has finished it.
    """
    budget = {"trials": len(noises) + stopped + 4}
    raw = raw_space(**{"budget": budget, "sampler": {"name": "random"}, "scheduler": {"name": "none"}} | space)
    ledger = open_ledger(out, raw)
    conductor = Conductor(ledger, now=lambda: 0.0)
    for place, noise in enumerate(noises):
        proposal = conductor.next()
        assert proposal is not None
        run = make_run(proposal.folder, store, predicted(store, noise=noise, seed=place), epochs=EPOCHS)
        metrics: dict[str, Any] = {}
        for metrics in _records(run):
            conductor.report(proposal.number, metrics)
        conductor.end(proposal.number, "complete", {**metrics, **read_manifest(run, "run").facts["metrics"]})
    for _ in range(stopped):
        proposal = conductor.next()
        assert proposal is not None
        stop(conductor, proposal.number, proposal.folder, epochs=3)
    return ledger


def stop(conductor: Conductor, number: int, folder: Path, *, epochs: int) -> None:
    """Train a trial for some epochs, keep its checkpoint, and stop it."""
    leave(conductor, number, folder, epochs=epochs)
    conductor.end(number, "stopped", {"epoch": epochs})


def leave(conductor: Conductor, number: int, folder: Path, *, epochs: int, value: float = 0.9) -> None:
    """Train a trial for some epochs, and keep its checkpoint."""
    (folder / "checkpoint").mkdir(parents=True)
    (folder / "checkpoint" / "step-9.pt").write_bytes(b"x" * 1000)
    lines = [{"epoch": epoch, "train_loss": 1.0, "valid_mae": value / epoch} for epoch in range(1, epochs + 1)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    for line in lines:
        conductor.report(number, line)


def finish_study(ledger: Ledger, finalists: Sequence[Mapping[str, Any]] = ()) -> Path:
    """Write the study's table and manifest, as a search does at its end."""
    write_study(ledger.summary(2), INPUTS, {"finalists": list(finalists)})
    return ledger.out


def _records(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]

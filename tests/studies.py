"""Studies without Ray and without training: a space, its ledger and its conductor, and trials that follow a curve."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from moldistill.core.artifacts import write_manifest, write_text
from moldistill.core.config import dump_yaml
from moldistill.search.conductor import Conductor, Proposal
from moldistill.search.ledger import Ledger
from moldistill.search.parse import load_space
from moldistill.search.study import SPACE

INPUTS = {"store": "the store"}
EPOCHS = 9
WEIGHT = "distill.graph.weight"


def raw_space(**changes: Any) -> dict[str, Any]:
    return {
        "base": "student-tiny",
        "fixed": {"training.epochs": EPOCHS},
        "parameters": {WEIGHT: {"log_uniform": [0.05, 5]}},
        "scheduler": {"name": "asha", "grace": 2, "reduction": 2},
        "budget": {"trials": 8},
        **changes,
    }


def open_ledger(out: Path, raw: dict[str, Any] | None = None) -> Ledger:
    """The study in `out`, new or as it is, with the caller as its driver."""
    space = load_space(raw or raw_space())
    out.mkdir(parents=True, exist_ok=True)
    write_text(out / SPACE, dump_yaml(dict(space.mapping)))
    ledger = Ledger.create(out, space, INPUTS)
    ledger.take()
    return ledger


def curve(settings: Any, epoch: int) -> float:
    """A learning curve whose level is the graph weight's distance from 1."""
    return 0.1 + 0.1 * abs(settings.distill.graph.weight - 1) + 0.3 / epoch


def train(
    conductor: Conductor, proposal: Proposal, *, until: int = EPOCHS, values: Callable[[Any, int], float] = curve
) -> str:
    """Run a proposal as a trial would, keeping a run folder; stops after epoch `until` without an end if that is early.

    Returns how it ended: complete, stopped, or `left`.
    """
    folder = proposal.folder
    folder.mkdir(parents=True, exist_ok=True)
    record = folder / "metrics.jsonl"
    lines = record.read_text().splitlines() if record.exists() else []
    for epoch in range(len(lines) + 1, proposal.settings.training.epochs + 1):
        if epoch > until:
            return "left"
        metrics = {
            "epoch": epoch,
            "train_loss": 1.0,
            "valid_mae": values(proposal.settings, epoch),
            "cpu_seconds": epoch,
        }
        lines.append(json.dumps(metrics))
        record.write_text("\n".join(lines) + "\n")
        if not conductor.report(proposal.number, metrics):
            conductor.end(proposal.number, "stopped", metrics)
            return "stopped"
    last = json.loads(lines[-1])
    write_manifest(folder, "run", files=["metrics.jsonl"], facts={"metrics": last, "parameters": 1000})
    conductor.end(proposal.number, "complete", {**last, "parameters": 1000})
    return "complete"


def run_all(ledger: Ledger, **keywords: Any) -> Conductor:
    """Run a study to its end, one trial at a time."""
    conductor = Conductor(ledger, **keywords)
    conductor.adopt()
    while (proposal := conductor.next()) is not None:
        train(conductor, proposal)
    return conductor

"""A real search whose driver is killed with -9 at random moments and resumed each time: a script of its own.

ARGV is an empty folder, the number of kills, and a seed. A zygote forks each driver, so that it need not import again;
each starts a Ray cluster of its own, whose processes die with it. The last line of the output is JSON: the moments, and
what is left in the ledger.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from moldistill.core.artifacts import MANIFEST, write_manifest
from moldistill.search.ledger import Ledger
from moldistill.training.loop import EpochReport
from moldistill.trial.spec import TrialSpec

EPOCHS = 9
TRIALS = 12
SPACE: dict[str, Any] = {
    "base": "student-tiny",
    "fixed": {"training.epochs": EPOCHS},
    "parameters": {"model.dropout": {"uniform": [0.0, 0.4]}},
    "scheduler": {"name": "asha", "grace": 2, "reduction": 2},
    "budget": {"trials": TRIALS},
    "resources": {"cpus": 1, "concurrent": 2},
}


def slow_run(spec: TrialSpec, *, report: Any) -> None:
    """A trial of 0.15 s per epoch that goes on behind its last recorded epoch and says when it ended."""
    spec.out.mkdir(parents=True, exist_ok=True)
    record = spec.out / "metrics.jsonl"
    lines = record.read_text().splitlines() if record.exists() else []
    for epoch in range(len(lines) + 1, EPOCHS + 1):
        time.sleep(0.15)
        metrics = {"train_loss": 1.0, "valid_mae": 0.1 + spec.settings.model.dropout + 0.3 / epoch}
        with record.open("a") as stream:
            stream.write(json.dumps({"epoch": epoch, **metrics}) + "\n")
        report(EpochReport(epoch, metrics, True))
    finish(spec)
    with (spec.out / "ended").open("a") as stream:
        stream.write("once\n")


def finish(spec: TrialSpec) -> None:
    last = json.loads((spec.out / "metrics.jsonl").read_text().splitlines()[-1])
    write_manifest(spec.out, "run", files=["metrics.jsonl"], facts={"metrics": last})


def drive(store: Path, out: Path) -> int:
    """Fork a driver that begins the study, or goes on with it."""
    pid = os.fork()
    if pid == 0:
        os.setsid()
        try:
            import ray

            from moldistill.search.tuner import search

            ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
            mode: Any = "resume" if (out / "space.yaml").exists() else "new"
            search(SPACE, store, out, mode=mode, runner=slow_run, finisher=finish)
        finally:
            os._exit(0 if (out / MANIFEST).is_file() else 1)
    return pid


def wait_for_trials(pid: int, out: Path, seconds: float) -> bool:
    """Wait until the driver has lived `seconds` since its first sign of trials; whether it still lives."""
    known = len(list(out.glob("trials/*/metrics.jsonl")))
    before = {path: path.stat().st_size for path in out.glob("trials/*/metrics.jsonl")}
    began = None
    while began is None or time.monotonic() - began < seconds:
        if os.waitpid(pid, os.WNOHANG)[0]:
            return False
        now = {path: path.stat().st_size for path in out.glob("trials/*/metrics.jsonl")}
        if began is None and (len(now) > known or now != before):
            began = time.monotonic()
        time.sleep(0.02)
    return True


def main() -> None:
    folder, kills, seed = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    store, out = folder / "store", folder / "study"
    store.mkdir()
    write_manifest(store, "store", files=[])
    random, moments = np.random.default_rng(seed), []
    while len(moments) < kills:
        pid = drive(store, out)
        delay = float(random.uniform(0.0, 2.5))
        if wait_for_trials(pid, out, delay):
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            moments.append(round(delay, 2))
        elif (out / MANIFEST).is_file():
            break  # it came to its end before all kills
    _, status = os.waitpid(drive(store, out), 0)
    ledger = Ledger.open(out)
    rows = ledger.rows()
    ended = {path.parent.name: path.read_text().count("once") for path in out.glob("trials/*/ended")}
    complete = {Path(row.folder).name for row in rows if row.state == "complete"}
    result = {
        "moments": moments,
        "status": status,
        "trials": len(rows),
        "orphans": len(ledger.running()),
        "lost": sorted(set(ended) - {Path(row.folder).name for row in rows}),
        "twice": sorted(name for name, count in ended.items() if count > 1 and name in complete),
        "gaps": [row.number for row in rows if not _whole(ledger, row.number, row.epochs)],
    }
    sys.stdout.write("\n" + json.dumps(result) + "\n")


def _whole(ledger: Ledger, number: int, epochs: int) -> bool:
    trial = ledger.study.get_trials(deepcopy=False)[number]
    return sorted(trial.intermediate_values) == list(range(1, epochs + 1))


if __name__ == "__main__":
    main()

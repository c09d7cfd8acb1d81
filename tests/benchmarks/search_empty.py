"""A script of its own: WHO FOLDER TRIALS REPORTS. A search whose trials train nothing, two at a time.

Prints JSON: trials that ended between the fourth end and the last, and the seconds between those two.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any


def empty_run(spec: Any, *, report: Any) -> None:
    """A trial of ours that reports, and leaves what a run folder must have."""
    from moldistill.core.artifacts import write_manifest
    from moldistill.training.loop import EpochReport

    spec.out.mkdir(parents=True, exist_ok=True)
    lines = []
    for epoch in range(1, spec.settings.training.epochs + 1):
        metrics = {"train_loss": 1.0, "valid_mae": spec.settings.model.dropout}
        lines.append(json.dumps({"epoch": epoch, **metrics}))
        report(EpochReport(epoch, metrics, True))
    (spec.out / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    write_manifest(spec.out, "run", files=["metrics.jsonl"], facts={"metrics": json.loads(lines[-1])})


def ours(folder: Path, trials: int, reports: int) -> list[float]:
    """Moments at which our trials ended."""
    import ray

    from moldistill.core.artifacts import write_manifest
    from moldistill.search.ledger import Ledger
    from moldistill.search.tuner import search

    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    store = folder / "store"
    store.mkdir(parents=True)
    write_manifest(store, "store", files=[])
    space = {
        "base": "student-tiny",
        "fixed": {"training.epochs": reports},
        "parameters": {"model.dropout": {"uniform": [0.0, 0.5]}},
        "scheduler": {"name": "none"},
        "budget": {"trials": trials},
        "resources": {"cpus": 1, "concurrent": 2},
    }
    search(space, store, folder / "study", runner=empty_run)
    ended = [trial.datetime_complete for trial in Ledger.open(folder / "study").trials()]
    return [moment.timestamp() for moment in ended if moment is not None]


def plain(folder: Path, trials: int, reports: int) -> list[float]:
    """Moments at which the trials of plain Tune with OptunaSearch ended; as its documentation has it."""
    import ray
    from ray import tune
    from ray.tune.search.optuna import OptunaSearch

    moments: list[float] = []

    def train(config: dict[str, Any]) -> None:
        for _ in range(reports):
            tune.report({"valid_mae": config["dropout"]})

    class Ends(tune.Callback):
        def on_trial_complete(self, *args: Any, **info: Any) -> None:
            moments.append(time.time())

    with tempfile.TemporaryDirectory(prefix="ray", dir="/tmp") as scratch:
        ray.init(
            address="local", num_cpus=2, include_dashboard=True, log_to_driver=False, logging_level=logging.ERROR,
            _temp_dir=scratch, _node_ip_address="127.0.0.1", dashboard_host="127.0.0.1",
        )  # fmt: skip
        tune.Tuner(
            tune.with_resources(train, {"cpu": 1}),
            param_space={"dropout": tune.uniform(0.0, 0.5)},
            tune_config=tune.TuneConfig(
                metric="valid_mae", mode="min", search_alg=OptunaSearch(), num_samples=trials, max_concurrent_trials=2
            ),
            run_config=tune.RunConfig(storage_path=str(folder), name="tune", verbose=0, callbacks=[Ends()]),
        ).fit()
        ray.shutdown()
    return moments


def main() -> None:
    folder, trials, reports = Path(sys.argv[2]).absolute(), int(sys.argv[3]), int(sys.argv[4])
    os.environ["RAY_AIR_NEW_OUTPUT"] = "0"
    moments = sorted((ours if sys.argv[1] == "moldistill" else plain)(folder, trials, reports))
    warm = moments[3:]
    sys.stdout.write("\n" + json.dumps({"trials": len(warm) - 1, "seconds": warm[-1] - warm[0]}) + "\n")


if __name__ == "__main__":
    main()

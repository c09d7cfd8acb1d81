"""A script of its own: FOLDER TRIALS. Plain Ray Tune with OptunaSearch and a journal, as their documentation has it.

Run again on the same folder it restores, as Tune's documentation says; where that fails, its status is not 0.
"""

from __future__ import annotations

import logging
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import ray
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from ray import tune
from ray.tune.search.optuna import OptunaSearch


def train(config: dict[str, Any]) -> None:
    """Two reports of a trial that takes about as long as two epochs over 48 molecules."""
    for epoch in (1, 2):
        time.sleep(0.05)
        tune.report({"valid_mae": config["dropout"] / epoch})


def main() -> None:
    folder, trials = Path(sys.argv[1]).absolute(), int(sys.argv[2])
    folder.mkdir(parents=True, exist_ok=True)
    os.environ["RAY_AIR_NEW_OUTPUT"] = "0"
    with tempfile.TemporaryDirectory(prefix="ray", dir="/tmp") as scratch:
        ray.init(
            address="local", num_cpus=2, include_dashboard=True, log_to_driver=False, logging_level=logging.ERROR,
            _temp_dir=scratch, _node_ip_address="127.0.0.1", dashboard_host="127.0.0.1",
        )  # fmt: skip
        state = folder / "tune"
        trainable = tune.with_resources(train, {"cpu": 1})
        if state.is_dir():
            tuner = tune.Tuner.restore(str(state), trainable=trainable, resume_unfinished=True, resume_errored=True)
        else:
            storage = JournalStorage(JournalFileBackend(str(folder / "optuna.journal")))
            search = OptunaSearch(study_name="plain", storage=storage)
            tuner = tune.Tuner(
                trainable,
                param_space={"dropout": tune.uniform(0.0, 0.4), "rate": tune.loguniform(1e-4, 1e-2)},
                tune_config=tune.TuneConfig(
                    metric="valid_mae", mode="min", search_alg=search, num_samples=trials, max_concurrent_trials=2
                ),
                run_config=tune.RunConfig(storage_path=str(folder), name="tune", verbose=0),
            )
        tuner.fit()
        ray.shutdown()


if __name__ == "__main__":
    main()

"""Searches: what a trial costs beside its training, beside plain Ray Tune and chemprop, and what a kill leaves."""

from __future__ import annotations

import gzip
import itertools
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import optuna
from timing import Figure, single

if TYPE_CHECKING:
    from inputs import Inputs

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
PEERS = ROOT / ".venv-peers" / "bin" / "chemprop"
OURS, PLAIN, CHEMPROP = "moldistill", "Ray Tune + Optuna", "chemprop hpopt"


def trial_overhead(inputs: Inputs) -> list[Figure]:
    """Seconds per trial that trains nothing, two at a time, once the actors are there; ours and plain Tune's."""
    reports, trials = (1, 9), 8 if inputs.quick else 40
    found: dict[tuple[str, int], list[float]] = {}
    rounds = 1 if inputs.quick else 3
    for turn in range(rounds):
        for count in reports:
            for name in (OURS, PLAIN) if turn % 2 == 0 else (PLAIN, OURS):
                folder = inputs.scratch / f"overhead-{name.split()[0]}-{count}-{turn}"
                said = _script("search_empty.py", name, str(folder), str(trials), str(count))
                found.setdefault((name, count), []).append(said["seconds"] / said["trials"])
    return [
        Figure(
            f"overhead, {name}",
            f"{count} report{'s' * (count > 1)}",
            "s per trial that trains nothing, 2 at a time",
            sorted(values)[len(values) // 2],
            min(values),
            max(values),
            {"rounds": len(values), "seconds": values, "trials": trials},
        )
        for (name, count), values in found.items()
    ]


def trial_memory(inputs: Inputs) -> list[Figure]:
    """Private memory that a further trial needs for data and targets: both are mapped, not read."""
    name = inputs.names[0]
    store, targets = str(inputs.whole(name).path), str(inputs.scratch / "memory")
    whole, part = (_script("search_memory.py", store, targets, share) for share in ("1", "0.1"))
    more = whole["loading"] - part["loading"]
    return [
        single("memory per trial", name, "MB of private memory for an open store and targets", whole["opened"]),
        single(
            "ten times the rows", name, "MB more at the peak of loading as many batches", more, whole=whole, part=part
        ),
    ]


def driver_kills(inputs: Inputs) -> list[Figure]:
    """A real search whose driver is killed with -9 at random moments, and resumed each time."""
    count, wrong, moments = 2 if inputs.quick else 10, 0, list[float]()
    for seed in itertools.count():  # a study may come to its end before all kills
        if len(moments) >= count:
            break
        folder = inputs.scratch / f"killed-{seed}"
        folder.mkdir()
        said = _script(str(HERE.parent / "killed_search.py"), str(folder), str(count - len(moments)), str(seed))
        wrong += len(said["lost"]) + len(said["twice"]) + said["orphans"] + len(said["gaps"])
        moments += said["moments"]
    return [
        single("driver killed", f"{len(moments)} kills", "trials lost, twice, orphaned or cut", wrong, moments=moments)
    ]


def search_peers(inputs: Inputs) -> list[Figure]:
    """Trials per minute of the same small task, and what is left in the storage when the driver is killed half way."""
    table = _toy_table(inputs.scratch / "toy")
    trials = 4 if inputs.quick else 16
    runs: dict[str, Callable[[Path, int], list[str]]] = {OURS: _ours(inputs, table), PLAIN: _plain}
    if PEERS.is_file():
        runs[CHEMPROP] = _chemprop(table)
    figures = []
    for name, command in runs.items():
        folder = inputs.scratch / f"peer-{name.split()[0]}"
        start = time.perf_counter()
        subprocess.run(command(folder, trials), check=True, capture_output=True, env=_environment())
        seconds = time.perf_counter() - start
        figures.append(single(f"trials, {name}", "toy", "trials per minute, start included", 60 * trials / seconds))
        if name != CHEMPROP:  # it keeps no storage: nothing is left
            figures.append(_killed(name, command, inputs.scratch / f"killed-{name.split()[0]}", trials, seconds))
    return figures


def _killed(name: str, command: Callable[[Path, int], list[str]], folder: Path, trials: int, seconds: float) -> Figure:
    """Kill the driver two thirds through its time; run the same command to its end; count what the storage holds."""
    process = subprocess.Popen(
        command(folder, trials), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=_environment()
    )
    time.sleep(seconds * 2 / 3)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    before = _states(folder)
    again = [*command(folder, trials), *(["--resume"] if name == OURS else [])]
    status = subprocess.run(again, capture_output=True, env=_environment()).returncode
    after = _states(folder)
    return single(
        f"killed, {name}",
        "toy",
        "trials left RUNNING after a kill and a second run",
        after.get("RUNNING", 0),
        status=status,
        at_the_kill=before,
        after=after,
    )


def _states(folder: Path) -> dict[str, int]:
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    path = folder / "optuna.journal"
    if not path.is_file():
        return {}
    storage = JournalStorage(JournalFileBackend(str(path)))
    found: dict[str, int] = {}
    for study in storage.get_all_studies():
        for trial in storage.get_all_trials(study._study_id, deepcopy=False):
            found[trial.state.name] = found.get(trial.state.name, 0) + 1
    return found


def _toy_table(folder: Path) -> Path:
    """A CSV of 60 small molecules with made-up gaps, that each peer reads."""
    from moldistill.chem.sample import sample_root

    folder.mkdir()
    with gzip.open(sample_root() / "raw" / "data.csv.gz", "rt", encoding="utf-8") as stream:
        rows = [line.strip().split(",") for line in stream][1:]
    labelled = [row for row in rows if row[2]][:60]
    lines = ["smiles,homolumogap,split"]
    lines += [f"{row[1]},{row[2]},{'valid' if place % 5 == 0 else 'train'}" for place, row in enumerate(labelled)]
    (folder / "toy.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder / "toy.csv"


def _ours(inputs: Inputs, table: Path) -> Callable[[Path, int], list[str]]:
    from inputs import quietly_prepare

    store = inputs.scratch / "toy-store"
    quietly_prepare(table, store, None)
    space = inputs.scratch / "toy.yaml"
    space.write_text(
        "base: student-tiny\nfixed: {training.epochs: 2, model.width: 32, model.depth: 2}\n"
        "parameters:\n  optimizer.learning_rate: {log_uniform: [1.0e-4, 1.0e-2]}\n"
        "  model.dropout: {uniform: [0, 0.4]}\nscheduler: {name: none}\n",
        encoding="utf-8",
    )

    def command(folder: Path, trials: int) -> list[str]:
        tool = str(Path(sys.executable).with_name("moldistill"))
        return [tool, "search", str(space), f"budget.trials={trials}", "--store", str(store), "--out", str(folder)]

    return command


def _plain(folder: Path, trials: int) -> list[str]:
    return [sys.executable, str(HERE / "search_plain.py"), str(folder), str(trials)]


def _chemprop(table: Path) -> Callable[[Path, int], list[str]]:
    def command(folder: Path, trials: int) -> list[str]:
        return [
            str(PEERS), "hpopt", "--data-path", str(table), "--smiles-columns", "smiles",
            "--target-columns", "homolumogap", "--task-type", "regression", "--epochs", "2",
            "--search-parameter-keywords", "init_lr", "dropout", "--raytune-num-samples", str(trials),
            "--raytune-search-algorithm", "optuna", "--raytune-num-cpus", "2", "--raytune-max-concurrent-trials", "2",
            "--hpopt-save-dir", str(folder),
        ]  # fmt: skip

    return command


def _environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "RAY_DEDUP_LOGS": "1"}


def _script(name: str, *arguments: str) -> dict[str, Any]:
    """The JSON that a script of this folder prints as its last line."""
    done = subprocess.run(
        [sys.executable, str(HERE / name), *arguments], capture_output=True, text=True, env=_environment()
    )
    if done.returncode:
        raise RuntimeError(f"{name} failed:\n{done.stderr[-2000:]}")
    found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return found

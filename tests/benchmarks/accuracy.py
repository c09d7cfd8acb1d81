"""`make accuracy`: what distillation gains on real data, at equal CPU time, over seeds, beside a peer.

One training at a time, on one thread, in the order of JOBS; each that ends is a line of `accuracy.jsonl`, beside this
file. It may be killed at any time: the same command goes on where it was. Days of CPU time in all; `--minutes` ends it
early, `--only` chooses jobs, `--summary` prints what is known. Needs MOLDISTILL_DATA.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
RESULTS = Path(__file__).with_suffix(".jsonl")
TABLES = Path(__file__).with_name("accuracy_tables")
PEERS = ROOT / ".venv-peers" / "bin" / "python"

TEACHER = "teacher-small"
TEACHER_SECONDS = 1600
STUDENT_SECONDS = {"qm9_24k": 800, "xtb_24k": 1140}
PEER_EPOCHS = {"qm9_24k": 40, "xtb_24k": 30}
"""The student's budget is the time that chemprop takes for so many epochs."""


@dataclass(frozen=True)
class Job:
    """A table of trainings. kind: teacher, table or peer. source: an ablation, shipped or of the folder beside."""

    kind: str
    data: str
    source: str = ""
    overrides: tuple[str, ...] = ()
    seeds: tuple[int, ...] = (0,)

    @property
    def name(self) -> str:
        """As `--only` and the results spell it."""
        return f"{self.source or self.kind}/{self.data}"


def _main(data: str) -> Job:
    return Job("table", data, "main", (f"budget_seconds={STUDENT_SECONDS[data]}",))


JOBS = (
    Job("teacher", "qm9_24k"),
    _main("qm9_24k"),
    Job("teacher", "xtb_24k"),
    _main("xtb_24k"),
    Job("table", "xtb_24k", "normalization"),
    Job("table", "qm9_24k", "paper"),
    Job("table", "qm9_24k", "states"),
    Job("peer", "xtb_24k", "chemprop", seeds=(0, 1, 2)),
    Job("peer", "qm9_24k", "chemprop", seeds=(0, 1, 2)),
    Job("teacher", "qm9_24k", "more_teachers", seeds=(1, 2)),
    Job("teacher", "xtb_24k", "more_teachers", seeds=(1, 2)),
)


class Finished(BaseException):
    """The time that was given is over: no error, and nothing that a failed training should swallow."""


@dataclass
class Bench:
    """Where things lie, and when to stop: work holds stores, teachers, targets and unfinished trainings."""

    data: Path
    work: Path
    until: float

    def check_time(self) -> None:
        """Raise Finished when it is time: between trainings only."""
        if time.monotonic() > self.until:
            raise Finished

    def store(self, data: str) -> Path:
        """The prepared store of a data set."""
        from moldistill.core.settings import PrepareSettings
        from moldistill.data.prepare import prepare

        out = self.work / "stores" / data
        prepare(self.data / data, out, PrepareSettings())
        return out

    def teacher(self, data: str, seed: int) -> Path:
        """A trained teacher: the preset, within its budget."""
        from moldistill.core.config import load_run
        from moldistill.trial.run import run_trial
        from moldistill.trial.spec import TrialSpec

        out = self.work / "teachers" / f"{data}-{seed}"
        asked = [f"training.budget_seconds={TEACHER_SECONDS}", f"training.seed={seed}", "training.evaluate_every=20"]
        result = run_trial(TrialSpec(load_run(TEACHER, asked), self.store(data), out, resume=out.exists()))
        errors = {"valid_3d": result.metrics["valid_3d_mae"]}
        self.note("teacher", data, "teacher", seed, 1.0, errors, result.metrics["cpu_seconds"], _steps(out))
        return out

    def inputs(self, data: str) -> tuple[Path, Path, Path]:
        """Store, first teacher, and what it says."""
        from moldistill.pipeline import cache_teacher

        store, teacher, out = self.store(data), self.teacher(data, 0), self.work / "targets" / data
        cache_teacher(teacher, store, out)
        return store, teacher, out

    def table(self, job: Job) -> None:
        """Every training of an ablation."""
        from moldistill.delivery.ablation import write_tables
        from moldistill.delivery.ablation_figures import read_teachers, summarize
        from moldistill.search.ablate import CONFIG, prepare_ablation, train_all
        from moldistill.trial.run import run_trial

        out = self.work / "tables" / job.name
        store, teacher, targets = self.inputs(job.data)
        prepared = prepare_ablation(
            _ablation(job.source),
            store,
            out,
            overrides=job.overrides,
            targets=[str(targets)],
            resume=(out / CONFIG).is_file(),
        )
        teachers, ended = read_teachers([teacher], [str(targets)]), []
        for one in train_all(prepared, _stopping(run_trial, self.check_time)):
            ended.append(one)
            run = summarize(prepared, [one], teachers).runs[0]
            if run.reason is not None:
                print(f"{job.name}: {one.run.name}: {run.reason}", file=sys.stderr)
                continue
            self.note(job.source, job.data, run.arm, run.seed, run.fraction, run.errors, run.cpu_seconds, run.steps)
            write_tables(prepared, summarize(prepared, ended, teachers))

    def peer(self, job: Job, seed: int) -> None:
        """chemprop at its defaults, in an environment of its own (`make peers`)."""
        if not PEERS.is_file():
            print("skipped chemprop: run `make peers` first", file=sys.stderr)
            return
        out = self.work / "peers" / f"{job.data}-{seed}.json"
        if not out.is_file():
            out.parent.mkdir(parents=True, exist_ok=True)
            script = Path(__file__).with_name("accuracy_chemprop.py")
            asked = [
                str(self.data / job.data),
                str(self.store(job.data)),
                str(out),
                "--epochs",
                str(PEER_EPOCHS[job.data]),
                "--seed",
                str(seed),
            ]
            subprocess.run([PEERS, script, *asked], check=True)
        told = json.loads(out.read_text())
        self.note("peer", job.data, "chemprop", seed, 1.0, told["errors"], told["cpu_seconds"], None)

    def note(
        self,
        table: str,
        data: str,
        arm: str,
        seed: int,
        fraction: float,
        errors: Any,
        cpu_seconds: float | None,
        steps: int | None,
    ) -> None:
        """A line of the results, unless it is there: errors in eV, seconds of process CPU time."""
        key = {"table": table, "data": data, "arm": arm, "seed": seed, "fraction": fraction}
        record = key | {
            "errors": {name: round(value, 5) for name, value in errors.items()},
            "cpu_seconds": cpu_seconds and round(cpu_seconds, 1),
            "steps": steps,
            "commit": _commit(),
        }
        known = [{name: line[name] for name in key} for line in results()]
        if key not in known:
            with RESULTS.open("a") as file:
                file.write(json.dumps(record) + "\n")
            print(json.dumps(record), flush=True)


def _stopping(runner: Callable[[Any], Any], check: Callable[[], None]) -> Callable[[Any], Any]:
    def run(spec: Any) -> Any:
        check()
        return runner(spec)

    return run


def _steps(run: Path) -> int:
    from moldistill.core.artifacts import read_manifest

    return int(read_manifest(run, "run").facts["steps"])


def _commit() -> str:
    told = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    return told.stdout.strip()


def results() -> list[dict[str, Any]]:
    """The lines that are there."""
    return [json.loads(line) for line in RESULTS.read_text().splitlines()] if RESULTS.is_file() else []


def _ablation(name: str) -> str:
    """The ablation of the folder beside, else the shipped one."""
    own = TABLES / f"{name}.yaml"
    return str(own) if own.is_file() else name


def _baseline(table: str) -> str | None:
    """The arm that the others of a table are compared with; None for teachers and peers."""
    from moldistill.search.ablation import load_ablation

    return load_ablation(_ablation(table)).settings.baseline if table not in ("teacher", "peer") else None


def summary() -> Iterator[str]:
    """A table of each job that has results: means with 95% intervals, and paired differences to the first arm."""
    from moldistill.core.tables import text_table
    from moldistill.delivery.paired import mean_interval, paired_percent

    lines = results()
    for table, data in dict.fromkeys((line["table"], line["data"]) for line in lines):
        here = [line for line in lines if (line["table"], line["data"]) == (table, data)]
        arms = dict.fromkeys((line["fraction"], line["arm"]) for line in sorted(here, key=lambda one: -one["fraction"]))
        rows, baseline = [], _baseline(table)
        for fraction, arm in arms:
            mine = [line for line in here if (line["fraction"], line["arm"]) == (fraction, arm)]
            base = [line for line in here if line["fraction"] == fraction and line["arm"] == baseline]
            cells = [arm, f"{fraction:g}", str(len(mine)), f"{sum(one['cpu_seconds'] for one in mine) / len(mine):.0f}"]
            for part in ("overall", "up_to", "above", "valid_3d"):
                own, other = _by_seed(mine, part), _by_seed(base, part)
                cells.append(_interval(mean_interval(list(own.values())), 4))
                cells.append(_interval(paired_percent(own, other), 1) if arm != baseline else "")
            rows.append(cells)
        parts = [name for part in ("MAE (eV)", "up to 20", "above", "valid-3d") for name in (part, "%")]
        yield f"{table}, {data}\n" + text_table(["arm", "of the time", "seeds", "CPU s", *parts], rows)


def _by_seed(lines: Sequence[dict[str, Any]], part: str) -> dict[int, float]:
    return {line["seed"]: line["errors"][part] for line in lines if part in line["errors"]}


def _by_seed(lines: Sequence[dict[str, Any]], part: str) -> dict[int, float]:
    return {line["seed"]: line["errors"][part] for line in lines if part in line["errors"]}


def _interval(found: Any, digits: int) -> str:
    if found is None:
        return ""
    return f"{found.value:.{digits}f}" + ("" if found.half is None else f" ± {found.half:.{digits}f}")


def run(bench: Bench, only: Sequence[str]) -> None:
    """All jobs in order."""
    for job in JOBS:
        if only and job.name not in only:
            continue
        bench.check_time()
        if job.kind == "table":
            bench.table(job)
            continue
        for seed in job.seeds:
            bench.check_time()
            if job.kind == "teacher":
                bench.teacher(job.data, seed)
            else:
                bench.peer(job, seed)


def main() -> int:
    """Run what was asked for; the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=float("inf"), help="begin no training after so many minutes")
    parser.add_argument("--only", action="append", choices=[job.name for job in JOBS], help="one job; may be repeated")
    parser.add_argument("--work", type=Path, default=ROOT / ".accuracy", help="folder for stores, teachers and runs")
    parser.add_argument("--summary", action="store_true", help="print the tables of what is known, and end")
    asked = parser.parse_args()
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ[name] = "1"  # read when the libraries load, which the imports below do
    if asked.summary:
        print("\n\n".join(summary()))
        return 0
    if "MOLDISTILL_DATA" not in os.environ:
        print("skipped: MOLDISTILL_DATA names no folder with qm9_24k and xtb_24k", file=sys.stderr)
        return 0
    import torch

    torch.set_num_threads(1)
    os.nice(5)
    bench = Bench(Path(os.environ["MOLDISTILL_DATA"]), asked.work.absolute(), time.monotonic() + 60 * asked.minutes)
    try:
        run(bench, asked.only or ())
    except Finished:
        print("the time is over; the same command goes on", file=sys.stderr)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

"""`make gpu`: training of teacher and student on a GPU: speed, waiting, use, memory, accuracy, agreement with the CPU.

Needs Python 3.11, torch, numpy and numba, nothing else, and a prepared store (`make bench` leaves one in
`.bench/store`, to be copied to the machine). Prints a table and writes `.bench/gpu.json`. See the README beside this
file.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

if TYPE_CHECKING:
    import torch
    from timing import Figure

    from moldistill.core.records import Batch
    from moldistill.core.settings import RunSettings
    from moldistill.data.store import Store
    from moldistill.training.loop import Trainer

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(Path(__file__).resolve().parent))  # for `timing`, however this file is run


@dataclass(frozen=True, slots=True)
class Plan:
    """How much is run: molecules per epoch and per batch, timed epochs, and the size of the models."""

    device: torch.device
    molecules: int
    batch_size: int
    epochs: int
    width: int
    depth: int


def main() -> int:
    """Measure; the exit status: 0 also where there is no GPU, 2 where there is no store."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("store", nargs="?", type=Path, default=ROOT / ".bench" / "store")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda", help="cpu: only shows that it runs")
    parser.add_argument("--quick", action="store_true", help="small models, few molecules")
    parser.add_argument("--batch-size", type=int, default=512)
    parser.add_argument("--out", type=Path, default=ROOT / ".bench", help="folder for gpu.json (default: .bench)")
    asked = parser.parse_args()
    missing = [name for name in ("torch", "numpy", "numba") if find_spec(name) is None]
    if missing or find_spec("moldistill") is None:
        wanted = ", ".join(missing) if missing else "moldistill: run it by `make gpu`, or with PYTHONPATH=platform"
        print(f"{sys.executable} lacks {wanted}", file=sys.stderr)
        return 2
    import torch

    if asked.device == "cuda" and not torch.cuda.is_available():
        print("no CUDA GPU here (or a torch without CUDA): nothing measured; --device cpu --quick tries the script")
        return 0
    from moldistill.core.errors import InputError
    from moldistill.data.store import Store

    if asked.device == "cpu":
        torch.set_num_threads(1)  # where others use the cores, threads wait for each other and take many times as long
    try:
        store = Store.open(asked.store)
    except InputError as error:
        print(f"no store to train on: {error}\n`make bench` prepares one; name it: gpu.py STORE", file=sys.stderr)
        return 2
    sizes = (256, min(64, asked.batch_size), 1, 32, 2) if asked.quick else (65_536, asked.batch_size, 3, 128, 6)
    _measure(store, Plan(torch.device(asked.device), *sizes), asked.out)
    return 0


def _measure(store: Store, plan: Plan, out: Path) -> None:
    from timing import save, table

    name = _device_name(plan.device)
    print(f"{name}; {store.path}, its training rows repeated to {plan.molecules:,} per epoch", flush=True)
    figures: list[Figure] = []
    runs: dict[str, dict[str, float]] = {}
    parity: dict[str, Figure] = {}
    for settings in _runs(plan):
        role = settings.role
        if role not in parity:
            parity[role] = _parity(store, settings, plan)
            figures.append(parity[role])
        found = _training(store, settings, plan)
        figures += found.values()
        values = {key: figure.value for key, figure in found.items()}
        runs[_title(settings).replace(",", "")] = values | {"parity": parity[role].value}
    figures += [_accuracy(store, settings, plan) for settings in _runs(plan)]
    print(table(figures))
    facts = {"device": name, "store": store.identity, "batch_size": plan.batch_size, "runs": runs}
    save(out / "gpu.json", figures, name="gpu", **facts)


def _device_name(device: torch.device) -> str:
    import torch

    return torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU (no figure of a GPU)"


def _runs(plan: Plan) -> Iterator[RunSettings]:
    """Settings of the presets teacher-small and student-small, in both precisions, without YAML."""
    from moldistill.core.settings import ModelSettings, OptimizerSettings, RunSettings, TrainingSettings

    model = ModelSettings(width=plan.width, depth=plan.depth, heads=8, feedforward=2.0, kernels=32)
    training = TrainingSettings(epochs=1000, batch_size=plan.batch_size)
    for role in ("teacher", "student"):
        run = RunSettings(role, model, OptimizerSettings(learning_rate=1e-4), training)
        yield run
        yield replace(run, training=replace(training, precision="bf16"))
    if plan.device.type == "cuda":  # on a CPU it would take a minute to show that it runs
        yield replace(run, training=replace(training, precision="bf16", compile="always"))


def _title(settings: RunSettings) -> str:
    compiled = ", compiled" if settings.training.compile == "always" else ""
    return f"{settings.role}, {settings.training.precision}{compiled}"


def _training(store: Store, settings: RunSettings, plan: Plan) -> dict[str, Figure]:
    """Epochs of the loop as it is, with a clock in front of its batches."""
    import numpy as np
    import torch
    from timing import Figure, single

    from moldistill.data.batches import epoch_batches

    trainer = _trainer(store, settings, plan)
    waiting = _Waiting(epoch_batches)
    speed, shares, busy = [], [], _Busy(plan.device)
    with patch("moldistill.training.loop.epoch_batches", waiting), busy:
        _epoch(trainer)  # allocations and kernels of every shape
        if plan.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(plan.device)
        for _ in range(plan.epochs):
            waiting.seconds, start = 0.0, time.perf_counter()
            _epoch(trainer)
            took = time.perf_counter() - start
            speed.append(len(trainer.rows) / took)
            shares.append(waiting.seconds / took)
    title, data = _title(settings), f"batches of {plan.batch_size}"

    def spread(name: str, reading: str, values: list[float]) -> Figure:
        rounds = {"rounds": plan.epochs}
        return Figure(f"{title}: {name}", data, reading, float(np.median(values)), min(values), max(values), rounds)

    found = {
        "molecules_per_second": spread("speed", "molecules per second of a training epoch", speed),
        "waiting_for_data": spread("waiting", "of the epoch's time the loop waits for a batch", shares),
    }
    if plan.device.type == "cuda":
        peak = torch.cuda.max_memory_allocated(plan.device) / 2**30
        if busy.seen:
            found["busy"] = spread("use", "% of the time a kernel runs, as nvidia-smi says", busy.seen)
        found["peak_gib"] = single(f"{title}: memory", data, "GiB of GPU memory at the peak", peak)
    return found


def _epoch(trainer: Trainer) -> None:
    """An epoch; it ends with a look at the gradients on the host, so that the device is done."""
    from moldistill.training.steps import EpochSums

    trainer.run_epoch()
    trainer.epoch, trainer.sums = trainer.epoch + 1, EpochSums()


def _trainer(store: Store, settings: RunSettings, plan: Plan) -> Trainer:
    import numpy as np

    from moldistill.training.loop import Trainer

    trainer = Trainer(settings, store, device=plan.device)
    trainer.rows = np.resize(trainer.rows, plan.molecules)
    trainer.steps_per_epoch = -(-plan.molecules // plan.batch_size)
    return trainer


class _Waiting:
    """Stands in for `epoch_batches` and counts the seconds in which its batches are waited for."""

    def __init__(self, make: Any) -> None:
        self.make, self.seconds = make, 0.0

    def __call__(self, *given: Any, **named: Any) -> Iterator[Batch]:
        """The same batches, from a clock."""
        start = time.perf_counter()
        for batch in self.make(*given, **named):
            self.seconds += time.perf_counter() - start
            yield batch
            start = time.perf_counter()
        self.seconds += time.perf_counter() - start


class _Busy:
    """Asks nvidia-smi every half second how much of the time a kernel ran."""

    def __init__(self, device: torch.device) -> None:
        self.seen: list[float] = []
        self._done = threading.Event()
        tool = shutil.which("nvidia-smi") if device.type == "cuda" else None
        self._command = [tool or "", f"--id={device.index or 0}", "--query-gpu=utilization.gpu"]
        self._thread = threading.Thread(target=self._ask, daemon=True) if tool else None

    def _ask(self) -> None:
        while not self._done.wait(0.5):
            told = subprocess.run([*self._command, "--format=csv,noheader,nounits"], capture_output=True, text=True)
            if told.returncode == 0 and told.stdout.strip().isdigit():
                self.seen.append(float(told.stdout))

    def __enter__(self) -> None:
        if self._thread is not None:
            self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._done.set()
        if self._thread is not None:
            self._thread.join()


def _accuracy(store: Store, settings: RunSettings, plan: Plan) -> Figure:
    """The small preset trained to its end on the store: its error over that of the training median."""
    import torch
    from timing import single

    from moldistill.training.evaluate import median_error
    from moldistill.training.loop import Trainer

    torch.manual_seed(0)
    epochs, rate = (2, 1e-3) if plan.molecules < 1000 else (30, 2e-3)
    run = replace(
        settings,
        optimizer=replace(settings.optimizer, learning_rate=rate),
        training=replace(settings.training, epochs=epochs, batch_size=64, evaluate_every=epochs),
    )
    metric, split = ("valid_mae", "valid") if run.role == "student" else ("valid_3d_mae", "valid-3d")
    trainer = Trainer(run, store, device=plan.device)
    start = time.perf_counter()
    *_, last = trainer.fit()
    took, reference = time.perf_counter() - start, median_error(store, split)
    reading = f"MAE on {split} (eV) after {epochs} epochs; the training median has {reference:.3f}"
    return single(f"{_title(run)}: accuracy", "batches of 64", reading, last.metrics[metric], seconds=took)


def _parity(store: Store, settings: RunSettings, plan: Plan) -> Figure:
    """Largest difference of a prediction (in training standard deviations) between this device and the CPU, fp32."""
    import torch
    from timing import single

    from moldistill.data.batches import collate
    from moldistill.models.registry import build_model
    from moldistill.training.evaluate import forward, readable

    torch.manual_seed(0)
    rows = readable(store, store.rows("train"), settings.role)[: plan.batch_size]
    batch, model = collate(store, rows), build_model(settings.role, settings.model).eval()
    with torch.no_grad():
        here = forward(model, settings.role, batch).prediction
        there = forward(model.to(plan.device), settings.role, batch.to(plan.device)).prediction.cpu()
    reading = (
        f"largest difference of a prediction, CPU to {plan.device.type} (predictions spread over {here.std():.2g})"
    )
    return single(f"{settings.role}: parity", f"{len(rows)} rows", reading, float((here - there).abs().max()))


if __name__ == "__main__":
    sys.exit(main())

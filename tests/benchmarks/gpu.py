"""Training on a GPU: molecules per second, the share of time that waits for data, memory, parity with the CPU.

`make gpu`. Needs Python 3.11, torch, numpy and numba, and a prepared store (argument; default `.bench/store`).
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import torch
from timing import write

from moldistill.core.errors import MoldistillError
from moldistill.core.settings import ModelSettings, Role, RunSettings, TrainingSettings
from moldistill.data.batches import collate, epoch_batches
from moldistill.data.store import Store
from moldistill.training.evaluate import forward
from moldistill.training.loop import Trainer


def settings(role: Role, precision: str, batch_size: int) -> RunSettings:
    training = TrainingSettings(epochs=1, batch_size=batch_size, precision=precision)  # type: ignore[arg-type]
    return RunSettings(role=role, model=ModelSettings(), training=training)


def epoch(trainer: Trainer) -> dict[str, float]:
    """One epoch: molecules per second and the share of its time that the next batch was not ready."""
    size = trainer.settings.training.batch_size
    synchronize = torch.cuda.synchronize if trainer.device.type == "cuda" else (lambda: None)
    waited, seen = 0.0, 0
    synchronize()
    start = mark = time.perf_counter()
    for batch in epoch_batches(trainer.store, trainer.rows, batch_size=size, shuffle=True):
        waited += time.perf_counter() - mark
        trainer._descend(trainer._terms(batch.to(trainer.device, non_blocking=True)))
        seen += len(batch.target)
        mark = time.perf_counter()
    synchronize()
    whole = time.perf_counter() - start
    return {"molecules_per_second": seen / whole, "waiting_for_data": waited / whole}


def parity(trainer: Trainer) -> float:
    """Largest difference of predictions (training standard deviations) between the device and the CPU."""
    batch = collate(trainer.store, trainer.rows[:64])
    role = trainer.settings.role
    model = trainer.model.eval()
    with torch.no_grad():
        there = forward(model, role, batch.to(trainer.device)).prediction.cpu()
        here = forward(model.cpu(), role, batch).prediction
    model.to(trainer.device).train()
    return float((there - here).abs().max())


def measure(store: Store, role: Role, precision: str, device: torch.device, quick: bool) -> dict[str, float]:
    trainer = Trainer(settings(role, precision, 64 if quick else 512), store, device=device)
    trainer.steps_per_epoch = 10**6  # the schedule has no end here
    found = {"parity": parity(trainer)}
    if not quick:
        epoch(trainer)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    found |= epoch(trainer)
    if device.type == "cuda":
        found["peak_gib"] = torch.cuda.max_memory_allocated() / 2**30
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("store", type=Path, nargs="?", default=Path(".bench/store"))
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--out", type=Path, default=Path(".bench"))
    chosen = parser.parse_args()
    if chosen.device == "cuda" and not torch.cuda.is_available():
        print("no GPU that PyTorch can use: nothing was measured")
        return 0
    try:
        store = Store.open(chosen.store)
    except MoldistillError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    device = torch.device(chosen.device)
    figures = {}
    for role in ("student", "teacher"):
        for precision in ("fp32", "bf16"):
            found = measure(store, role, precision, device, chosen.quick)  # type: ignore[arg-type]
            figures[f"{role} {precision}"] = found
            print(f"{role:<8} {precision}  " + "  ".join(f"{name} {value:.4g}" for name, value in found.items()))
    name = torch.cuda.get_device_name() if device.type == "cuda" else "cpu"
    write("gpu", {"device": name, "runs": figures}, chosen.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Learning curves that a change of the code must not move: `python tests/golden.py` writes them anew.

Seeded, on a part of the embedded sample, in fp32, per kind of device. A change that moves them on purpose says so.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import torch

from moldistill.chem.sample import sample_root
from moldistill.core.config import load_run
from moldistill.core.settings import PrepareSettings
from moldistill.data.prepare import prepare
from moldistill.data.store import Store
from moldistill.training.loop import Trainer

FILE = Path(__file__).with_suffix(".json")
STEPS = 24

RUNS = {
    "student": {"role": "student"},
    "hybrid student": {"role": "student", "model": {"name": "hybrid", "walks": 4}},
    "teacher": {"role": "teacher"},
    "teacher with all": {
        "role": "teacher",
        "model": {"hydrogens": True, "angles": True, "denoising": 0.1, "walks": 4},
        "training": {"position_noise": 0.05},
    },
}


def sample_store(folder: Path) -> Store:
    """400 rows of the sample."""
    prepare(sample_root(), folder / "store", PrepareSettings(limit=400))
    return Store.open(folder / "store")


def curve(name: str, store: Store, device: torch.device) -> list[float]:
    """Loss (in training standard deviations) of each of the first STEPS steps."""
    changes = {section: dict(keys) for section, keys in RUNS[name].items() if section != "role"}  # type: ignore[call-overload]
    model = {"width": 32, "depth": 2, "heads": 4, "kernels": 8} | changes.get("model", {})
    training = {"steps": STEPS, "batch_size": 32, "evaluate_every": 1000} | changes.get("training", {})
    run = load_run({"role": RUNS[name]["role"], "model": model, "training": training})
    trainer = Trainer(run, store, device=device)
    losses: list[float] = []
    before = 0.0

    def after_step() -> None:
        nonlocal before
        assert trainer.sums.total is not None
        total = float(trainer.sums.total.sum())
        before = 0.0 if trainer.sums.steps == 1 else before
        losses.append(total - before)
        before = total

    for _ in trainer.fit(after_step):
        pass
    return losses


def main() -> None:
    """Write the curves of this machine's kinds of devices; those of others stay."""
    torch.set_num_threads(1)
    kept = json.loads(FILE.read_text()) if FILE.is_file() else {}
    with tempfile.TemporaryDirectory() as folder:
        store = sample_store(Path(folder))
        for kind in ["cpu"] + ["cuda"] * torch.cuda.is_available():
            kept[kind] = {name: [round(loss, 6) for loss in curve(name, store, torch.device(kind))] for name in RUNS}
    FILE.write_text(json.dumps(kept, indent=1) + "\n")


if __name__ == "__main__":
    main()

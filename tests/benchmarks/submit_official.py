"""A script of its own, for a fresh process: FOLDER make ROWS-OF-DEV ROWS-OF-CHALLENGE, then FOLDER submit.

`make` leaves a store of that many test rows and an ensemble of four synthetic members in FOLDER; `submit` writes the
submission and prints JSON: seconds, those of reading the store's and the members' predictions alone, and the most
memory (MB) that the process held, also before it began.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from pathlib import Path

MEMBERS = 4


def make(folder: Path, dev: int, challenge: int) -> None:
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    from delivery_folders import make_run, make_store, predicted
    from moldistill.delivery.ensemble import ensemble

    sizes = {"train": 5_000, "valid": 5_000, "test-dev": dev, "test-challenge": challenge}
    store = make_store(folder / "store", sizes)
    runs = [
        make_run(
            folder / f"run{place}",
            store,
            predicted(store, noise=0.3, seed=place),
            facts={"seed": place, "seconds_per_molecule": 1e-3},
        )
        for place in range(MEMBERS)
    ]
    ensemble(runs, folder / "ensemble")


def submit(folder: Path) -> None:
    from moldistill.core.vocabulary import TEST_SPLITS
    from moldistill.data.store import Store
    from moldistill.delivery.members import load_predictions
    from moldistill.delivery.submission import submission

    before = _peak()
    begin = time.perf_counter()
    store = Store.open(folder / "store")
    for split in TEST_SPLITS:
        load_predictions(folder / "ensemble", split, store.rows(split))
    reading = time.perf_counter() - begin
    begin = time.perf_counter()
    submission(folder / "ensemble", folder / "store", folder / "submission")
    seconds = time.perf_counter() - begin
    print(json.dumps({"seconds": seconds, "reading": reading, "before_mb": before, "peak_mb": _peak()}))


def _peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    place = Path(sys.argv[1])
    if sys.argv[2] == "make":
        make(place, int(sys.argv[3]), int(sys.argv[4]))
    else:
        submit(place)

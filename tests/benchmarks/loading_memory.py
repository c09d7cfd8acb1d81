"""A script of its own, for a fresh process: STORE BATCHES. Private memory while shuffled batches are loaded.

Prints JSON: MB of anonymous memory (RssAnon) after the imports, and at the peak; batches, molecules and seconds.
"""

from __future__ import annotations

import itertools
import json
import sys
import threading
import time
from pathlib import Path

import numpy as np
import torch

from moldistill.data.batches import epoch_batches
from moldistill.data.store import Store

BATCH = 256


def anonymous_memory() -> float:
    """MB of this process that no file backs."""
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) / 1024
    raise SystemExit("this system does not say how much memory is private")


def main(path: Path, count: int) -> None:
    """Load `count` batches of the store's rows, all splits, in one or more epochs."""
    torch.set_num_threads(1)
    before = peak = anonymous_memory()
    done = threading.Event()

    def watch() -> None:
        nonlocal peak
        while not done.wait(0.005):
            peak = max(peak, anonymous_memory())

    watcher = threading.Thread(target=watch)
    watcher.start()
    store = Store.open(path)
    rows = store.usable(np.arange(len(store)))
    epochs = (epoch_batches(store, rows, batch_size=BATCH, shuffle=True, epoch=epoch) for epoch in itertools.count())
    start, molecules, opened = time.perf_counter(), 0, 0.0
    for batch in itertools.islice(itertools.chain.from_iterable(epochs), count):
        opened = opened or time.perf_counter() - start
        molecules += len(batch.target)
    seconds = time.perf_counter() - start
    done.set()
    watcher.join()
    found = {"rows": len(store), "batches": count, "molecules": molecules, "first_batch": opened, "seconds": seconds}
    print(json.dumps(found | {"before": before, "peak": peak}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))

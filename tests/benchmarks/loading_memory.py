"""A script of its own, for a fresh process: STORE BATCHES. Private memory while shuffled batches are loaded.

Prints JSON: MB of anonymous memory (RssAnon) after the imports, and at the peak; batches, molecules and seconds.
"""

from __future__ import annotations

import itertools
import json
import sys
import time
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from memory import watched

from moldistill.data.batches import epoch_batches
from moldistill.data.store import Store

BATCH = 256


def main(path: Path, count: int) -> None:
    """Load `count` batches of the store's rows, all splits, in one or more epochs."""
    torch.set_num_threads(1)
    with watched() as memory:
        store = Store.open(path)
        rows = store.usable(np.arange(len(store)))
        epochs = (
            epoch_batches(store, rows, batch_size=BATCH, shuffle=True, epoch=epoch) for epoch in itertools.count()
        )
        start, molecules, opened = time.perf_counter(), 0, 0.0
        for batch in itertools.islice(itertools.chain.from_iterable(epochs), count):
            opened = opened or time.perf_counter() - start
            molecules += len(batch.target)
        seconds = time.perf_counter() - start
    found = {"rows": len(store), "batches": count, "molecules": molecules, "first_batch": opened, "seconds": seconds}
    print(json.dumps(found | asdict(memory)))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))

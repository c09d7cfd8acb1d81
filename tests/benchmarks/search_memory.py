"""A script of its own, for a fresh process: STORE FOLDER SHARE. Private memory that a trial needs for its data.

Makes targets of an untrained teacher in FOLDER (in a child, so that it leaves no memory here), opens the store and the
targets as a trial does, and loads batches of a SHARE of the rows, always as many. Prints JSON: MB of anonymous memory
after opening, and at the peak of loading, above what the process had before.
"""

from __future__ import annotations

import itertools
import json
import multiprocessing
import sys
from pathlib import Path

from memory import anonymous, watched

BATCHES = 200


def make_targets(store: Path, folder: Path) -> None:
    """Targets of an untrained small teacher for all rows that have geometry."""
    from moldistill.core.config import load_run
    from moldistill.data.store import Store
    from moldistill.models.registry import build_model
    from moldistill.training.asking import Teacher
    from moldistill.training.cache import cache_targets
    from moldistill.training.evaluate import target_scale

    opened = Store.open(store)
    settings = load_run("teacher-tiny")
    model = build_model("teacher", settings.model).eval()
    cache_targets(Teacher(model, target_scale(opened), "untrained"), opened, folder)


def main() -> None:
    store, folder, share = Path(sys.argv[1]), Path(sys.argv[2]), float(sys.argv[3])
    if not folder.is_dir():
        child = multiprocessing.get_context("spawn").Process(target=make_targets, args=(store, folder))
        child.start()
        child.join()
    from moldistill.data.batches import epoch_batches
    from moldistill.data.store import Store
    from moldistill.data.teachers import TeacherSet

    with watched() as memory:
        before = anonymous()
        opened = Store.open(store)
        targets = TeacherSet.open((str(folder),), opened.identity, sampled=False, seed=0)
        after = anonymous()
        rows = opened.usable(opened.rows("train"))
        rows = rows[: int(len(rows) * share)]
        epochs = (
            epoch_batches(opened, rows, batch_size=256, shuffle=True, epoch=epoch, seed=0, targets=targets)
            for epoch in itertools.count()
        )
        for _ in itertools.islice(itertools.chain.from_iterable(epochs), BATCHES):
            pass
        loaded = memory.peak
    print(json.dumps({"opened": after - before, "loading": loaded - before}))


if __name__ == "__main__":
    main()

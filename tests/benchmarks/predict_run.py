"""A script of its own, for a fresh process: SOURCE OUT SHAPE PRECISION. One `predict` with four untrained members.

Prints JSON: MB of anonymous memory of this process and of those that it starts, with models and imports (`before`), and
how much more at the peak (`beyond`); rows, seconds (of predicting alone, after a warm-up), cores.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import threading
import time
from contextlib import redirect_stderr
from pathlib import Path

from moldistill.core.settings import ModelSettings
from moldistill.delivery import predict as module


def anonymous() -> float:
    """MB that no file backs, of this process and its children."""
    own, total = os.getpid(), 0
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            lines = (folder / "status").read_text(encoding="ascii", errors="replace").splitlines()
        except OSError:
            continue
        found = dict(line.split(":", 1) for line in lines if ":" in line)
        if int(found["Pid"]) == own or int(found["PPid"]) == own:
            total += int(found.get("RssAnon", "0 kB").split()[0])
    return total / 1024


def main(source: Path, out: Path, shape: dict[str, int], precision: str) -> None:
    """Predict once to warm up, on the first rows, and once in earnest."""
    from predicting import _predictor

    predictor = _predictor(ModelSettings(**shape))
    module.load_predictor = lambda model, store: predictor
    with tempfile.TemporaryDirectory() as scratch, (Path(scratch) / "log").open("w") as log, redirect_stderr(log):
        few = Path(scratch) / "few.csv"
        with source.open(encoding="utf-8") as stream:
            few.write_text("".join(line for line, _ in zip(stream, range(600), strict=False)), encoding="utf-8")
        module.predict(Path(), few, Path(scratch) / "few-out.csv", precision=precision)
        before = peak = anonymous()
        done = threading.Event()

        def watch() -> None:
            nonlocal peak
            while not done.wait(0.2):
                peak = max(peak, anonymous())

        watcher = threading.Thread(target=watch)
        watcher.start()
        start = time.perf_counter()
        summary = module.predict(Path(), source, out, precision=precision)
        seconds = time.perf_counter() - start
        done.set()
        watcher.join()
    found = {"rows": summary.rows, "seconds": seconds, "before": before, "beyond": peak - before}
    print(json.dumps(found | {"cores": len(os.sched_getaffinity(0))}))


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent))
    main(Path(sys.argv[1]), Path(sys.argv[2]), json.loads(sys.argv[3]), sys.argv[4])

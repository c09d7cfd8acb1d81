"""Predict while being killed at random moments: run as a script, in a process of its own.

It forks, because a child that has everything loaded begins at once: ARGV is run, source, folder, suffix, number of
kills, seed. The last line of its output is JSON: after how many windows each kill fell, whether a table ever stood
under its name before it was whole, and whether the last one equals that of an undisturbed process.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path

import numpy as np
import torch

from moldistill.delivery.partial import LEDGER, work_folder
from moldistill.delivery.predict import predict


def _child(run: Path, source: Path, out: Path) -> int:
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            predict(run, source, out, chunk=7, processes=0)
            code = 0
        finally:
            os._exit(code)
    return pid


_LOOK = os.WEXITED | os.WNOHANG | os.WNOWAIT


def _windows(out: Path) -> int:
    try:
        return len((work_folder(out) / LEDGER).read_text().splitlines())
    except OSError:  # not yet, or no longer
        return 0


def main() -> None:
    run, source, folder = (Path(text) for text in sys.argv[1:4])
    suffix, kills, seed = sys.argv[4], int(sys.argv[5]), int(sys.argv[6])
    torch.set_num_threads(1)  # threads of a parent do not live on in a child
    whole, out = folder / f"whole{suffix}", folder / f"killed{suffix}"
    os.waitpid(_child(run, source, whole), 0)  # compiles
    whole.unlink()
    os.waitpid(_child(run, source, whole), 0)
    random, reached, early = np.random.default_rng(seed), [], False
    expected = whole.read_bytes()
    while len(reached) < kills:
        # Some windows further than the last one came, and somewhere within the next: most time goes to the beginning.
        wanted = _windows(out) + int(random.integers(0, 6))
        pid = _child(run, source, out)
        status = None
        while _windows(out) < wanted and status is None:
            status = os.waitpid(pid, os.WNOHANG)[1] if os.waitid(os.P_PID, pid, _LOOK) else None
        time.sleep(random.uniform(0, 0.01))
        if status is None:
            os.kill(pid, signal.SIGKILL)
            status = os.waitpid(pid, 0)[1]
        if os.WIFSIGNALED(status):
            reached.append(_windows(out))
        if out.exists():  # whole, whenever it is there; then begin another one
            early |= out.read_bytes() != expected
            out.unlink()
    os.waitpid(_child(run, source, out), 0)
    left = sorted(path.name for path in folder.glob(".*"))
    found = {"reached": reached, "half": early, "equal": out.read_bytes() == expected, "left": left}
    sys.stdout.write(json.dumps(found) + "\n")


if __name__ == "__main__":
    main()

"""Prepare a store while being killed at random moments: run as a script, in a process of its own.

It forks, because a child that has everything loaded begins at once: ARGV is source, folder, number of kills, seed.
The last line of its output is JSON: how many kills fell after how many chunks.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import time
from pathlib import Path

import numpy as np

from moldistill.core.settings import PrepareSettings
from moldistill.data import prepare as module
from moldistill.data.building import LEDGER, work_folder


def _child(source: Path, out: Path) -> int:
    pid = os.fork()
    if pid == 0:
        try:
            module.prepare(source, out, PrepareSettings(), processes=1)
        finally:
            os._exit(0 if (out / "manifest.json").is_file() else 1)
    return pid


def _chunks(out: Path) -> int:
    ledger = work_folder(out) / LEDGER
    return len(ledger.read_text().splitlines()) if ledger.is_file() else 0


def main() -> None:
    source, folder, kills, seed = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
    module.CHUNK = 25
    whole, out = folder / "whole", folder / "killed"
    module.prepare(source, whole, PrepareSettings(), processes=1)
    shutil.rmtree(whole)
    start = time.monotonic()
    os.waitpid(_child(source, whole), 0)
    took = time.monotonic() - start
    random, reached = np.random.default_rng(seed), []
    while len(reached) < kills:
        pid = _child(source, out)
        time.sleep(random.uniform(0, 1.2 * took))
        os.kill(pid, signal.SIGKILL)
        _, status = os.waitpid(pid, 0)
        if os.WIFSIGNALED(status):
            reached.append(_chunks(out))
        elif not (out / "manifest.json").is_file():
            raise SystemExit("a preparation ended without a store")
        if (out / "manifest.json").is_file() and len(reached) < kills:  # done: begin another one
            shutil.rmtree(out)
    os.waitpid(_child(source, out), 0)
    sys.stdout.write(json.dumps({"reached": reached, "seconds": took}) + "\n")


if __name__ == "__main__":
    main()

"""Named seeds: each use of randomness has its own stream, so that adding one does not shift another."""

from __future__ import annotations

import hashlib

import numpy as np


def named_seed(seed: int, *names: str | int) -> int:
    """A 63-bit seed for the use that `names` spells, e.g. ``named_seed(0, "epoch", 3)``.

    The names are hashed with SHA-256, so that streams are independent and the same on every machine.
    """
    text = "\x1f".join([str(seed), *map(str, names)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little") >> 1


def generator(seed: int, *names: str | int) -> np.random.Generator:
    """A numpy generator (PCG64) seeded by `named_seed`."""
    return np.random.default_rng(named_seed(seed, *names))

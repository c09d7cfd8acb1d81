"""Numbers that depend on store rows alone, where a generator's stream would depend on their order."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from moldistill.core.shapes import Int

_FIRST = 0xBF58476D1CE4E5B9 - 2**64
_SECOND = 0x94D049BB133111EB - 2**64


def mixed(value: Int[Tensor, "*shape"]) -> Int[Tensor, "*shape"]:
    """SplitMix64's finalizer (Steele, Lea and Flood, 2014): 64 well-mixed bits; products wrap around."""
    for shift, factor in ((30, _FIRST), (27, _SECOND)):
        value = (value ^ ((value >> shift) & ((1 << (64 - shift)) - 1))) * factor
    return value ^ ((value >> 31) & ((1 << 33) - 1))


def fold_of(rows: Int[np.ndarray, " rows"], folds: int) -> Int[np.ndarray, " rows"]:
    """The part, from 0 to folds - 1, that each store row belongs to: a hash of its number, the same for every run."""
    parts: Int[np.ndarray, " rows"] = (mixed(torch.tensor(rows)) % folds).numpy()
    return parts

"""Splits: names, seeded samples and their hash."""

from __future__ import annotations

import hashlib

import numpy as np

from moldistill.core.errors import InputError, nearest
from moldistill.core.seeds import generator
from moldistill.core.shapes import Bool, Int
from moldistill.core.vocabulary import SPLITS

MIN_PER_SPLIT = 16
"""Rows that a sample keeps of each split, where it has them."""

CSV_SHARES = (0.8, 0.1, 0.05, 0.05)
"""Shares of train, valid, test-dev and test-challenge in a CSV that names no splits."""


def split_code(name: str) -> int:
    """Index of a split in the store's `split` column. Raises InputError for another name."""
    if name not in SPLITS:
        likely = nearest(name, SPLITS)
        raise InputError(
            "there is no such split",
            got=name,
            expected=", ".join(SPLITS),
            remedy=f"did you mean {likely}?" if likely else None,
        )
    return SPLITS.index(name)


def random_splits(rows: int, seed: int) -> Int[np.ndarray, " rows"]:
    """A seeded split of `rows` rows in the shares CSV_SHARES: the index into SPLITS of each."""
    bounds = np.round(np.cumsum(CSV_SHARES) * rows).astype(np.int64)
    ranks = np.searchsorted(bounds, np.arange(rows), side="right")
    return generator(seed, "random_splits").permutation(ranks.clip(max=3)).astype(np.int8)


def sample_rows(split: Int[np.ndarray, " rows"], limit: int | None, seed: int) -> Int[np.ndarray, " selected"]:
    """Rows of a seeded sample of about `limit` rows, ascending, in the proportions of the splits.

    Each split keeps at least MIN_PER_SPLIT rows where it has them, so that a very small sample exceeds `limit`.
    """
    rows = len(split)
    if limit is None or limit >= rows:
        return np.arange(rows)
    codes, sizes = np.unique(split, return_counts=True)
    counts = np.maximum(_proportional(sizes, limit), np.minimum(sizes, MIN_PER_SPLIT))
    # What the small splits got in excess, the largest one gives, as far as it can.
    largest = int(np.argmax(counts))
    counts[largest] = max(counts[largest] - max(counts.sum() - limit, 0), min(MIN_PER_SPLIT, sizes[largest]))
    chosen = [
        generator(seed, "sample_rows", int(code)).choice(np.flatnonzero(split == code), count, replace=False)
        for code, count in zip(codes, counts.tolist(), strict=True)
    ]
    return np.sort(np.concatenate(chosen))


def _proportional(sizes: Int[np.ndarray, " groups"], total: int) -> Int[np.ndarray, " groups"]:
    """Whole shares of `total` in proportion to `sizes`, by largest remainders."""
    shares = total * sizes / sizes.sum()
    counts: Int[np.ndarray, " groups"] = shares.astype(np.int64)
    counts[np.argsort(counts - shares, kind="stable")[: total - counts.sum()]] += 1
    return counts


def mark_valid_3d(
    split: Int[np.ndarray, " rows"], eligible: Bool[np.ndarray, " rows"], share: float, seed: int
) -> Int[np.ndarray, " rows"]:
    """The splits with a seeded `share` of the eligible training rows marked `valid-3d`.

    At least MIN_PER_SPLIT of them (where there are so many) unless share is 0.
    """
    candidates = np.flatnonzero((split == SPLITS.index("train")) & eligible)
    count = min(max(round(share * len(candidates)), MIN_PER_SPLIT), len(candidates)) if share > 0 else 0
    marked = split.astype(np.int8)
    marked[generator(seed, "valid_3d").choice(candidates, count, replace=False)] = SPLITS.index("valid-3d")
    return marked


def split_hash(row: Int[np.ndarray, " rows"], split: Int[np.ndarray, " rows"]) -> str:
    """Hash (16 hex digits) of the source rows and their splits: equal where predictions may be compared."""
    digest = hashlib.sha256(np.ascontiguousarray(row, "<i8").tobytes())
    digest.update(np.ascontiguousarray(split, "i1").tobytes())
    return digest.hexdigest()[:16]

"""What early stopping and a model save: simulated searches on the frozen curves of `tests/curves.py`.

How many epochs all trials together spend until one of the best 1% of configurations has been trained to its end, in
studies of 256 trials of at most 27 epochs, two at a time: medians over seeds, and their ratio to random search without
early stopping. Sampler, scheduler, ledger and conductor are the real ones; see `tests/searches.py` for what counts.
"""

from __future__ import annotations

import argparse
import math
import os
import statistics
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from timing import Figure, save, single, table

if TYPE_CHECKING:
    from inputs import Inputs

SEEDS, OTHERS, SLOW = 50, 20, 5
"""Seeds of the search that has a bar and of random search; of the others; of the slow ones."""


@dataclass(frozen=True)
class Entry:
    """A way to search. options: of `epochs_to_best`. flat: on the space of numbers alone, as is its random search."""

    name: str
    sampler: str
    scheduler: str
    seeds: int = OTHERS
    flat: bool = False
    options: dict[str, Any] = field(default_factory=dict)


RANDOM = Entry("random", "random", "none", SEEDS)
FLAT = Entry("random, numbers alone", "random", "none", SEEDS, flat=True)
ENTRIES = (
    Entry("TPE + ASHA", "tpe", "asha", SEEDS),
    Entry("TPE", "tpe", "none"),
    Entry("random + ASHA", "random", "asha"),
    Entry("TPE, multivariate + ASHA", "tpe", "asha", options={"multivariate": True}),
    Entry("TPE + HyperBand", "tpe", "hyperband"),
    Entry("TPE + median", "tpe", "median"),
    Entry("NSGA-II + ASHA", "nsgaii", "asha"),
    Entry("CMA-ES + ASHA", "cmaes", "asha", flat=True),
    Entry("GP + ASHA", "gp", "asha", SLOW, flat=True, options={"trials": 128}),
)


def one(entry: Entry, most: int | None, seed: int) -> float:
    """Epochs that a search spends."""
    from curves import Frozen
    from searches import epochs_to_best

    options = entry.options | ({"trials": most} if most else {})
    return epochs_to_best(Frozen(), entry.sampler, entry.scheduler, seed, flat=entry.flat, **options)


def measure(entries: Sequence[Entry], seeds: int | None = None, most: int | None = None) -> dict[str, list[float]]:
    """Epochs of each way to search, seed by seed. seeds, most: fewer seeds and trials, to show that it runs."""
    found: dict[str, list[float]] = {}
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        for entry in entries:
            count = min(seeds or entry.seeds, entry.seeds)
            found[entry.name] = list(pool.map(partial(one, entry, most), range(count)))
            print(f"{entry.name}: {statistics.median(found[entry.name]):g} epochs", file=sys.stderr, flush=True)
    return found


def figures(spent: dict[str, list[float]]) -> list[Figure]:
    """Ratios to random search, with a 90% interval over resampled seeds."""
    import numpy as np

    found = []
    for entry in ENTRIES:
        random, mine = spent[(FLAT if entry.flat else RANDOM).name], spent[entry.name]
        draw = np.random.default_rng(0)
        ratios = [
            _ratio(draw.choice(mine, len(mine)).tolist(), draw.choice(random, len(random)).tolist())
            for _ in range(2000)
        ]
        low, high = np.quantile(ratios, (0.05, 0.95), method="nearest")
        detail = {
            "rounds": len(mine),
            "cpu_ratio": math.nan,
            "epochs": mine,
            "median": statistics.median(mine),
            "random_median": statistics.median(random),
            "not_found": sum(map(math.isinf, mine)),
        }
        reading = (
            f"its epochs / random search's: {detail['median']:g} / {detail['random_median']:g}; "
            f"{detail['not_found']} of {len(mine)} found none"
        )
        found.append(Figure(entry.name, "curves", reading, _ratio(mine, random), float(low), float(high), detail))
    exact, mine = random_median(), spent[ENTRIES[0].name]
    reading = f"its epochs / random search's without the luck of seeds: {statistics.median(mine):g} / {exact:.0f}"
    return [*found, single(f"{ENTRIES[0].name}, exactly", "curves", reading, statistics.median(mine) / exact)]


def random_median(configurations: int = 40_000) -> float:
    """Epochs of random search in the median of all seeds: what 50 of them say is 20% off at times.

    With a share p of best configurations, half of all searches have found one after ln(1/2) / ln(1 - p) trials.
    """
    import numpy as np

    import curves

    draw = np.random.default_rng(5)
    best, power = curves.Frozen().best, curves.SCHEMES.index("power")
    schemes, units = draw.integers(0, len(curves.SCHEMES), configurations), draw.random((configurations, 7))
    units[:, 4] = draw.integers(0, 7, configurations) / 6  # whole layers
    units[schemes != power, -1] = 0.5
    stored = np.round(units * 65535).astype(np.uint16)
    ends = [curves.curve(row, int(scheme))[-1] for row, scheme in zip(stored, schemes, strict=True)]
    share = float(np.mean(np.array(ends) <= best))
    return math.log(0.5) / math.log(1 - share) * curves.EPOCHS


def _ratio(mine: Sequence[float], random: Sequence[float]) -> float:
    return min(statistics.median(mine) / min(statistics.median(random), 1e9), 99.0)


def search_simulated(inputs: Inputs) -> list[Figure]:
    """The benchmark as `run.py` calls it."""
    seeds, most = (2, 24) if inputs.quick else (None, None)
    return figures(measure([RANDOM, FLAT, *ENTRIES], seeds, most))


def main() -> int:
    """Print the table and write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, help="fewer seeds")
    parser.add_argument("--out", type=Path, default=Path(__file__).resolve().parents[2] / ".bench")
    asked = parser.parse_args()
    found = figures(measure([RANDOM, FLAT, *ENTRIES], asked.seeds))
    print(table(found))
    save(asked.out / "search_simulated.json", found, name="search_simulated")
    return 0


if __name__ == "__main__":
    sys.exit(main())

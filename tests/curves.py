"""A frozen set of learning curves: 2,000 configurations of a search space, 27 epochs each, for simulated searches.

`python tests/curves.py` makes `curves.npz` again. The curves are made up, since 2,000 trainings would take weeks; their
form follows the 16 trials of two real searches over distillation weights (students on 24,000 and 2,000 molecules, 16
epochs), whose errors fall from 0.53 to 0.66 eV after an epoch to 0.34 to 0.40 eV, lie 1% to 3% about a smooth curve in
the middle and 0.2% to 1% at the end, once the learning rate has fallen, and cross each other. A curve is made of

- what a training comes to, a smooth function of eight parameters: bowls in the logarithms of learning rate and weights,
  more layers better by ever less, each normalization scheme with a level of its own. They interact: deeper students
  want smaller rates, larger weights of one term want smaller ones of another, each scheme wants a weight of the atom
  term of its own, and the exponent of `power` moves its level. Equal settings with other seeds end 1% apart, as
  measured;
- the gap to it, which closes as (epoch)^-speed: small rates and deep students are slow;
- what a large learning rate still adds until its schedule has brought it down;
- noise, which shrinks with the rate.

None of these numbers was chosen by what a search makes of the curves. The best 1% are what ends no worse than the 20
best of the frozen set. A configuration that a search proposes follows the same rule, with chance of its own, seeded by
its values: 1% of random ones belong to the best. (The frozen curve of the nearest configuration, which was tried first,
is no model of a training: within a good part of each range all errors would be equal to the last bit, and chance, too.)
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

FILE = Path(__file__).with_name("curves.npz")
COUNT, EPOCHS, BEST = 2000, 27, 20
STEP = 2e-5
"""Resolution of the stored errors (eV): they are kept as 16-bit multiples of it."""

RANGES: Mapping[str, tuple[float, float, bool]] = {
    "optimizer.learning_rate": (1e-4, 2e-2, True),
    "distill.prediction.weight": (0.02, 5.0, True),
    "distill.graph.weight": (0.02, 20.0, True),
    "distill.atom.weight": (0.02, 20.0, True),
    "model.depth": (2.0, 8.0, False),
    "model.dropout": (0.0, 0.3, False),
    "distill.atom.power": (0.0, 3.0, False),
}
SCHEMES = ("sum", "molecule_mean", "coordinated", "power")
LEVEL = (0.030, 0.008, 0.000, 0.004)
"""What each scheme adds to the final error, relative to it."""

WANTED = (-1.0, 0.0, 0.2, 0.1)
"""Decimal logarithm of the atom term's weight that each scheme wants."""


def raw_space(**changes: Any) -> dict[str, Any]:
    """The space that the configurations were drawn from."""
    parameters: dict[str, Any] = {
        name: {"log_uniform" if log else "uniform": [low, high]}
        for name, (low, high, log) in RANGES.items()
        if name not in ("distill.atom.power", "model.depth")
    }
    parameters["model.depth"] = {"int": [2, 8]}
    power = {"distill.atom.power": {"uniform": list(RANGES["distill.atom.power"][:2])}}
    parameters["distill.atom.normalization"] = {"choice": [*SCHEMES[:3], {"power": power}]}
    return {"base": "student-tiny", "fixed": {"training.epochs": EPOCHS}, "parameters": parameters, **changes}


def unit(values: Mapping[str, Any]) -> NDArray[np.uint16]:
    """Numeric parameters as parts of their ranges, 65535 the whole; half of it for a power that no branch has."""
    places = []
    for name, (low, high, log) in RANGES.items():
        value = float(values.get(name, (low + high) / 2))
        places.append(np.log(value / low) / np.log(high / low) if log else (value - low) / (high - low))
    return np.round(np.array(places) * 65535).astype(np.uint16)


class Frozen:
    """The stored set. units (2000, 7): see `unit`. schemes (2000,): places in SCHEMES. errors (2000, 27): eV."""

    def __init__(self, path: Path = FILE) -> None:
        with np.load(path) as stored:
            self.units, self.schemes = stored["units"], stored["schemes"]
            self.errors = stored["errors"] * STEP
        self.best = float(np.sort(self.errors[:, -1])[BEST - 1])
        self._known: dict[tuple[Any, ...], NDArray[np.float64]] = {}

    def curve(self, settings: Any) -> NDArray[np.float64]:
        """The errors (eV) of these settings, epoch by epoch."""
        scheme = settings.distill.atom.normalization
        names = [name for name in RANGES if scheme == "power" or name != "distill.atom.power"]
        found = {name: _read(settings, name) for name in names}
        key = (scheme, *found.values())
        if key not in self._known:
            self._known[key] = curve(unit(found), SCHEMES.index(scheme))
        return self._known[key]

    def __call__(self, settings: Any, epoch: int) -> float:
        """The error (eV) of these settings after `epoch` epochs."""
        return float(self.curve(settings)[epoch - 1])

    def is_best(self, settings: Any) -> bool:
        """Whether a training with these settings ends among the best 1%."""
        return self(settings, EPOCHS) <= self.best


def _read(settings: Any, name: str) -> Any:
    for part in name.split("."):
        settings = getattr(settings, part)
    return settings


def final_error(units: NDArray[np.float64], scheme: int) -> float:
    """What trainings come to (eV) but for chance. units: from 0 to 1."""
    rate, prediction, graph, atom, layers, dropout, power = units.tolist()
    rate, prediction = -4 + 2.3 * rate, -1.7 + 2.4 * prediction  # decimal logarithms
    graph, atom = -1.7 + 3 * graph, -1.7 + 3 * atom
    depth, dropout, power = 2 + 6 * layers, 0.3 * dropout, 3 * power
    found = 0.30 + 0.09 * math.exp(-(depth - 2) / 2.5)
    away = rate - (-2.7 - 0.05 * (depth - 5))
    relative = (0.16 if away > 0 else 0.10) * away**2
    relative += 0.020 * (prediction + 0.3) ** 2
    relative += 0.025 * (graph + 0.2 * atom) ** 2
    relative += 0.020 * (atom - WANTED[scheme] + 0.15 * graph) ** 2
    relative += LEVEL[scheme] + (0.012 * (power - 1.2) ** 2 if SCHEMES[scheme] == "power" else 0.0)
    relative += 0.9 * (dropout - 0.04) ** 2 + 0.02 * max(0.0, graph + atom + prediction - 1)
    return found * (1 + relative)


def curve(stored: NDArray[np.uint16], scheme: int, seed: int = 0) -> NDArray[np.float64]:
    """Errors (eV) after each epoch. stored: see `unit`."""
    random = np.random.default_rng([seed, scheme, *stored.tolist()])
    units, epoch = stored / 65535, np.arange(1, EPOCHS + 1)
    rate, depth = -4 + 2.3 * units[0], 2 + 6 * units[4]
    final = final_error(units, scheme) * (1 + 0.01 * random.standard_normal())
    speed = 0.75 + 0.25 * (rate + 2.7) - 0.03 * (depth - 5) + 0.05 * random.standard_normal()
    speed = min(max(speed, 0.25), 1.2)
    start = 0.22 + 0.02 * (depth - 5) + 0.02 * random.standard_normal()
    schedule = 0.5 * (1 + np.cos(np.pi * epoch / EPOCHS))
    smooth = final + start * (epoch**-speed - EPOCHS**-speed) + 0.03 * 10 ** (0.5 * (rate + 2.7)) * schedule
    noise = (0.003 + 0.017 * schedule) * random.standard_normal(EPOCHS)
    return np.asarray(np.minimum(np.round(smooth * (1 + noise) / STEP), 65535) * STEP)


def make(seed: int = 0) -> dict[str, NDArray[Any]]:
    """The arrays of the file."""
    random = np.random.default_rng(seed)
    units = random.random((COUNT, len(RANGES)))
    units[:, 4] = random.integers(0, 7, COUNT) / 6  # whole layers
    schemes = random.integers(0, len(SCHEMES), COUNT)
    units[schemes != SCHEMES.index("power"), -1] = 0.5
    stored = np.round(units * 65535).astype(np.uint16)
    errors = np.array([curve(row, int(scheme)) for row, scheme in zip(stored, schemes, strict=True)]) / STEP
    return {"units": stored, "schemes": schemes.astype(np.uint8), "errors": np.round(errors).astype(np.uint16)}


if __name__ == "__main__":
    np.savez_compressed(FILE, **make())

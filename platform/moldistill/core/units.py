"""Units: energies are in electronvolt, lengths in ångström, times in seconds."""

from __future__ import annotations

HARTREE_IN_EV = 27.211386245988  # CODATA 2018
BOHR_IN_ANGSTROM = 0.529177210903  # CODATA 2018
KCAL_PER_MOL_IN_EV = 0.0433641153087705
KJ_PER_MOL_IN_EV = 0.01036426965626

ENERGY_IN_EV = {
    "ev": 1.0,
    "hartree": HARTREE_IN_EV,
    "kcal/mol": KCAL_PER_MOL_IN_EV,
    "kj/mol": KJ_PER_MOL_IN_EV,
    "none": 1.0,
}
"""Factor from each unit that `--unit` accepts to the unit of the store; `none` leaves the numbers alone."""


def duration(seconds: float) -> str:
    """A time for people: seconds, minutes or hours."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"

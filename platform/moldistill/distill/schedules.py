"""How the weight of a term moves over training."""

from __future__ import annotations

import math

from moldistill.core.settings import TermSettings


def weight_at(settings: TermSettings, progress: float) -> float:
    """Weight of a term when the share `progress` (0 to 1) of all steps is done.

    constant: w.  linear: from 0 to w.  cosine: from w to 0, half a period.  warmup: from 0 to w at `until`, then w.
    decay: from w to 0 at `until`, then 0.
    """
    weight = settings.weight
    match settings.schedule:
        case "constant":
            return weight
        case "linear":
            return weight * progress
        case "cosine":
            return weight * 0.5 * (1.0 + math.cos(math.pi * progress))
        case "warmup":
            return weight * min(1.0, progress / settings.until)
        case "decay":
            return weight * max(0.0, 1.0 - progress / settings.until)

"""Comparing the weights that runs leave."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file


def check_equal_within_rounding(one: Path, other: Path) -> None:
    """The weights of two run folders are those of the same steps, taken in another order of summation.

    But for the biases of attention keys: they shift all logits of a query alike, so that softmax does not see them.
    Their gradient is rounding alone, which Adam scales up to whole steps.
    """
    first, second = (load_file(run / "weights.safetensors") for run in (one, other))
    assert first.keys() == second.keys()
    for name, mine in first.items():
        theirs = second[name]
        if name.endswith("projections.bias"):  # queries, keys, values
            mine, theirs = (torch.cat([bias.chunk(3)[0], bias.chunk(3)[2]]) for bias in (mine, theirs))
        torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-4, msg=lambda text, name=name: f"{name}: {text}")

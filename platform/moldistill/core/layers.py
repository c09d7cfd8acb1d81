"""How settings name layers of a model: `all`, `last`, `every K`, or a list that counts from 1."""

from __future__ import annotations

Layers = str | tuple[int, ...]

EXPECTED = "all, last, every 2, or a list such as [2, 4, 6]"


def _step(layers: str) -> int | None:
    """K of `every K`."""
    word, _, number = layers.partition(" ")
    return int(number) if word == "every" and number.isdecimal() and int(number) > 0 else None


def check_layers(layers: Layers) -> None:
    """Raise ValueError for what names no layers of any model."""
    if isinstance(layers, str):
        if layers not in ("all", "last") and _step(layers) is None:
            raise ValueError(f"layers is '{layers}'; expected {EXPECTED}")
    elif not layers or any(layer < 1 for layer in layers) or len(set(layers)) < len(layers):
        raise ValueError(f"layers {list(layers)}: expected different whole numbers from 1")


def named_layers(layers: Layers, depth: int) -> tuple[int, ...]:
    """The layers, ascending from 1, of a model with `depth` of them; `every K` counts back from the last.

    A list is given as it is, also where it names more layers than there are.
    """
    check_layers(layers)
    if not isinstance(layers, str):
        return tuple(int(layer) for layer in layers)
    step = {"all": 1, "last": depth}.get(layers) or _step(layers)
    assert step is not None  # checked above
    return tuple(sorted(range(depth, 0, -step)))

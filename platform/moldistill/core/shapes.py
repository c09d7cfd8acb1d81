"""Shape annotations: jaxtyping where it is installed (checked in the test run), plain markers elsewhere.

The training loop also runs on machines that have torch, numpy and numba only.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int, UInt8
else:
    try:
        from jaxtyping import Bool, Float, Int, UInt8
    except ImportError:

        class _Marker:
            def __class_getitem__(cls, item: Any) -> Any:
                return item[0]

        Bool = Float = Int = UInt8 = _Marker

__all__ = ["Bool", "Float", "Int", "UInt8"]

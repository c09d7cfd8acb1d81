"""Linear layers by whichever matrix library is faster: PyTorch's own choice, or oneDNN for single precision on CPUs.

PyTorch multiplies fp32 matrices by MKL, which on processors of other makers than Intel leaves AVX-512 unused; oneDNN
writes its kernels for what the processor can do. On an AMD Zen 5 core it does 245 Gflop/s where MKL does 112.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from moldistill.core.shapes import Float


def _found() -> Any:
    """oneDNN's product of PyTorch's compiler, for plain tensors; None where this build has none."""
    if not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return None
    return getattr(getattr(torch.ops, "mkldnn", None), "_linear_pointwise", None)


_ONEDNN = _found()


def _multiply(left: Tensor, right: Tensor, bias: Tensor | None) -> Tensor:
    result: Tensor = _ONEDNN(left, right, bias, "none", [], "")
    return result


# To PyTorch's compiler it is a black box: its own lowering of this operator is for weights that stay as they are.
_opaque = torch.library.custom_op(
    "moldistill::multiply", _multiply, mutates_args=(), schema="(Tensor left, Tensor right, Tensor? bias) -> Tensor"
)
_opaque.register_fake(lambda left, right, bias: left.new_empty(left.shape[0], right.shape[0]))


def _product(left: Tensor, right: Tensor, bias: Tensor | None = None) -> Tensor:
    """left rightᵀ + bias."""
    result: Tensor = (_opaque if torch.compiler.is_compiling() else _multiply)(left, right, bias)
    return result


class _Linear(torch.autograd.Function):
    """x wᵀ + b of rows x, and its derivatives, all by oneDNN."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(rows, weight)
        ctx.biased = bias is not None
        return _product(rows, weight, bias)

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        rows, weight = ctx.saved_tensors
        slope = upstream[0].contiguous()
        to_rows = _product(slope, weight.t()) if ctx.needs_input_grad[0] else None
        to_weight = _product(slope.t(), rows.t()) if ctx.needs_input_grad[1] else None
        return to_rows, to_weight, slope.sum(0) if ctx.biased and ctx.needs_input_grad[2] else None


def linear(
    values: Float[Tensor, "*places width"], weight: Float[Tensor, "out width"], bias: Float[Tensor, "out"] | None = None
) -> Float[Tensor, "*places out"]:
    """values weightᵀ + bias. Under autocast, on other devices and in other precisions it is PyTorch's."""
    single = values.dtype == weight.dtype == torch.float32 and values.device.type == "cpu"
    if not single or _ONEDNN is None or torch.is_autocast_enabled("cpu") or not values.numel() * weight.numel():
        return nn.functional.linear(values, weight, bias)
    rows = values.reshape(-1, values.shape[-1]).contiguous()
    found: Tensor = _Linear.apply(rows, weight, bias)  # type: ignore[no-untyped-call]
    return found.view(*values.shape[:-1], len(weight))


def working_precision(values: Tensor) -> torch.dtype:
    """What a product of `values` is made in: autocast's precision where that is on."""
    kind = values.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else values.dtype


class Linear(nn.Linear):
    """`nn.Linear` by `linear`."""

    def forward(self, values: Float[Tensor, "*places width"]) -> Float[Tensor, "*places out"]:
        """The values' rows, mapped."""
        return linear(values, self.weight, self.bias)


def quickened(module: nn.Module) -> nn.Module:
    """The module with each `nn.Linear` in it, of whatever library, replaced by ours: same parameters, same names."""
    for name, child in list(module.named_children()):
        if type(child) is nn.Linear:
            ours = Linear(child.in_features, child.out_features, bias=child.bias is not None)
            ours.weight, ours.bias = child.weight, child.bias
            setattr(module, name, ours)
        else:
            quickened(child)
    return module

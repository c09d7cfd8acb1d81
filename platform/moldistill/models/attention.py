"""What mixes the tokens of a molecule: attention with a bias for each pair, and messages between bonded atoms."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from moldistill.core.shapes import Float


def mix(
    projected: Float[Tensor, "batch tokens parts_widths"],
    bias: Float[Tensor, "heads batch tokens tokens"],
    gates: Float[Tensor, "heads batch tokens tokens"] | None = None,
) -> Float[Tensor, "batch tokens results_widths"]:
    """softmax(q kᵀ / √d + bias) v of each head, side by side; with gates, relu(gates m) of each head after that.

    projected: queries, keys, values and, with gates, messages, each of all heads. On CPUs the plain formula is faster
    than PyTorch's fused attention with an additive bias; on GPUs it is the other way.
    """
    if projected.device.type == "cpu":
        found: Tensor = _Mix.apply(projected, bias, gates)  # type: ignore[no-untyped-call]
        return found
    parts = _apart(projected, 3 if gates is None else 4, len(bias))
    bias = bias.to(projected.dtype)
    seen = nn.functional.scaled_dot_product_attention(parts[0], parts[1], parts[2], attn_mask=bias)
    if gates is None:
        return _together(seen[None])
    return _together(torch.stack([seen, torch.relu(gates.to(projected.dtype) @ parts[3])]))


def _apart(joined: Tensor, parts: int, heads: int) -> Float[Tensor, "parts heads batch tokens head_width"]:
    batch, tokens, _ = joined.shape
    return joined.view(batch, tokens, parts, heads, joined.shape[2] // (parts * heads)).permute(2, 3, 0, 1, 4)


def _together(apart: Float[Tensor, "parts heads batch tokens head_width"]) -> Float[Tensor, "batch tokens widths"]:
    return apart.permute(2, 3, 0, 1, 4).flatten(2)


class _Mix(torch.autograd.Function):
    """`mix` on a CPU. By hand, for results and derivatives are then written to where the next product reads them.

    Softmax and its derivative are in 32 bits at least, which is faster than in 16, conversions included.
    """

    @staticmethod
    def forward(ctx: Any, projected: Tensor, bias: Tensor, gates: Tensor | None) -> Tensor:
        parts = 3 if gates is None else 4
        apart = _apart(projected, parts, len(bias)).contiguous()
        query, key, value, *message = apart.flatten(1, 2).unbind(0)
        kind, wide = projected.dtype, torch.promote_types(projected.dtype, torch.float32)
        logits = torch.baddbmm(bias.to(kind).flatten(0, 1), query, key.transpose(1, 2), alpha=query.shape[-1] ** -0.5)
        weights = torch.softmax(logits.to(wide), -1)
        result = apart.new_empty(parts - 2, *apart.shape[1:])
        flat = result.flatten(1, 2)
        torch.bmm(weights.to(kind), value, out=flat[0])
        gate = None if gates is None else gates.to(kind).flatten(0, 1)
        if gate is not None:
            torch.bmm(gate, message[0], out=flat[1]).relu_()
        ctx.save_for_backward(apart, weights, gate, None if gate is None else flat[1])
        ctx.kinds = bias.dtype, None if gates is None else gates.dtype
        return _together(result)

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        apart, weights, gate, passed = ctx.saved_tensors
        parts, heads, batch, tokens, size = apart.shape
        query, key, value, *message = apart.flatten(1, 2).unbind(0)
        slopes = _apart(upstream[0].contiguous(), parts - 2, heads).contiguous().flatten(1, 2)
        down = torch.empty_like(apart)
        to_query, to_key, to_value, *to_message = down.flatten(1, 2).unbind(0)
        torch.bmm(weights.to(apart.dtype).transpose(1, 2), slopes[0], out=to_value)
        to_weights = torch.bmm(slopes[0], value.transpose(1, 2)).to(weights.dtype)
        to_bias = torch._softmax_backward_data(to_weights, weights, -1, weights.dtype)
        to_logits = (to_bias * size**-0.5).to(apart.dtype)
        torch.bmm(to_logits, key, out=to_query)
        torch.bmm(to_logits.transpose(1, 2), query, out=to_key)
        to_gates = None
        if gate is not None:
            heard = torch.ops.aten.threshold_backward(slopes[1], passed, 0)
            torch.bmm(gate.transpose(1, 2), heard, out=to_message[0])
            to_gates = torch.bmm(heard, message[0].transpose(1, 2)).to(ctx.kinds[1])
            to_gates = to_gates.view(heads, batch, tokens, tokens)
        return _together(down), to_bias.to(ctx.kinds[0]).view(heads, batch, tokens, tokens), to_gates

"""One decoding step of a layer in plain PyTorch: what the kernels are compared with.

The package itself decodes without kernels by the general path of `ahn.layer.decode`.
"""

from __future__ import annotations

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from ahn.ops.decoding.types import NewToken, QKTransform, Ring
from ahn.ops.delta_rule import delta_rule
from ahn.ops.gated_norm import CellSpec, gated_norm_linear
from ahn.ops.layout import compute_dtype
from ahn.ops.ssd import ssd
from ahn.ops.window_attention import ExactRows, decode_attention


def fused_decoding(token: NewToken, ring: Ring, cell: CellSpec | None, scale: float) -> Tensor:
    """`ahn.ops.decoding.fused_decoding` on any device."""
    token = _transformed(token)
    batch = len(token.query)
    rows = torch.arange(batch, device=token.query.device)
    index = ring.ring_index.expand(batch)
    read = None if cell is None else _write_and_read(token, ring, cell, rows, index)
    ring.keys[rows, :, index] = token.key[:, :, 0]
    ring.values[rows, :, index] = token.value[:, :, 0]
    if cell is not None and ring.gates is not None and token.gates is not None:
        ring.gates[rows, :, index] = token.gates[:, 0].to(ring.gates.dtype)
    if ring.scores is not None and token.scores is not None:
        ring.scores[rows, :, index, 0] = token.scores.to(ring.scores.dtype)
    keys, values = ring.keys[:, :, : ring.limit], ring.values[:, :, : ring.limit]
    slots = None if ring.slots is None else ExactRows.of_slots(ring.slots, keys.dtype)
    out = decode_attention(
        token.query, keys, values, filled=ring.filled.expand(batch), exact_rows=slots, scale=scale
    ).transpose(1, 2)
    if read is None or cell is None or token.output_gate is None:
        return out
    return out + gated_norm_linear(read, token.output_gate, cell, kernels="torch").to(out.dtype)


def _write_and_read(
    token: NewToken, ring: Ring, cell: CellSpec, rows: Tensor, index: Tensor
) -> Tensor:
    """Write the token at that index into the state, then read it: `[B, 1, H, V]`."""
    assert ring.gates is not None and ring.state is not None, "a memory has gates and a state"
    asking = token.query if token.memory_query is None else token.memory_query
    key, value, gates = (x[rows, :, index][:, None] for x in (ring.keys, ring.values, ring.gates))
    inputs = (asking.transpose(1, 2), key, value)
    dtype = compute_dtype(gates, ring.state)
    first, *others = gates.to(dtype).unbind(-1)
    mask = ring.write_mask.expand(len(rows), 1)[..., None].to(dtype)
    if cell.rule == "ssd":
        dt = _dt(first, cell) * mask
        read, state = ssd(
            *inputs, _rate(cell, dtype) * dt, ring.state, dt=dt, normalize=True, kernels="torch"
        )
    else:
        beta = first.sigmoid() * mask
        decay = _rate(cell, dtype) * _dt(others[0], cell) * mask if others else None
        read, state = delta_rule(
            *inputs, beta, decay, ring.state,
            normalize=True, scale=cell.query_scale, kernels="torch",
        )  # fmt: skip
    ring.state.copy_(state)
    return read


def _rate(cell: CellSpec, dtype: torch.dtype) -> Tensor:
    assert cell.rate is not None, f"the rule {cell.rule} decays"
    return -cell.rate.to(dtype).exp()


def _dt(gate: Tensor, cell: CellSpec) -> Tensor:
    assert cell.dt_bias is not None, f"the rule {cell.rule} has a dt"
    return F.softplus(gate + cell.dt_bias.to(gate.dtype))


def _transformed(token: NewToken) -> NewToken:
    """The token whose queries and key are normed and rotated."""
    if (how := token.transform) is None:
        return token
    asking = token.memory_query
    return replace(
        token,
        query=_norm_and_rotate(token.query, how.query_norm, how),
        key=_norm_and_rotate(token.key, how.key_norm, how),
        memory_query=None if asking is None else _norm_and_rotate(asking, how.query_norm, how),
        transform=None,
    )


def _norm_and_rotate(x: Tensor, norm: Tensor | None, how: QKTransform) -> Tensor:
    """Of `[B, H, 1, K]`, rounded to its dtype once, at the end."""
    dtype = compute_dtype(x)
    y = x.to(dtype)
    if norm is not None:
        y = F.rms_norm(y, y.shape[-1:], norm.to(dtype), how.eps)
    cos, sin = (angle.to(dtype)[:, None, None] for angle in (how.cos, how.sin))
    first, second = y.chunk(2, -1)
    rotated = torch.cat([first * cos - second * sin, second * cos + first * sin], -1)
    return rotated.to(x.dtype)

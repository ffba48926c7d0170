"""Every op of the table, called on small inputs of a device."""

from __future__ import annotations

from types import SimpleNamespace

import torch
from torch import nn

from ahn.memory import build_memory
from ahn.ops.decoding import NewToken, Ring, fused_decoding
from ahn.ops.delta_rule import delta_rule
from ahn.ops.gated_mlp import gated_mlp
from ahn.ops.gated_norm import gated_norm, gated_norm_linear
from ahn.ops.gemv import Linear, Norm, linear_add, norm_linear, norm_swiglu
from ahn.ops.logit_losses import logit_losses
from ahn.ops.slots import choose as choose_slots
from ahn.ops.ssd import ssd
from ahn.ops.window_attention import window_attention

TOKENS, HEADS, DIM, HIDDEN = 9, 2, 16, 32


def op_calls(device="cpu", dtype=torch.float32):
    """Op and name of the function to a function of `kernels` that calls it and gives its output."""

    def draw(*shape, dtype=dtype):
        generator = torch.Generator().manual_seed(sum(shape))
        return torch.randn(shape, generator=generator).to(device, dtype)

    x = draw(1, TOKENS, HEADS, DIM)
    beta = draw(1, TOKENS, HEADS, dtype=torch.float32).sigmoid()
    heads = x.transpose(1, 2)
    sinks = heads[:, :, :2]
    read, gate = draw(1, TOKENS, HEADS, DIM, dtype=torch.float32), draw(1, TOKENS, HEADS)
    cell = build_memory("GatedDeltaNet", HIDDEN, HEADS, DIM).to(device, dtype).requires_grad_(False)
    nn.init.normal_(cell.o_proj.weight)
    spec = cell.spec()
    rows, norm = draw(3, HIDDEN), Norm(draw(HIDDEN), 1e-6)
    wide, narrow = Linear(draw(48, HIDDEN)), Linear(draw(HIDDEN, 48))
    names = ("gate_proj", "up_proj", "down_proj")
    weights = (wide.weight, wide.weight.flip(0).contiguous(), narrow.weight)
    mlp = SimpleNamespace(**{n: SimpleNamespace(weight=w) for n, w in zip(names, weights)})
    token = NewToken(*(draw(1, HEADS, 1, DIM) for _ in range(3)))
    token = NewToken(token.query, token.key, token.value, None, draw(1, 1, HEADS, 2), gate[:, :1])

    def decode(kernels):
        at = torch.zeros(1, dtype=torch.long, device=device)
        ring = Ring(
            heads.clone(), heads.clone(), draw(1, HEADS, TOKENS, 2),
            draw(1, HEADS, DIM, DIM, dtype=torch.float32), at, at + TOKENS,
            torch.ones(1, 1, dtype=torch.bool, device=device), TOKENS,
        )  # fmt: skip
        out = fused_decoding(token, ring, spec, kernels=kernels)
        return out, ring.state, ring.keys, ring.values, ring.gates

    def attend(kernels):
        return window_attention(
            heads, heads, heads, sinks, sinks, window=4, start=2, kernels=kernels
        )

    def losses(kernels):
        known = (draw(5, 40), torch.arange(5, device=device), None, (1.0, 1.0), True)
        return logit_losses(3 * draw(5, 40), *known, kernels=kernels)

    def choose_by(kernels):
        place = torch.ones(1, HEADS, 5, dtype=torch.int32, device=device)
        choice = choose_slots(draw(1, HEADS, 5), place, draw(1, HEADS, TOKENS), kernels=kernels)
        return choice.index, choice.slot_end, choice.arrival_end, choice.kept

    return {
        ("slot_choice", "choose"): choose_by,
        ("delta_rule", "delta_rule"): lambda k: delta_rule(x, x, x, beta, kernels=k),
        ("ssd", "ssd"): lambda k: ssd(x, x, x, -beta, dt=beta, kernels=k),
        ("window_attention", "window_attention"): attend,
        ("gated_norm", "gated_norm"): lambda k: gated_norm(
            read, gate, spec, torch.float32, kernels=k
        ),
        ("gated_norm_linear", "gated_norm_linear"): lambda k: gated_norm_linear(
            read, gate, spec, kernels=k
        ),
        ("logit_losses", "logit_losses"): losses,
        ("gated_mlp", "gated_mlp"): lambda k: gated_mlp(rows, mlp, kernels=k),
        ("gemv", "norm_linear"): lambda k: norm_linear(rows, norm, [wide, wide], kernels=k),
        ("gemv", "norm_swiglu"): lambda k: norm_swiglu(rows, norm, wide, wide, kernels=k),
        ("gemv", "linear_add"): lambda k: linear_add(draw(3, 48), narrow, rows.clone(), kernels=k),
        ("fused_decoding", "fused_decoding"): decode,
    }


def flat(output) -> list[torch.Tensor]:
    """The tensors of an op's output."""
    return [output] if isinstance(output, torch.Tensor) else list(output)

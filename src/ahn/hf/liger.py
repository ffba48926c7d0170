"""The base's own norms, RoPE and MLP by Liger-Kernel: faster on a GPU, equal but for rounding."""

from __future__ import annotations

import inspect
import types
from collections.abc import Callable
from importlib.util import find_spec
from types import SimpleNamespace
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel

from ahn.hf.families import FAMILIES, Family, family_of, has_silu
from ahn.layer.watched import REPLACED_FORWARD, watchers_of
from ahn.ops.backends import unsupported_reason
from ahn.ops.gated_mlp import gated_mlp

PATCHED = "ahn_liger"  # attribute of the decoder: the modules whose forward is Liger's

Forward = Callable[..., Any]


def use_liger(model: PreTrainedModel) -> PreTrainedModel:
    """Run the decoder's RMSNorm, RoPE and SwiGLU by Liger-Kernel's functions, in place.

    MLPs whose weights are frozen, or need no gradient, run by `ahn.ops.gated_mlp` where that can:
    it leaves out what only trained weights need.

    Weights and other models of the process stay as they are; a memory may be attached before or
    after. `drop_liger` undoes it, and so does `ahn.detach`. Gradients flow.

    Returns:
        The same object.

    Raises:
        ValueError: Liger cannot run here, or does not know the model; the message says why.
    """
    decoder = model.get_decoder()
    forwards = {m: forward for m in decoder.modules() if (forward := _forward(m)) is not None}
    if reason := _unsupported_reason(decoder, list(forwards)):
        raise ValueError(f"use_liger: expected {reason}")
    for module, forward in forwards.items():
        module.forward = types.MethodType(forward, module)
    setattr(decoder, PATCHED, list(forwards))
    return model


def drop_liger(model: PreTrainedModel) -> PreTrainedModel:
    """Undo `use_liger`, where it has been called."""
    decoder = model.get_decoder()
    for module in decoder.__dict__.pop(PATCHED, ()):
        del module.forward
    return model


def uses_liger(model: PreTrainedModel) -> bool:
    """Whether `use_liger` has been called on the model, and not undone."""
    return hasattr(model.get_decoder(), PATCHED)


def _unsupported_reason(decoder: Any, modules: list[nn.Module]) -> str | None:
    if hasattr(decoder, PATCHED):
        return "a model without Liger's kernels, got one that has them"
    if reason := _machine_reason(decoder):
        return reason
    if not modules:
        return f"a model of {', '.join(FAMILIES)}, got {type(decoder).__name__}"
    for module in modules:
        if REPLACED_FORWARD in watchers_of(module):
            return f"no forward put in place by others, got one of {type(module).__name__}"
    return None


def _machine_reason(decoder: Any) -> str | None:
    if any(parameter.device.type != "cuda" for parameter in decoder.parameters()):
        return "all weights on CUDA devices"
    if find_spec("liger_kernel") is None:
        return "liger-kernel to be installed (pip install 'ahn[gpu]')"
    return None


def _forward(module: Any) -> Forward | None:
    """Liger's form of a module's forward; None where the module keeps its own."""
    family = family_of(module)
    if family is None:
        return None
    if family.is_its("RMSNorm", module):
        return _norm_forward(family)
    if family.is_its("MLP", module) and has_silu(module.config):
        return _mlp_forward(family)
    forward = inspect.unwrap(type(module).forward)  # transformers wraps it to rename keywords
    if family.is_its("Attention", module) and family.rope in forward.__code__.co_names:
        return _with_globals(forward, {family.rope: _rope})
    return None


def _norm_forward(family: Family) -> Forward:
    def forward(module: Any, hidden_states: Tensor) -> Tensor:
        from liger_kernel.ops import LigerRMSNormFunction

        eps = getattr(module, family.norm_eps)
        settings = (eps, 0.0, "llama", False)  # no offset, rounded as Llama's, not in place
        return LigerRMSNormFunction.apply(hidden_states, module.weight, *settings)

    return forward


def _mlp_forward(family: Family) -> Forward:
    def forward(module: Any, x: Tensor) -> Tensor:
        gate, up, down = linears = [getattr(module, name) for name in family.mlp_maps]
        weights = [linear.weight for linear in linears]
        reason = unsupported_reason("gated_mlp", "triton", x, weights)
        if reason is None and all(map(_is_plain, linears)):
            return gated_mlp(x, SimpleNamespace(gate_proj=gate, up_proj=up, down_proj=down))
        from liger_kernel.ops import LigerSiLUMulFunction

        return down(LigerSiLUMulFunction.apply(gate(x), up(x)))

    return forward


def _is_plain(linear: nn.Module) -> bool:
    """Whether a product with its weight is all that calling it does."""
    return type(linear) is nn.Linear and linear.bias is None and not watchers_of(linear)


def _rope(query: Tensor, key: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    from liger_kernel.transformers.rope import liger_rotary_pos_emb

    return liger_rotary_pos_emb(query, key, cos, sin)


def _with_globals(function: Any, names: dict[str, Any]) -> Forward:
    """A copy of a function that finds other objects under these global names."""
    copied = types.FunctionType(
        function.__code__,
        {**function.__globals__, **names},
        function.__name__,
        function.__defaults__,
        function.__closure__,
    )
    copied.__kwdefaults__ = function.__kwdefaults__
    return copied

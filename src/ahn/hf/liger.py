"""The base's own norms, RoPE and MLP by Liger-Kernel: faster on a GPU, equal but for rounding."""

from __future__ import annotations

import types
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel

from ahn.ops.backends import unsupported_reason
from ahn.ops.gated_mlp import gated_mlp

PATCHED = "ahn_liger"  # attribute of the decoder: the modules whose forward is Liger's
ROPE = "apply_rotary_pos_emb"  # as the families' modelling code calls it
FAMILIES = ("qwen2", "qwen3", "llama", "mistral")  # whose formulas are those of these kernels


def use_liger(model: PreTrainedModel) -> PreTrainedModel:
    """Run the decoder's RMSNorm, RoPE and SwiGLU by Liger-Kernel's functions, in place.

    MLPs whose weights are frozen, or need no gradient, run by `ahn.ops.gated_mlp` where that can:
    it leaves out what only trained weights need.

    Other models of the process and the weights stay as they are, whether a memory is attached or
    not; `drop_liger`, and `ahn.detach`, undo it. Gradients pass.

    Returns:
        The same object.

    Raises:
        ValueError: Liger cannot run here, or does not know the model; the message says why.
    """
    decoder = model.get_decoder()
    found = [(m, forward) for m in decoder.modules() if (forward := _forward(m)) is not None]
    if reason := _why_not(decoder, [module for module, _ in found]):
        raise ValueError(f"use_liger: expected {reason}")
    for module, forward in found:
        module.forward = types.MethodType(forward, module)
    setattr(decoder, PATCHED, [module for module, _ in found])
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


def _why_not(decoder: Any, modules: list[nn.Module]) -> str | None:
    if hasattr(decoder, PATCHED):
        return "a model without Liger's kernels, got one that has them"
    if reason := _why_not_here(decoder):
        return reason
    if not modules:
        return f"a model of {', '.join(FAMILIES)}, got {type(decoder).__name__}"
    if taken := [module for module in modules if "forward" in vars(module)]:
        return f"no forward put in place by others, got one of {type(taken[0]).__name__}"
    return None


def _why_not_here(decoder: Any) -> str | None:
    if any(parameter.device.type != "cuda" for parameter in decoder.parameters()):
        return "all weights on CUDA devices"
    if find_spec("liger_kernel") is None:
        return "liger-kernel to be installed (pip install 'ahn[gpu]')"
    return None


def _forward(module: nn.Module) -> Callable[..., Any] | None:
    """Liger's form of a module's forward; None where it stays."""
    kind = type(module)
    if kind.__module__ not in {f"transformers.models.{f}.modeling_{f}" for f in FAMILIES}:
        return None
    if kind.__name__.endswith("RMSNorm"):
        return _norm
    if kind.__name__.endswith("MLP") and _activation(module) == "silu":
        return _mlp
    if kind.__name__.endswith("Attention") and ROPE in kind.forward.__code__.co_names:
        return _rotating(kind.forward)
    return None


def _activation(module: Any) -> str:
    return module.config.hidden_act


def _norm(module: Any, hidden_states: Tensor) -> Tensor:
    from liger_kernel.ops import LigerRMSNormFunction

    settings = (module.variance_epsilon, 0.0, "llama", False)  # no offset, not in place
    return LigerRMSNormFunction.apply(hidden_states, module.weight, *settings)


def _mlp(module: Any, x: Tensor) -> Tensor:
    maps = (module.gate_proj, module.up_proj, module.down_proj)
    weights = [linear.weight for linear in maps]
    if all(map(_is_plain, maps)) and not unsupported_reason("gated_mlp", "triton", x, weights):
        return gated_mlp(x, module)
    from liger_kernel.ops import LigerSiLUMulFunction

    return module.down_proj(LigerSiLUMulFunction.apply(module.gate_proj(x), module.up_proj(x)))


def _is_plain(linear: nn.Module) -> bool:
    """Whether a product with its weight is all that calling it does."""
    forth = linear._forward_hooks or linear._forward_pre_hooks or "forward" in vars(linear)
    back = linear._backward_hooks or linear._backward_pre_hooks
    return type(linear) is nn.Linear and linear.bias is None and not (forth or back)


def _rope(query: Tensor, key: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    from liger_kernel.transformers.rope import liger_rotary_pos_emb

    return liger_rotary_pos_emb(query, key, cos, sin)


def _rotating(plain: Callable[..., Any]) -> Callable[..., Any]:
    """The same function, that finds `_rope` under the name of the family's own."""
    names = {**plain.__globals__, ROPE: _rope}
    copied = types.FunctionType(
        plain.__code__, names, plain.__name__, plain.__defaults__, plain.__closure__
    )
    copied.__kwdefaults__ = plain.__kwdefaults__
    return copied

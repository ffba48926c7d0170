"""The forward pre-hooks that tell the attention function what it is not given natively.

That of the decoder is in `ahn.hf.decoder_hook`, that of the whole model in `ahn.hf.model_hook`.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from ahn.hf.attached_state import AttachedState
from ahn.hf.cache_argument import cache_argument
from ahn.hf.inputs import by_name
from ahn.layer.attention import NAME
from ahn.layer.cache_layer import AHNCacheLayer
from ahn.layer.context import ForwardContext, LayerContext
from ahn.layer.modes import Mode, mode_named
from ahn.memory import Memory, PositionRouter
from ahn.shapes import RECURRENT

CONTEXT = "ahn_context"  # keyword under which a ForwardContext travels through the layers
PROMPT = "ahn_prompt"  # keyword that tells `GenerateStep` the prompt's length; nobody else looks

Arguments = tuple[tuple[Any, ...], dict[str, Any]]


class AHNLayer(nn.Module):
    """`decoder_layer.ahn`: holds the memory under the released name `fn`."""

    def __init__(self, fn: Memory) -> None:
        super().__init__()
        self.fn = fn


class AttentionHook:
    """Before a layer's `self_attn`: hand its memory, hidden states and cache to the attention."""

    def __init__(self, layer: nn.Module, index: int, is_last: bool, is_bounded: bool) -> None:
        self.layer, self.index = layer, index
        self.is_last, self.is_bounded = is_last, is_bounded

    def __call__(self, attention: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Arguments:
        self._check_caller(attention, kwargs)
        forward: ForwardContext = kwargs.pop(CONTEXT)
        hidden = args[0] if args else kwargs["hidden_states"]
        if len(args) > 1:  # else a cache among them would go unseen
            args, kwargs = (), by_name(attention, args, kwargs)
        memory: AHNLayer | None = getattr(self.layer, "ahn", None)
        if self.is_bounded:
            forward = forward.of_layer(self.index)
        router: PositionRouter | None = getattr(self.layer, "ahn_router", None)
        cache_layer = self._cache_layer(kwargs, forward, hidden)
        rope = kwargs.get("position_embeddings")  # Llama 4 has complex numbers instead
        context = LayerContext(
            forward=forward,
            memory=None if memory is None else memory.fn,
            router=router,
            hidden=hidden,
            position_embeddings=rope if isinstance(rope, tuple) else None,
            cache=cache_layer,
            is_last=self.is_last,
            slots=getattr(self.layer, "ahn_slots", None),
            is_bounded=self.is_bounded,
        )
        return args, {**kwargs, "ahn": context}

    def _check_caller(self, attention: Any, kwargs: dict[str, Any]) -> None:
        if CONTEXT not in kwargs:
            raise RuntimeError(
                f"{type(attention).__name__}: expected to be called by the attached decoder"
            )
        if attention.config._attn_implementation != NAME:
            raise RuntimeError(
                f"attn_implementation: expected {NAME!r} on an attached model, got "
                f"{attention.config._attn_implementation!r} (use model.set_attn_implementation)"
            )

    def _cache_layer(
        self, kwargs: dict[str, Any], forward: ForwardContext, hidden: Tensor
    ) -> AHNCacheLayer | None:
        """The cache of a layer with a memory, ready for its update; None elsewhere."""
        name, cache = cache_argument(kwargs)
        # A cache of full attention may have no layers yet: it makes them as they come.
        layers = () if cache is None else cache.layers
        layer = layers[self.index] if self.index < len(layers) else None
        if isinstance(layer, AHNCacheLayer):
            layer.expects_update = True
            if forward.padding is not None:
                layer.set_padding(forward.padding.to(hidden.device), forward.max_padding)
            return layer if self.is_bounded else None
        if forward.mode.is_bounded and self.is_bounded and layer is not None:
            raise TypeError(f"{name}: expected an AHNCache, got {type(cache).__name__}")
        return None


class OtherLayerHook:
    """Before a module of a layer that stays as it is: take away what its base does not know.

    Its attention is told to keep its own form. A recurrence is told which new tokens are padding
    where its base would not look: one token in each row, of which some have not begun.
    """

    def __init__(self, layer_type: str, is_attention: bool) -> None:
        self.layer_type, self.is_attention = layer_type, is_attention

    def __call__(self, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Arguments:
        forward: ForwardContext | None = kwargs.pop(CONTEXT, None)
        if forward is None:
            return args, kwargs
        if self.is_attention:
            hidden = kwargs["hidden_states"] if "hidden_states" in kwargs else args[0]
            kwargs["ahn"] = LayerContext(forward, None, None, hidden, None, None, keeps_own=True)
        if self.layer_type in RECURRENT and forward.is_real is not None:
            kwargs["attention_mask"] = forward.is_real
        return args, kwargs


def mode_of(given: Mode | str | None, state: AttachedState) -> Mode:
    """The mode that a call asks for; without one, that of the attached model."""
    mode = given or state.mode
    return mode if isinstance(mode, Mode) else mode_named(mode)

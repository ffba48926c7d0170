"""The base model's own attention function, with the mask it would have been given."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, causal_mask_function
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

Output = tuple[Tensor, Tensor | None]  # [B, C, H, V], and weights where the function gives some


class LazyMask:
    """The base model's own mask, built when a layer asks for it; shared by all layers."""

    def __init__(self, **arguments: Any) -> None:
        self.arguments = arguments

    @cached_property
    def base(self) -> Any:
        """What the base's attention function takes as `attention_mask`."""
        return ALL_MASK_ATTENTION_FUNCTIONS[self.arguments["config"].ahn_backend](**self.arguments)

    @property
    def for_decoder(self) -> Any:
        """What a decoder takes that would make its own mask (Molmo 2): one of tokens where it can.

        It takes that of pairs, which it leaves as it is, where tokens of an image see each other.
        """
        return self.base if self.sees_ahead else self.arguments["attention_mask"]

    @cached_property
    def sees_ahead(self) -> bool:
        """Whether a new token sees the one that follows, as those of an image do in some models."""
        allows, token = self.arguments["mask_function"], self._queries[:-1]
        if allows is causal_mask_function:
            return False
        row = torch.arange(self.arguments["batch_size"], device=token.device)[:, None]
        return bool(allows(row, row.new_zeros(()), token, token + 1).any())

    @property
    def _queries(self) -> Tensor:
        """Positions of the new tokens, `[C]`."""
        given = self.arguments
        if "cache_position" in given:  # in transformers 5.0
            return given["cache_position"]
        new = torch.arange(given["q_length"], device=given["device"])
        return new + given["q_offset"]


@dataclass(frozen=True)
class BaseAttention:
    """One layer's call of the base's attention function, ready for keys and values.

    Attributes:
        module: the layer's `self_attn`.
        mask: a `LazyMask`, or what the decoder made itself.
        scaling: factor on the scores; None is K^-1/2.
        options: further keywords that the layer passed on.
    """

    module: Any
    mask: Any
    scaling: float | None
    dropout: float
    options: dict[str, Any]

    def __call__(self, query: Tensor, key: Tensor, value: Tensor) -> Output:
        """Attention with the base's mask."""
        mask = self.mask.base if isinstance(self.mask, LazyMask) else self.mask
        return self._run(query, key, value, mask)

    def without_mask(self, query: Tensor, key: Tensor, value: Tensor) -> Output:
        """Causal attention of as many queries as keys, or of one query over all keys."""
        return self._run(query, key, value, None)

    @property
    def sink_logits(self) -> Tensor | None:
        """`[H]`, one more term of each head's log-sum-exp, as gpt-oss has it; None is none."""
        return self.options.get("s_aux")

    @property
    def is_sdpa(self) -> bool:
        """Whether PyTorch's SDPA runs it, which leaves the kernel to whoever calls it."""
        return self.module.config.ahn_backend == "sdpa"

    @property
    def is_causal_sdpa(self) -> bool:
        """Whether SDPA runs it, and no new token sees one that follows."""
        sees_ahead = isinstance(self.mask, LazyMask) and self.mask.sees_ahead
        return self.is_sdpa and not sees_ahead

    def _run(self, query: Tensor, key: Tensor, value: Tensor, mask: Any) -> Output:
        options = {"scaling": self.scaling, "dropout": self.dropout, **self.options}
        return self._function()(self.module, query, key, value, mask, **options)

    def _function(self) -> Callable[..., Output]:
        name = self.module.config.ahn_backend
        if name == "eager":
            return sys.modules[type(self.module).__module__].eager_attention_forward
        return ALL_ATTENTION_FUNCTIONS[name]

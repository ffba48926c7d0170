"""The configs that the modules of a model hold: a composite model has one for each of its parts."""

from __future__ import annotations

import copy
from typing import Any

from transformers import PreTrainedConfig

from ahn.hf.decoder_parts import attention_of, decoder_of

Pairs = list[tuple[Any, Any]]  # what modules hold, and what they are to hold


def copied_configs(model: Any) -> Pairs:
    """Each config that a module holds, the model's own first, with a copy of it.

    Copies share what the configs share: that of the text is a part of the model's.
    """
    held = [getattr(module, "config", None) for module in model.modules()]
    configs = list({id(x): x for x in held if isinstance(x, PreTrainedConfig)}.values())
    return list(zip(configs, copy.deepcopy(configs)))


def replace_configs(model: Any, pairs: Pairs) -> None:
    """Modules hold the second of a pair for the first; other models may share that, so it stays."""
    new = {id(old): config for old, config in pairs}
    for module in model.modules():
        config = getattr(module, "config", None)
        if id(config) in new:
            module.config = new[id(config)]


def decoder_configs(model: Any) -> list[Any]:
    """The configs that the decoder, its layers and its caches look at."""
    decoder = decoder_of(model)
    layers = [getattr(attention_of(layer), "config", None) for layer in decoder.layers]
    configs = [decoder.config, model.config.get_text_config(decoder=True), *layers]
    return list({id(config): config for config in configs if config is not None}.values())

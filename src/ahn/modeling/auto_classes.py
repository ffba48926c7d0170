"""Which of transformers' Auto classes load a family's model, and which class that is."""

from __future__ import annotations

from typing import Any

import transformers
from transformers import (
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoModelForMultimodalLM,
    PreTrainedModel,
)
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
    MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES,
)

from ahn.io.keys import PREFIX

CLASS_PREFIX = "AHN"  # of an attached class, before the name of its base
AUTO_CLASSES: dict[Any, Any] = {  # class of a model by model type, that of text alone first
    AutoModelForCausalLM: MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    AutoModelForImageTextToText: MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
    AutoModelForMultimodalLM: MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES,
}
MODEL_TYPES = sorted({model_type for names in AUTO_CLASSES.values() for model_type in names})


def auto_class(config: Any) -> Any:
    """The Auto class that loads a base or an attached model with this config.

    `architectures` decides where a family has one class for text and another for images too.

    Raises ValueError where no Auto class loads such a model, as for the text part of some families.
    """
    model_type = config.model_type.removeprefix(PREFIX)
    named = [name.removeprefix(CLASS_PREFIX) for name in config.architectures or ()]
    of_type = {
        auto: names[model_type] for auto, names in AUTO_CLASSES.items() if model_type in names
    }
    exact = [auto for auto, name in of_type.items() if name in named]
    auto = next(iter((*exact, *of_type)), AutoModelForCausalLM)
    if type(config) not in auto._model_mapping and not getattr(config, "auto_map", None):
        name = type(config).__name__
        raise ValueError(f"base: expected a model that transformers' Auto classes load, got {name}")
    return auto


def auto_classes_of(model_class: type[PreTrainedModel]) -> list[Any]:
    """The Auto classes that load this class; that of text where transformers has no such type."""
    model_type = model_class.config_class.model_type  # type: ignore[union-attr]
    if model_type not in MODEL_TYPES:
        return [AutoModelForCausalLM]
    name = model_class.__name__
    return [auto for auto, names in AUTO_CLASSES.items() if names.get(model_type) == name]


def base_classes(model_type: str) -> list[type[PreTrainedModel]]:
    """The classes of a model type that generate text, that of text alone first.

    Raises ValueError where transformers has none.
    """
    known = [names[model_type] for names in AUTO_CLASSES.values() if model_type in names]
    if not known:
        raise ValueError(
            f"model_type: expected a causal language model of transformers, got {model_type!r}"
        )
    return [getattr(transformers, name) for name in dict.fromkeys(known)]

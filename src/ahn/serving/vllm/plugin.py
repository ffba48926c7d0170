"""What vLLM is told of attached models, before it reads the first config."""

from __future__ import annotations

import warnings

from ahn.io.keys import PREFIX
from ahn.serving.limits import FAMILIES


def register() -> None:
    """Make vLLM know the architectures, their configs and their cache; it may be called again.

    A vLLM that is not as this plug-in expects it goes on without it, with a warning: its other
    models have nothing to do with memories.
    """
    try:
        _register()
    except (ImportError, AttributeError) as error:
        warnings.warn(
            f"ahn: expected a tested vLLM for models with a memory, got {error}", stacklevel=2
        )


def _register() -> None:
    """Imports vLLM, and this package's config classes."""
    from vllm import ModelRegistry
    from vllm.model_executor.models.config import MODELS_CONFIG_MAP
    from vllm.transformers_utils.model_arch_config_convertor import MODEL_ARCH_CONFIG_CONVERTORS

    from ahn.modeling.auto_classes import CLASS_PREFIX
    from ahn.modeling.registration import family_classes
    from ahn.serving.vllm import config

    config.register_cache()
    config.split_graphs_at_the_op()
    for family, base in FAMILIES.items():
        family_classes(family)  # transformers' AutoConfig knows it
        name = CLASS_PREFIX + base
        ModelRegistry.register_model(name, f"ahn.serving.vllm.models:{name}")
        MODELS_CONFIG_MAP[name] = config.AHNModelConfig
        MODEL_ARCH_CONFIG_CONVERTORS[PREFIX + family] = config.AnyLength

"""Attached models are real classes of their family, made by one factory."""

from __future__ import annotations

import importlib
from typing import Any

from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from ahn.config import AHNConfig
from ahn.hf.families import FAMILIES
from ahn.hf.install import install
from ahn.layer.attention import NAME
from ahn.memory import Memory, PositionRouter
from ahn.modeling.generating import GeneratesWithMemory
from ahn.modeling.saving import AUTO_MAP, PREFIX, SavedWithMemory

INITIALIZED = "_is_hf_initialized"  # transformers' mark of a module it need not initialise
_CLASSES: dict[type[PreTrainedModel], tuple[type[PreTrainedConfig], type[PreTrainedModel]]] = {}


class AHNConfigMixin:
    """Config of an attached model: its family's, and the memory's settings."""

    ahn_config: dict[str, Any] | None = None
    ahn_backend = "sdpa"  # attention function of the base: a choice of the run, never saved

    def to_dict(self) -> dict[str, Any]:
        """The family's values and `ahn_config`, without what belongs to the run."""
        values = super().to_dict()  # type: ignore[misc]
        values.pop("ahn_backend", None)
        return {**values, "auto_map": AUTO_MAP}

    @classmethod
    def register_for_auto_class(cls, *args: Any) -> None:
        """Do nothing: `auto_map` names a module that imports this package, no copy of source."""


class AHNModelMixin(GeneratesWithMemory, SavedWithMemory):
    """What an attached model does differently from its family."""

    config: Any

    def __init__(self, config: Any, *args: Any, **kwargs: Any) -> None:
        if config.ahn_config is None:
            raise ValueError("ahn_config: expected the memory's settings in the config, got none")
        super().__init__(config, *args, **kwargs)  # type: ignore[call-arg]
        install(self, AHNConfig.from_dict(config.ahn_config))
        take_over_attention(config)
        self.post_init()  # type: ignore[attr-defined]

    def initialize_weights(self) -> None:
        """Initialise the cells too: transformers asks the inner model, which does not know them."""
        for module in self.modules():  # type: ignore[attr-defined]
            is_fresh = not getattr(module, INITIALIZED, False)
            if isinstance(module, (Memory, PositionRouter)) and is_fresh:
                module.reset_parameters()
                for part in module.modules():
                    setattr(part, INITIALIZED, True)
        super().initialize_weights()  # type: ignore[misc]

    def set_attn_implementation(self, attn_implementation: Any, *args: Any, **kwargs: Any) -> None:
        """Choose the base's attention function; the attached one stays in front of it."""
        if attn_implementation == NAME:
            return
        super().set_attn_implementation(attn_implementation, *args, **kwargs)  # type: ignore[misc]
        take_over_attention(self.config)


def take_over_attention(config: Any) -> None:
    """Save the name of the base's attention function in `config`, and set the attached one."""
    if config._attn_implementation != NAME:
        config.ahn_backend = config._attn_implementation or "sdpa"
        config._attn_implementation = NAME


def attached_classes(
    base: type[PreTrainedModel],
) -> tuple[type[PreTrainedConfig], type[PreTrainedModel]]:
    """Config and model class of a family with a memory, e.g. `AHNQwen2ForCausalLM`.

    They are made once, can be imported by name from this module, and are registered with the Auto
    classes.
    """
    if base not in _CLASSES:
        config_class = _make_config_class(base.config_class)
        body = {
            "__module__": __name__,
            "__doc__": f"{base.__name__} with a bounded memory.",
            "__annotations__": {"config": config_class},
            "config_class": config_class,
        }
        model_class = type(f"AHN{base.__name__}", (AHNModelMixin, base), body)
        AutoConfig.register(config_class.model_type, config_class, exist_ok=True)
        AutoModelForCausalLM.register(config_class, model_class, exist_ok=True)
        _CLASSES[base] = (config_class, model_class)
        globals().update({cls.__name__: cls for cls in (config_class, model_class)})
    return _CLASSES[base]


def _make_config_class(base: Any) -> type[PreTrainedConfig]:
    body = {
        "__module__": __name__,
        "__doc__": f"{base.__name__} with the settings of a memory.",
        "__annotations__": {"ahn_config": "dict | None"},
        "ahn_config": None,
        "model_type": PREFIX + base.model_type,
    }
    return type(f"AHN{base.__name__}", (AHNConfigMixin, base), body)


def family_classes(model_type: str) -> tuple[type[PreTrainedConfig], type[PreTrainedModel]]:
    """Config and model class of `ahn_<model_type>`; raises as `register_family`."""
    return attached_classes(_base_class(model_type))


def register_family(model_type: str) -> None:
    """Make `ahn_<model_type>` known to the Auto classes.

    Raises ValueError where transformers has no causal language model of that type.
    """
    attached_classes(_base_class(model_type))


def _base_class(model_type: str) -> type[PreTrainedModel]:
    name = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(model_type)
    if not isinstance(name, str):
        raise ValueError(
            f"model_type: expected a causal language model of transformers, got {model_type!r}"
        )
    return getattr(importlib.import_module("transformers"), name)


def attached_config(
    config: PreTrainedConfig, settings: AHNConfig, base: type[PreTrainedModel]
) -> Any:
    """A config of the attached class with all values of `config`, which stays as it is."""
    config_class, _ = attached_classes(base)
    values = config.to_dict()
    for name in ("model_type", "architectures", "auto_map", "transformers_version"):
        values.pop(name, None)
    new: Any = config_class(**values, ahn_config=settings.to_dict())  # type: ignore[call-arg]
    new._attn_implementation = config._attn_implementation
    new._name_or_path = config._name_or_path
    return new


for _model_type in FAMILIES:  # other families are registered when a model is attached
    register_family(_model_type)

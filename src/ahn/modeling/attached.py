"""Attached models are real classes of their family, made by one factory."""

from __future__ import annotations

import copyreg
import sys
from typing import Any

from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel
from transformers.conversion_mapping import (
    get_checkpoint_conversion_mapping,
    register_checkpoint_conversion_mapping,
)

from ahn.config import AHNConfig
from ahn.hf.attached_state import attached_state
from ahn.hf.configs import decoder_configs
from ahn.hf.declared import SLOTS
from ahn.hf.decoder_parts import with_layers
from ahn.hf.frequencies import pin_frequencies
from ahn.hf.install import install
from ahn.io.checksum import SUMS
from ahn.io.keys import PREFIX
from ahn.layer.attention import NAME
from ahn.memory import Memory, PositionRouter, Slots
from ahn.modeling.auto_classes import CLASS_PREFIX, auto_classes_of
from ahn.modeling.generating import GeneratesWithMemory
from ahn.modeling.peft_defaults import add_peft_defaults
from ahn.modeling.saving import SavedWithMemory, auto_map_of

# Names of a memory's modules. transformers quantises all linear layers but those that it is told to
# keep in float32.
NOT_QUANTISED = r".*\.ahn(_router|_slots)?\..*"
INITIALIZED = "_is_hf_initialized"  # transformers' mark of a module it need not initialise
_CONFIGS: dict[type[PreTrainedConfig], type[PreTrainedConfig]] = {}
_MODELS: dict[type[PreTrainedModel], type[PreTrainedModel]] = {}


class AHNConfigMixin:
    """Config of an attached model: its family's, and the memory's settings."""

    model_type: str
    sub_configs: dict[str, Any]
    ahn_config: dict[str, Any] | None = None
    ahn_backend = "sdpa"  # attention function of the base: a choice of the run, never saved
    _output_attentions = False

    def to_dict(self) -> dict[str, Any]:
        """The family's values and `ahn_config`, without what belongs to the run."""
        add_peft_defaults()
        values = super().to_dict()  # type: ignore[misc]
        for name in ("ahn_backend", SUMS):
            values.pop(name, None)
        for part in (values.get(name) for name in self.sub_configs):
            for name in ("ahn_backend", "ahn_config") if isinstance(part, dict) else ():
                part.pop(name, None)
        return {**values, "auto_map": auto_map_of(self.model_type)}

    @property
    def output_attentions(self) -> bool:
        """Whether forwards return attention weights unless told otherwise."""
        return self._output_attentions

    @output_attentions.setter
    def output_attentions(self, value: bool) -> None:
        self.validate_output_attentions(value)
        self._output_attentions = value

    def validate_output_attentions(self, wanted: bool | None = None) -> None:
        """As the family's, of the base's attention function: ValueError unless it is eager."""
        chosen: Any = self._attn_implementation  # type: ignore[attr-defined]
        backend = self.ahn_backend if chosen == NAME else chosen
        wanted = self._output_attentions if wanted is None else wanted
        if wanted and backend not in ("eager", None):
            raise ValueError(
                f"output_attentions: expected attn_implementation 'eager', got {backend!r}"
            )

    @classmethod
    def register_for_auto_class(cls, *args: Any) -> None:
        """Do nothing: `auto_map` names a module that imports this package, no copy of source."""


class AHNModelMixin(GeneratesWithMemory, SavedWithMemory):
    """What an attached model does differently from its family."""

    config: Any
    _keep_in_fp32_modules: Any

    def __init__(self, config: Any, *args: Any, **kwargs: Any) -> None:
        if config.ahn_config is None:
            raise ValueError("ahn_config: expected the memory's settings in the config, got none")
        super().__init__(config, *args, **kwargs)  # type: ignore[call-arg]
        install(self, AHNConfig.from_dict(config.ahn_config))
        take_over_attention(self)
        self.post_init()  # type: ignore[attr-defined]
        self._keep_in_fp32_modules = {*(self._keep_in_fp32_modules or ()), NOT_QUANTISED}
        pin_frequencies(self.get_decoder(), attached_state(self).config.budget)

    def _get_dtype_plan(self, dtype: Any) -> Any:
        """Without the memory, whose dtype is that of the base."""
        plan = super()._get_dtype_plan(dtype)  # type: ignore[misc]
        plan.pop(NOT_QUANTISED, None)
        return plan

    def get_decoder(self) -> Any:
        """The module with the layers."""
        return with_layers(super().get_decoder())  # type: ignore[misc]

    def initialize_weights(self) -> None:
        """Initialise the cells too: transformers asks the inner model, which does not know them."""
        for module in self.modules():  # type: ignore[attr-defined]
            is_fresh = not getattr(module, INITIALIZED, False)
            if isinstance(module, (Memory, PositionRouter, Slots)) and is_fresh:
                module.reset_parameters()
                for part in module.modules():
                    setattr(part, INITIALIZED, True)
        super().initialize_weights()  # type: ignore[misc]

    def set_attn_implementation(self, attn_implementation: Any, *args: Any, **kwargs: Any) -> None:
        """Choose the base's attention function; the attached one stays in front of it."""
        if attn_implementation == NAME:
            return
        super().set_attn_implementation(attn_implementation, *args, **kwargs)  # type: ignore[misc]
        take_over_attention(self)


def take_over_attention(model: Any) -> None:
    """Save the name of the base's attention function in the decoder's configs, and set ours.

    Other parts of a composite model, such as its vision tower, keep their own function.
    """
    for config in decoder_configs(model):
        if config._attn_implementation != NAME:
            config.ahn_backend = config._attn_implementation or "sdpa"
            config._attn_implementation_internal = NAME  # that of parts would change with it
        config.ahn_config = model.config.ahn_config


class AttachedType(type):
    """Type of attached classes: they are pickled by their base, of which any process makes them."""


def attached_classes(
    base: type[PreTrainedModel],
) -> tuple[type[PreTrainedConfig], type[PreTrainedModel]]:
    """Config and model class of a family with a memory, e.g. `AHNQwen2ForCausalLM`.

    They are made once, and transformers knows them from then on: its Auto classes, the module
    `transformers` by the class's name, and what renames the tensors of the family's checkpoints.
    """
    config_class = attached_config_class(base.config_class)  # type: ignore[arg-type]
    if base not in _MODELS:
        body = {
            "__module__": __name__,
            "__doc__": f"{base.__name__} with a bounded memory.",
            "__annotations__": {"config": config_class},
            "config_class": config_class,
            # What slots keep depends on their scores: they are never loaded in half precision.
            "_keep_in_fp32_modules_strict": {*(base._keep_in_fp32_modules_strict or ()), SLOTS},
        }
        model_class: Any = AttachedType(
            f"{CLASS_PREFIX}{base.__name__}", (AHNModelMixin, base), body
        )
        _MODELS[base] = globals()[model_class.__name__] = model_class
        for module in _transformers_modules():
            setattr(module, model_class.__name__, model_class)
        for auto in auto_classes_of(base):
            auto.register(config_class, model_class, exist_ok=True)
        _share_conversions(base.__name__, model_class.__name__)
    return config_class, _MODELS[base]


def attached_config_class(base: type[PreTrainedConfig]) -> type[PreTrainedConfig]:
    """Config class of a family with a memory, made once."""
    if base not in _CONFIGS:
        body = {
            "__module__": __name__,
            "__doc__": f"{base.__name__} with the settings of a memory.",
            "__annotations__": {"ahn_config": "dict | None"},
            "ahn_config": None,
            "model_type": PREFIX + base.model_type,
        }
        config_class: Any = AttachedType(
            f"{CLASS_PREFIX}{base.__name__}", (AHNConfigMixin, base), body
        )
        _CONFIGS[base] = globals()[config_class.__name__] = config_class
        AutoConfig.register(config_class.model_type, config_class, exist_ok=True)
        _share_conversions(base.model_type, config_class.model_type)
    return _CONFIGS[base]


def _transformers_modules() -> list[Any]:
    """The module `transformers` as others hold it.

    It runs twice, since its `processing_utils` imports it anew. A module that was imported before,
    such as that of `transformers serve`, still holds the first one and looks classes up there.
    """
    name = "transformers"
    held = [getattr(module, "__dict__", {}).get(name) for module in sys.modules.copy().values()]
    modules = [x for x in (*held, sys.modules[name]) if getattr(x, "__name__", None) == name]
    return list({id(module): module for module in modules}.values())


def _share_conversions(base: str, attached: str) -> None:
    """Checkpoints of the attached class or type are renamed and joined as those of its base."""
    conversions = get_checkpoint_conversion_mapping(base)
    if conversions is not None:
        register_checkpoint_conversion_mapping(attached, conversions, overwrite=True)


def _made_of(base: Any) -> Any:
    """The attached class of a model's or a config's class."""
    is_config = issubclass(base, PreTrainedConfig)
    return attached_config_class(base) if is_config else attached_classes(base)[1]


copyreg.pickle(AttachedType, lambda cls: (_made_of, (cls.__bases__[1],)))


def to_attached(config: Any, settings: AHNConfig, base: type[PreTrainedModel]) -> None:
    """Make a model's config one of its attached class, in place."""
    config.__class__ = attached_classes(base)[0]
    config.ahn_config = settings.to_dict()
    _forget_file(config)


def to_base(config: Any, base: type[PreTrainedModel], is_model: bool) -> None:
    """Undo `to_attached` and `take_over_attention`, in place.

    Args:
        is_model: whether it is the model's own config, not one of its parts.
    """
    if "ahn_backend" in config.__dict__:
        config._attn_implementation_internal = config.ahn_backend
    for name in ("ahn_backend", "ahn_config"):
        config.__dict__.pop(name, None)
    if is_model:
        config.__class__ = base.config_class
        _forget_file(config)


def _forget_file(config: Any) -> None:
    """Drop what a config says of the file that it was read from."""
    config.architectures = None
    for name in ("auto_map", "transformers_version", SUMS):
        config.__dict__.pop(name, None)

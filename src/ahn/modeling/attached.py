"""Attached models are real classes of their family, made by one factory."""

from __future__ import annotations

import importlib
from typing import Any

from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from ahn.config import AHNConfig
from ahn.hf.hooks import PROMPT
from ahn.hf.install import attached_state, install
from ahn.layer.attention import NAME
from ahn.layer.cache import AHNCache
from ahn.layer.context import FULL
from ahn.memory import Memory, PositionRouter
from ahn.modeling.saving import AUTO_MAP, PREFIX, SavedWithMemory
from ahn.runtime.generate_step import GenerateStep
from ahn.runtime.prefill_chunk import default_prefill_chunk_size

FAMILIES = ("qwen2", "qwen3", "llama", "mistral")  # registered on import; others when attached
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
        """Nothing: `auto_map` names a module that imports this package, no copy of source."""


class AHNModelMixin(SavedWithMemory):
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
        """Initialise the cells: transformers asks the inner model, which does not know them."""
        for module in self.modules():  # type: ignore[attr-defined]
            fresh = not getattr(module, INITIALIZED, False)
            if isinstance(module, (Memory, PositionRouter)) and fresh:
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

    def generate(self, *args: Any, assistant_model: Any = None, **kwargs: Any) -> Any:
        """As the family's; assisted decoding is refused while the memory is on."""
        if assistant_model is not None and attached_state(self).mode != FULL:
            raise ValueError(
                "assistant_model: expected none, tokens compressed into the memory cannot be "
                "taken back"
            )
        return super().generate(  # type: ignore[misc]
            *args, assistant_model=assistant_model, **kwargs
        )

    def _prepare_cache_for_generation(
        self,
        generation_config: Any,
        model_kwargs: dict[str, Any],
        generation_mode: Any,
        batch_size: int,
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        cache = model_kwargs.get("past_key_values")
        if attached_state(self).mode != FULL:
            _refuse_generation(generation_config, cache)
            if cache is None and generation_config.use_cache is not False:
                generation_config.cache_implementation = None
                model_kwargs["past_key_values"] = AHNCache(self.config)
            _read_in_chunks(self, generation_config, model_kwargs, batch_size)
        return super()._prepare_cache_for_generation(  # type: ignore[misc]
            generation_config, model_kwargs, generation_mode, batch_size, *args, **kwargs
        )

    def _valid_auto_compile_criteria(
        self, model_kwargs: dict[str, Any], generation_config: Any
    ) -> bool:
        """Whether `generate` decodes by `get_compiled_call`."""
        cache = model_kwargs.get("past_key_values")
        if not isinstance(cache, AHNCache):
            return super()._valid_auto_compile_criteria(  # type: ignore[misc]
                model_kwargs, generation_config
            )
        return not generation_config.disable_compile

    def get_compiled_call(self, compile_config: Any) -> Any:
        """What `generate` calls for a step: a captured graph, compiled where that was asked for."""
        if attached_state(self).mode == FULL:
            return super().get_compiled_call(compile_config)  # type: ignore[misc]
        return GenerateStep(self, compile_config)  # type: ignore[arg-type]

    @property
    def init_continuous_batching(self) -> Any:
        """Absent: `transformers serve` asks, and falls back to `generate`."""
        raise AttributeError("continuous batching does not know the bounded cache")


def _read_in_chunks(model: Any, generation_config: Any, inputs: dict[str, Any], batch: int) -> None:
    """Let a prompt longer than a chunk be read in several, where nothing else was asked for.

    Not one that goes on with a cache: before transformers 5.19 that is read from its beginning.
    """
    cache, mask = inputs.get("past_key_values"), inputs.get("attention_mask")
    begun = cache is None or cache.get_seq_length()
    # Later versions of transformers 5 drop a mask of ones, and note its length.
    length = getattr(generation_config, "_mask_length", 0) if mask is None else mask.shape[1]
    if begun or not length or inputs.get("inputs_embeds") is not None:
        return
    inputs[PROMPT] = length
    rows = batch * max(
        generation_config.num_beams or 1, generation_config.num_return_sequences or 1
    )
    chunk = default_prefill_chunk_size(model, rows)
    if generation_config.prefill_chunk_size is None and length > chunk:
        generation_config.prefill_chunk_size = chunk


def _refuse_generation(generation_config: Any, cache: Any) -> None:
    """ValueError for what `generate` offers and a bounded memory cannot do."""
    if cache is not None and not isinstance(cache, AHNCache):
        raise ValueError(f"past_key_values: expected an AHNCache, got {type(cache).__name__}")
    kind = generation_config.cache_implementation
    if kind not in (None, "dynamic"):
        raise ValueError(f"cache_implementation: expected none (an AHNCache is made), got {kind!r}")
    for name in ("prompt_lookup_num_tokens", "is_assistant", "assistant_early_exit"):
        if getattr(generation_config, name, None):
            raise ValueError(
                f"{name}: expected none, tokens compressed into the memory cannot be taken back"
            )


def take_over_attention(config: Any) -> None:
    """Note the base's attention function in `config` and put the attached one in front."""
    if config._attn_implementation != NAME:
        config.ahn_backend = config._attn_implementation or "sdpa"
        config._attn_implementation = NAME


def attached_classes(
    base: type[PreTrainedModel],
) -> tuple[type[PreTrainedConfig], type[PreTrainedModel]]:
    """Config and model class of a family with a memory, e.g. `AHNQwen2ForCausalLM`.

    Made once, importable by name from this module, registered with the Auto classes.
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
        globals().update({c.__name__: c for c in (config_class, model_class)})
    return _CLASSES[base]


def family_classes(model_type: str) -> tuple[type[PreTrainedConfig], type[PreTrainedModel]]:
    """Config and model class of `ahn_<model_type>`; raises as `register_family`."""
    return attached_classes(_base_class(model_type))


def _make_config_class(base: Any) -> type[PreTrainedConfig]:
    body = {
        "__module__": __name__,
        "__doc__": f"{base.__name__} with the settings of a memory.",
        "__annotations__": {"ahn_config": "dict | None"},
        "ahn_config": None,
        "model_type": PREFIX + base.model_type,
    }
    return type(f"AHN{base.__name__}", (AHNConfigMixin, base), body)


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


for _family in FAMILIES:
    register_family(_family)

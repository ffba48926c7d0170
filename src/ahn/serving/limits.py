"""What a serving engine cannot do with a memory yet: refused by name, before anything starts."""

from __future__ import annotations

from typing import Any

from ahn.config import AHNConfig
from ahn.io.keys import PREFIX
from ahn.memory import memory_by_name
from ahn.memory.linear_cell import LinearCell
from ahn.shapes import FULL, other_types

FAMILIES = {  # architecture of the base by model type
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "qwen3_moe": "Qwen3MoeForCausalLM",
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
}
MOVING = ("dynamic", "longrope")  # rotary frequencies that depend on the text's length


def settings_of(config: Any) -> AHNConfig:
    """The memory's settings in a merged model's config; ValueError where there is none."""
    values = getattr(config, "ahn_config", None)
    if values is None:
        name = config.name_or_path or config.model_type
        raise ValueError(f"{name}: expected a base with a memory (ahn merge), got one without")
    return AHNConfig.from_dict(values)


def check_served(config: Any) -> AHNConfig:
    """The settings of a merged model that vLLM's plug-in can run.

    Args:
        config: of the attached model, as transformers loads it.

    Raises:
        ValueError: naming what the plug-in does not know.
    """
    settings = settings_of(config)
    family = config.model_type.removeprefix(PREFIX)
    if family not in FAMILIES:
        raise ValueError(f"model_type: expected one of {', '.join(FAMILIES)}, got {family}")
    _check_memory(settings)
    _check_layers(config, settings)
    if (kind := _rope_type(config)) in MOVING:
        raise ValueError(f"rope_type: expected frequencies that stand still, got {kind}")
    return settings


def _check_memory(settings: AHNConfig) -> None:
    """Raise ValueError for parts of a memory that need more than a state and gates."""
    if settings.slots:
        raise ValueError(f"slots: expected 0 in vLLM, got {settings.slots}")
    for name in ("use_q_proj", "use_router"):
        if getattr(settings, name):
            raise ValueError(f"{name}: expected false in vLLM, got true")
    if settings.window_shares is not None:
        raise ValueError("window_shares: expected one window for all layers in vLLM, got shares")
    assert settings.memory is not None, "AHNConfig has slots where it has no cell"
    if not issubclass(memory_by_name(settings.memory), LinearCell):
        raise ValueError(f"memory: expected a cell with one state and gates, got {settings.memory}")


def _check_layers(config: Any, settings: AHNConfig) -> None:
    """Raise ValueError where a layer without a memory looks back in another way than in full."""
    others = other_types(config, settings) - {FULL}
    if others:
        raise ValueError(
            "layer_types: expected full attention in layers without a memory, got "
            + ", ".join(sorted(others))
        )


def _rope_type(config: Any) -> str:
    return (getattr(config, "rope_parameters", None) or {}).get("rope_type", "default")


def most_positions(config: Any) -> int | None:
    """The longest text that the engine can rotate; None where any length is fine.

    vLLM's table of YaRN ends where its factor does.
    """
    rope = getattr(config, "rope_parameters", None) or {}
    if rope.get("rope_type") != "yarn":
        return None
    return int(rope["original_max_position_embeddings"] * rope["factor"])

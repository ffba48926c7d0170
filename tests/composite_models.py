"""Tiny random models that see images too, and a prompt with a random image for each."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
import transformers
from torch import Tensor

import ahn
from tiny_models import COMMON, random_ids, wake

IMAGE = 90  # token of the vocabulary that stands where a piece of an image goes
START, END = 91, 92  # around an image, where a family has such tokens
PATCH = 14
TEXT = {**COMMON, "head_dim": 16, "vocab_size": 97}
VISION = {
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 4 * PATCH,
    "patch_size": PATCH,
}
MROPE = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 3, 3]}
GRID = [1, 4, 4]  # patches of an image: time, height, width; 2 x 2 of them make a token
QWEN_VISION = {
    "depth": 1,
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_heads": 2,
    "out_hidden_size": 64,
    "patch_size": PATCH,
}
QWEN_TOKENS = {
    "image_token_id": IMAGE,
    "video_token_id": 93,
    "vision_start_token_id": START,
    "vision_end_token_id": END,
}


def _text(model_type: str, **values: Any) -> dict[str, Any]:
    return {"model_type": model_type, **TEXT, **values}


CONFIGS: dict[str, dict[str, Any]] = {  # values of a family's config, and tokens of its image
    "Mistral3": {
        "text_config": _text("mistral", sliding_window=None),
        "vision_config": {"model_type": "pixtral", "head_dim": 16, **VISION},
        "image_token_id": IMAGE,
        "spatial_merge_size": 2,
    },
    "Llava": {
        "text_config": _text("llama"),
        "vision_config": {"model_type": "clip_vision_model", **VISION, "image_size": 2 * PATCH},
        "image_token_id": IMAGE,
    },
    "InternVL": {
        "text_config": _text("qwen2"),
        "vision_config": {"model_type": "internvl_vision", **VISION, "image_size": [56, 56],
                          "patch_size": [14, 14]},
        "image_token_id": IMAGE,
        "downsample_ratio": 0.5,
    },
    "Idefics3": {
        "text_config": _text("llama"),
        "vision_config": {"model_type": "idefics3_vision", **VISION},
        "image_token_id": IMAGE,
        "scale_factor": 2,
        "pad_token_id": 0,
    },
    "SmolVLM": {
        "text_config": _text("llama"),
        "vision_config": {"model_type": "smolvlm_vision", **VISION},
        "image_token_id": IMAGE,
        "scale_factor": 2,
        "pad_token_id": 0,
    },
    "Qwen2_5_VL": {
        "text_config": {**TEXT, "rope_parameters": MROPE},
        "vision_config": {**QWEN_VISION, "window_size": 28, "fullatt_block_indexes": [0]},
        **QWEN_TOKENS,
    },
    "Qwen3VL": {
        "text_config": {**TEXT, "rope_parameters": {**MROPE, "mrope_interleaved": True}},
        "vision_config": {**QWEN_VISION, "deepstack_visual_indexes": [0],
                          "num_position_embeddings": 16},
        **QWEN_TOKENS,
    },
    "Glm4v": {
        "text_config": {**TEXT, "rope_parameters": {**MROPE, "partial_rotary_factor": 1.0}},
        "vision_config": {**QWEN_VISION, "image_size": 56, "out_hidden_size": 64},
        **QWEN_TOKENS,
    },
    "Gemma3": {
        "text_config": _text(
            "gemma3_text", layer_types=["sliding_attention", "full_attention"], sliding_window=24
        ),
        "vision_config": {"model_type": "siglip_vision_model", **VISION},
        "image_token_index": IMAGE,
        "mm_tokens_per_image": 4,
    },
}  # fmt: skip
MORE: dict[str, dict[str, Any]] = {  # tried by fewer laws
    "Qwen2VL": {
        "text_config": {**TEXT, "rope_parameters": MROPE},
        "vision_config": {"depth": 1, "embed_dim": 32, "hidden_size": 64, "num_heads": 2,
                          "patch_size": PATCH, "mlp_ratio": 1},
        **QWEN_TOKENS,
    },
    "Qwen3_5": {
        "text_config": {**TEXT, "num_hidden_layers": 4, "linear_num_key_heads": 2,
                        "linear_num_value_heads": 4, "linear_key_head_dim": 16,
                        "linear_value_head_dim": 16,
                        "rope_parameters": {**MROPE, "mrope_interleaved": True,
                                            "partial_rotary_factor": 1.0}},
        "vision_config": {**QWEN_VISION, "num_position_embeddings": 16},
        **QWEN_TOKENS,
    },
    "Cohere2Vision": {
        "text_config": _text("cohere2", sliding_window=24,
                             layer_types=["sliding_attention", "full_attention"]),
        "vision_config": {"model_type": "siglip_vision_model", **VISION},
        "image_token_id": IMAGE,
        "alignment_intermediate_size": 64,
    },
}  # fmt: skip
MORE = {x: MORE[x] for x in MORE if hasattr(transformers, f"{x}ForConditionalGeneration")}
CONFIGS |= MORE
GRIDS = {"Qwen2_5_VL", "Qwen3VL", "Glm4v", "Qwen2VL", "Qwen3_5"}  # images in patches, with a grid
TOKENS = 4  # of an image
BLOCKWISE = ["Gemma3"]  # their images' tokens see each other
COMPOSITES = [family for family in CONFIGS if family not in {*BLOCKWISE, *MORE}]


def composite_base(family: str, dtype=torch.float64):
    """A new base whose attention matters."""
    torch.manual_seed(0)
    model_class = getattr(transformers, f"{family}ForConditionalGeneration")
    model = model_class(model_class.config_class(**CONFIGS[family])).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 1:
                parameter.add_(0.1 * torch.randn_like(parameter))
            elif "proj" in name or "visual" in name or "vision" in name:
                parameter.mul_(6)
    return model.to(dtype)


def new_composite(family: str, dtype=torch.float64, window: int = 16, num_sinks: int = 4):
    """A composite model with a memory that acts."""
    config = ahn.AHNConfig(window=window, num_sinks=num_sinks)
    return wake(ahn.attach(composite_base(family, dtype), config))


@cache
def shared_composite(family: str):
    """As `new_composite`, made once; not to be changed."""
    return new_composite(family)


@cache
def shared_composite_base(family: str):
    """The base of `shared_composite`; not to be changed."""
    return composite_base(family)


def prompt(
    family: str, before: int = 3, after: int = 5, seed: int = 1, dtype=torch.float64
) -> dict[str, Tensor]:
    """A text with an image in it, as a processor would give it: one row."""
    generator = torch.Generator().manual_seed(seed)
    text = words(before + after, seed)
    image = torch.full((1, TOKENS), IMAGE)
    around = [torch.full((1, 1), x) for x in (START, END)]
    image = torch.cat([around[0], image, around[1]], 1)
    ids = torch.cat([text[:, :before], image, text[:, before:]], 1)
    inputs = {"input_ids": ids}
    side = CONFIGS[family]["vision_config"].get("image_size", 4 * PATCH)
    side = side[0] if isinstance(side, list) else side

    def pixels(*shape):
        return torch.randn(shape, generator=generator, dtype=dtype)

    if family in GRIDS:
        rows = GRID[0] * GRID[1] * GRID[2]
        inputs["pixel_values"] = pixels(rows, 3 * 2 * PATCH * PATCH)
        inputs["image_grid_thw"] = torch.tensor([GRID])
        inputs["mm_token_type_ids"] = (ids == IMAGE).int()
    elif family in ("Idefics3", "SmolVLM"):
        inputs["pixel_values"] = pixels(1, 1, 3, side, side)
    else:
        inputs["pixel_values"] = pixels(1, 3, side, side)
        if family == "Mistral3":
            inputs["image_sizes"] = torch.tensor([[side, side]])
        if family in BLOCKWISE:
            inputs["token_type_ids"] = (ids == IMAGE).int()
    return inputs


def with_text(inputs: dict[str, Tensor], text: Tensor) -> dict[str, Tensor]:
    """The same prompt with more text `[B, C]` after it."""
    more = {"input_ids": torch.cat([inputs["input_ids"], text], 1)}
    for name in ("mm_token_type_ids", "token_type_ids"):
        if name in inputs:
            more[name] = torch.cat([inputs[name], torch.zeros_like(text, dtype=torch.int)], 1)
    return {**inputs, **more}


def words(length: int, seed: int = 9) -> Tensor:
    """Text `[1, length]` without tokens of images."""
    return random_ids(length, seed=seed).clamp(max=80)

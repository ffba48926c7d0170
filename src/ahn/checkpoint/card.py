"""The model card of a memory on the hub."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ahn.config import AHNConfig


def model_card(
    settings: AHNConfig,
    base: Mapping[str, Any],
    parameters: int,
    repo: str,
    training: Mapping[str, Any] | None = None,
) -> str:
    """Markdown on what the memory is, which base it is for and how to load it.

    Args:
        base: what the folder records of it (`name_or_path`, `revision`, sizes).
        parameters: how many the memory has.
        training: facts to list (data, steps, losses, ...); the card says so where there are none.
    """
    name = base.get("name_or_path") or "the base model"
    revision = f" at revision `{base['revision']}`" if base.get("revision") else ""
    facts = training or {"not recorded": "the memory was pushed without training facts"}
    return "\n".join(
        [
            *_header(name),
            f"# {repo.rpartition('/')[2]}\n",
            f"A bounded memory (Artificial Hippocampus Network, arXiv 2510.07318) for `{name}`"
            f"{revision}. The base stays frozen and is not in this repository.",
            "",
            *_settings_table(settings, parameters),
            "",
            "## Training",
            "",
            *(f"- {key}: {value}" for key, value in facts.items()),
            "",
            "## Loading",
            "",
            "```python",
            "import ahn",
            "",
            f'model = ahn.from_pretrained("{name}", "{repo}", dtype="auto")',
            "```",
            "",
        ]
    )


def _header(base_name: str) -> list[str]:
    """The YAML that the hub reads."""
    lines = ["---", "library_name: ahn", "pipeline_tag: text-generation", "tags:", "- ahn"]
    if "/" in base_name:
        lines += [f"base_model: {base_name}", "base_model_relation: adapter"]
    return [*lines, "---"]


def _settings_table(settings: AHNConfig, parameters: int) -> list[str]:
    return [
        "| | |",
        "|---|---|",
        f"| cell | {settings.memory or 'none'} |",
        *_slots_rows(settings),
        f"| window | {settings.window} tokens |",
        f"| sinks | {settings.num_sinks} tokens |",
        f"| layers with full attention | {list(settings.full_attention_layers) or 'none'} |",
        f"| own map of the query | {'yes' if settings.use_q_proj else 'no'} |",
        f"| position router | {'yes' if settings.use_router else 'no'} |",
        f"| parameters of the memory | {parameters:,} |",
    ]


def _slots_rows(settings: AHNConfig) -> list[str]:
    if not settings.slots:
        return []
    return [f"| exact slots | {settings.slots} for each key head, {settings.slot_bits} bits |"]

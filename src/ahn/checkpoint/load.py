"""A base and a memory, each a folder or a name on the hub, become one model."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from ahn.checkpoint.hub import HUB_OPTIONS, fetched, memory_folder
from ahn.checkpoint.memory import StoredMemory, load_memory_state, read_memory, read_settings
from ahn.checkpoint.names import BASE_CONFIG, MARK, embedded_folders
from ahn.checkpoint.weights import Weights
from ahn.config import AHNConfig
from ahn.io.checksum import read_json
from ahn.modeling import attach

CONFIG_OPTIONS = (*HUB_OPTIONS, "revision", "trust_remote_code", "subfolder")


def from_pretrained(
    base: str | os.PathLike[str],
    memory: str | os.PathLike[str] | None = None,
    *,
    window: int | None = None,
    num_sinks: int | None = None,
    kernels: str = "auto",
    memory_revision: str | None = None,
    **hf_kwargs: Any,
) -> PreTrainedModel:
    """A base model with a memory attached, in evaluation mode; no merge is needed.

    Args:
        base: hub name or folder of a causal language model or of a merged one, or `embedded`.
        memory: hub name or folder of a memory, ours or released; with the embedded base also the
            cell of a shipped one. None gives the base as it is: a merged one has its memory.
        window, num_sinks: win over the memory's own settings.
        kernels: see `ahn.attach`.
        memory_revision: branch, tag or commit of a memory on the hub.
        hf_kwargs: passed to `AutoModelForCausalLM.from_pretrained` (`dtype`, `device_map`,
            `quantization_config`, `revision`, `token`, ...).

    Raises:
        ValueError: a file or key is missing, unknown, damaged or of another shape, or the memory
            was made for another base; the message names it.
    """
    limits = {"window": window, "num_sinks": num_sinks}
    base, memory = embedded_folders(base, memory)
    _reached(base, hf_kwargs)
    stored = _stored(base, memory, limits, memory_revision, hf_kwargs)
    if stored is None:
        return _without_another(base, limits, hf_kwargs)
    stored.check_base(_config(base, hf_kwargs))
    model = AutoModelForCausalLM.from_pretrained(base, **hf_kwargs)
    attach(model, stored.settings, kernels=kernels)
    load_memory_state(model, stored.state)
    return model.eval()


def has_memory(base: str | os.PathLike[str], **hf_kwargs: Any) -> bool:
    """Whether a base is a merged one, that `from_pretrained` gives a memory without another."""
    folder = Path(base) / BASE_CONFIG
    if folder.is_file() and MARK in read_json(folder):
        return True
    _reached(base, hf_kwargs)
    return getattr(_config(base, hf_kwargs), "ahn_config", None) is not None


def _reached(base: str | os.PathLike[str], hf_kwargs: Mapping[str, Any]) -> None:
    """Raise ValueError at once where a base is not to be had.

    Transformers asks for its files one after another, each with half a minute of retries.
    """
    fetched(base, hf_kwargs.get("revision"), hf_kwargs, [BASE_CONFIG], "base")


def _stored(
    base: str | os.PathLike[str],
    memory: str | os.PathLike[str] | None,
    limits: dict[str, int | None],
    revision: str | None,
    hf_kwargs: dict[str, Any],
) -> StoredMemory | None:
    """The memory asked for, or the one that the original code merged into the base's folder."""
    if memory is not None:
        return read_memory(memory_folder(memory, revision, hf_kwargs), **limits)
    folder = Path(base)
    config = folder / BASE_CONFIG
    if not config.is_file() or MARK not in read_json(config):
        return None
    settings, facts, layout = read_settings(folder)
    state = Weights.of(folder).memory()
    return StoredMemory(settings.with_budget(**limits), state, facts, layout)


def _without_another(
    base: str | os.PathLike[str], limits: dict[str, int | None], hf_kwargs: dict[str, Any]
) -> PreTrainedModel:
    """A merged model with its memory, or a plain base."""
    given = {name: value for name, value in limits.items() if value is not None}
    if not given:
        return AutoModelForCausalLM.from_pretrained(base, **hf_kwargs).eval()
    config: Any = _config(base, hf_kwargs)
    if getattr(config, "ahn_config", None) is None:
        name, value = next(iter(given.items()))
        raise ValueError(f"{name}: expected a memory to go with it, got {value} without")
    settings = AHNConfig.from_dict(config.ahn_config)
    config.ahn_config = settings.with_budget(**limits).to_dict()
    return AutoModelForCausalLM.from_pretrained(base, config=config, **hf_kwargs).eval()


def _config(base: str | os.PathLike[str], hf_kwargs: dict[str, Any]) -> PreTrainedConfig:
    if "config" in hf_kwargs:
        return hf_kwargs["config"]
    options = {name: hf_kwargs[name] for name in CONFIG_OPTIONS if name in hf_kwargs}
    return AutoConfig.from_pretrained(base, **options)

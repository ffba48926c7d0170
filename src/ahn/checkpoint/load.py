"""A base and a memory, each a folder or a name on the hub, become one model."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import (
    AutoConfig,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from ahn.checkpoint.hub import HUB_OPTIONS, fetched, memory_folder
from ahn.checkpoint.memory import StoredMemory, load_memory_state, read_memory
from ahn.checkpoint.named_models import Name, resolve
from ahn.checkpoint.names import BASE_CONFIG, MARK
from ahn.checkpoint.settings import read_settings
from ahn.checkpoint.weights import Weights
from ahn.config import AHNConfig
from ahn.hf.install import use_kernels
from ahn.io.checksum import read_json
from ahn.memory import memory_by_name
from ahn.modeling import attach, auto_class

# How the names of a tokenizer's files begin.
TOKENIZER_FILES = ("tokenizer", "vocab", "merges", "spiece", "sentencepiece", "tekken")
CONFIG_OPTIONS = (*HUB_OPTIONS, "revision", "trust_remote_code", "subfolder")


def from_pretrained(
    base: Name,
    memory: Name | None = None,
    *,
    window: int | None = None,
    num_sinks: int | None = None,
    kernels: str = "auto",
    memory_revision: str | None = None,
    new_memory: AHNConfig | None = None,
    **hf_kwargs: Any,
) -> PreTrainedModel:
    """A base model with a memory attached, in evaluation mode; no merge is needed.

    Args:
        base: hub name or folder of a causal language model or of a merged one, or a name of
            `ahn.checkpoint.NAMED_MODELS`.
        memory: hub name or folder of a memory, ours or released; for a named base also the cell of
            one of its own. None gives the base as it is: a merged one has its memory.
        window, num_sinks: win over the memory's own settings.
        kernels: see `ahn.attach`.
        memory_revision: branch, tag or commit of a memory on the hub.
        new_memory: settings of an untrained memory, attached where `memory` is None and the base
            has none.
        hf_kwargs: passed to the Auto class's `from_pretrained` (`dtype`, `device_map`,
            `quantization_config`, `revision`, `token`, ...).

    Raises:
        ValueError: a file or key is missing, unknown, damaged or of another shape, or the memory
            was made for another base; the message names it.
    """
    budget = {"window": window, "num_sinks": num_sinks}
    base, memory = resolve(base, memory)
    _check_reachable(base, hf_kwargs)
    stored = _stored_memory(base, memory, budget, memory_revision, hf_kwargs)
    if stored is not None:
        model = _attached(base, stored, kernels, hf_kwargs)
    elif _is_merged(base, hf_kwargs):
        model = _merged(base, budget, kernels, hf_kwargs)
    else:
        model = _plain(base, new_memory, budget, kernels, hf_kwargs)
    return model.eval()


def load_tokenizer(base: Name, **hf_kwargs: Any) -> PreTrainedTokenizerBase:
    """The tokenizer of a base, named as for `from_pretrained`.

    Args:
        hf_kwargs: passed to `AutoTokenizer.from_pretrained`.

    Raises ValueError for a folder without one.
    """
    place = Path(resolve(base)[0])
    if place.is_dir() and not any(x.name.startswith(TOKENIZER_FILES) for x in place.iterdir()):
        raise ValueError(f"{base}: expected a tokenizer beside the model, got a folder without one")
    return AutoTokenizer.from_pretrained(resolve(base)[0], **hf_kwargs)


def has_memory(base: Name, **hf_kwargs: Any) -> bool:
    """Whether a base is merged, so that `from_pretrained` needs no other memory."""
    base = resolve(base)[0]
    if _is_merged_by_original_code(Path(base)):
        return True
    _check_reachable(base, hf_kwargs)
    return _is_merged(base, hf_kwargs)


def _stored_memory(
    base: Name,
    memory: Name | None,
    budget: Mapping[str, int | None],
    revision: str | None,
    hf_kwargs: Mapping[str, Any],
) -> StoredMemory | None:
    """The memory asked for, or the one that the original code merged into the base's folder."""
    if memory is not None:
        return read_memory(memory_folder(memory, revision, hf_kwargs), **budget)
    folder = Path(base)
    if not _is_merged_by_original_code(folder):
        return None
    settings, facts, layout = read_settings(folder)
    state = Weights.of(folder).memory()
    return StoredMemory(settings.with_budget(**budget), state, facts, layout)


def _attached(
    base: Name, stored: StoredMemory, kernels: str, hf_kwargs: Mapping[str, Any]
) -> PreTrainedModel:
    """A base with a memory from disk."""
    stored.check_base(_config(base, hf_kwargs))
    model = _load(base, hf_kwargs)
    attach(model, stored.settings, kernels=kernels)
    load_memory_state(model, stored.state)
    return model


def _merged(
    base: Name, budget: Mapping[str, int | None], kernels: str, hf_kwargs: Mapping[str, Any]
) -> PreTrainedModel:
    """A merged model with its own memory."""
    options = dict(hf_kwargs)
    if any(value is not None for value in budget.values()):
        config: Any = _config(base, hf_kwargs)
        settings = AHNConfig.from_dict(config.ahn_config)
        config.ahn_config = settings.with_budget(**budget).to_dict()
        options["config"] = config
    model = _load(base, options)
    use_kernels(model, kernels)  # the folder does not say by which kernels it is run
    return model


def _plain(
    base: Name,
    new_memory: AHNConfig | None,
    budget: Mapping[str, int | None],
    kernels: str,
    hf_kwargs: Mapping[str, Any],
) -> PreTrainedModel:
    """A base without a memory, or with an untrained one."""
    if new_memory is None:
        for name, value in budget.items():
            if value is not None:
                raise ValueError(f"{name}: expected a memory to go with it, got {value} without")
        return _load(base, hf_kwargs)
    if new_memory.memory is not None:
        memory_by_name(new_memory.memory)  # an unknown one is refused before minutes of loading
    model = _load(base, hf_kwargs)
    return attach(model, new_memory.with_budget(**budget), kernels=kernels)


def _load(base: Name, hf_kwargs: Mapping[str, Any]) -> PreTrainedModel:
    """A base or a merged model by transformers' Auto class for it."""
    return auto_class(_config(base, hf_kwargs)).from_pretrained(base, **hf_kwargs)


def _is_merged(base: Name, hf_kwargs: Mapping[str, Any]) -> bool:
    return getattr(_config(base, hf_kwargs), "ahn_config", None) is not None


def _is_merged_by_original_code(folder: Path) -> bool:
    config = folder / BASE_CONFIG
    return config.is_file() and MARK in read_json(config)


def _check_reachable(base: str | os.PathLike[str], hf_kwargs: Mapping[str, Any]) -> None:
    """Raise ValueError at once where there is no such base.

    Transformers asks for its files one after another, each with half a minute of retries.
    """
    fetched(base, hf_kwargs.get("revision"), hf_kwargs, [BASE_CONFIG], "base")


def _config(base: Name, hf_kwargs: Mapping[str, Any]) -> PreTrainedConfig:
    if "config" in hf_kwargs:
        return hf_kwargs["config"]
    options = {name: hf_kwargs[name] for name in CONFIG_OPTIONS if name in hf_kwargs}
    return AutoConfig.from_pretrained(base, **options)

"""Sessions on disk: a cache is saved, and continued later as if it had never stopped."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ahn.generation.session_layers import check_layers, content_of, restore
from ahn.hf.attached_state import attached_state
from ahn.hf.fingerprint import Fingerprint, fingerprint_of
from ahn.io.checksum import CHECKSUM, expect_sum, file_sum, opened, write_tensors
from ahn.io.files import AnyPath
from ahn.layer.cache import AHNCache

HEADER: dict[str, Any] = {  # kinds of its parts
    "ahn_config": dict,
    "base": str,
    "memory": str,
    "config": dict,
    "layers": list,
    "tokenizer": (str, type(None)),
}
FORMAT = "ahn-session-3"  # 1 had the states of a layer without names, 2 no checksum


def save_session(
    cache: AHNCache,
    path: AnyPath,
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
    notes: Mapping[str, str] | None = None,
) -> str:
    """Write a cache as one safetensors file with a checksum and with what the cache belongs to.

    Args:
        tokenizer: of the text; its vocabulary is then compared when the session is loaded.
        notes: of the caller, kept under `notes` in the file's header.

    Returns:
        The checksum.

    Raises ValueError: the cache has read nothing, ends in padding, so that it cannot be read on,
    holds numbers that are not finite, or holds what a session cannot; OSError naming the file.
    """
    if cache.ends_in_padding:
        raise ValueError("cache: expected rows that can be read on, got some that end in padding")
    if cache.owner is None:
        raise ValueError("save_session: expected a cache that has read something, got an empty one")
    layers, tensors = content_of(cache)
    check_layers(cache, layers, tensors, cache.owner)
    header = {
        "ahn_config": cache.settings,
        "base": cache.owner.base,
        "memory": cache.owner.memory,
        "config": dict(cache.owner.config),
        "layers": layers,
        "tokenizer": None if tokenizer is None else _vocabulary_sum(tokenizer),
    }
    if notes:
        header["notes"] = dict(notes)
    text = json.dumps(header, sort_keys=True)
    return write_tensors(path, tensors, {"format": FORMAT, "header": text})


def load_session(
    path: AnyPath, model: PreTrainedModel, *, tokenizer: PreTrainedTokenizerBase | None = None
) -> AHNCache:
    """The cache that `save_session` wrote, on the devices of the model's layers.

    Raises ValueError where the file is damaged or no session, or where base, memory, settings or
    tokenizer are others than it was saved with.
    """
    cache = AHNCache(model.config)
    try:
        header, tensors = _read(Path(path))
        own = fingerprint_of(model.get_decoder(), attached_state(model))
        _check_owner(header, cache, own, tokenizer)
        check_layers(cache, header["layers"], tensors, own)
    except FileNotFoundError:
        raise
    except (KeyError, TypeError, ValueError, OSError) as error:
        raise ValueError(f"{path}: expected a session of this model, got: {error}") from error
    restore(cache, header["layers"], tensors, model)
    cache.owner = own
    return cache


def _read(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Header and tensors of a file, once its bytes are known to be those that were written."""
    with opened(path) as file:
        metadata = file.metadata() or {}
        if metadata.get("format") != FORMAT:
            raise ValueError(f"expected {FORMAT}, got {metadata.get('format')}")
        checksum = metadata.get(CHECKSUM, "")
        expect_sum(path, checksum, file_sum(path, checksum))
        tensors = {name: file.get_tensor(name) for name in list(file.keys())}
    return _checked(json.loads(metadata["header"])), tensors


def _checked(header: Any) -> dict[str, Any]:
    """The header, once each part is known to be of the kind it was written with."""
    if not isinstance(header, dict):
        raise TypeError(f"a header of {type(header).__name__}")
    for name, kind in HEADER.items():
        if not isinstance(header[name], kind):
            raise TypeError(f"{name} of {type(header[name]).__name__}")
    if not all(isinstance(counters, dict) for counters in header["layers"]):
        raise TypeError("layers without counters")
    return header


def _check_owner(
    header: Mapping[str, Any],
    cache: AHNCache,
    own: Fingerprint,
    tokenizer: PreTrainedTokenizerBase | None,
) -> None:
    """Raise ValueError where settings, model or tokenizer are others than the session's."""
    if header["ahn_config"] != cache.settings:
        raise ValueError(f"settings {header['ahn_config']} instead of {cache.settings}")
    written = Fingerprint(header["base"], header["memory"], header["config"], {})
    if reason := written.difference(own):
        raise ValueError(f"one that {reason}")
    recorded = header["tokenizer"]
    if tokenizer is not None and recorded not in (None, _vocabulary_sum(tokenizer)):
        raise ValueError("one of another tokenizer's vocabulary")


def _vocabulary_sum(tokenizer: PreTrainedTokenizerBase) -> str:
    """SHA-256 of a tokenizer's tokens and their ids."""
    text = json.dumps(sorted(tokenizer.get_vocab().items()))
    return hashlib.sha256(text.encode()).hexdigest()

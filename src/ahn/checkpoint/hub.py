"""Memories on the Hugging Face hub: downloads that resume, uploads with a card."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from ahn.checkpoint.card import model_card
from ahn.checkpoint.memory import base_of, memory_state, save_pretrained
from ahn.hf.attached_state import attached_state

HUB_OPTIONS = ("token", "cache_dir", "local_files_only", "force_download")
MEMORY_FILES = ["*.json", "*.safetensors"]
BASE_FILES = [*MEMORY_FILES, "*.txt", "*.model", "*.jinja", "LICENSE*", "NOTICE*"]


def memory_folder(
    name: str | os.PathLike[str], revision: str | None, options: Mapping[str, Any]
) -> Path:
    """A local folder as it is, or the local copy of a memory on the hub.

    Args:
        options: of `from_pretrained`; those in `HUB_OPTIONS` are used.

    Raises ValueError where there is neither.
    """
    if not Path(name).is_dir() and os.fspath(name).count("/") != 1:  # as every memory's name has
        raise ValueError(
            f"memory: expected a folder or a name on the hub (user/name), got {os.fspath(name)!r}"
        )
    return fetched(name, revision, options, MEMORY_FILES, "memory")


def fetched(
    name: str | os.PathLike[str],
    revision: str | None,
    options: Mapping[str, Any],
    patterns: list[str],
    what: str,
) -> Path:
    """A folder as it is, or the local copy of a hub repository's files that match `patterns`."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError

    path = Path(name)
    if path.is_dir():
        return path
    expected = f"{what}: expected a folder or a name on the hub, got {os.fspath(name)!r}"
    if path.exists():
        raise ValueError(f"{expected}, a file")
    used = {key: options[key] for key in HUB_OPTIONS if key in options}
    try:
        return Path(
            snapshot_download(os.fspath(name), revision=revision, allow_patterns=patterns, **used)
        )
    except HFValidationError as error:
        raise ValueError(expected) from error
    except OSError as error:  # what every error of the hub is, offline too
        raise ValueError(f"{expected}: {str(error).strip().splitlines()[0]}") from error


def push_to_hub(
    model: PreTrainedModel,
    repo: str,
    *,
    format: str = "ahn",
    training: Mapping[str, Any] | None = None,
    private: bool | None = None,
    revision: str | None = None,
    token: str | None = None,
    message: str = "Upload memory",
) -> str:
    """Upload the memory of an attached model, with a card, as one commit.

    Args:
        repo: `user/name`, made where it is not there.
        format: see `save_pretrained`.
        training: facts for the card.
        private, revision, token, message: see `huggingface_hub.HfApi`.

    Returns:
        The commit's address.

    Raises ValueError where nothing is attached.
    """
    from huggingface_hub import HfApi

    settings = attached_state(model).config
    parameters = sum(tensor.numel() for tensor in memory_state(model).values())
    card = model_card(settings, base_of(model.config), parameters, repo, training)
    api = HfApi(token=token)
    with tempfile.TemporaryDirectory() as folder:
        save_pretrained(model, folder, format=format)
        (Path(folder) / "README.md").write_text(card, encoding="utf-8")
        api.create_repo(repo, private=private, exist_ok=True)
        commit = api.upload_folder(
            repo_id=repo, folder_path=folder, revision=revision, commit_message=message
        )
    return str(commit)

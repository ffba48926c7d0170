"""A base that comes as one GGUF file, made once into a folder that transformers reads quickly."""

from __future__ import annotations

import hashlib
from functools import cache
from pathlib import Path
from typing import Any

from ahn.io.files import folder_written_whole

FOLDER = "ahn"  # in the cache of the Hugging Face libraries
SUFFIX = ".gguf"


def folder_of(file: Path) -> Path:
    """The model and tokenizer of a GGUF file as a folder of safetensors, in float32.

    Dequantising takes seconds and every process that names the model needs it, so it is done once:
    the folder stays in `$HF_HOME/ahn`, under the checksum of the file's bytes.

    Raises:
        ValueError: the file is damaged or holds a kind that transformers cannot read, or the
            package `gguf` is missing; one line.
    """
    from huggingface_hub.constants import HF_HOME

    target = Path(HF_HOME, FOLDER, f"{file.stem}-{_digest(file, *_version(file))}", file.stem)
    if not target.is_dir():
        try:
            with folder_written_whole(target) as temporary:
                _convert(file, temporary)
        except (OSError, ValueError):
            if not target.is_dir():  # else another process was first
                raise
    return target


def _version(file: Path) -> tuple[int, int]:
    """Size and modification time of a file; ValueError if it does not exist."""
    if not file.is_file():
        raise ValueError(f"{file.parent}: expected {file.name}, got a folder without it")
    facts = file.stat()
    return facts.st_size, facts.st_mtime_ns


@cache
def _digest(file: Path, size: int, changed: int) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()[:16]


def _convert(file: Path, target: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    options: dict[str, Any] = {"gguf_file": file.name}
    try:
        read: Any = AutoModelForCausalLM.from_pretrained(file.parent, **options)
        tokenizer = AutoTokenizer.from_pretrained(file.parent, **options)
    except ImportError as error:
        raise ValueError(
            f"{file.name}: expected the package gguf (pip install 'ahn[smollm2]'), got none"
        ) from error
    except Exception as error:  # the readers' exceptions have no common base class
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(
            f"{file}: expected a whole GGUF file of a kind that transformers reads, got: {reason}"
        ) from error
    # A config that names gguf cannot be saved, and the model it belongs to refuses to be.
    config = read.config
    del config.quantization_config
    plain = type(read)(config)
    plain.load_state_dict(read.state_dict())
    plain.save_pretrained(target)
    tokenizer.save_pretrained(target)

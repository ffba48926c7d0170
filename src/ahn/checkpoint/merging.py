"""Base and memory merged into one folder; weights are copied block by block."""

from __future__ import annotations

import hashlib
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, PreTrainedModel
from transformers.core_model_loading import revert_weight_conversion

from ahn.checkpoint.hub import BASE_FILES, fetched, memory_folder
from ahn.checkpoint.memory import (
    StoredMemory,
    check_keys,
    files_of,
    read_memory,
    weights_of,
)
from ahn.checkpoint.named_models import Name, resolve
from ahn.checkpoint.names import BASE_CONFIG, RELEASED_CONFIG
from ahn.checkpoint.settings import read_settings
from ahn.checkpoint.weights import PICKLES, Weights
from ahn.io.checksum import (
    BLOCK,
    CHECKSUM,
    INDEX,
    cached_sum,
    expect_sum,
    tensor_bytes,
)
from ahn.io.files import folder_written_whole, write_json
from ahn.io.folder import write_sums
from ahn.io.keys import is_memory
from ahn.io.progress import Report
from ahn.modeling import attach, auto_class
from ahn.modeling.saving import write_remote_code

NOT_COPIED = (*PICKLES, ".safetensors", ".h5", ".msgpack", ".gguf", ".onnx")
SPARE = 2**20  # bytes for configs and the like


@dataclass(frozen=True)
class _Merge:
    """What goes into a merged folder."""

    base: Weights
    memory: Weights
    stored: StoredMemory
    config: Any  # of the attached model

    @property
    def shards(self) -> list[tuple[Path, str, list[str]]]:
        """File, name in the merged folder and tensors of every shard; the memory's are last."""
        parts = [(part, name) for part in (self.base, self.memory) for name in part.names]
        return [
            (part.folder / name, f"model-{i:05}-of-{len(parts):05}.safetensors", part.keys_of(name))
            for i, (part, name) in enumerate(parts, 1)
        ]


def merge(
    base: Name,
    memory: Name,
    out: str | os.PathLike[str],
    *,
    window: int | None = None,
    num_sinks: int | None = None,
    progress: Report | None = None,
    revision: str | None = None,
    memory_revision: str | None = None,
    token: str | None = None,
) -> None:
    """Write one folder with base and memory that `AutoModelForCausalLM` loads.

    It loads after `import ahn`, and without it by `trust_remote_code=True`. Tokenizer, generation
    config and chat template are copied too.

    Args:
        base: folder or hub name of the base, in safetensors; or one of `NAMED_MODELS`.
        memory: folder or hub name of the memory; for a named base also the cell of one of its own.
        out: a new or empty folder, which appears when it is complete.
        window, num_sinks: win over the memory's own.
        progress: called after every block.
        revision, memory_revision: branch, tag or commit of either on the hub.
        token: of the hub, where either is private.

    Raises:
        ValueError: the memory was made for another base, or a file is missing or damaged.
        OSError: the disk is full or cannot be written.
    """
    base, memory = resolve(base, memory)
    options = {} if token is None else {"token": token}
    with folder_written_whole(out) as target:  # a wrong `out` is refused before a download
        base_folder = fetched(base, revision, options, BASE_FILES, "base")
        folder = memory_folder(memory, memory_revision, options)
        parts = _checked(base_folder, folder, window, num_sinks)
        sums = _copy_shards(parts, target, progress)
        _copy_others(base_folder, target)
        _write_configs(parts, folder, target)
        write_sums(target, sums)


def _checked(base: Path, memory: Path, window: int | None, num_sinks: int | None) -> _Merge:
    """Check that base and memory make one model, without loading the base's weights."""
    config = AutoConfig.from_pretrained(base)
    if getattr(config, "quantization_config", None) is not None:
        raise ValueError(f"{base}: expected a base that is not quantised, got quantization_config")
    stored = read_memory(memory, window=window, num_sinks=num_sinks)
    stored.check_base(config)
    config._name_or_path = str(base)
    weights = Weights.of(base)
    with torch.device("meta"):
        model = auto_class(config).from_config(config)
    _check_base_keys(model, weights)
    attach(model, stored.settings)
    expected = {key: tensor for key, tensor in model.state_dict().items() if is_memory(key)}
    check_keys(expected, stored.state)
    model.config.architectures = [type(model).__name__]
    return _Merge(weights, weights_of(memory, stored.layout), stored, model.config)


def _check_base_keys(model: PreTrainedModel, weights: Weights) -> None:
    """Raise ValueError where the files hold other tensors than the model or its checkpoints.

    transformers joins and renames tensors of some families as it loads them (experts, for one).
    """
    known = model.state_dict()
    tied = set(getattr(model, "all_tied_weights_keys", None) or ())
    needed = {key: tensor for key, tensor in known.items() if key not in tied}
    if not weights.files.keys() >= needed.keys():
        known, needed = (revert_weight_conversion(model, x) for x in (known, needed))
    unknown, missing = sorted(weights.files.keys() - known), sorted(needed.keys() - weights.files)
    if missing or unknown:
        raise ValueError(
            f"{weights.folder}: expected the keys of {type(model).__name__}, missing "
            f"{missing[:3]}, unknown {unknown[:3]}"
        )


def _copy_shards(parts: _Merge, target: Path, progress: Report | None) -> dict[str, str]:
    """Copy all weights and write their index; returns the checksum of each file."""
    shards = parts.shards
    total = sum(file.stat().st_size for file, _, _ in shards)
    if shutil.disk_usage(target).free < total + SPARE:
        raise OSError(f"{target.parent}: expected {total} bytes of free space, got less")
    done, sums = 0, {}
    for file, name, _ in shards:
        digest = hashlib.sha256()
        with file.open("rb") as source, (target / name).open("wb") as copy:
            while block := source.read(BLOCK):
                copy.write(block)
                digest.update(block)
                done += len(block)
                if progress is not None:
                    progress(name, done, total)
        sums[name] = digest.hexdigest()
        expect_sum(file, cached_sum(file) or sums[name], sums[name])
    size = sum(tensor_bytes(file) for file, _, _ in shards)
    files = {key: name for _, name, keys in shards for key in keys}
    metadata = {"total_size": size, CHECKSUM: sums}
    write_json(target / INDEX, {"metadata": metadata, "weight_map": files})
    return sums


def _copy_others(base: Path, target: Path) -> None:
    """Tokenizer, generation config, chat templates, licence: neither weights nor configs."""
    for path in sorted(base.iterdir()):
        skipped = path.name in (BASE_CONFIG, INDEX, "README.md") or path.suffix in NOT_COPIED
        if path.is_file() and not skipped and not path.name.startswith("."):
            shutil.copyfile(path, target / path.name)
        elif path.is_dir() and path.name == "additional_chat_templates":
            shutil.copytree(path, target / path.name)


def _write_configs(parts: _Merge, memory: Path, target: Path) -> None:
    config, settings = parts.config, parts.stored.settings
    write_json(target / BASE_CONFIG, config.to_dict())
    write_remote_code(target, config)
    config_name = files_of(parts.stored.layout)[0]
    name = RELEASED_CONFIG if config_name == BASE_CONFIG else config_name
    if read_settings(memory)[0] == settings:
        shutil.copyfile(memory / config_name, target / name)

"""Attached models as checkpoints: strict, and loadable without importing this package."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from transformers import AutoModelForCausalLM, PreTrainedConfig
from transformers.utils import cached_file

from ahn.hf.attached_state import attached_state
from ahn.hf.frequencies import pin_frequencies
from ahn.io.checksum import CONFIG, INDEX, SINGLE_FILE
from ahn.io.files import files_written_whole, written_whole
from ahn.io.folder import check_folder, write_sums
from ahn.io.keys import PREFIX, is_memory
from ahn.modeling.auto_classes import AUTO_CLASSES, CLASS_PREFIX

REMOTE_CODE = "modeling_ahn"  # module that is saved with the weights of an attached model
CONFIG_NAME, MODEL_NAME = "AHNConfig", "AHNForCausalLM"  # of the classes in that module
# Weights of a save without a variant, that another save may not need.
WEIGHTS = re.compile(r"model(-\d{5}-of-\d{5})?\.safetensors(\.index\.json)?")
HUB_OPTIONS = ("repo_id", "commit_message", "create_pr", "private")  # of an upload
LOCATION = ("revision", "token", "cache_dir", "local_files_only", "subfolder")  # of a checkpoint


class SavedWithMemory:
    """How an attached model is saved and loaded, where that differs from its family."""

    config: Any

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: Any,
        *args: Any,
        output_loading_info: bool = False,
        **kwargs: Any,
    ) -> Any:
        """As the family's, but a tensor that is missing, unknown or damaged raises ValueError.

        So does one of the memory that is not finite in the dtype it is loaded in.

        A checkpoint of the base alone, loaded under a config with `ahn_config`, gets fresh cells.
        """
        name = pretrained_model_name_or_path
        is_local = name is not None and Path(name).is_dir()
        if is_local:
            check_folder(Path(name, kwargs.get("subfolder") or ""))
        try:
            model, info = super().from_pretrained(  # type: ignore[misc]
                name, *args, output_loading_info=True, **kwargs
            )
        except RuntimeError as error:
            if "ignore_mismatched_sizes" not in str(error):
                raise
            raise ValueError(
                f"{name}: expected the shapes of {cls.__name__}, got others"
            ) from error
        if name is not None and not is_local:
            _check_download(name, kwargs)
        if not _has_memory(name, kwargs):
            info["missing_keys"] = [key for key in info["missing_keys"] if not is_memory(key)]
        for kind in ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs"):
            if keys := sorted(map(str, info.get(kind) or ())):
                raise ValueError(f"{name}: expected the keys of {cls.__name__}, {kind} {keys[:3]}")
        check_finite(model)
        pin_frequencies(model.get_decoder(), attached_state(model).config.budget)
        return (model, info) if output_loading_info else model

    def save_pretrained(
        self,
        save_directory: Any,
        is_main_process: bool = True,
        *args: Any,
        push_to_hub: bool = False,
        distributed_checkpoint: bool = False,
        **kwargs: Any,
    ) -> None:
        """As the family's; its config.json names the checksums of the weights.

        Files take their places when all are complete. Adds the module that `trust_remote_code=True`
        loads. A distributed checkpoint is written by all processes into one folder, so it has no
        checksums.

        Raises ValueError naming a tensor of the memory that is not finite.
        """
        check_finite(self)
        save = super().save_pretrained  # type: ignore[misc]
        if distributed_checkpoint or not is_main_process:
            options = {"distributed_checkpoint": True} if distributed_checkpoint else {}
            save(save_directory, is_main_process, *args, **options, **kwargs)
            return
        hub = {name: kwargs.pop(name) for name in HUB_OPTIONS if push_to_hub and name in kwargs}
        with files_written_whole(save_directory, last=(CONFIG,)) as folder:
            save(folder, is_main_process, *args, **kwargs)
            write_remote_code(folder, self.config)
            if (folder / CONFIG).is_file():  # else an adapter alone is saved
                write_sums(folder)
            saved = {path.name for path in folder.iterdir()}
        _drop_other_weights(Path(save_directory), saved)
        if push_to_hub:
            repo = hub.pop("repo_id", Path(save_directory).name)
            self.push_to_hub(repo, token=kwargs.get("token"), **hub)  # type: ignore[attr-defined]

    @classmethod
    def register_for_auto_class(cls, *args: Any) -> None:
        """Do nothing, as the config's."""


def check_finite(model: Any) -> None:
    """Raise ValueError naming the first tensor of a model's memory that is not finite."""
    for name, tensor in model.state_dict().items():
        if is_memory(name) and not tensor.is_meta and not tensor.isfinite().all():
            raise ValueError(f"{name}: expected finite numbers in {tensor.dtype}, got others")


def _drop_other_weights(folder: Path, saved: set[str]) -> None:
    """Remove an earlier save's weights: they would win over those of the last, or lie about."""
    if saved.isdisjoint((SINGLE_FILE, INDEX)):
        return
    for path in folder.iterdir():
        if path.name not in saved and WEIGHTS.fullmatch(path.name):
            path.unlink()


def _has_memory(name: Any, options: dict[str, Any]) -> bool:
    """Whether the config saved with a checkpoint says that it contains a memory."""
    if name is None:
        return False
    values, _ = PreTrainedConfig.get_config_dict(name, **_location(options))
    return values.get("ahn_config") is not None


def _check_download(name: Any, options: dict[str, Any]) -> None:
    """Check the files that loading has left in the hub's cache."""
    for file in (SINGLE_FILE, INDEX):
        path = cached_file(
            name,
            file,
            **_location(options) | {"local_files_only": True},
            _raise_exceptions_for_missing_entries=False,
            _raise_exceptions_for_connection_errors=False,
        )
        if path:
            check_folder(Path(path).parent)
            return


def _location(options: dict[str, Any]) -> dict[str, Any]:
    """The options of `from_pretrained` that say where a checkpoint is."""
    return {key: options[key] for key in LOCATION if key in options}


def auto_map_of(model_type: str) -> dict[str, str]:
    """What a config.json says of the classes that `trust_remote_code=True` loads."""
    model_type = model_type.removeprefix(PREFIX)
    autos = [auto for auto, names in AUTO_CLASSES.items() if model_type in names]
    names = [auto.__name__ for auto in autos or [AutoModelForCausalLM]]
    config = {"AutoConfig": f"{REMOTE_CODE}.{CONFIG_NAME}"}
    return config | dict.fromkeys(names, f"{REMOTE_CODE}.{MODEL_NAME}")


def write_remote_code(folder: Path, config: Any) -> None:
    """Write the module that `auto_map` names into `folder`; it imports this package.

    Args:
        config: of the attached model, with its class in `architectures`.
    """
    names = (config.model_type.removeprefix(PREFIX), *config.architectures)
    arguments = ", ".join(f'"{name.removeprefix(CLASS_PREFIX)}"' for name in names)
    with written_whole(folder / f"{REMOTE_CODE}.py") as temporary:
        temporary.write_text(
            '"""Loaded with trust_remote_code=True: the classes of the package ahn."""\n\n'
            "from ahn.modeling import family_classes\n\n"
            f"{CONFIG_NAME}, {MODEL_NAME} = family_classes({arguments})\n"
        )

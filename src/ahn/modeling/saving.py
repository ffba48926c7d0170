"""Attached models as checkpoints: strict, and loadable without importing this package."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import PreTrainedConfig
from transformers.utils import cached_file

from ahn.io.checksum import INDEX, WHOLE, check_folder
from ahn.io.files import written_whole

PREFIX = "ahn_"  # of the model type
REMOTE_CODE = "modeling_ahn"  # module that is saved with the weights of an attached model
AUTO_MAP = {
    "AutoConfig": f"{REMOTE_CODE}.AHNConfig",
    "AutoModelForCausalLM": f"{REMOTE_CODE}.AHNForCausalLM",
}
PARTS = (".ahn.", ".ahn_router.")  # a memory's keys contain one of these, the base's do not
LOCATION = ("revision", "token", "cache_dir", "local_files_only", "subfolder")  # of a checkpoint


def is_memory(key: str) -> bool:
    """Whether a tensor of that name belongs to a memory."""
    return any(part in key for part in PARTS)


class SavedWithMemory:
    """How an attached model is saved and loaded, where that differs from its family."""

    config: Any

    @classmethod
    def from_pretrained(
        cls, name: Any, *args: Any, output_loading_info: bool = False, **kwargs: Any
    ) -> Any:
        """As the family's, but a tensor that is missing, unknown or damaged raises ValueError.

        A checkpoint of the base alone, loaded under a config with `ahn_config`, gets fresh cells.
        """
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
        return (model, info) if output_loading_info else model

    def save_pretrained(
        self, save_directory: Any, is_main_process: bool = True, **kwargs: Any
    ) -> None:
        """As the family's; adds the module that `trust_remote_code=True` loads."""
        super().save_pretrained(  # type: ignore[misc]
            save_directory, is_main_process=is_main_process, **kwargs
        )
        if is_main_process:
            write_remote_code(Path(save_directory), self.config.model_type)

    @classmethod
    def register_for_auto_class(cls, *args: Any) -> None:
        """Do nothing, as the config's."""


def _has_memory(name: Any, options: dict[str, Any]) -> bool:
    """Whether the config saved with a checkpoint says that it contains a memory."""
    if name is None:
        return False
    values, _ = PreTrainedConfig.get_config_dict(name, **_location(options))
    return values.get("ahn_config") is not None


def _check_download(name: Any, options: dict[str, Any]) -> None:
    """Check the files that loading has left in the hub's cache."""
    for file in (WHOLE, INDEX):
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


def write_remote_code(folder: Path, model_type: str) -> None:
    """Write the module that `auto_map` names into `folder`; it imports this package."""
    with written_whole(folder / f"{REMOTE_CODE}.py") as temporary:
        temporary.write_text(
            '"""Loaded with trust_remote_code=True: the classes of the package ahn."""\n\n'
            "from ahn.modeling import family_classes\n\n"
            f'AHNConfig, AHNForCausalLM = family_classes("{model_type.removeprefix(PREFIX)}")\n'
        )

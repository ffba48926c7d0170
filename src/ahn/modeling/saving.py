"""Attached models as checkpoints: strict, and loadable without importing this package."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import PreTrainedConfig
from transformers.utils import cached_file

from ahn.io.checksum import INDEX, SINGLE_FILE, check_folder
from ahn.io.files import written_whole
from ahn.io.keys import PREFIX, is_memory

REMOTE_CODE = "modeling_ahn"  # module beside the weights of a saved attached model
AUTO_MAP = {
    "AutoConfig": f"{REMOTE_CODE}.AHNConfig",
    "AutoModelForCausalLM": f"{REMOTE_CODE}.AHNForCausalLM",
}
PLACE = ("revision", "token", "cache_dir", "local_files_only", "subfolder")  # of a checkpoint


class SavedWithMemory:
    """What saving and loading an attached model do differently from its family."""

    config: Any

    @classmethod
    def from_pretrained(
        cls, name: Any, *args: Any, output_loading_info: bool = False, **kwargs: Any
    ) -> Any:
        """As the family's, but strict: a tensor that is missing, unknown or damaged is an error.

        A base's own checkpoint, with a config that has `ahn_config`, gets fresh cells.
        """
        local = name is not None and Path(name).is_dir()
        if local:
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
        if name is not None and not local:
            _check_download(name, kwargs)
        if not _holds_memory(name, kwargs):
            info["missing_keys"] = [key for key in info["missing_keys"] if not is_memory(key)]
        for kind in ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs"):
            if found := sorted(map(str, info.get(kind) or ())):
                raise ValueError(f"{name}: expected the keys of {cls.__name__}, {kind} {found[:3]}")
        return (model, info) if output_loading_info else model

    def save_pretrained(
        self, save_directory: Any, is_main_process: bool = True, **kwargs: Any
    ) -> None:
        """As the family's, with the module that `trust_remote_code=True` loads."""
        super().save_pretrained(  # type: ignore[misc]
            save_directory, is_main_process=is_main_process, **kwargs
        )
        if is_main_process:
            write_remote_code(Path(save_directory), self.config.model_type)

    @classmethod
    def register_for_auto_class(cls, *args: Any) -> None:
        """Nothing, as the config's."""


def _holds_memory(name: Any, options: dict[str, Any]) -> bool:
    """Whether a checkpoint's own config says that a memory is in it."""
    if name is None:
        return False
    where = {key: options[key] for key in PLACE if key in options}
    values, _ = PreTrainedConfig.get_config_dict(name, **where)
    return values.get("ahn_config") is not None


def _check_download(name: Any, options: dict[str, Any]) -> None:
    """Check what the hub's cache holds of a checkpoint, once the loader has put it there."""
    where = {key: options[key] for key in PLACE if key in options} | {"local_files_only": True}
    for file in (SINGLE_FILE, INDEX):
        if found := cached_file(
            name,
            file,
            **where,
            _raise_exceptions_for_missing_entries=False,
            _raise_exceptions_for_connection_errors=False,
        ):
            check_folder(Path(found).parent)
            return


def write_remote_code(folder: Path, model_type: str) -> None:
    """The module that `auto_map` names, for `trust_remote_code=True`: it imports this package."""
    with written_whole(folder / f"{REMOTE_CODE}.py") as temporary:
        temporary.write_text(
            '"""Loaded with trust_remote_code=True: the classes of the package ahn."""\n\n'
            "from ahn.modeling import family_classes\n\n"
            f'AHNConfig, AHNForCausalLM = family_classes("{model_type.removeprefix(PREFIX)}")\n'
        )

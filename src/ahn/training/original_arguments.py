"""Options of the original's training script that have one meaning here, or none."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any

# What each option may say, and what to use instead of anything else.
ONLY = {
    "stage": (("sft",), "what is distilled"),
    "finetuning_type": (("freeze",), "the base stays frozen"),
    "freeze_extra_modules": (("ahn",), "the memory alone is trained"),
    "use_fast_tokenizer": ((True,), "the tokenizer is the one that transformers takes"),
    "flash_attn": (("auto",), "--kernels chooses the memory's and the window's"),
    "layer_implementation": (
        ("Qwen2MemDecoderLayer", "Qwen3MemDecoderLayer"),
        "the base's own layers, with the cell of --ahn_implementation",
    ),
    "overwrite_output_dir": (
        (False,),
        "--resume_from_checkpoint last, or another folder",
    ),
}


def _only(name: str, default: Any) -> Any:
    values, instead = ONLY[name]
    return field(default=default, metadata={"help": f"Only {values[0]}: {instead}."})


@dataclass
class OriginalArguments:
    """Options of the original's script that can say one thing here."""

    _argument_group_name = "options of the original's script"  # of the options in --help
    stage: str = _only("stage", "sft")
    finetuning_type: str = _only("finetuning_type", "freeze")
    freeze_extra_modules: str = _only("freeze_extra_modules", "ahn")
    use_fast_tokenizer: bool = _only("use_fast_tokenizer", True)
    flash_attn: str = _only("flash_attn", "auto")
    layer_implementation: str = _only("layer_implementation", "Qwen2MemDecoderLayer")
    overwrite_output_dir: bool = _only("overwrite_output_dir", False)

    def __post_init__(self) -> None:
        for each in fields(self):
            values, instead = ONLY[each.name]
            if (got := getattr(self, each.name)) not in values:
                wanted = " or ".join(map(str, values))
                raise ValueError(f"{each.name}: expected {wanted} ({instead}), got {got!r}")

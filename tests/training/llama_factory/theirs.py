"""What LLaMA-Factory makes of a sample: token ids and labels, or nothing where it drops it."""

from __future__ import annotations

import logging
import os
import sys
from importlib.machinery import ModuleSpec
from types import ModuleType, SimpleNamespace
from typing import Any

os.environ["DISABLE_VERSION_CHECK"] = "1"  # its data room runs with later versions too
if "torchaudio" not in sys.modules:  # it imports it for sounds alone
    sys.modules["torchaudio"] = ModuleType("torchaudio")
    sys.modules["torchaudio"].__spec__ = ModuleSpec("torchaudio", None)

from llamafactory.data import tool_utils
from llamafactory.data.converter import get_dataset_converter
from llamafactory.data.parser import DatasetAttr
from llamafactory.data.processor.supervised import SupervisedDatasetProcessor
from llamafactory.data.template import get_template_and_fix_tokenizer

logging.getLogger("llamafactory").setLevel(logging.ERROR)


ADDED = "detailed thinking off"  # a line for one family of models, put into every OpenAI sample
TODAY = SimpleNamespace(now=lambda: SimpleNamespace(strftime=lambda _: "26 Jul 2024"))


class Theirs:
    """LLaMA-Factory's data room for one template and one format.

    Two things are taken out of it: the day of the run in Llama 3's tools is the one that the
    model's own template has, and the line `ADDED` is not added.
    """

    def __init__(self, tokenizer: Any, template: str, entry: dict[str, Any], cutoff_len: int):
        arguments: Any = SimpleNamespace(
            template=template, train_on_prompt=False, tool_format=None, default_system=None,
            enable_thinking=True, preserve_thinking=False, mask_history=False,
            cutoff_len=cutoff_len, media_dir=".",
        )  # fmt: skip
        attributes = DatasetAttr("file", dataset_name="x")
        attributes.join(entry)
        tool_utils.datetime = TODAY
        self.convert = get_dataset_converter(attributes.formatting, attributes, arguments)
        found = get_template_and_fix_tokenizer(tokenizer, arguments)
        self.processor = SupervisedDatasetProcessor(found, tokenizer, None, arguments)

    def __call__(self, row: dict[str, Any]) -> tuple[list[int], list[int]] | None:
        aligned = self.convert(row)
        if self.convert.dataset_attr.formatting == "openai":
            aligned["_system"] = "" if aligned["_system"] == ADDED else _own(aligned["_system"])
        made = self.processor.preprocess_dataset({k: [v] for k, v in aligned.items()})
        return (made["input_ids"][0], made["labels"][0]) if made["input_ids"] else None


def _own(system: str) -> str:
    """A system prompt without what is added to it: the line, or a line end beside tools."""
    return system.removesuffix("\n" + ADDED).removesuffix("\n")

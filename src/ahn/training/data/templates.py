"""Chat templates by name: a file's, ours under LLaMA-Factory's names, TRL's, the tokenizer's."""

from __future__ import annotations

from pathlib import Path

from transformers import PreTrainedTokenizerBase

from ahn.io.text import read_text

ALIASES = {"qwen": "qwen2_5"}  # LLaMA-Factory's name, and TRL's of the same template
FOLDER = Path(__file__).parent / "templates"  # those that TRL has not, or not with tools
TRAINING, ORIGINAL = "_training_chat_template", "_chat_template"  # endings of TRL's names


def named_templates() -> dict[str, str]:
    """All templates that have a name: ours, and TRL's with its marks where it has any."""
    from trl import chat_template_utils

    known = {k: v for k, v in vars(chat_template_utils).items() if isinstance(v, str)}
    found: dict[str, str] = {}
    for ending in (ORIGINAL, TRAINING):
        found |= {k.removesuffix(ending): v for k, v in known.items() if k.endswith(ending)}
    found = {k: v for k, v in found.items() if not k.endswith("_training")}
    found |= {path.stem: read_text(path) for path in sorted(FOLDER.glob("*.jinja"))}
    return found | {alias: found[name] for alias, name in ALIASES.items()}


def own_template(tokenizer: PreTrainedTokenizerBase) -> str | None:
    """The tokenizer's template, with TRL's marks where TRL knows it; None where it has none."""
    from trl.chat_template_utils import get_training_chat_template

    if tokenizer.chat_template is None:
        return None
    try:
        return get_training_chat_template(tokenizer) or tokenizer.get_chat_template()
    except ValueError:  # a template that TRL does not know
        return tokenizer.get_chat_template()


def named_template(name: str) -> str:
    """The template of a file or a name; ValueError where there is none."""
    if Path(name).is_file():
        return read_text(Path(name))
    templates = named_templates()
    if name not in templates:
        names = ", ".join(sorted(templates))
        raise ValueError(f"template: expected a file or one of {names}, got {name!r}")
    return templates[name]

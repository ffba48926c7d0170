"""All families are known to transformers from the start, and imported when one is asked for."""

from __future__ import annotations

from typing import Any

from transformers import CONFIG_MAPPING, AutoConfig, PreTrainedConfig, PreTrainedModel

from ahn.io.keys import PREFIX
from ahn.modeling.attached import attached_classes, attached_config_class
from ahn.modeling.auto_classes import MODEL_TYPES, base_classes


def family_classes(
    model_type: str, architecture: str | None = None
) -> tuple[type[PreTrainedConfig], type[PreTrainedModel]]:
    """Config and model class of `ahn_<model_type>`.

    Args:
        architecture: name of the base's model class, where a type has several.

    Raises ValueError where transformers has no class of that type that generates text.
    """
    classes = base_classes(model_type)
    named = [cls for cls in classes if cls.__name__ == architecture]
    return attached_classes((named or classes)[0])


class ConfigOnDemand:
    """Stands for the config class of a family until a config is made, which imports the family.

    To load a folder without a question, transformers only needs to know its `model_type`.
    """

    family: str

    def __new__(cls, *args: Any, **kwargs: Any) -> Any:
        """A config of the family's attached class."""
        return cls._real()(*args, **kwargs)

    @classmethod
    def from_dict(cls, values: dict[str, Any], **kwargs: Any) -> Any:
        """As the attached class's."""
        return cls._real().from_dict(values, **kwargs)

    @classmethod
    def _real(cls) -> Any:
        """The config class; the model classes that take it are made too."""
        for base in base_classes(cls.family):
            attached_classes(base)
        return attached_config_class(CONFIG_MAPPING[cls.family])


for _family in MODEL_TYPES:
    AutoConfig.register(PREFIX + _family, type(_family, (ConfigOnDemand,), {"family": _family}))

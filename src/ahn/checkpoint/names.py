"""Names on disk: files, formats and the recorded values of a base's config."""

from __future__ import annotations

from ahn.io.checksum import SINGLE_FILE

BASE_CONFIG, BASE_WEIGHTS = "config.json", SINGLE_FILE  # as transformers names them
CONFIG_FILE, WEIGHTS_FILE = "ahn_config.json", "ahn_model.safetensors"
RELEASED_CONFIG = "ahn_released_config.json"  # a released memory's config.json in a merged folder
FORMATS = ("ahn", "released")
WEIGHTS_SUM = "ahn_weights_sha256"  # in the config of a memory: checksum of its weights
WRITTEN_WITH = "ahn_memory"  # in the header of the weights: settings and base, as in the config

MARK = "_ahn_implementation"  # in a config.json of the released layout

# Values of a base's config that a memory's shapes and meaning depend on.
BASE_FACTS = (
    "model_type",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
)

"""transformers' own tests of a model, on attached classes of six families.

Its wheel has no tests: `AHN_TRANSFORMERS_TESTS` names a folder that holds them as `tests`, of the
installed version. Its source archive on PyPI has those of a model; `.ci/model_tests` takes them
there. Its repository has those of `generate` too; what is absent is not run.
Every test passes, or `conftest.py` has the reason why it cannot.
"""

from __future__ import annotations

import copy
import importlib
import os
import sys
import types
import unittest

import pytest
import torch
import transformers

import ahn
from ahn.modeling.attached import attached_classes

SOURCES = os.environ.get("AHN_TRANSFORMERS_TESTS")
if not SOURCES:
    pytest.skip("AHN_TRANSFORMERS_TESTS: no folder of transformers' tests", allow_module_level=True)
sys.path.insert(0, SOURCES)

FAMILIES = ("Qwen2", "Qwen3", "Llama", "Mistral", "Olmo2", "Granite")
SIZES = {
    "vocab_size": 99,
    "hidden_size": 32,
    "intermediate_size": 37,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 512,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
EXTRA = {"Mistral": {"sliding_window": None}}


def mixin(module: str, name: str) -> type:
    """A class of transformers' tests; an empty one in the place of a module that is absent."""
    try:
        return getattr(importlib.import_module(module), name)
    except ModuleNotFoundError:
        return getattr(absent(module, name), name)


def absent(module: str, *names: str) -> types.ModuleType:
    """A module of empty classes, imported from now on."""
    parent, _, _ = module.rpartition(".")
    sys.modules.setdefault(parent, types.ModuleType(parent))
    sys.modules[module] = types.ModuleType(module)
    for name in names:
        setattr(sys.modules[module], name, type(name, (), {}))
    return sys.modules[module]


# Exporters to other formats need packages of their own.
absent("tests.exporters.test_export", "ExportTesterMixin", "ExportGenerateTesterMixin")
GENERATION = mixin("tests.generation.test_utils", "GenerationTesterMixin")
MODEL = mixin("tests.test_modeling_common", "ModelTesterMixin")


class AttachedTester:
    """What these tests ask of a model: its sizes, a config and a left-padded batch."""

    batch_size, seq_length, is_training = 3, 7, True
    hidden_size = SIZES["hidden_size"]
    num_hidden_layers = SIZES["num_hidden_layers"]
    num_attention_heads = SIZES["num_attention_heads"]

    def __init__(self, family: str) -> None:
        self.config_class, self.model_class = attached_classes(
            getattr(transformers, f"{family}ForCausalLM")
        )
        self.options = {**SIZES, **EXTRA.get(family, {})}

    def get_config(self):
        memory = ahn.AHNConfig(memory="GatedDeltaNet", window=16, num_sinks=4).to_dict()
        return self.config_class(**self.options, ahn_config=memory)

    def prepare_config_and_inputs_for_common(self):
        ids = torch.randint(3, SIZES["vocab_size"], (self.batch_size, self.seq_length))
        mask = torch.ones_like(ids)
        mask[0, :2] = 0
        return self.get_config(), {"input_ids": ids, "attention_mask": mask}


def tests_of(family: str) -> type:
    def set_up(self):
        self.model_tester = AttachedTester(family)
        self.all_model_classes = (self.model_tester.model_class,)

    def prepare_for_class(self, inputs_dict, model_class, return_labels=False):
        """With labels: transformers' own go by the names of its classes."""
        inputs = copy.deepcopy(inputs_dict)
        return inputs | ({"labels": inputs["input_ids"].clone()} if return_labels else {})

    body = {
        "setUp": set_up,
        "_prepare_for_class": prepare_for_class,
        "test_all_params_have_gradient": False,  # within the budget no memory is read
    }
    return type(f"Test{family}", (MODEL, GENERATION, unittest.TestCase), body)


globals().update({f"Test{family}": tests_of(family) for family in FAMILIES})

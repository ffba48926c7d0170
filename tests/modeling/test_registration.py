"""Families that nobody has imported yet: loaded, unpickled, and sent to another process."""

from __future__ import annotations

import multiprocessing
import pickle
import sys

import pytest
import torch
import transformers
from transformers import AutoConfig, AutoModelForCausalLM

import ahn
from ahn.checkpoint import merge
from ahn.modeling import family_classes
from tiny_models import COMMON, WINDOW, base_model, one_shot, random_ids, wake

OTHERS = {  # families without an entry in `ahn.hf.families.FAMILIES`, and what their config needs
    "Phi3": {"sliding_window": None, "tie_word_embeddings": False},
    "Olmo2": {},
    # Experts: transformers joins their tensors as it loads them.
    "Qwen3Moe": {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32},
}
IDS = random_ids(60)


@pytest.fixture(scope="module")
def models():
    settings = ahn.AHNConfig(window=WINDOW, num_sinks=4)
    return {
        family: wake(ahn.attach(base_model(family, **values), settings))
        for family, values in OTHERS.items()
    }


def load(folders):
    """In a process that has not imported the families: loaded, found by class, and logits."""
    assert not any(name.startswith("transformers.models.phi3") for name in sys.modules)
    outputs = []
    for folder in folders:
        architecture = AutoConfig.from_pretrained(folder).architectures[0]
        for loader in (AutoModelForCausalLM, getattr(transformers, architecture)):
            model = loader.from_pretrained(folder, dtype=torch.float32)
            outputs.append((type(model).__name__, logits(model)))
    return outputs


def logits(model):
    with torch.no_grad():
        return one_shot(model, IDS)


@pytest.mark.slow
@torch.no_grad()
def test_another_process_loads_merged_folders_without_a_question_and_takes_models(models, tmp_path):
    for family, model in models.items():
        ahn.save_pretrained(model, tmp_path / f"{family}-memory")
        base = ahn.detach(pickle.loads(pickle.dumps(model)))
        base.save_pretrained(tmp_path / f"{family}-base")
        merge(*(tmp_path / f"{family}-{part}" for part in ("base", "memory", "merged")))
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        loaded = pool.apply(load, ([tmp_path / f"{family}-merged" for family in models],))
        for index, (family, model) in enumerate(models.items()):
            names, outputs = zip(*loaded[2 * index : 2 * index + 2])
            assert names == (f"AHN{family}ForCausalLM",) * 2
            for output in (*outputs, pool.apply(logits, (model,))):
                assert torch.equal(output, logits(model))


def test_a_config_on_demand_is_one_of_the_family():
    config = AutoConfig.for_model("ahn_arcee", **COMMON, ahn_config={"window": 7})
    assert type(config).__name__ == "AHNArceeConfig"
    assert (config.model_type, config.ahn_config) == ("ahn_arcee", {"window": 7})
    config_class, model_class = family_classes("arcee")
    assert type(config) is config_class and model_class is transformers.AHNArceeForCausalLM
    assert pickle.loads(pickle.dumps((config_class, model_class))) == (config_class, model_class)


def test_a_type_without_a_language_model_is_refused():
    with pytest.raises(ValueError, match=r"model_type: expected a causal .*, got 'toy'"):
        family_classes("toy")

"""accelerate's placement of weights, with the memory's own parameters moved as well."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForCausalLM

import ahn
from tiny_models import (
    assert_close,
    base_model,
    one_shot,
    over_cells,
    random_ids,
    shared_model,
    wake,
)

pytest.importorskip("accelerate")
OPTIONS = {"max_new_tokens": 5, "do_sample": False}


@over_cells
@torch.no_grad()
def test_on_the_cpu_and_from_disk(cell, tmp_path):
    model, ids = shared_model("Qwen2", cell, use_q_proj=True, use_router=True), random_ids(60)
    model.save_pretrained(tmp_path / "model")
    places = dict.fromkeys(
        ("model.embed_tokens", "model.layers.0", "model.norm", "model.rotary_emb", "lm_head"), "cpu"
    )
    for device_map in ("cpu", {**places, "model.layers.1": "disk"}):
        loaded = AutoModelForCausalLM.from_pretrained(
            tmp_path / "model", device_map=device_map, offload_folder=tmp_path / "weights"
        ).eval()
        on_disk = loaded.model.layers[1].ahn.fn.o_proj.weight.is_meta
        assert on_disk == (device_map != "cpu")
        assert_close(one_shot(loaded, ids), one_shot(model, ids), 1e-6)
        assert torch.equal(loaded.generate(ids, **OPTIONS), model.generate(ids, **OPTIONS))


@torch.no_grad()
def test_attached_to_a_base_that_is_partly_on_disk(tmp_path):
    from accelerate import cpu_offload

    ids = random_ids(60)
    model = cpu_offload(base_model(), execution_device="cpu")
    wake(ahn.attach(model, ahn.AHNConfig(window=16, num_sinks=4)))
    assert_close(one_shot(model, ids), one_shot(shared_model(), ids), 1e-6)

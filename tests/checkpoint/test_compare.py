"""`inspect` and `diff`: what a folder holds, and how two differ."""

from __future__ import annotations

import pytest
from safetensors.torch import load_file

import ahn
from ahn.checkpoint import diff, inspect, merge
from ahn.checkpoint.names import FORMATS, WEIGHTS_FILE
from ahn.io.checksum import write_tensors
from checkpoint_folders import save_base, save_memory
from tiny_models import memory_parameters, new_model, shared_base

MEMORY = 2 * (2 * 4 * 64 + 4 * 16 * 16 + 16)  # two layers of DeltaNet: gates, o_proj, norm


@pytest.mark.parametrize("layout", FORMATS)
def test_a_memory(layout, tmp_path):
    found = inspect(save_memory(tmp_path, format=layout))
    assert found["kind"] == f"memory, {layout} layout"
    assert found["settings"]["memory"] == "DeltaNet" and found["settings"]["window"] == 16
    assert found["base"]["hidden_size"] == 64 and found["layers"] == [0, 1]
    assert found["memory_parameters"] == sum(found["parameters"].values()) == MEMORY
    assert found["dtypes"] == ["F32"]
    assert found["bytes"] == sum(path.stat().st_size for path in tmp_path.glob("*.safetensors"))


def test_a_base_and_a_merged_folder(tmp_path):
    base = save_base(tmp_path / "base")
    found = inspect(base)
    count = shared_base().num_parameters()
    assert (found["kind"], found["settings"], found["parameters"]) == (
        "base",
        None,
        {"base": count},
    )
    merge(base, save_memory(tmp_path / "memory"), tmp_path / "merged")
    merged = inspect(tmp_path / "merged")
    assert (merged["kind"], merged["memory_parameters"]) == ("merged", MEMORY)
    assert merged["parameters"]["base"] == count


def test_each_file_is_opened_a_few_times_whatever_it_holds(tmp_path, monkeypatch):
    base = save_base(tmp_path / "base")
    count, real = [], ahn.checkpoint.weights.opened_header
    monkeypatch.setattr(
        ahn.checkpoint.weights, "opened_header", lambda path: (count.append(path), real(path))[1]
    )
    inspect(base)
    assert count == [base / "model.safetensors"]


def test_layers_and_router_are_counted(tmp_path):
    model = new_model("Qwen3", "Mamba2", full_attention_layers=(0,), use_router=True)
    ahn.save_pretrained(model, tmp_path)
    found = inspect(tmp_path)
    assert found["layers"] == [1]
    assert found["parameters"]["ahn_router.alpha"] == 4
    assert found["memory_parameters"] == sum(p.numel() for p in memory_parameters(model).values())


def test_equal_folders(tmp_path):
    a, b = save_memory(tmp_path / "a"), save_memory(tmp_path / "b", format="released")
    found = diff(a, b)
    assert not found and found.equal == len(load_file(a / WEIGHTS_FILE))


def test_differences_are_named_and_sorted(tmp_path):
    a, b = save_memory(tmp_path / "a"), save_memory(tmp_path / "b")
    state = load_file(b / WEIGHTS_FILE)
    names = ("b_proj", "g_proj", "o_proj", "o_norm")
    keys = [f"model.layers.0.ahn.fn.{name}.weight" for name in names]
    keys.append("model.layers.1.ahn.fn.b_proj.weight")
    state[keys[0]].flatten()[3] += 0.25
    state[keys[1]] -= 2
    state[keys[2]] = state[keys[2]].flatten()
    state[keys[3]] = state[keys[3]].double()
    state["model.layers.9.ahn.fn.x"] = state.pop(keys[4])
    write_tensors(b / WEIGHTS_FILE, state)
    found = diff(a, b)
    assert (found.only_left, found.only_right) == ([keys[4]], ["model.layers.9.ahn.fn.x"])
    assert [d.key for d in found.differing] == [keys[2], keys[1], keys[0], keys[3]]
    assert [d.distance for d in found.differing] == [None, *map(pytest.approx, (2, 0.25, 0))]
    assert found.differing[3].right.endswith("F64")
    assert found.equal == len(state) - 5


def test_a_folder_that_is_none_is_named(tmp_path):
    for function in (inspect, lambda path: diff(path, path)):
        with pytest.raises(ValueError, match="expected a folder, got none"):
            function(tmp_path / "none")
        with pytest.raises(ValueError, match="got a folder without them"):
            function(tmp_path)

"""Law: a session saved and loaded, or forked, goes on as if it had never stopped."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import ahn
from ahn.generation import load_session, prefill, save_session
from tiny_models import (
    assert_close,
    left_padded,
    new_model,
    one_shot,
    over_trios,
    positions_of,
    random_ids,
    shared_base,
    shared_model,
)


@over_trios
@pytest.mark.parametrize("settings", [{}, {"full_attention_layers": (1,), "num_sinks": 0}], ids=str)
@pytest.mark.parametrize("length", [12, 60])
@torch.no_grad()
def test_saved_and_loaded_is_uninterrupted(family, cell, settings, length, tmp_path):
    model = shared_model(family, cell, dtype=torch.float64, **settings)
    ids = random_ids(length + 30, batch=2)
    _, cache = prefill(model, ids[:, :length])
    save_session(cache, tmp_path / "session")
    later = prefill(model, ids[:, length:], cache, prefill_chunk_size=1)[0]
    resumed = load_session(tmp_path / "session", model)
    assert resumed.get_seq_length() == length
    assert torch.equal(prefill(model, ids[:, length:], resumed, prefill_chunk_size=1)[0], later)
    assert resumed.nbytes == cache.nbytes


@torch.no_grad()
def test_padding_is_part_of_a_session(tmp_path):
    model = shared_model(dtype=torch.float64)
    rows, ids, mask = left_padded((50, 3))
    _, cache = prefill(model, ids, attention_mask=mask)
    save_session(cache, tmp_path / "session")
    resumed, answer = load_session(tmp_path / "session", model), random_ids(20, batch=2)
    logits, _ = prefill(model, answer, resumed, prefill_chunk_size=6)
    for row, prompt in enumerate(rows):
        alone = one_shot(model, torch.cat([prompt, answer[row : row + 1]], 1))
        assert_close(logits[row], alone[0, -1], 1e-12)
    assert positions_of(mask)[1, -1] == 2


@torch.no_grad()
def test_a_session_of_the_window_alone_stays_one(tmp_path):
    model, ids = shared_model(), random_ids(60)
    with ahn.memory_off(model):
        _, cache = prefill(model, ids)
        save_session(cache, tmp_path / "session")
        resumed = load_session(tmp_path / "session", model)
        assert torch.equal(prefill(model, ids, resumed)[0], prefill(model, ids, cache)[0])
    with pytest.raises(ValueError, match="expected a cache of"):
        prefill(model, ids, load_session(tmp_path / "session", model))


@over_trios
@torch.no_grad()
def test_a_fork_leaves_its_parent_untouched(family, cell):
    model = shared_model(family, cell, full_attention_layers=(0,))
    ids, one, other = random_ids(60), random_ids(30, seed=2), random_ids(30, seed=3)
    _, parent = prefill(model, ids)
    expected = prefill(model, one, prefill(model, ids)[1])[0]
    child = parent.fork()
    prefill(model, other, child, prefill_chunk_size=1)
    assert (parent.get_seq_length(), child.get_seq_length()) == (60, 90)
    assert torch.equal(prefill(model, one, parent)[0], expected)
    assert torch.equal(prefill(model, one, prefill(model, ids)[1].fork())[0], expected)


def _saved(model, path):
    _, cache = prefill(model, random_ids(40))
    save_session(cache, path)
    return path


OTHERS = {
    "window": {"window": 24},
    "sinks": {"num_sinks": 5},
    "layers": {"full_attention_layers": (1,)},
    "depth": {"overrides": (("num_hidden_layers", 3),)},
    "heads": {"overrides": (("num_attention_heads", 8),)},
    "head size": {"overrides": (("head_dim", 8),)},
    "dtype": {"dtype": torch.bfloat16},
    "cell": {"cell": "DeltaNet"},
    "cell of as many gates": {"cell": "Mamba2"},
}


@pytest.mark.parametrize("other", OTHERS)
def test_a_session_of_other_settings_is_refused(other, tmp_path):
    mine = {"cell": "DeltaNet"} if other == "cell of as many gates" else {}
    path = _saved(new_model("Llama", **mine), tmp_path / "session")
    with pytest.raises(ValueError, match="session: expected"):
        load_session(path, new_model("Llama", **OTHERS[other]))


def test_a_session_is_not_for_a_model_without_a_memory(tmp_path):
    path = _saved(shared_model(), tmp_path / "session")
    with pytest.raises(ValueError, match="expected the config of an attached model"):
        load_session(path, shared_base())


def test_what_is_not_a_session_is_refused(tmp_path):
    model = shared_model()
    (tmp_path / "text").write_text("not a safetensors file at all")
    save_file({"x": torch.zeros(2)}, tmp_path / "other")
    whole = _saved(model, tmp_path / "session").read_bytes()
    (tmp_path / "cut").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "empty").write_bytes(b"")
    for name in ("text", "other", "cut", "empty"):
        with pytest.raises(ValueError, match=f"{name}: expected a s"):
            load_session(tmp_path / name, model)


def _metadata(path):
    with safe_open(path, "pt") as file:
        return file.metadata()


DAMAGE = {
    "no counters": lambda tensors, metadata: metadata.pop("header"),
    "counters cut": lambda tensors, metadata: metadata.update(header=metadata["header"][:-9]),
    "a tensor missing": lambda tensors, metadata: tensors.pop("1.values"),
    "the state missing": lambda tensors, metadata: tensors.pop("0.states.recurrent_state"),
    "a tensor too many": lambda tensors, metadata: tensors.update({"7.keys": torch.zeros(1)}),
    "an unknown name": lambda tensors, metadata: tensors.update({"0.window": torch.zeros(1)}),
    "a name of no layer": lambda tensors, metadata: tensors.update(keys=torch.zeros(1)),
    "names of before": lambda tensors, metadata: metadata.update(format="ahn-session-1"),
    "another shape": lambda tensors, metadata: tensors.update({"0.keys": torch.zeros(1, 2)}),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_session_is_refused(damage, tmp_path):
    model = shared_model()
    path = _saved(model, tmp_path / "session")
    tensors, metadata = load_file(path), _metadata(path)
    DAMAGE[damage](tensors, metadata)
    save_file(tensors, path, metadata)
    with pytest.raises(ValueError, match="session: expected"):
        load_session(path, model)


@torch.no_grad()
def test_a_failed_save_leaves_the_old_session(tmp_path, monkeypatch):
    model = shared_model()
    path = _saved(model, tmp_path / "session")
    before = path.read_bytes()

    def disk_full(tensors, filename, metadata):
        filename.write_bytes(b"half")
        raise OSError("no space left")

    monkeypatch.setattr("ahn.generation.session.save_file", disk_full)
    with pytest.raises(OSError, match="no space"):
        _saved(model, path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("name", ["99.keys", "0.append", "0.write_inputs.a.b", "x.keys", "0.seen"])
@torch.no_grad()
def test_a_tensor_of_another_name_is_refused(name, tmp_path):
    model = shared_model()
    save_session(prefill(model, random_ids(30))[1], tmp_path / "session")
    with safe_open(tmp_path / "session", framework="pt") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        metadata = file.metadata()
    tensors[name] = torch.zeros(1)
    header = json.loads(metadata["header"])
    header["tensors"][name] = ["torch.float32", [1]]
    metadata["header"] = json.dumps(header)
    save_file(tensors, tmp_path / "session", metadata=metadata)
    with pytest.raises(ValueError, match="of no layer of the model"):
        load_session(tmp_path / "session", model)

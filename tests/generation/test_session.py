"""Law: a session saved and loaded, or forked, goes on as if it had never stopped."""

from __future__ import annotations

import copy
import json
import random

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers.cache_utils import StaticLayer

import ahn
import newest_rows  # noqa: F401  (registers its memory)
import standin
from ahn.generation import load_session, prefill, save_session
from ahn.io.checksum import metadata_of, write_tensors
from ahn.modeling import compressive
from ahn.runtime.decode_step import DecodeStep
from commands import file_size_limit
from tiny_models import (
    assert_close,
    duplicate,
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


def _rewritten(path, change):
    """A session whose tensors and header a change was made to, with a checksum that is right."""
    tensors, metadata = load_file(path), metadata_of(path)
    header = json.loads(metadata["header"])
    change(tensors, header, metadata)
    if "header" in metadata:
        metadata["header"] = json.dumps(header)
    write_tensors(path, tensors, metadata)


def _to_all(name, value):
    return lambda tensors, header, _: [layer.update({name: value}) for layer in header["layers"]]


def _state(change):
    return lambda tensors, header, _: tensors.update(
        {"0.states.recurrent_state": change(tensors["0.states.recurrent_state"])}
    )


DAMAGE = {
    "no header": lambda tensors, header, metadata: metadata.pop("header"),
    "no counters": lambda tensors, header, _: header.pop("layers"),
    "counters of one layer": lambda tensors, header, _: header["layers"].pop(),
    "names of before": lambda tensors, header, metadata: metadata.update(format="ahn-session-2"),
    "no tensor of its own": lambda tensors, header, _: (
        tensors.clear(),
        tensors.update(x=torch.zeros(1)),
    ),
    "a tensor missing": lambda tensors, header, _: tensors.pop("1.values"),
    "the state missing": lambda tensors, header, _: tensors.pop("0.states.recurrent_state"),
    "the gates missing": lambda tensors, header, _: tensors.pop("1.write_inputs.gates"),
    "a foreign state": lambda tensors, header, _: tensors.update({"0.states.x": torch.zeros(1, 2)}),
    "padding of none": lambda tensors, header, _: tensors.update({"0.padding": torch.zeros(1)}),
    "another shape": lambda tensors, header, _: tensors.update({"0.keys": torch.zeros(1, 2)}),
    "half the rows": lambda tensors, header, _: tensors.update(
        {"0.keys": tensors["0.keys"][:, :, :9].contiguous()}
    ),
    "a batch of its own": lambda tensors, header, _: tensors.update(
        {name: torch.cat([tensors[name]] * 2) for name in tensors if name.startswith("1.")}
    ),
    "a state of NaN": _state(lambda x: x.fill_(float("nan"))),
    "keys of infinity": lambda tensors, header, _: tensors["1.keys"].fill_(float("inf")),
    "a state in half": _state(lambda x: x.half()),
    "integers": _state(lambda x: x.long()),
    "seen by one layer": lambda tensors, header, _: header["layers"][1].update(seen=3),
    **{f"seen={x!r}": _to_all("seen", x) for x in (-1, "x", 40.0, True, None, 2**70, 3)},
    **{f"max_padding={x!r}": _to_all("max_padding", x) for x in (5, -1, "x", None)},
    **{f"mode={x!r}": _to_all("mode", x) for x in ("full", "window", "x", None, [], {})},
    **{f"kind={x!r}": _to_all("kind", x) for x in ("full", "x", None)},
    **{
        f"a tensor {name}": lambda tensors, header, _, name=name: tensors.update(
            {name: torch.zeros(1)}
        )
        for name in ("99.keys", "7.keys", "0.append", "0.write_inputs.a.b", "x.keys", "0.seen",
                     "keys", "0.window", "0.update", "0.states.", "00.keys", "-1.keys")
    },
}  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_session_is_refused(damage, tmp_path):
    """Also with a checksum that is right."""
    model = shared_model()
    path = _saved(model, tmp_path / "session")
    _rewritten(path, DAMAGE[damage])
    with pytest.raises(ValueError, match="session: expected") as caught:
        load_session(path, model)
    assert "\n" not in str(caught.value)


def test_any_flipped_bit_of_a_session_is_seen(tmp_path):
    model = shared_model()
    whole = _saved(model, tmp_path / "session").read_bytes()
    for turn in range(100):
        data, chance = bytearray(whole), random.Random(turn)
        data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
        (tmp_path / "session").write_bytes(data)
        with pytest.raises(ValueError, match="session: expected"):
            load_session(tmp_path / "session", model)


@torch.no_grad()
def test_a_failed_save_leaves_the_old_session(tmp_path):
    model = shared_model()
    path = _saved(model, tmp_path / "session")
    before = path.read_bytes()
    with file_size_limit(1000), pytest.raises(OSError, match=r"File too large: .*/session'"):
        _saved(model, path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def _changed(change):
    def make():
        model = new_model()
        with torch.no_grad():
            change(model)
        return model

    return make


NEIGHBOURS = {  # models of the same shapes and settings
    "other weights": _changed(lambda m: [x.mul_(1.5) for x in m.model.parameters()]),
    "another norm": _changed(lambda m: m.model.layers[1].input_layernorm.weight.add_(1e-3)),
    "one number": _changed(lambda m: m.model.embed_tokens.weight[5, 7].add_(1e-3)),
    "another head": _changed(lambda m: m.lm_head.weight.mul_(2)),
    "another memory": _changed(lambda m: m.model.layers[0].ahn.fn.o_proj.weight.mul_(2)),
    "weights replaced": _changed(
        lambda m: setattr(m.model.norm.weight, "data", m.model.norm.weight.data * 2)
    ),
    "another family": lambda: new_model("Llama"),
    "another RoPE": lambda: new_model(overrides=(("rope_parameters", {
        "rope_type": "default", "rope_theta": 5e5}),)),
    "another norm's epsilon": lambda: new_model(overrides=(("rms_norm_eps", 1e-3),)),
}  # fmt: skip


@pytest.mark.parametrize("other", NEIGHBOURS)
@torch.no_grad()
def test_what_a_model_wrote_is_not_for_its_neighbours(other, tmp_path):
    """Neither as a session nor in memory."""
    model, neighbour = new_model(), NEIGHBOURS[other]()
    path = _saved(model, tmp_path / "session")
    with pytest.raises(ValueError, match="session of this model, got: one that expected"):
        load_session(path, neighbour)
    _, cache = prefill(model, random_ids(30))
    with pytest.raises(ValueError, match="expected a cache of this model, got one that expected"):
        prefill(neighbour, random_ids(5), cache)
    with pytest.raises(ValueError, match="expected a cache of this model"):
        DecodeStep(neighbour, cache, "eager")


@torch.no_grad()
def test_an_equal_model_goes_on(tmp_path):
    """A copy, the model from its folder, and the model itself after it was trained and put back."""
    model, ids = new_model(), random_ids(30)
    path = _saved(model, tmp_path / "session")
    model.save_pretrained(tmp_path / "folder")
    expected = prefill(model, ids, load_session(path, model))[0]
    for other in (new_model(), duplicate(model), ahn.from_pretrained(tmp_path / "folder")):
        assert torch.equal(prefill(other, ids, load_session(path, other))[0], expected)
        _, cache = prefill(model, random_ids(40))
        assert torch.equal(prefill(other, ids, cache.fork())[0], expected)
    weight = model.model.layers[0].ahn.fn.o_proj.weight
    weight.mul_(2)
    with pytest.raises(ValueError, match="expected the weights of its memory"):
        load_session(path, model)
    weight.div_(2)
    assert torch.equal(prefill(model, ids, load_session(path, model))[0], expected)


def test_a_session_knows_its_tokenizer(tmp_path):
    model, tokenizer = shared_model(), standin.tokenizer()
    save_session(prefill(model, random_ids(30))[1], tmp_path / "session", tokenizer=tokenizer)
    for known in (None, tokenizer):
        load_session(tmp_path / "session", model, tokenizer=known)
    other = copy.deepcopy(tokenizer)
    other.add_tokens(["<more>"])
    with pytest.raises(ValueError, match="another tokenizer's vocabulary"):
        load_session(tmp_path / "session", model, tokenizer=other)


def test_an_empty_cache_is_no_session(tmp_path):
    with pytest.raises(ValueError, match="expected a cache that has read something"):
        save_session(ahn.AHNCache(shared_model().config), tmp_path / "session")


@torch.no_grad()
def test_numbers_that_are_not_finite_are_not_saved(tmp_path):
    _, cache = prefill(shared_model(), random_ids(40))
    cache.layers[1].states["recurrent_state"][0, 0, 0, 0] = float("inf")
    with pytest.raises(ValueError, match=r"1\.states\.recurrent_state with numbers"):
        save_session(cache, tmp_path / "session")
    assert not list(tmp_path.iterdir())


@torch.no_grad()
def test_layers_that_a_session_cannot_hold_are_named(tmp_path):
    _, cache = prefill(shared_model(full_attention_layers=(1,)), random_ids(40))
    cache.layers[1] = StaticLayer(max_cache_len=8)
    with pytest.raises(ValueError, match=r"layer 1: .* got a StaticLayer"):
        save_session(cache, tmp_path / "session")


@torch.no_grad()
def test_any_declared_state_is_held(tmp_path):
    """A memory of named tensors with shapes and dtypes of its own, within and beyond the budget."""
    model = new_model("Llama", "NewestRows")
    for length in (5, 20, 21, 60):
        _, cache = prefill(model, random_ids(length, batch=2))
        save_session(cache, tmp_path / "session")
        later = random_ids(9, batch=2, seed=4)
        expected = prefill(model, later, cache)[0]
        assert torch.equal(
            prefill(model, later, load_session(tmp_path / "session", model))[0], expected
        )


@pytest.mark.parametrize("pooling", ["max", "avg"])
@torch.no_grad()
def test_a_pooled_session(pooling, tmp_path):
    model = shared_model()
    with compressive(model, pooling):
        for length in (5, 20, 21, 60):
            _, cache = prefill(model, random_ids(length, batch=2))
            save_session(cache, tmp_path / "session")
            later = random_ids(9, batch=2, seed=4)
            expected = prefill(model, later, cache)[0]
            resumed = load_session(tmp_path / "session", model)
            assert torch.equal(prefill(model, later, resumed)[0], expected)

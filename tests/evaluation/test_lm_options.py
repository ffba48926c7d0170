"""What a user may ask of the lm-eval model, and what is refused in one line."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from asked import LONG, PAIRS, UNTIL, assert_same, lm, requests, scores

import ahn
import standin
from ahn.evaluation.controls import shuffle_states
from ahn.evaluation.lm import AHNLM, METHODS, SKIPPED, SKIPPED_SCORE
from ahn.evaluation.lm.loading import largest_batch, pick_device


def test_too_long_samples_are_skipped_and_counted(caplog):
    ours = lm(max_length=50)
    found = scores(ours, [(LONG, " x"), ("a", " b")])
    assert found[0] == SKIPPED_SCORE and found[1] == scores(lm(), [("a", " b")])[0]
    assert "expected samples of at most 50 tokens, skipped 1 of 2" in caplog.text
    answers = ours.generate_until(requests((LONG, UNTIL), ("a", UNTIL)), True)
    assert answers == [SKIPPED, lm().generate_until(requests(("a", UNTIL)), True)[0]]


def test_shuffling_changes_the_state_and_keeps_its_contents():
    model = standin.load("GatedDeltaNet")[0]
    _, cache = ahn.generation.prefill(model, torch.ones(1, 90, dtype=torch.long) * 7)
    before = [layer.states["recurrent_state"].clone() for layer in cache.memory_layers]
    shuffle_states(cache)
    for old, layer in zip(before, cache.memory_layers):
        assert not torch.equal(old, layer.states["recurrent_state"])
        assert torch.equal(old.sort(2).values, layer.states["recurrent_state"].sort(2).values)


def test_folders_memories_and_limits(tmp_path):
    standin.save_base(tmp_path / "base")
    ahn.save_pretrained(standin.load("GatedDeltaNet")[0], tmp_path / "memory")
    base, memory = str(tmp_path / "base"), str(tmp_path / "memory")
    with_memory = AHNLM(base, memory=memory, device="cpu")
    assert_same(scores(with_memory), scores(lm()))
    limited = AHNLM(base, memory=memory, window=30, num_sinks=2, device="cpu")
    model = standin.load("GatedDeltaNet", window=30, num_sinks=2)[0]
    assert_same(scores(limited), scores(lm(model=model)))
    assert limited.get_model_info()["ahn_config"]["window"] == 30
    window = AHNLM(base, method="window", window=30, num_sinks=2, device="cpu")
    assert_same(scores(window), scores(lm("window", model=model)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "half"}, "method: expected one of ahn, full, window"),
        ({"batch_size": "some"}, "batch_size: expected an integer >= 1, got 'some'"),
        ({"prefill_chunk_size": 0}, "prefill_chunk_size: expected an integer >= 1, got 0"),
        ({"max_length": 0}, "max_length: expected an integer >= 1, got 0"),
        ({"model": None}, "memory: expected one for method ahn, got a model without"),
    ],
)
def test_wrong_options_are_refused_in_one_line(options, message):
    if "model" in options:
        options = {"model": standin.base()}
    with pytest.raises(ValueError, match=message) as caught:
        lm(**options)
    assert "\n" not in str(caught.value)


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_without_a_gpu_lm_evals_default_is_the_cpu(caplog):
    assert pick_device("cuda:0") == pick_device(None) == "cpu"
    assert "expected cuda:0, got no GPU: the CPU is used" in caplog.text


def test_the_embedded_model_is_in_float32():
    model = AHNLM("embedded", memory="DeltaNet", device="cpu", dtype="auto")
    assert {parameter.dtype for parameter in model.model.parameters()} == {torch.float32}
    assert_same(scores(model, PAIRS[:3]), [scores(model, [pair])[0] for pair in PAIRS[:3]])
    with pytest.raises(ValueError, match="dtype: expected float32 for the embedded model"):
        AHNLM("embedded", memory="DeltaNet", device="cpu", dtype="bfloat16")


def test_wrong_models_and_devices_are_refused(tmp_path):
    standin.save_base(tmp_path)
    for options, message in [
        ({"device": "cuda"} if not torch.cuda.is_available() else {"device": "cuda:99"},
         "device: expected one that PyTorch can use"),
        ({"device": "cpu"}, "memory: expected one for method ahn, got a model without"),
        ({"device": "cpu", "method": "window"}, "window: expected a number of tokens"),
        ({"device": "cpu", "peft": "x"}, "peft: expected none with --model ahn"),
    ]:  # fmt: skip
        with pytest.raises(ValueError, match=message):
            AHNLM(str(tmp_path), **options)
    with pytest.raises(ValueError, match="expected tasks that score continuations"):
        lm("ahn-shuffled").generate_until(requests(("a", UNTIL)), True)


@pytest.mark.slow
def test_a_batch_size_can_be_chosen_by_the_memory(monkeypatch):
    """On a CPU one row; on a GPU what reads a chunk, lowered from the largest."""
    pairs = [("one two", " three"), ("four", " five six"), ("x", " y")]
    chosen = lm(batch_size="auto")
    assert_same(scores(chosen, pairs), scores(lm(batch_size=1), pairs))
    asked = []

    def forward(ids, **_):
        """A GPU with room for ten rows."""
        asked.append(ids.shape[0])
        if ids.shape[0] > 10:
            raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr("ahn.evaluation.lm.loading.new_cache", lambda model: None)
    on_gpu = SimpleNamespace(
        model=forward, device="cpu", prefill_chunk_size=4, method=METHODS["ahn"]
    )
    found = largest_batch(on_gpu, 64)
    assert 8 <= found <= 10 and asked[0] == 64 and asked[-2:] == [found, found]


def test_progress_is_said_where_there_is_no_terminal(monkeypatch, capsys):
    monkeypatch.setattr("ahn.io.progress.QUIET", 0.0)
    model = lm()
    model.loglikelihood(requests(("one two", " three")))
    said = capsys.readouterr().err
    assert "ahn: 0 of " in said and " tokens" in said

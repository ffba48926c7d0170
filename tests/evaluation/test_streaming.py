"""Losses read in a stream are those of one forward, in every mode, without its memory."""

from __future__ import annotations

import io
import math
from contextlib import nullcontext

import pytest
import torch
import torch.nn.functional as F
from tokenizers import Tokenizer
from tokenizers import models as token_models
from transformers import PreTrainedTokenizerFast

import ahn
import standin
from ahn.evaluation import (
    beyond_budget,
    bits_per_byte,
    cache_bytes,
    encode_bytes,
    new_cache,
    stream_losses,
    token_losses,
)
from ahn.io.text import encode_chunks, text_chunks
from tiny_models import (
    COMMON,
    WINDOW,
    assert_close,
    base_model,
    over_cells,
    random_ids,
    shared_model,
)

LENGTH = 7 * WINDOW + 5
MODES = {"full": ahn.disabled, "window": ahn.memory_off, "memory": nullcontext}
over_modes = pytest.mark.parametrize("mode", MODES)


@torch.no_grad()
def plain_losses(model, ids):
    """By one forward that keeps all logits."""
    logits = model(ids, use_cache=False).logits[0, :-1].double()
    return F.cross_entropy(logits, ids[0, 1:], reduction="none")


@over_modes
@pytest.mark.parametrize("chunk", [1, 7, LENGTH - 1, LENGTH, 512])
def test_losses_are_those_of_one_forward(mode, chunk):
    model, ids = shared_model(), random_ids(LENGTH)
    with MODES[mode](model):
        assert_close(
            token_losses(model, ids, prefill_chunk_size=chunk).double(),
            plain_losses(model, ids),
            2e-5,
        )


@over_cells
def test_modes_differ_beyond_the_budget_alone(cell):
    model, ids = shared_model(cell=cell), random_ids(LENGTH)
    losses = {}
    for mode, context in MODES.items():
        with context(model):
            losses[mode] = token_losses(model, ids)
    budget = WINDOW + 4
    for one, other in (("full", "window"), ("full", "memory"), ("window", "memory")):
        difference = (losses[one] - losses[other]).abs()
        assert difference[: budget - 1].max() < 1e-5
        assert difference[budget:].max() > 1e-3


def test_plain_model_and_pieces():
    model, ids = base_model(), random_ids(LENGTH)
    whole = token_losses(model, ids)
    assert_close(whole.double(), plain_losses(model, ids), 2e-5)
    pieces = iter(ids.split([1, 50, 3, LENGTH - 54], dim=1))
    assert_close(token_losses(model, pieces, prefill_chunk_size=16), whole, 2e-5)


def test_no_more_logits_than_a_chunk_and_no_more_bytes_than_a_budget():
    model, sizes, held = shared_model(), [], []
    cache = new_cache(model)
    count = model.lm_head.register_forward_hook(lambda *call: sizes.append(call[2].shape[1]))
    for _ in stream_losses(model, random_ids(20 * WINDOW), prefill_chunk_size=13, cache=cache):
        held.append(cache_bytes(cache))
    count.remove()
    assert max(sizes) == 13 and sum(sizes) == 20 * WINDOW
    assert len(set(held[1:])) == 1  # the first chunk is within the budget: no state yet


def test_a_cache_is_continued():
    model, ids = shared_model(), random_ids(LENGTH)
    cache = new_cache(model)
    parts = [token_losses(model, part, cache=cache) for part in ids.split(60, dim=1)]
    whole = token_losses(model, ids)
    assert_close(torch.cat(parts), torch.cat([whole[:59], whole[60:]]), 2e-5)


@over_modes
def test_cache_bytes_by_hand(mode):
    model = shared_model()
    heads = COMMON["num_key_value_heads"] * COMMON["hidden_size"] // COMMON["num_attention_heads"]
    per_token = 2 * COMMON["num_hidden_layers"] * heads * 4
    with MODES[mode](model):
        cache = new_cache(model)
        assert cache_bytes(cache) == 0
        token_losses(model, random_ids(LENGTH), cache=cache)
    if mode == "full":
        assert cache_bytes(cache) == LENGTH * per_token
    else:
        exact = (WINDOW + 4) * per_token
        assert cache_bytes(cache) == exact if mode == "window" else cache_bytes(cache) > exact


@pytest.mark.parametrize(
    ("ids", "chunk", "message"),
    [
        (random_ids(1), 8, "expected at least 2 tokens, got 1"),
        ([], 8, "expected at least 2 tokens, got 0"),
        (random_ids(9, batch=2), 8, "expected one row, got 2"),
        (random_ids(9), 0, "expected at least 1 token, got 0"),
    ],
)
def test_what_cannot_be_read_is_refused(ids, chunk, message):
    with pytest.raises(ValueError, match=message):
        token_losses(shared_model(), ids, prefill_chunk_size=chunk)


def test_bits_per_byte_by_hand():
    nats = torch.tensor([math.log(2), 3 * math.log(2), 0.0])
    assert bits_per_byte(nats, 2) == pytest.approx(2)
    with pytest.raises(ValueError, match="at least 1 byte, got 0"):
        bits_per_byte(nats, 0)


@pytest.mark.parametrize("text", [standin.PARAGRAPH, "Grüße, 漢字 und 🦉\r\n\tend", ""])
def test_every_token_has_its_bytes(text):
    ids, lengths = encode_bytes(standin.tokenizer(), text)
    assert len(ids) == len(lengths)
    end = 0
    for index, length in enumerate(lengths.tolist(), start=1):
        end += length
        decoded = standin.tokenizer().decode(ids[:index])
        # A character cut in two decodes to a replacement at the end; what is before it is exact.
        expected = text.encode()[:end].decode(errors="replace")
        assert decoded.rstrip("\ufffd") == expected.rstrip("\ufffd")
    assert end == len(text.encode())


def test_tokenizers_that_are_not_byte_level_are_refused():
    words = Tokenizer(token_models.WordLevel({"a": 0, "?": 1}, unk_token="?"))
    with pytest.raises(ValueError, match="expected byte-level tokens of 6 bytes, got 1"):
        encode_bytes(PreTrainedTokenizerFast(tokenizer_object=words, unk_token="?"), "abc de")


def test_beyond_the_budget_counts_from_position_budget_on():
    losses, lengths = torch.arange(1.0, 10.0), torch.arange(10)
    nats, sizes = beyond_budget(losses, lengths, 7)
    assert nats.tolist() == [7, 8, 9] and sizes.tolist() == [7, 8, 9]
    with pytest.raises(ValueError, match="expected more than 10 tokens, got 10"):
        beyond_budget(losses, lengths, 10)
    with pytest.raises(ValueError, match="expected 9 of them, got 8"):
        beyond_budget(losses[1:], lengths, 7)


@pytest.mark.parametrize("size", [1, 3, 16, 10_000])
def test_a_file_is_read_in_pieces_that_join_to_the_whole(size):
    text = "Grüße 🦉\n\nline\r\n" * 9 + "x" * 40 + "漢"
    pieces = list(text_chunks(io.BytesIO(text.encode()), "file", size))
    assert "".join(pieces) == text
    assert max(map(len, pieces)) <= 2 * size
    if size == 16:
        assert pieces[0].endswith("\n")


@pytest.mark.parametrize("data", [b"abc\xff", b"abc\xc3"])
def test_a_file_that_is_not_utf8_is_refused(data):
    with pytest.raises(ValueError, match="name: expected UTF-8 text, got the byte 0x"):
        list(text_chunks(io.BytesIO(data), "name", 2))


def test_pieces_cut_at_lines_have_the_tokens_of_the_whole():
    tokenizer, lines = standin.tokenizer(), [f"line {i};\n" for i in range(9)]
    whole = tokenizer("".join(lines), return_tensors="pt")["input_ids"]
    assert torch.equal(torch.cat(list(encode_chunks(tokenizer, lines)), 1), whole)
    with pytest.raises(ValueError, match="expected some text, got none"):
        list(encode_chunks(tokenizer, [""]))

"""All laws on one tiny random model of a class: it works, is refused, or could not be built."""

from __future__ import annotations

import copy
import pickle
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from textwrap import shorten
from typing import Any

import torch
import transformers
from sizes import OTHER_VALUES
from tiny_configs import tiny_config
from transformers import PreTrainedConfig
from window_mask import by_mask

import ahn
from ahn.checkpoint import merge
from ahn.generation import prefill
from ahn.modeling.auto_classes import auto_class
from ahn.shapes import FULL, SLIDING, layer_types
from tiny_models import assert_close, left_padded, one_shot, pieces, random_ids, read, sharpen, wake

WORKS, REFUSED, NOT_BUILT = "works", "refused", "not built"
SETTINGS = ahn.AHNConfig(window=16, num_sinks=4)
LENGTH, ROUNDING = 61, 5e-5
MOST_PARAMETERS = 160e6
GREEDY = {"max_new_tokens": 6, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}


@dataclass(frozen=True)
class Outcome:
    """What a class turned out to be: `works` with what the memory is on, or not, with a reason."""

    result: str
    text: str


class NotBuilt(Exception):
    """A tiny model of the class could not be made, or does not read text; the message says why."""


@torch.no_grad()
def try_class(name: str) -> Outcome:
    """Build the class, attach a memory, hold every law. Raises AssertionError where one fails."""
    torch.manual_seed(0)
    try:
        model = build(name)
    except NotBuilt as error:
        return Outcome(NOT_BUILT, str(error))
    base = copy.deepcopy(model)
    try:
        ahn.attach(model, SETTINGS)
    except ahn.UnsupportedModel as error:
        assert type(model) is type(base)
        assert list(model.state_dict()) == list(base.state_dict()), "left as it was"
        return Outcome(REFUSED, str(error).removeprefix(f"{name}: expected "))
    try:
        reads_text(base)
    except NotBuilt as error:
        return Outcome(NOT_BUILT, str(error))
    wake(model)
    for law in LAWS:
        law(model, base)
    alone = "" if has_auto_class(base) else "; its class alone loads it, no Auto class"
    return Outcome(WORKS, places(base.config) + alone)


@contextmanager
def reasons_of_the_base() -> Iterator[None]:
    """What fails without a memory says why there is no tiny model."""
    try:
        yield
    except ImportError as error:
        needed = re.search(r"requires the (\S+) library", str(error))
        raise NotBuilt(f"needs {needed[1] if needed else error}") from error
    except Exception as error:
        reason = str(error).strip().splitlines()[-1].strip().removeprefix("ValueError: ")
        raise NotBuilt(shorten(reason.replace("|", "or"), 160)) from error


def build(name: str) -> Any:
    """A tiny model of the class. Raises NotBuilt with the reason."""
    model_class = getattr(transformers, name)
    with reasons_of_the_base():
        config = tiny_config(model_class.config_class, OTHER_VALUES.get(name, {}))
        with torch.device("meta"):
            size = sum(x.numel() for x in model_class(copy.deepcopy(config)).parameters())
        assert size < MOST_PARAMETERS, f"{size / 1e6:.0f} million parameters"
        return sharpen(model_class(config)).eval().float()


def reads_text(base: Any) -> None:
    """Raise NotBuilt where the base itself does not read text alone or does not generate."""
    with reasons_of_the_base():
        assert one_shot(base, random_ids(LENGTH)).isfinite().all(), "logits that are not finite"
        base.generate(random_ids(LENGTH), **GREEDY)


def has_auto_class(base: Any) -> bool:
    """Whether one of transformers' Auto classes loads the base."""
    try:
        auto_class(base.config)
    except ValueError:
        return False
    return True


def places(config: PreTrainedConfig) -> str:
    """What layers get the memory in."""
    types = set(layer_types(config.get_text_config(decoder=True)))
    if types == {FULL}:
        return "every layer"
    if types == {SLIDING}:
        return "every layer, in the place of its own window"
    return f"layers with full attention, beside {', '.join(sorted(types - {FULL}))}"


def equals_base_up_to_the_budget(model: Any, base: Any) -> None:
    ids = random_ids(SETTINGS.budget, batch=2)
    assert torch.equal(model(ids).logits, base(ids).logits)
    with ahn.disabled(model):
        ids = random_ids(LENGTH)
        assert torch.equal(model(ids).logits, base(ids).logits)


def chunks_are_one_shot_and_the_memory_acts(model: Any, base: Any) -> None:
    ids = random_ids(LENGTH)
    expected = one_shot(model, ids)
    for chunks in (pieces(LENGTH, 7), [1] * LENGTH, [40, LENGTH - 40]):
        assert_close(read(model, ids, chunks), expected, ROUNDING, f"{chunks}")
    with ahn.memory_off(model):
        off = one_shot(model, ids)
    assert ((off - expected)[:, SETTINGS.budget :].abs().amax(-1) > 1e-4).all()


def padded_rows_are_alone(model: Any, base: Any) -> None:
    rows, ids, mask = left_padded((50, 30))
    logits = read(model, ids, [40, 1, 1, 8], mask=mask)
    for padded, row in zip(logits, rows):
        assert_close(padded[-row.shape[1] :], one_shot(model, row)[0], ROUNDING)


def generates_the_plain_loop(model: Any, base: Any) -> None:
    rows, ids, mask = left_padded((50, 30))
    answers = model.generate(ids, attention_mask=mask, **GREEDY)[:, 50:]
    for answer, text in zip(answers, rows):
        for token in answer:
            assert token == one_shot(model, text)[0, -1].argmax()
            text = torch.cat([text, token[None, None]], 1)


def bytes_do_not_grow(model: Any, base: Any) -> None:
    _, cache = prefill(model, random_ids(2 * LENGTH))
    before = cache.nbytes
    prefill(model, random_ids(LENGTH), cache)
    assert cache.nbytes == before


def folders_load(model: Any, base: Any) -> None:
    expected = one_shot(model, random_ids(LENGTH))
    with tempfile.TemporaryDirectory() as name:
        folders = [Path(name, part) for part in ("base", "memory", "merged")]
        base.save_pretrained(folders[0])
        ahn.save_pretrained(model, folders[1])
        if has_auto_class(base):
            merge(*folders)
            config = transformers.AutoConfig.from_pretrained(folders[2])
            loaded = auto_class(config).from_pretrained(folders[2], dtype=torch.float32)
        else:
            model.save_pretrained(folders[2])
            loaded = type(model).from_pretrained(folders[2], dtype=torch.float32).eval()
    assert type(loaded) is type(model)
    # Other addresses of weights can be other sums.
    assert_close(one_shot(loaded, random_ids(LENGTH)), expected, 1e-6)


def pickles_and_detaches(model: Any, base: Any) -> None:
    ids = random_ids(LENGTH)
    other = pickle.loads(pickle.dumps(model))
    assert torch.equal(one_shot(other, ids), one_shot(model, ids))
    assert type(ahn.detach(other)) is type(base)
    assert torch.equal(one_shot(other, ids), one_shot(base, ids))


def without_the_memory_it_is_a_mask(model: Any, base: Any) -> None:
    ids = random_ids(LENGTH)
    with ahn.memory_off(model):
        assert_close(one_shot(model, ids), by_mask(base, ids, SETTINGS), ROUNDING)


LAWS = (
    equals_base_up_to_the_budget,
    without_the_memory_it_is_a_mask,
    chunks_are_one_shot_and_the_memory_acts,
    padded_rows_are_alone,
    generates_the_plain_loop,
    bytes_do_not_grow,
    folders_load,
    pickles_and_detaches,
)

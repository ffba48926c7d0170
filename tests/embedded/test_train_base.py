"""The recipe of the embedded base model, at a size that runs in seconds on a CPU."""

import dataclasses
import json
import math
import random
import statistics
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from ahn.embedded import BASE, copies, evaluate_base, train_base
from ahn.embedded.base_rows import RowMaker, batches
from ahn.embedded.base_training import _rate, train
from ahn.embedded.corpus import Corpus
from ahn.embedded.evaluate_base import Measurement, evaluate, sink_window_mask
from ahn.embedded.evaluate_recall import RecallMeasurement, answer_scores, evaluate_recall
from ahn.facts import Answer, Fact
from ahn.facts.planted import Said

TINY = train_base.Settings(
    vocab_size=512,
    hidden_size=32,
    intermediate_size=48,
    num_layers=2,
    num_heads=2,
    num_key_value_heads=1,
    context=128,
    copies=2,
    facts=200,
    rows=((64, 4), (128, 2)),
    steps=25,
    warmup_steps=5,
    watch_steps=20,
)
FACTS = RecallMeasurement(lengths=(96,), haystacks=(1,), facts=2, near=16, text=32)
SHORT = Measurement(contexts=(16, 32, 64), windows=(8,), num_sinks=2, row=64, buckets=(0, 16, 64))


def _source(module) -> str:
    return Path(module.__file__).read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Folder and result of the whole recipe on one module, measured on another."""
    corpus = Corpus(
        "3.x",
        (("random.py", _source(random)[:20_000]),),
        (("statistics", _source(statistics)[:4000]),),
    )
    out = tmp_path_factory.mktemp("base")
    with pytest.MonkeyPatch.context() as patch:
        # Starting a process costs more than everything else here.
        patch.setattr(copies, "ProcessPoolExecutor", lambda n, _: ThreadPoolExecutor(n))
        patch.setattr(
            train_base, "evaluate_recall", lambda *given: evaluate_recall(*given[:3], FACTS)
        )
        patch.setattr(
            train_base, "evaluate", lambda *arguments: evaluate(*arguments, measurement=SHORT)
        )
        result = train_base.run(corpus, TINY, out, "cpu", 1)
    return out, result


def test_the_recipe_learns_and_writes_a_whole_folder(trained):
    out, result = trained
    assert json.loads((out / "training.json").read_text()) == json.loads(json.dumps(result))
    assert result["settings"] == dataclasses.asdict(TINY)
    assert len(result["text_every_20_steps"]) == len(result["answers_every_20_steps"]) == 2
    assert result["text_every_20_steps"][-1] < math.log(TINY.vocab_size) - 0.1
    assert [x["step"] for x in result["watched"]] == [20]
    assert result["recall"]["found"]["96"].keys() == {"seen", "unseen"}
    assert not [path for path in out.iterdir() if path.name.startswith(".")]


def test_the_folder_loads_in_bfloat16_with_its_tokenizer(trained):
    out, result = trained
    model = AutoModelForCausalLM.from_pretrained(out)
    tokenizer = AutoTokenizer.from_pretrained(out)
    assert model.dtype == torch.bfloat16
    assert sum(p.numel() for p in model.parameters()) == result["parameters"]
    text = "def f(x):\n    return x\n"
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    assert model.config.eos_token_id == tokenizer.eos_token_id


def maker(share=0.5):
    """Rows of random tokens with facts that are said in tokens 5 to 9 and are asked for by 10."""
    stream = torch.randint(20, 500, (4000,), generator=torch.Generator().manual_seed(0)).int()
    ends = torch.zeros(512, dtype=torch.bool)
    ends[20:40] = True
    said = [Said([5, key], [value], [9]) for key in (6, 7, 8) for value in (11, 12)]
    facts = [Fact(("", str(x.before[1])), x, x._replace(before=[10, x.before[1]]), ("",) * 4)
             for x in said]  # fmt: skip
    return RowMaker(stream, ends, list(zip(facts[::2], facts[1::2])), share, 4.0)


def batch_of(seed):
    return next(batches(maker(), [(64, 4)], seed))


def test_the_same_seed_gives_the_same_losses_and_another_does_not():
    def losses(seed):
        torch.manual_seed(seed)
        settings = dataclasses.replace(TINY, seed=seed, steps=3)
        rows = batches(maker(), settings.shapes(), seed)
        return train(train_base.make_model(settings), rows, settings, "cpu").text

    assert losses(0) == losses(0) != losses(1)


def test_rows_ask_for_what_they_say_and_answers_weigh_more():
    ids, weights = (torch.cat(x) for x in zip(*(batch_of(seed) for seed in range(8))))
    assert ids.shape == (32, 65) and weights.shape == (32, 64)
    asked = (weights > 1).nonzero()
    assert len(asked) > 20 and set(weights.unique().tolist()) == {1.0, 4.0}
    for row, place in asked.tolist():
        key, value = ids[row, place], ids[row, place + 1]
        said = [i for i in range(place - 1) if ids[row, i] == 5 and ids[row, i + 1] == key]
        assert ids[row, place - 1] == 10
        if said:
            assert ids[row, said[-1] + 2] == value
        else:  # the row begins within what was said
            assert value in ids[row, :3]


def test_a_share_of_the_rows_is_plain_text():
    plain = [bool((w == 1).all()) for s in range(30) for w in batch_of(s)[1]]
    assert 0.3 < sum(plain) / len(plain) < 0.7


def test_longer_rows_take_their_turn():
    shapes = train_base.Settings(steps=8).shapes()
    assert shapes == [(8192, 8)] * 2 + [(8192, 8), (32768, 2)] * 3


def test_the_schedule_ends_with_the_steps_or_the_time():
    end = _rate(99, 1.0, train_base.Settings(steps=100, warmup_steps=10))
    middle = _rate(50, 0.55, train_base.Settings(steps=100, warmup_steps=10))
    assert end == pytest.approx(0, abs=1e-9) and middle == pytest.approx(0.5)
    assert _rate(4, 0.0, train_base.Settings(steps=100, warmup_steps=10)) == 0.5
    settings = dataclasses.replace(TINY, seconds=1e-9)
    curves = train(train_base.make_model(settings), batches(maker(), settings.shapes(), 0),
                   settings, "cpu")  # fmt: skip
    assert len(curves.text) == 1


def test_a_model_is_trained_further(trained, tmp_path):
    settings = dataclasses.replace(TINY, steps=0, facts=50)
    first = AutoModelForCausalLM.from_pretrained(trained[0]).state_dict()
    model = train_base._model(settings, trained[0]).state_dict()
    assert all(torch.equal(model[name], first[name].float()) for name in first)


def test_an_answer_counts_where_every_token_is_the_likeliest(trained):
    model = AutoModelForCausalLM.from_pretrained(trained[0], dtype=torch.float32).eval()
    ids = torch.randint(1, 512, (60,), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        likeliest = model(ids[None]).logits[0].argmax(-1)
    ids[31] = likeliest[30]
    with torch.no_grad():
        ids[32] = model(ids[None]).logits[0, 31].argmax(-1)
        logits = model(ids[None]).logits[0].log_softmax(-1)
    answers = [Answer(31, 2, 5), Answer(31, 3, 5), Answer(40, 1, 5)]
    scores = answer_scores(model, ids, answers)
    for answer, (found, nats) in zip(answers, scores):
        places = range(answer.start, answer.start + answer.length)
        assert nats == pytest.approx(-sum(float(logits[i - 1, ids[i]]) for i in places), rel=1e-4)
        assert found == all(int(logits[i - 1].argmax()) == int(ids[i]) for i in places)
    assert scores[0][0]


def test_the_defaults_are_those_that_made_what_ships():
    found = json.loads((BASE / "training.json").read_text())
    settings = dataclasses.asdict(dataclasses.replace(train_base.Settings(), seconds=230.0))
    assert found["settings"] == json.loads(json.dumps(settings))
    assert found["recall"]["nats"] < 2.335
    for length, forms in found["recall"]["found"].items():
        assert forms["seen"]["found"] > 0.95 and forms["unseen"]["found"] > 0.9, length


def test_the_shipped_shape_fits_the_package():
    with torch.device("meta"):
        model = train_base.make_model(train_base.Settings())
    bytes_in_bfloat16 = 2 * sum(p.numel() for p in model.parameters())
    assert 10e6 < bytes_in_bfloat16 < 16e6 - 200e3


def test_every_token_is_scored_once_with_the_context_promised(trained):
    model = AutoModelForCausalLM.from_pretrained(trained[0], dtype=torch.float32).eval()
    ids = torch.randint(1, 512, (45,), generator=torch.Generator().manual_seed(0))
    for context in (8, 16, 256):
        expected = 0.0
        for index in range(len(ids)):
            row = max(0, index // (context // 2) - 1)
            seen = torch.cat([torch.tensor([0]), ids[row * context // 2 : index]])
            with torch.no_grad():
                logits = model(seen[None]).logits[0, -1]
            expected -= float(logits.log_softmax(-1)[ids[index]])
        assert evaluate_base._strided_nats(model, ids, context) == pytest.approx(expected, rel=1e-5)


def test_a_mask_that_covers_the_row_changes_nothing_and_a_short_one_does(trained):
    model = AutoModelForCausalLM.from_pretrained(trained[0], dtype=torch.float32).eval()
    inputs = torch.randint(1, 512, (3, 64), generator=torch.Generator().manual_seed(0))
    targets = inputs.roll(-1, dims=1)

    def losses(mask):
        return evaluate_base.position_losses(model, inputs, targets, mask)

    full = losses(None)
    wide = losses(sink_window_mask(64, 64, 0, model.device))
    narrow = losses(sink_window_mask(64, 8, 2, model.device))
    torch.testing.assert_close(wide, full, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(narrow[:8], full[:8], rtol=1e-5, atol=1e-5)
    assert (narrow[16:] - full[16:]).abs().max() > 1e-5


def test_sinks_and_window_as_a_picture():
    seen = sink_window_mask(5, window=2, num_sinks=1, device=torch.device("cpu"))[0, 0].int()
    assert seen.tolist() == [
        [1, 0, 0, 0, 0],
        [1, 1, 0, 0, 0],
        [1, 1, 1, 0, 0],
        [1, 0, 1, 1, 0],
        [1, 0, 0, 1, 1],
    ]


def test_a_text_shorter_than_a_row_is_refused(trained):
    model = AutoModelForCausalLM.from_pretrained(trained[0], dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(trained[0])
    with pytest.raises(ValueError, match="expected one of 64 tokens or more"):
        evaluate(model, tokenizer, [("short", "x = 1\n")], SHORT)

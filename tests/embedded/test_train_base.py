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

from ahn.embedded import evaluate_base, train_base
from ahn.embedded.corpus import Corpus
from ahn.embedded.evaluate_base import Measurement, evaluate, sink_window_mask

TINY = train_base.Settings(
    vocab_size=512,
    hidden_size=32,
    intermediate_size=48,
    num_layers=2,
    num_heads=2,
    num_key_value_heads=1,
    context=64,
    copies=2,
    steps=25,
    batch_size=4,
    warmup_steps=5,
)
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
        patch.setattr(
            train_base, "ProcessPoolExecutor", lambda workers, _: ThreadPoolExecutor(workers)
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
    assert len(result["loss_every_20_steps"]) == 2
    assert result["loss_every_20_steps"][-1] < math.log(TINY.vocab_size) - 0.1
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


def test_the_same_seed_gives_the_same_losses_and_another_does_not():
    stream = torch.randint(512, (1000,), generator=torch.Generator().manual_seed(0))

    def losses(seed):
        torch.manual_seed(seed)
        settings = dataclasses.replace(TINY, seed=seed)
        return train_base.train(train_base.make_model(settings), stream, settings, "cpu")

    assert losses(0) == losses(0)
    assert losses(0) != losses(1)


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

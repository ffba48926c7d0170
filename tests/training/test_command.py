"""`ahn train`: the original's names, files of arguments, one line for what is wrong."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import yaml
from runs import prepared
from transformers import TrainingArguments

from ahn.cli import main
from ahn.cli.train import parse
from ahn.training import arguments
from ahn.training.arguments import RunArguments

RECIPES = sorted((Path(__file__).parents[2] / "recipes").glob("*.yaml"))


def command(monkeypatch, capsys, *words):
    """Exit status, output and errors of a command line."""
    monkeypatch.setattr(sys, "argv", ["ahn", *map(str, words)])
    with pytest.raises(SystemExit) as ended:
        main()
    captured = capsys.readouterr()
    return ended.value.code, captured.out, captured.err


def weights(arguments):
    return {name: loss.weight for name, loss in arguments.losses.items()}


def test_the_originals_names(tmp_path):
    words = """--model_name_or_path base --dataset a,b --loss_type kl+ce --ahn_implementation Mamba2
    --ahn_position prefix --sliding_window_type fixed --sliding_window 64 --save_ahn_only true
    --filter_len 10 --cutoff_len 100 --interleave_probs 0.5,0.5 --template qwen --max_samples 5
    --preprocessing_num_workers 2 --learning_rate 3e-4 --output_dir"""
    model, data, distill, run = parse([*words.split(), str(tmp_path)])
    assert (model.ahn_implementation, data.interleave_probs, data.template) == (
        "Mamba2",
        "0.5,0.5",
        "qwen",
    )
    assert weights(distill) == {"kl": 1.0, "ce": 1.0}
    assert distill.sampler(0).draw(0, 100) == (64, 0)
    assert run.learning_rate == 3e-4


def test_the_originals_script_is_read(tmp_path):
    """Each of its options, in its words."""
    words = f"""--model_name_or_path base --stage sft --finetuning_type freeze --do_train
    --freeze_extra_modules ahn --loss_type kl --use_normalized_l2 False --use_fast_tokenizer
    --sliding_window 256 --sliding_window_type random --ahn_position random
    --layer_implementation Qwen2MemDecoderLayer --ahn_implementation GatedDeltaNet --dataset chatqa2
    --template qwen --filter_len 288 --cutoff_len 24576 --max_samples 100000 --overwrite_cache true
    --overwrite_output_dir false --preprocessing_num_workers 16 --output_dir {tmp_path}
    --save_ahn_only True --logging_steps 1 --save_steps 500 --plot_loss false
    --per_device_train_batch_size 1 --gradient_accumulation_steps 4 --learning_rate 1e-4
    --num_train_epochs 1 --lr_scheduler_type cosine --warmup_ratio 0.2 --weight_decay 0.1
    --report_to none --run_name job --ddp_timeout 180000000 --fa_layer_ids 1 2 --num_attn_sinks 3
    --use_ahn_router true --use_q_proj true"""
    model, data, distill, run = parse(words.split())
    assert (model.full_attention_layers, model.num_sinks, model.use_router) == ([1, 2], 3, True)
    assert (distill.normalize_distill, distill.plot_loss) == (False, False)
    assert (data.overwrite_cache, data.template, run.warmup_steps) == (True, "qwen", 0.2)
    assert (run.do_train, run.ddp_timeout, run.run_name) == (True, 180000000, "job")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("--stage dpo", "stage: expected sft (what is distilled), got 'dpo'"),
        ("--finetuning_type lora", "finetuning_type: expected freeze"),
        ("--freeze_extra_modules all", "freeze_extra_modules: expected ahn"),
        ("--use_fast_tokenizer false", "use_fast_tokenizer: expected True"),
        ("--flash_attn fa2", "flash_attn: expected auto (--kernels chooses"),
        ("--layer_implementation Other", "with the cell of --ahn_implementation), got 'Other'"),
        ("--overwrite_output_dir true", "expected False (--resume_from_checkpoint last, or"),
    ],
)
def test_what_the_original_would_do_otherwise_says_what_to_use_instead(words, said):
    with pytest.raises(ValueError) as caught:
        parse(["--model_name_or_path", "base", *words.split()])
    assert said in str(caught.value)


def test_the_papers_defaults(tmp_path):
    *_, distill, run = parse(["--model_name_or_path", "x", "--output_dir", str(tmp_path)])
    assert (run.learning_rate, run.weight_decay, run.warmup_steps) == (1e-4, 0.1, 0.1)
    assert (run.lr_scheduler_type, run.activation_checkpointing) == ("cosine", True)
    assert weights(distill) == {"kl": 1.0}
    assert run.per_device_train_batch_size == RunArguments("out").per_device_train_batch_size == 1
    assert RunArguments("out").lr_scheduler_type == "cosine"
    assert TrainingArguments("out").learning_rate == 5e-5  # transformers' own stay
    *_, run = parse(["--model_name_or_path", "x", "--activation_checkpointing", "false"])
    assert run.activation_checkpointing is False


@pytest.mark.parametrize("ending", ["yaml", "json"])
def test_files_of_arguments(tmp_path, ending, monkeypatch):
    tools = ["tensorboard", "wandb"]
    monkeypatch.setattr(arguments, "get_available_reporting_integrations", lambda: tools)
    values = {
        "model_name_or_path": "x",
        "filter_len": 7,
        "loss_weights": [0.5, 0.25],
        "loss_type": "kl+ce",
        "packing": True,
        "accelerator_config": {"split_batches": False},
        "report_to": tools,
        "output_dir": str(tmp_path),
    }
    path = tmp_path / f"a.{ending}"
    path.write_text(yaml.safe_dump(values) if ending == "yaml" else json.dumps(values))
    _, data, distill, run = parse([str(path), "--filter_len", "9"])
    assert (data.filter_len, data.packing) == (9, True)
    assert weights(distill) == {"kl": 0.5, "ce": 0.25}
    assert run.report_to == tools
    *_, run = parse([str(path), "--report_to", "none"])
    assert run.report_to == []


@pytest.mark.slow
def test_a_run(tmp_path, monkeypatch, capsys):
    prepared(tmp_path)
    words = {"model_name_or_path": "base", "dataset": "data.jsonl", "output_dir": "out"}
    given = [x for name, value in words.items() for x in (f"--{name}", tmp_path / value)]
    more = {"max_steps": 1, "cutoff_len": 96, "filter_len": 40, "disable_tqdm": 1, "use_cpu": 1}
    given += [x for name, value in more.items() for x in (f"--{name}", value)]
    status, out, _ = command(monkeypatch, capsys, "train", *given)
    assert status == 0
    assert f"{tmp_path / 'out'} holds the memory." in out
    assert json.loads(out.splitlines()[-1])["step"] == 1


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "the following arguments are required: --model_name_or_path"),
        (["--model_name_or_path", "x", "--windo", "3"], "--windo"),
        (["--model_name_or_path", "x", "--filter_len", "many"], "invalid int value: 'many'"),
        (["--model_name_or_path", "embedded"], "dataset: expected at least one name, got none"),
        (["nothing.yaml"], "nothing.yaml: expected a file"),
        (["--model_name_or_path", "x", "--cutoff_len", "9"], "cutoff_len: expected more than"),
    ],
)
def test_wrong_command_lines(tmp_path, monkeypatch, capsys, words, said):
    monkeypatch.chdir(tmp_path)
    status, _, err = command(monkeypatch, capsys, "train", *words)
    assert status == 2
    assert said in err.splitlines()[-1]
    assert err.splitlines()[-1].startswith("error: ")
    assert "Traceback" not in err


def test_help(monkeypatch, capsys):
    status, out, _ = command(monkeypatch, capsys, "train", "--help")
    assert status == 0
    for name in ("--sliding_window_type", "--learning_rate", "--save_total_limit", "--memory"):
        assert name in out


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_recipes_are_read(recipe, monkeypatch):
    monkeypatch.chdir(recipe.parents[1])
    parse([str(recipe), "--bf16", "false", "--output_dir", "out"])

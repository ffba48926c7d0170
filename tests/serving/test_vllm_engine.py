"""vLLM's engine with the plug-in equals the Hugging Face path, whatever the engine does.

vLLM is installed for a step of its own, see `.ci/vllm`.
"""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("vllm")

from transformers import AutoModelForCausalLM
from vllm.inputs import TokensPrompt
from vllm.lora.request import LoRARequest
from vllm_engines import (
    BUDGET,
    CELLS,
    LENGTHS,
    TOLERANCE,
    answer_of,
    answers,
    embedded_folder,
    engine,
    largest_difference,
    memory_moves,
    metrics,
    prompts,
    sampling,
    tiny_folder,
    token_ids,
)

SHORT = {"max_model_len": 640, "max_num_batched_tokens": 96, "max_num_seqs": 6}
SIX = [250, 330, 290, 200, 310, 270]
FEW_BLOCKS = 14


@pytest.fixture(scope="session")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("folders")
    return {cell: embedded_folder(root / cell, cell) for cell in CELLS}


@pytest.mark.parametrize("cell", CELLS)
def test_continuous_batching_and_chunked_prefill(folders, cell):
    """Six requests on four seats, in chunks longer than the window."""
    asked = prompts()
    with engine(folders[cell]) as llm:
        got = answers(llm, asked)
    assert largest_difference(folders[cell], asked, got) < TOLERANCE
    longest = LENGTHS.index(10 * BUDGET)
    assert memory_moves(folders[cell], asked[longest], got[longest][0]) > 100 * TOLERANCE


def test_preemption(folders):
    """So few blocks that requests are stopped, lose theirs, and begin again."""
    asked = prompts(SIX)
    with engine(folders["GatedDeltaNet"], num_gpu_blocks_override=FEW_BLOCKS, **SHORT) as llm:
        got = answers(llm, asked, new=200)
        assert metrics(llm)["vllm:num_preemptions"] > 0
    assert largest_difference(folders["GatedDeltaNet"], asked, got) < TOLERANCE


def test_prefix_caching_finds_window_sinks_and_state(folders):
    folder, shared = folders["GatedDeltaNet"], 1152
    asked = [token_ids()[:n] for n in (1300, 2600, 1153)]
    with engine(folder, enable_prefix_caching=True) as llm:
        answers(llm, [[*token_ids()[:shared], 7]], new=1)
        got = answers(llm, asked)
        assert metrics(llm)["vllm:prefix_cache_hits"] > 2 * BUDGET
    assert largest_difference(folder, asked, got) < TOLERANCE


def test_torch_compile(folders):
    asked = prompts([130, 700])
    with engine(folders["Mamba2"], enforce_eager=False) as llm:
        got = answers(llm, asked)
    assert largest_difference(folders["Mamba2"], asked, got) < TOLERANCE


def test_texts_longer_than_the_positions_of_the_base(tmp_path):
    """Its rotary table is made longer; as it is, vLLM would compute NaN beyond it."""
    folder = tiny_folder(tmp_path / "model", "Llama", "DeltaNet", max_position_embeddings=256)
    asked = [[token % 500 + 2 for token in prompts([700])[0]]]
    with engine(folder, max_model_len=740) as llm:
        got = answers(llm, asked)
    assert largest_difference(folder, asked, got) < TOLERANCE


def test_a_low_rank_adapter_of_the_base(folders, tmp_path):
    """A request with it and one without: each equals its own Hugging Face model.

    Not at once: vLLM's operators for a CPU would give the second the adapter of the first.
    """
    peft = pytest.importorskip("peft")
    folder, (prompt, *_) = folders["GatedDeltaNet"], prompts([700])
    config = peft.LoraConfig(
        r=8, target_modules=["q_proj", "v_proj", "down_proj"], init_lora_weights=False
    )
    base = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    adapted = peft.get_peft_model(base, config)
    adapted.save_pretrained(tmp_path / "adapter")
    adapted.merge_and_unload().save_pretrained(tmp_path / "adapted")
    request = LoRARequest("adapter", 1, str(tmp_path / "adapter"))
    with engine(folder, enable_lora=True, max_lora_rank=8) as llm:
        with_it = answers(llm, [prompt], lora_request=request)
        without = answers(llm, [prompt])
    assert largest_difference(tmp_path / "adapted", [prompt], with_it) < TOLERANCE
    assert largest_difference(folder, [prompt], without) < TOLERANCE
    assert largest_difference(folder, [prompt], with_it) > 100 * TOLERANCE


def test_an_aborted_request_leaves_the_others_as_they_are_and_its_blocks_free(folders):
    folder, asked = folders["GatedDeltaNet"], prompts([300, 900, 500])
    with engine(folder) as llm:
        free = free_blocks(llm)
        got = answers_but_one(llm, asked, aborted=1)
        assert free_blocks(llm) == free
    assert largest_difference(folder, [asked[0], asked[2]], got) < TOLERANCE


def free_blocks(llm) -> int:
    scheduler = llm.llm_engine.engine_core.engine_core.scheduler
    return scheduler.kv_cache_manager.block_pool.get_num_free_blocks()


def answers_but_one(llm, asked, aborted):
    """All run for some steps, then one is taken away."""
    engine, done = llm.llm_engine, {}
    for index, prompt in enumerate(asked):
        engine.add_request(str(index), TokensPrompt(prompt_token_ids=prompt), sampling(24))
    for number in range(1000):
        if number == 8:
            engine.abort_request([str(aborted)])
        done |= {x.request_id: x for x in engine.step() if x.finished}
        if not engine.has_unfinished_requests():
            break
    others = [index for index in range(len(asked)) if index != aborted]
    finished = sorted(done, key=int)
    assert [int(name.partition("-")[0]) for name in finished] == others
    return [answer_of(done[name].outputs[0]) for name in finished]

"""FSDP2 rounds weights where they are used, and nothing else."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from accelerate import FullyShardedDataParallelPlugin

from ahn.training.fsdp2 import round_weights_alone


@pytest.mark.parametrize("version", [1, 2])
def test_losses_and_sums_of_gradients_are_not_rounded(version):
    plugin = FullyShardedDataParallelPlugin(fsdp_version=version)
    plugin.set_mixed_precision("bf16")
    accelerator = SimpleNamespace(state=SimpleNamespace(fsdp_plugin=plugin))
    before = plugin.mixed_precision_policy
    assert round_weights_alone(accelerator) is accelerator
    policy = plugin.mixed_precision_policy
    assert policy.param_dtype == torch.bfloat16
    if version == 2:
        assert before.output_dtype == torch.bfloat16  # what there is to undo
        assert (policy.reduce_dtype, policy.output_dtype) == (torch.float32, None)
    else:
        assert policy is before


@pytest.mark.parametrize("plugin", [None, FullyShardedDataParallelPlugin(fsdp_version=2)])
def test_what_rounds_nothing_stays(plugin):
    state = SimpleNamespace() if plugin is None else SimpleNamespace(fsdp_plugin=plugin)
    round_weights_alone(SimpleNamespace(state=state))
    assert plugin is None or plugin.mixed_precision_policy is None

"""ZeRO-3 gathers a module's weights at every call, so all processes must make the same calls."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn
from transformers import PreTrainedModel

MIN_DEEPSPEED = "0.19.3"  # `check_deepspeed` says why


def is_zero3(run: Any) -> bool:
    """Whether `TrainingArguments` ask for ZeRO-3."""
    config = getattr(run, "hf_deepspeed_config", None)
    return config is not None and config.is_zero3()


def check_deepspeed(run: Any, *, packing: bool = False) -> None:
    """Refuse what ZeRO-3 cannot train.

    DeepSpeed before 0.19.3 frees frozen parameters while a layer is recomputed
    (deepspeedai/DeepSpeed#8130, fixed by #8148); 0.19.2 without recomputation gave losses of 0.
    Packed rows deadlock: a layer calls its memory once a document, so processes whose rows have
    different numbers of documents wait for each other for ever.

    Args:
        run: `TrainingArguments`.
        packing: whether a row has several documents.

    Raises ValueError naming the version, or the option.
    """
    if not is_zero3(run):
        return
    import deepspeed
    from packaging.version import Version

    if Version(deepspeed.__version__) < Version(MIN_DEEPSPEED):
        raise ValueError(
            f"deepspeed: expected {MIN_DEEPSPEED} or newer for ZeRO-3 (or ZeRO-2, or FSDP2), got "
            f"{deepspeed.__version__}, whose backward pass fails where parameters are frozen and "
            "layers recomputed (deepspeedai/DeepSpeed#8130)"
        )
    if packing:
        raise ValueError(
            "packing: expected ZeRO-2 or FSDP2, got ZeRO-3, whose processes must call every module "
            "as often as each other"
        )


@contextmanager
def gathered_parameters(
    parameters: Iterable[nn.Parameter], *, modified: bool = False
) -> Iterator[None]:
    """Within the context parameters that ZeRO-3 has sharded are whole; all processes enter it.

    Args:
        modified: on exit, scatter the first process's values to all shards.
    """
    sharded = [parameter for parameter in parameters if hasattr(parameter, "ds_id")]
    if not sharded:
        yield
        return
    import deepspeed

    with deepspeed.zero.GatheredParameters(sharded, modifier_rank=0 if modified else None):
        yield


@contextmanager
def unsharded_head(model: PreTrainedModel) -> Iterator[None]:
    """Within the context the model's LM head is a copy that ZeRO-3 has not sharded.

    A process calls the head once a chunk of its own tokens, maybe never. A sharded head would wait
    at every call until all other processes make it too.
    """
    head: Any = model.get_output_embeddings()
    if not any(hasattr(parameter, "ds_id") for parameter in head.parameters()):
        yield
        return
    copy = nn.Linear(head.in_features, head.out_features, head.bias is not None, device="meta")
    with gathered_parameters(head.parameters()):
        tensors = {name: tensor.detach().clone() for name, tensor in head.named_parameters()}
    copy.load_state_dict(tensors, assign=True)
    model.set_output_embeddings(copy.requires_grad_(False))
    try:
        yield
    finally:
        model.set_output_embeddings(head)

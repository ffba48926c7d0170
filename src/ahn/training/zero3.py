"""ZeRO-3, which gathers a module's weights at each of its calls, with all processes together."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn
from transformers import PreTrainedModel

FIRST_SOUND = "0.19.3"  # DeepSpeed before it: see `check_deepspeed`


def is_zero3(run: Any) -> bool:
    """Whether `TrainingArguments` ask for ZeRO-3."""
    config = getattr(run, "hf_deepspeed_config", None)
    return config is not None and config.is_zero3()


def check_deepspeed(run: Any, *, packing: bool = False) -> None:
    """Refuse what ZeRO-3 cannot train.

    Before 0.19.3 it freed frozen parameters while a layer was computed again
    (deepspeedai/DeepSpeed#8130, mended by #8148); 0.19.2, tried without computing again, gave
    losses of 0. And a layer calls its memory once for every document of a packed row: processes
    whose rows hold more or fewer would wait for each other for ever.

    Args:
        run: `TrainingArguments`.
        packing: whether rows are packed.

    Raises ValueError naming the version, or the option.
    """
    if not is_zero3(run):
        return
    import deepspeed
    from packaging.version import Version

    if Version(deepspeed.__version__) < Version(FIRST_SOUND):
        raise ValueError(
            f"deepspeed: expected {FIRST_SOUND} or newer for ZeRO-3 (or ZeRO-2, or FSDP2), got "
            f"{deepspeed.__version__}, whose backward pass fails where parameters are frozen and "
            "layers recomputed (deepspeedai/DeepSpeed#8130)"
        )
    if packing:
        raise ValueError(
            "packing: expected ZeRO-2 or FSDP2, got ZeRO-3, whose processes must call every module "
            "as often as each other"
        )


@contextmanager
def whole(parameters: Iterable[nn.Parameter], *, changed: bool = False) -> Iterator[None]:
    """Within the context parameters that ZeRO-3 has sharded are whole; all processes enter it.

    Args:
        changed: keep what the first process makes of them.
    """
    sharded = [parameter for parameter in parameters if hasattr(parameter, "ds_id")]
    if not sharded:
        yield
        return
    import deepspeed

    with deepspeed.zero.GatheredParameters(sharded, modifier_rank=0 if changed else None):
        yield


@contextmanager
def plain_head(model: PreTrainedModel) -> Iterator[None]:
    """Within the context the head is not sharded, so that it needs no other process.

    Each process applies the head as often as its own tokens ask for, maybe never; ZeRO-3 would
    wait for the others each time.
    """
    head: Any = model.get_output_embeddings()
    if not any(hasattr(parameter, "ds_id") for parameter in head.parameters()):
        yield
        return
    plain = nn.Linear(head.in_features, head.out_features, head.bias is not None, device="meta")
    with whole(head.parameters()):
        copies = {name: tensor.detach().clone() for name, tensor in head.named_parameters()}
    plain.load_state_dict(copies, assign=True)
    model.set_output_embeddings(plain.requires_grad_(False))
    try:
        yield
    finally:
        model.set_output_embeddings(head)

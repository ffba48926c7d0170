"""What a cache belongs to: digests of the weights that wrote it, and the config they ran with.

A digest is of samples, so that it takes milliseconds where a hash of all weights takes seconds: a
tensor of up to `WHOLE` numbers counts whole, a larger one by `RUNS` evenly spaced runs. Another
base or memory, trained or merged otherwise, differs nearly everywhere; a change of a few numbers of
a large tensor can go unseen. A digest is made anew only where a weight was written to or replaced.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ahn.hf.attached_state import AttachedState
from ahn.hf.declared import declared_by
from ahn.io.keys import PREFIX, is_memory
from ahn.layer.cache import AHNCache

WHOLE = 65536  # numbers of a tensor that all count
RUNS, RUN = 64, 256  # of a larger tensor: evenly spaced runs of so many numbers
# Values of a config that change no number of a cache, or that loading changes.
IGNORED = {
    *("architectures", "auto_map", "transformers_version", "dtype", "torch_dtype", "ahn_config"),
    *("pad_token_id", "bos_token_id", "eos_token_id", "use_cache", "return_dict", "id2label"),
    *("label2id", "output_attentions", "output_hidden_states", "initializer_range", "name_or_path"),
    *("quantization_config", "problem_type", "is_encoder_decoder", "tie_word_embeddings"),
}


@dataclass(frozen=True)
class Fingerprint:
    """What tells an attached model from others.

    Attributes:
        base, memory: digests of the weights.
        config: the decoder's values, as JSON holds them.
        declared: what each layer may hold, by its index, see `ahn.hf.declared`.
    """

    base: str
    memory: str
    config: Mapping[str, Any]
    declared: Mapping[int, Mapping[str, Mapping[str, Any]]] = field(compare=False)

    def difference(self, other: Fingerprint) -> str | None:
        """The first thing in which the two differ, as "expected ..., got ..."; None is none."""
        for name in sorted(self.config.keys() & other.config.keys()):
            mine, others = self.config[name], other.config[name]
            if mine != others:
                return f"expected a base with {name}={mine}, got {others}"
        for part in ("base", "memory"):
            if getattr(self, part) != getattr(other, part):
                return f"expected the weights of its {part}, got others"
        return None

    def __deepcopy__(self, _: Any) -> Fingerprint:
        return self  # so that forks of a cache are recognised at once


def fingerprint_of(decoder: Any, state: AttachedState) -> Fingerprint:
    """The fingerprint of an attached decoder and its output head."""
    tensors = list(_parts_of(decoder, "")) + list(_parts_of(state.head, "head."))
    marks = tuple(_mark(tensor) for _, tensor in tensors)
    if state.fingerprint is None or state.marks != marks:
        state.marks = marks
        state.fingerprint = Fingerprint(
            base=digest(x for x in tensors if not is_memory(x[0])),
            memory=digest(x for x in tensors if is_memory(x[0])),
            config=config_facts(decoder.config),
            declared={i: declared_by(layer) for i, layer in enumerate(decoder.layers)},
        )
    return state.fingerprint


def claim_owner(name: str, cache: AHNCache, decoder: Any, state: AttachedState) -> None:
    """From now on a cache belongs to this model.

    Raises ValueError where it belongs to another; an equal copy of the model may go on with it.
    """
    if torch.compiler.is_compiling() or (
        cache.owner is not None and cache.owner is state.fingerprint
    ):
        return
    own = fingerprint_of(decoder, state)
    if cache.owner is not None and (reason := cache.owner.difference(own)):
        raise ValueError(f"{name}: expected a cache of this model, got one that {reason}")
    cache.owner = own


def digest(tensors: Iterable[tuple[str, Tensor]]) -> str:
    """BLAKE2b of the names, shapes, dtypes and samples of tensors."""
    total = hashlib.blake2b(digest_size=16)
    for name, tensor in tensors:
        total.update(f"{name} {tensor.dtype} {list(tensor.shape)};".encode())
        if not tensor.is_meta:
            total.update(_samples(tensor).cpu().numpy().data)
    return total.hexdigest()


def config_facts(config: Any) -> dict[str, Any]:
    """The values of a decoder's config that its numbers depend on, as JSON holds them."""
    text = config.get_text_config(decoder=True)
    values = json.loads(json.dumps(text.to_dict(), default=str))
    values["model_type"] = text.model_type.removeprefix(PREFIX)
    return {k: v for k, v in values.items() if k not in IGNORED and not k.startswith("_")}


def _samples(tensor: Tensor) -> Tensor:
    """Bytes of the numbers that count, on the tensor's device."""
    flat = tensor.detach().reshape(-1)
    if (count := flat.numel()) > WHOLE:
        spaced = flat[: count // RUNS * RUNS].view(RUNS, -1)[:, :RUN].reshape(-1)
        flat = torch.cat([spaced, flat[-RUN:]])
    return flat.contiguous().view(torch.uint8)


def _parts_of(root: nn.Module | None, prefix: str) -> Iterator[tuple[str, Tensor]]:
    """Parameters and saved buffers by name, wherever they are held."""
    for path, module in root.named_modules(prefix=prefix.rstrip(".")) if root is not None else ():
        tensors: dict[str, Any] = {**module._parameters}
        hidden = module._non_persistent_buffers_set
        tensors |= {k: x for k, x in module._buffers.items() if k not in hidden}
        for name, tensor in tensors.items():
            if tensor is not None:
                yield from _plain(f"{path}.{name}", _held(module, name, tensor))


def _held(module: Any, name: str, tensor: Tensor) -> Tensor:
    """An offloaded tensor from where accelerate holds it; the others are what they are."""
    hook = getattr(module, "_hf_hook", None)
    for each in (hook, *getattr(hook, "hooks", ())):
        if tensor.is_meta and (held := getattr(each, "weights_map", None)) is not None:
            return held[name]
    return tensor


def _plain(name: str, tensor: Any) -> Iterator[tuple[str, Tensor]]:
    """The plain tensors that a quantised or sharded one consists of."""
    if not hasattr(tensor, "__tensor_flatten__"):
        yield name, tensor
        return
    for part in tensor.__tensor_flatten__()[0]:
        yield from _plain(f"{name}.{part}", getattr(tensor, part))


def _mark(tensor: Tensor) -> tuple[Any, ...]:
    """What changes when a tensor is written to or replaced."""
    return tensor.data_ptr(), None if tensor.is_inference() else tensor._version

"""Models with exact slots, and the definition that they are held against: a dense mask."""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface

import ahn
from tiny_models import WINDOW, base_model, wake

SLOTS = 8
SHARES = ((0.5, 0.0), (0.125, 0.375))  # of two layers and two key heads
SETTINGS = [
    {},
    {"num_sinks": 0, "slots": 1},
    {"slot_shares": SHARES},
    {"slot_shares": ((0.0, 0.0), (0.25, 0.75)), "window_shares": (0.25, 0.75)},
    {"slot_bits": 8},
    {"slot_bits": 4, "slot_shares": SHARES},
    {"memory": "GatedDeltaNet"},
    {"memory": "Mamba2", "use_router": True, "use_q_proj": True, "window_shares": (0.6, 0.4)},
    {"full_attention_layers": (1,)},
    {"slots": 500},
    {"slot_distance": 30, "slot_beyond": "drop"},
    {"slot_distance": 25, "slot_shares": SHARES, "window_shares": (0.4, 0.6)},
    {"slot_distance": 25, "slot_bits": 4, "memory": "DeltaNet"},
]


def slot_model(family: str = "Qwen3", dtype=torch.float64, seed: int = 1, **settings):
    """A new model with slots that act; without a cell unless one is asked for."""
    settings = {"memory": None, "window": WINDOW, "num_sinks": 4, "slots": SLOTS, **settings}
    model = ahn.attach(base_model(family, dtype), ahn.AHNConfig(**settings))
    return steep(wake(model, seed))


@torch.no_grad()
def steep(model):
    """Scores that differ: those of random weights this small hardly do."""
    for name, parameter in model.named_parameters():
        if ".ahn_slots.net.2" in name:
            parameter.mul_(30)
    return model


@cache
def shared_slot_model(**settings):
    """As `slot_model`, made once; not to be changed."""
    return slot_model(**settings)


class Definition:
    """A base whose layers attend to sinks, window and slots by a mask of all pairs."""

    def __init__(self, model) -> None:
        """Args: model: with slots in layers that all have a memory, and without a cell."""
        self.model = model
        self.config = ahn.AHNConfig.from_dict(model.config.ahn_config)
        self.base = base_model("Qwen3", model.dtype)
        AttentionInterface.register("slots_by_definition", self._attend)
        AttentionMaskInterface.register("slots_by_definition", lambda **_: None)
        self.base.set_attn_implementation("slots_by_definition")
        for layer in self.base.model.layers:
            layer.self_attn.register_forward_pre_hook(self._note, with_kwargs=True)
        self.masks: list[Tensor] = []

    def __call__(self, ids: Tensor) -> Tensor:
        self.masks.clear()
        return self.base(ids, use_cache=False).logits

    def _note(self, module, args, kwargs) -> None:
        self.hidden = kwargs["hidden_states"]

    def _attend(self, module, query, key, value, mask, scaling, **_):
        seen = self.mask(module.layer_idx, len(query), query.shape[2])
        self.masks.append(seen)
        repeats = query.shape[1] // key.shape[1]
        key, value, seen = (x.repeat_interleave(repeats, 1) for x in (key, value, seen))
        scores = query @ key.mT * scaling
        if self.config.slot_distance is not None:
            scores, seen = self._at_distance(query, key, scores, seen, scaling)
        scores = scores.masked_fill(~seen, float("-inf"))
        return (scores.softmax(-1) @ value).transpose(1, 2), None

    def _at_distance(self, query, key, scores, seen, scaling):
        """Pairs further apart than the setting allows: hidden, or as if they were so far apart."""
        most, i = self.config.slot_distance, torch.arange(query.shape[2])
        far = i[:, None] - i > most
        if self.config.slot_beyond == "drop":
            return scores, seen & ~(far & (i >= self.config.num_sinks))
        asked = self._turned(query, most - i)
        return torch.where(far, asked @ self._turned(key, -i).mT * scaling, scores), seen

    def _turned(self, x, positions):
        angle = positions[:, None] * self.base.model.rotary_emb.inv_freq.double()
        cos, sin = angle.cos().repeat(1, 2), angle.sin().repeat(1, 2)
        first, second = x.chunk(2, -1)
        return x * cos + torch.cat([-second, first], -1) * sin

    def mask(self, index: int, batch: int, length: int) -> Tensor:
        """Which key each query sees, `[B, G, T, T]`, by looking at every set on its own."""
        layer, config = self.model.model.layers[index], self.config
        i, sinks, window = torch.arange(length), config.num_sinks, config.window_of(index)
        seen = (i <= i[:, None]) & ((i > i[:, None] - window) | (i < sinks))
        seen = seen.repeat(batch, 2, 1, 1)
        slots = getattr(layer, "ahn_slots", None)
        if slots is None:
            return seen
        priority = slots.priorities(slots.scores(self.hidden), i[None])
        for b in range(batch):
            for g, size in enumerate(config.slots_of(index, 2)):
                p = priority[b, g].tolist()
                for t in range(length):
                    evicted = range(sinks, t - window + 1)
                    best = sorted(evicted, key=lambda x: (-p[x], x))[:size]
                    seen[b, g, t, best] = True
        return seen

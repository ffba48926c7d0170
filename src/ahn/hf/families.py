"""The families of decoders known by heart: one entry of `FAMILIES` describes one family.

Attached classes of these families are registered on import, Liger's kernels replace their norms,
RoPE and MLPs, and the fused decoding step computes their layers without calling a module.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn
from transformers import PreTrainedConfig

SILU = ("silu", "swish")  # names of one activation


@dataclass(frozen=True)
class Family:
    """Names of a family's classes and of the parts of its decoder layers; the defaults are Llama's.

    A family belongs here if its layers compute, on `x` of `[B, T, D]`::

        n = input_norm(x)
        q, k, v = query(n), key(n), value(n)
        x = x + output(attention(rope(query_norm(q)), rope(key_norm(k)), v))
        n = post_attention_norm(x)
        x = x + down(activation(gate(n)) * up(n))

    Each norm is an RMSNorm: x / sqrt(mean x^2 + eps) in float32, then times a weight without an
    offset. RoPE rotates the first half of a head with the second. A family without q/k norms has
    `qk_norms=None`. A layer may have a mixture of experts in the MLP's place, which is then called
    as it is.

    Attributes:
        model_type: of its config, as transformers knows it.
        prefix: of its classes, as in `LlamaDecoderLayer`, `LlamaAttention`, `LlamaMLP` and
            `LlamaRMSNorm`.
        modeling: module that defines these classes; None is transformers' own.
        norm_eps: attribute of a norm.
        rope: function by which the attention's forward rotates query and key.
    """

    model_type: str
    prefix: str
    modeling: str | None = None
    input_norm: str = "input_layernorm"
    post_attention_norm: str = "post_attention_layernorm"
    norm_eps: str = "variance_epsilon"
    attention_maps: tuple[str, str, str, str] = ("q_proj", "k_proj", "v_proj", "o_proj")
    qk_norms: tuple[str, str] | None = None
    rope: str = "apply_rotary_pos_emb"
    mlp: str = "mlp"
    mlp_maps: tuple[str, str, str] = ("gate_proj", "up_proj", "down_proj")

    @property
    def module_name(self) -> str:
        """Dotted name of the module that defines the family's classes."""
        return self.modeling or f"transformers.models.{self.model_type}.modeling_{self.model_type}"

    def is_its(self, kind: str, module: nn.Module) -> bool:
        """Whether a module is the family's own `DecoderLayer`, `Attention`, `MLP` or `RMSNorm`."""
        cls = type(module)
        return (cls.__module__, cls.__name__) == (self.module_name, self.prefix + kind)


FAMILIES = {
    family.model_type: family
    for family in (
        Family("qwen2", "Qwen2"),
        Family("qwen3", "Qwen3", qk_norms=("q_norm", "k_norm")),
        Family("llama", "Llama"),
        Family("mistral", "Mistral"),
        Family("qwen2_moe", "Qwen2Moe"),
        Family("qwen3_moe", "Qwen3Moe", qk_norms=("q_norm", "k_norm")),
        Family("mixtral", "Mixtral"),
    )
}


def family_of(module: nn.Module) -> Family | None:
    """The family whose modeling code defines the module's class; None where none does."""
    defined_in = type(module).__module__
    return next((x for x in FAMILIES.values() if x.module_name == defined_in), None)


def has_silu(config: PreTrainedConfig) -> bool:
    """Whether the MLPs of a decoder with this config are gated by SiLU."""
    return getattr(config, "hidden_act", None) in SILU

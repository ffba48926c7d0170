"""What else runs when a module is called: hooks, forwards put in its place, wrappers."""

from __future__ import annotations

from torch import nn

FORWARD_HOOK = "a forward hook"
FORWARD_PRE_HOOK = "a forward pre-hook"
BACKWARD_HOOK = "a backward hook"
ACCELERATE_HOOK = "accelerate's hook"
REPLACED_FORWARD = "a replaced forward"
COMPILED_CALL = "a compiled call"
DISTRIBUTED_WRAPPER = "a distributed wrapper"
# Without gradients these change nothing: what is compiled, or replaced by faster kernels, computes
# the same function.
HARMLESS = frozenset({BACKWARD_HOOK, COMPILED_CALL, REPLACED_FORWARD})


def watchers_of(module: nn.Module, own_hooks: tuple[type, ...] = ()) -> set[str]:
    """Names of what runs beside the forward of a module's class, from the constants above.

    Whoever computes a module's function from its weights, without calling the module, asks this
    first: a probe must see the call, and an offloaded weight has to be fetched. What the caller
    can leave out is subtracted from the set.

    Args:
        own_hooks: classes of forward pre-hooks that do not count.
    """
    pre_hooks = module._forward_pre_hooks.values()
    present = {
        FORWARD_HOOK: bool(module._forward_hooks),
        FORWARD_PRE_HOOK: any(not isinstance(hook, own_hooks) for hook in pre_hooks),
        BACKWARD_HOOK: bool(module._backward_hooks or module._backward_pre_hooks),
        ACCELERATE_HOOK: hasattr(module, "_hf_hook"),
        REPLACED_FORWARD: "forward" in vars(module),
        COMPILED_CALL: module._compiled_call_impl is not None,
        DISTRIBUTED_WRAPPER: type(module).__module__.startswith("torch.distributed"),
    }
    return {name for name, is_present in present.items() if is_present}

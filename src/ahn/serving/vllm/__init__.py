"""The plug-in for vLLM: merged folders are served by `vllm serve` and `vllm.LLM` as they are.

Installed beside vLLM it needs no call: vLLM calls `register` in each of its processes.
"""

from ahn.serving.vllm.plugin import register

__all__ = ["register"]

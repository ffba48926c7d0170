"""Prefill of prompts of any length, streamed answers, and saved sessions."""

from ahn.generation.prefilling import prefill
from ahn.generation.session import load_session, save_session
from ahn.generation.streaming import stream
from ahn.runtime.prefill_chunk import PREFILL_CHUNK_SIZE

__all__ = ["PREFILL_CHUNK_SIZE", "load_session", "prefill", "save_session", "stream"]

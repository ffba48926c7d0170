"""Reading prompts of any length, answering, and keeping sessions."""

from ahn.generation.prefill import PREFILL_CHUNK_SIZE, prefill
from ahn.generation.session import load_session, save_session
from ahn.generation.stream import stream

__all__ = ["PREFILL_CHUNK_SIZE", "load_session", "prefill", "save_session", "stream"]

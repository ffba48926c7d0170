"""Reading prompts of any length, answering, and keeping sessions."""

from ahn.attach.chunk import PREFILL_CHUNK_SIZE
from ahn.generation.prefill import prefill
from ahn.generation.session import load_session, save_session
from ahn.generation.stream import stream

__all__ = ["PREFILL_CHUNK_SIZE", "load_session", "prefill", "save_session", "stream"]

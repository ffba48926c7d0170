"""Read once, ask often: a text and a talk about it in memory that does not grow."""

from ahn.session.documents import Document
from ahn.session.folder import SessionFolder
from ahn.session.prefix_cache import PrefixCache
from ahn.session.session import Session
from ahn.session.together import ask_together

__all__ = ["Document", "PrefixCache", "Session", "SessionFolder", "ask_together"]

"""`ahn chat`: a talk with a session."""

from ahn.cli.chat.command import EXAMPLES, chat

__all__ = ["EXAMPLES", "chat"]

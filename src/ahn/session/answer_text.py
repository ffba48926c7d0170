"""Tokens of an answer as text, as soon as it is certain."""

from __future__ import annotations

from transformers import PreTrainedTokenizerBase

UNFINISHED = "\ufffd"  # what an incomplete character decodes to


class AnswerText:
    """Decodes an answer token by token.

    A token's text can depend on those before it (blanks between words), so some are decoded again
    with it; special tokens have none.

    Attributes:
        ids: all tokens so far.
        text: what they say; an incomplete character is part of it once they have ended.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer, self.ids, self.text = tokenizer, [], ""  # type: ignore[var-annotated]
        self._from, self._told = 0, 0  # where decoding begins, and what has been told

    def add(self, token: int) -> str:
        """The text that is certain now and was not before."""
        self.ids.append(token)
        return self._told_now(is_last=False)

    def end(self) -> str:
        """The text of an incomplete character at the end."""
        return self._told_now(is_last=True)

    def _told_now(self, is_last: bool) -> str:
        before = self._decoded(self.ids[self._from : self._told])
        now = self._decoded(self.ids[self._from :])
        if (now.endswith(UNFINISHED) and not is_last) or len(now) <= len(before):
            return ""
        self._from, self._told = self._told, len(self.ids)
        self.text += now[len(before) :]
        return now[len(before) :]

    def _decoded(self, ids: list[int]) -> str:
        text = self.tokenizer.decode(
            ids, skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        assert isinstance(text, str)  # of one answer
        return text

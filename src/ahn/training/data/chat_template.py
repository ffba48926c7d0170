"""A conversation as its chat template writes it, cut where prompts end and answers begin."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import Any, NamedTuple

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase
from transformers.utils.chat_template_utils import render_jinja_template

from ahn.training.data.messages import ASSISTANT, REASONING, USER, Message

MARK = re.compile(r"\{%-?\s*generation\s*-?%\}")  # begins an answer within a template
Span = tuple[int, int]


class Part(NamedTuple):
    """A stretch of a conversation's text.

    Attributes:
        is_answer: whether an assistant wrote it.
        is_learnt: whether it is an answer to learn; those of a given prompt are not.
    """

    text: str
    is_answer: bool
    is_learnt: bool


@dataclass(frozen=True)
class ChatTemplate:
    """A Jinja template and the tokens it may name.

    Attributes:
        special_tokens: names, such as `bos_token`, and tokens.
    """

    text: str
    special_tokens: tuple[tuple[str, str], ...] = ()

    @classmethod
    def of(cls, text: str, tokenizer: PreTrainedTokenizerBase) -> ChatTemplate:
        """This template with the tokenizer's special tokens."""
        tokens = {k: v for k, v in tokenizer.special_tokens_map.items() if isinstance(v, str)}
        return cls(text, tuple(tokens.items()))

    @property
    def marks_answers(self) -> bool:
        """Whether `{% generation %}` says where an answer begins."""
        return MARK.search(self.text) is not None

    def check(self) -> None:
        """Raise ValueError unless answers can be told from prompts."""
        if self.marks_answers:
            return
        turns = [{"role": r, "content": f"{r} {i}"} for i in (1, 2) for r in (USER, ASSISTANT)]
        try:
            self.parts(turns, [])
        except ValueError as error:
            raise ValueError(
                "template: expected {% generation %} marks around answers, or a chat template "
                "whose longer conversations begin as shorter ones, got one without"
            ) from error

    def parts(
        self, messages: Sequence[Message], tools: Sequence[Any], prompt_messages: int = 0
    ) -> list[Part]:
        """The text of a conversation in stretches, in order.

        An answer begins where the generation prompt ends: what a model is given, it need not say.

        Args:
            prompt_messages: answers among so many first messages are not to be learnt.

        Raises ValueError where the template refuses the conversation or leaves a part of it out.
        """
        if left_out := _left_out(self, _skeleton(messages, tools)):
            raise ValueError(f"expected a chat template that writes {left_out}, got one without")
        text, spans = self._answers(messages, tools)
        begin = 0
        if prompt_messages:
            given, _ = self._rendered(messages[:prompt_messages], tools)
            begin = _alike(given, text)
        return list(_cut(text, spans, begin))

    def _answers(self, messages: Sequence[Message], tools: Sequence[Any]) -> tuple[str, list[Span]]:
        """A conversation's text, and where its answers are."""
        text, marked = self._rendered(messages, tools)
        if self.marks_answers:
            prompt = _generation_prompt(self)
            return text, [(_after(prompt, text, begin), end) for begin, end in marked]
        spans = []
        for index, message in enumerate(messages):
            if message["role"] == ASSISTANT:
                before, _ = self._rendered(messages[:index], tools, generation_prompt=True)
                after, _ = self._rendered(messages[: index + 1], tools)
                if not (text.startswith(after) and after.startswith(before)):
                    raise ValueError(
                        "expected a chat template whose longer conversations begin as shorter "
                        "ones, got one that writes an answer differently when it is not the last"
                    )
                spans.append((len(before), len(after)))
        return text, spans

    def _rendered(
        self, messages: Sequence[Message], tools: Sequence[Any], generation_prompt: bool = False
    ) -> tuple[str, list[Span]]:
        """A conversation's text, and where marks are around answers."""
        options: dict[str, Any] = dict(self.special_tokens)
        try:
            rendered: Any = render_jinja_template(
                [list(messages)],
                tools=list(tools) or None,
                chat_template=self.text,
                return_assistant_tokens_mask=self.marks_answers,
                add_generation_prompt=generation_prompt,
                **options,
            )
        except (TemplateError, TypeError, AttributeError, KeyError, IndexError) as error:
            raise ValueError(f"expected what the chat template takes, got: {error}") from error
        (text,), spans = rendered
        return text, spans[0] if spans else []


def _alike(left: str, right: str) -> int:
    """How many characters two texts begin with alike."""
    pairs = enumerate(zip(left, right))
    return next((i for i, (a, b) in pairs if a != b), min(len(left), len(right)))


def _cut(text: str, spans: Sequence[Span], begin: int) -> Iterator[Part]:
    """The stretches between and within these spans; answers before `begin` are not learnt."""
    ends = [0, *(place for span in spans for place in span), len(text)]
    for number, (first, last) in enumerate(pairwise(ends)):
        if first < last:
            is_answer = number % 2 == 1
            yield Part(text[first:last], is_answer, is_answer and first >= begin)


def _after(prompt: str, text: str, begin: int) -> int:
    """Where the generation prompt that stands around a mark ends."""
    before = text[:begin]
    for known in range(len(prompt), 0, -1):
        if before.endswith(prompt[:known]):
            rest = prompt[known:]
            return begin + len(rest) if text.startswith(rest, begin) else begin
    return begin


@lru_cache
def _generation_prompt(template: ChatTemplate) -> str:
    """What a template writes before an answer that is to come."""
    question = [{"role": USER, "content": "x"}]
    without, _ = template._rendered(question, [])
    asked, _ = template._rendered(question, [], generation_prompt=True)
    return asked.removeprefix(without) if asked.startswith(without) else ""


def _skeleton(messages: Sequence[Message], tools: Sequence[Any]) -> str:
    """A conversation of the same shape, as JSON, in which every word is another."""
    names = (f"word{number}x" for number in range(10**9))
    shape: list[dict[str, Any]] = []
    for message in messages:
        kept: dict[str, Any] = {"role": message["role"], "content": ""}
        if message["content"]:
            kept["content"] = next(names)
        kept |= {name: next(names) for name in REASONING if message.get(name)}
        calls = message.get("tool_calls", [])
        if calls:
            kept["tool_calls"] = [
                {**call, "function": {"name": next(names), "arguments": {"x": next(names)}}}
                for call in calls
            ]
        shape.append(kept)
    function = {"description": "", "parameters": {"type": "object", "properties": {}}}
    wrapped = [{"type": "function", "function": {"name": next(names), **function}} for _ in tools]
    return json.dumps([shape, wrapped])


@lru_cache(4096)
def _left_out(template: ChatTemplate, skeleton: str) -> str | None:
    """What of a conversation of this shape the template does not write; None: all is written.

    What was thought before an answer that is not the last may be left out: many models are used so.
    """
    messages, tools = json.loads(skeleton)
    text, _ = template._rendered(messages, tools)
    if any(tool["function"]["name"] not in text for tool in tools):
        return "tools"
    last = max((i for i, m in enumerate(messages) if m["role"] == ASSISTANT), default=-1)
    for index, message in enumerate(messages):
        if message["content"] not in text:
            beside = " beside tool_calls" if "tool_calls" in message else ""
            return f"messages of the role {message['role']!r}{beside}"
        for call in message.get("tool_calls", []):
            if not all(word in text for word in (call["function"]["name"],
                                                 call["function"]["arguments"]["x"])):  # fmt: skip
                return "tool_calls"
        for name in REASONING:
            if index == last and message.get(name, "") not in text:
                return name
    return None

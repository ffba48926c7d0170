"""Random samples in LLaMA-Factory's formats, each with the kind of thing that is in it."""

from __future__ import annotations

import json
import random
from typing import Any

WORDS = (  # noqa: SIM905
    "the ring keeps what a window forgets and Grüße 漢字 42 x=1 f(y) 'quoted' \"double\" a/b "
    "<tag> {json} [list] * - end. why? yes! no, 1,234 🦉 naïve\tTab"
).split(" ")
TOOLS = [
    {"name": name, "description": f"To {name}.", "parameters": {"type": "object", "properties": {
        "city": {"type": "string", "description": "Where."}, "days": {"type": "integer"}}}}
    for name in ("look_up", "add", "weather")
]  # fmt: skip
SHAREGPT = {"formatting": "sharegpt", "columns": {"messages": "conversations", "system": "system",
                                                  "tools": "tools"}}  # fmt: skip
OPENAI = {
    "formatting": "openai",
    "columns": {"messages": "messages", "system": "system", "tools": "tools"},
    "tags": {"role_tag": "role", "content_tag": "content", "user_tag": "user",
             "assistant_tag": "assistant", "observation_tag": "tool", "function_tag": "function",
             "system_tag": "system"},
}  # fmt: skip
ALPACA = {"columns": {"prompt": "instruction", "query": "input", "response": "output",
                      "system": "system", "history": "history", "tools": "tools"}}  # fmt: skip
FORMATS = {"alpaca": ALPACA, "sharegpt": SHAREGPT, "openai": OPENAI}
Sample = tuple[str, dict[str, Any]]  # its kind and its row


def samples(formatting: str, count: int, seed: int = 0) -> list[Sample]:
    """So many samples of a format, all kinds in turn."""
    kinds = {"alpaca": _ALPACA_KINDS, "sharegpt": _SHAREGPT_KINDS, "openai": _OPENAI_KINDS}
    makers = list(kinds[formatting].items())
    made = []
    for index in range(count):
        name, make = makers[index % len(makers)]
        made.append((name, make(random.Random(f"{seed}/{formatting}/{index}"))))
    return made


def text(chance: random.Random, most: int = 30) -> str:
    """Words with single blanks and line ends between them."""
    words = chance.choices(WORDS, k=chance.randint(1, most))
    return "".join(w + chance.choice([" ", " ", " ", "\n", "\n\n"]) for w in words).strip()


def _alpaca(chance, **more):
    return {"instruction": text(chance), "output": text(chance), **more}


def _tools(chance):
    return json.dumps(chance.sample(TOOLS, chance.randint(1, 3)), ensure_ascii=False)


_ALPACA_KINDS = {
    "plain": _alpaca,
    "query": lambda c: _alpaca(c, input=text(c)),
    "empty query": lambda c: _alpaca(c, input=""),
    "system": lambda c: _alpaca(c, system=text(c)),
    "history": lambda c: _alpaca(c, history=[[text(c), text(c)] for _ in range(c.randint(1, 4))]),
    "tools": lambda c: _alpaca(c, tools=_tools(c)),
    "all": lambda c: _alpaca(c, input=text(c), system=text(c), history=[[text(c), text(c)]]),
    "nulls": lambda c: _alpaca(c, input=None, system=None, history=None, tools=None),
    "empty answer": lambda c: {**_alpaca(c), "output": ""},
    "null answer": lambda c: {**_alpaca(c), "output": None},
}


def _said(who, what):
    return {"from": who, "value": what}


def _turns(chance):
    return [
        _said(who, text(chance)) for _ in range(chance.randint(1, 4)) for who in ("human", "gpt")
    ]


def _call(chance):
    return {"name": chance.choice(TOOLS)["name"],
            "arguments": {"city": text(chance, 3), "days": chance.randint(0, 9)}}  # fmt: skip


def _called(chance, calls):
    value = json.dumps(calls, ensure_ascii=False)
    return [_said("human", text(chance)), _said("function_call", value),
            _said("observation", text(chance)), _said("gpt", text(chance))]  # fmt: skip


def _talk(chance, turns=None, **more):
    return {"conversations": _turns(chance) if turns is None else turns, **more}


_SHAREGPT_KINDS = {
    "plain": _talk,
    "system column": lambda c: _talk(c, system=text(c)),
    "system tag": lambda c: _talk(c, [_said("system", text(c)), *_turns(c)]),
    "system both": lambda c: _talk(c, [_said("system", text(c)), *_turns(c)], system=text(c)),
    "system empty": lambda c: _talk(c, system=""),
    "tools": lambda c: _talk(c, tools=_tools(c)),
    "tools and system": lambda c: _talk(c, tools=_tools(c), system=text(c)),
    "call": lambda c: _talk(c, _called(c, _call(c)), tools=_tools(c), system=text(c)),
    "two calls": lambda c: _talk(c, _called(c, [_call(c), _call(c)]), tools=_tools(c), system="s"),
    "thought": lambda c: _talk(
        c, [_said("human", "q"), _said("gpt", f"<think>\n{text(c)}\n</think>\n\n{text(c)}")]
    ),
    "blanks around": lambda c: _talk(
        c, [_said("human", f"  {text(c)}\n"), _said("gpt", f"\n {text(c)} \n")]
    ),
    "nulls": lambda c: _talk(c, system=None, tools=None),
    "empty": lambda c: _talk(c, []),
    "unanswered": lambda c: _talk(c, [*_turns(c), _said("human", text(c))]),
    "two questions": lambda c: _talk(c, [_said("human", text(c)), *_turns(c)]),
}


def _message(role, content, **more):
    return {"role": role, "content": content, **more}


def _asked(chance):
    return [_message(r, text(chance)) for _ in range(chance.randint(1, 4))
            for r in ("user", "assistant")]  # fmt: skip


def _wrapped(calls, as_text=False):
    made = []
    for number, call in enumerate(calls):
        arguments = json.dumps(call["arguments"]) if as_text else call["arguments"]
        made.append({"id": f"call_{number}", "type": "function",
                     "function": {**call, "arguments": arguments}})  # fmt: skip
    return made


def _used(chance, content="", results=1, as_text=False, **more):
    calls = _wrapped([_call(chance) for _ in range(results)], as_text)
    turns = [_message("user", text(chance)),
             _message("assistant", content, tool_calls=calls, **more),
             *(_message("tool", text(chance), tool_call_id=f"call_{i}") for i in range(results)),
             _message("assistant", text(chance))]  # fmt: skip
    return {"messages": turns, "tools": _tools(chance), "system": text(chance)}


_OPENAI_KINDS = {
    "plain": lambda c: {"messages": _asked(c)},
    "system": lambda c: {"messages": [_message("system", text(c)), *_asked(c)]},
    "call": _used,
    "call as text": lambda c: _used(c, as_text=True),
    "null content": lambda c: _used(c, content=None),
    "two results": lambda c: _used(c, results=2),
    "words beside a call": lambda c: _used(c, content=text(c)),
    "reasoning": lambda c: {"messages": [
        _message("user", text(c)), _message("assistant", text(c), reasoning_content=text(c))]},
    "null calls": lambda c: {"messages": [
        _message("user", text(c), tool_calls=None),
        _message("assistant", text(c), tool_calls=None)], "tools": None},
}  # fmt: skip

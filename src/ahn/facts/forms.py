"""How facts are stated and asked for, in languages and in code: one line of `FORMS` each."""
# ruff: noqa: RUF001  (a Chinese question mark)

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

WORD, NAME, NUMBER = "word", "name", "number"  # kinds of values
CODE = "code"  # the language of source text
VALUE = "{value}"


@dataclass(frozen=True)
class Form:
    """A way to state a fact and to ask for it.

    In all three texts `{key}`, `{Key}` and `{KEY}` are the fact's key in lower case, capitalised
    and in capitals; `{value}` is what is asked for.

    Attributes:
        language: its code, or `code`.
        stated: the line of the text that holds the fact.
        question: what the user of a chat asks.
        asked: how the answer to it says the value; a text without a chat asks by its beginning.
        value: a word, a capitalised name or a number.
        held_out: never trained on, so that a test can ask in a form that no memory has seen.
    """

    language: str
    stated: str
    question: str
    asked: str
    value: str = WORD
    held_out: bool = False


def _line(stated: str, question: str, value: str = WORD, held_out: bool = False) -> Form:
    """A form of source text, that asks by the line itself."""
    return Form(CODE, stated, question, stated, value, held_out)


FORMS = (
    # English: things, names, numbers, definitions, lines of key and value.
    Form("en", "The {key} was painted {value} by its owner.", "How was the {key} painted?",
         "The {key} was painted {value}."),
    Form("en", "Note: for the {key} one must say {value}.", "What must one say for the {key}?",
         "For the {key} one must say {value}."),
    Form("en", "By {key} the old sailors meant {value}.", "What did the old sailors mean by {key}?",
         "By {key} they meant {value}."),
    Form("en", "{Key} lives with a friend called {value}.", "With whom does {Key} live?",
         "{Key} lives with {value}.", NAME),
    Form("en", "The {key} costs {value} crowns.", "How much does the {key} cost?",
         "The {key} costs {value} crowns.", NUMBER),
    Form("en", "{Key} was born in the year {value}.", "When was {Key} born?",
         "{Key} was born in {value}.", NUMBER),
    Form("en", "{Key}: {value}", "What stands beside {Key} in the list?", "{Key}: {value}"),
    Form("en", "My favourite {key} has always been {value}.", "Which {key} is my favourite?",
         "Your favourite {key} is {value}."),
    Form("en", "Room {key} is kept for Mr. {value}.", "For whom is the room {key} kept?",
         "Room {key} is kept for Mr. {value}.", NAME),
    Form("en", "Remember this: the secret code of {Key} is {value}.",
         "What is the secret code of {Key}? Answer with the code only.",
         "The secret code of {Key} is {value}.", NUMBER, held_out=True),
    Form("en", "It is {value} that opens the door of the {key}.",
         "Which word opens the door of the {key}?", "The door of the {key} is opened by {value}.",
         held_out=True),
    # German, French, Spanish, Italian, Chinese.
    Form("de", "Das Wort zu {key} lautet {value}.", "Wie lautet das Wort zu {key}?",
         "Das Wort zu {key} lautet {value}."),
    Form("de", "Die Nummer von {Key} ist {value}.", "Welche Nummer hat {Key}?",
         "Die Nummer von {Key} ist {value}.", NUMBER),
    Form("de", "Bei {Key} wohnt jetzt {value}.", "Wer wohnt bei {Key}?",
         "Bei {Key} wohnt {value}.", NAME),
    Form("de", "Das Geheimwort von {Key} heißt {value}.", "Wie heißt das Geheimwort von {Key}?",
         "Das Geheimwort von {Key} heißt {value}.", held_out=True),
    Form("fr", "Le mot qui va avec {key} est {value}.", "Quel mot va avec {key} ?",
         "Le mot qui va avec {key} est {value}."),
    Form("fr", "Le numéro de {Key} est {value}.", "Quel est le numéro de {Key} ?",
         "Le numéro de {Key} est {value}.", NUMBER),
    Form("fr", "Le mot secret de {Key} est {value}.", "Quel est le mot secret de {Key} ?",
         "Le mot secret de {Key} est {value}.", held_out=True),
    Form("es", "La palabra que acompaña a {key} es {value}.", "¿Qué palabra acompaña a {key}?",
         "La palabra que acompaña a {key} es {value}."),
    Form("es", "El número de {Key} es {value}.", "¿Cuál es el número de {Key}?",
         "El número de {Key} es {value}.", NUMBER),
    Form("it", "La parola che va con {key} è {value}.", "Quale parola va con {key}?",
         "La parola che va con {key} è {value}."),
    Form("it", "Il numero di {Key} è {value}.", "Qual è il numero di {Key}?",
         "Il numero di {Key} è {value}.", NUMBER),
    Form("zh", "{key}的号码是{value}。", "{key}的号码是多少？", "{key}的号码是{value}。", NUMBER),
    # Source text: comments, constants, calls, settings.
    _line("# {key} -> {value}", "What does {key} point to?"),
    _line('{KEY}_CODE = "{value}"', "What is {KEY}_CODE?"),
    _line("# note: {key} was renamed to {value}", "What was {key} renamed to?"),
    _line("register('{key}', {value})", "With what was '{key}' registered?"),
    _line("{key}_limit = {value}", "What is {key}_limit?", NUMBER),
    _line("# remember that the number of {key} is {value}", "What is the number of {key}?", NUMBER),
    _line("    {key}: {value}", "What does the setting {key} say?"),
    _line("# the secret word of {key} is {value}", "What is the secret word of {key}?",
          held_out=True),
    _line("# ask {key} and the answer will be {value}", "What will {key} answer?", held_out=True),
)  # fmt: skip
# What the user of a chat asks for a fact that the text holds by itself, by its beginning.
CONTINUATIONS = {
    "en": "How does the text go on after “{beginning}”?",
    "de": "Wie geht der Text nach „{beginning}“ weiter?",
    "fr": "Comment le texte continue-t-il après « {beginning} » ?",
    "es": "¿Cómo sigue el texto después de «{beginning}»?",
    "it": "Come continua il testo dopo «{beginning}»?",
    "zh": "“{beginning}”后面的文字是什么？",
    CODE: "What follows `{beginning}`?",
}
LANGUAGES = tuple(dict.fromkeys(form.language for form in FORMS))


def forms_of(languages: Iterable[str] = LANGUAGES, *, held_out: bool = False) -> tuple[Form, ...]:
    """The forms of some languages that memories are trained on, or those held out for tests.

    Raises ValueError for a language without forms.
    """
    wanted = tuple(languages)
    if unknown := [name for name in wanted if name not in LANGUAGES]:
        raise ValueError(f"language: expected one of {', '.join(LANGUAGES)}, got {unknown[0]!r}")
    return tuple(x for x in FORMS if x.language in wanted and x.held_out == held_out)


def with_key(text: str, key: str) -> str:
    """A text of a form with its key filled in."""
    return text.format(key=key, Key=key.capitalize(), KEY=key.upper(), value=VALUE)


def filled(line: str, key: str, value: str) -> tuple[str, str, str]:
    """A line of a form: before the value, the value, after it.

    A space before a value belongs to it, as in most vocabularies.
    """
    before, after = with_key(line, key).split(VALUE)
    stem = before.removesuffix(" ")
    return stem, before[len(stem) :] + value, after

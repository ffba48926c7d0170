"""Text in chunks: the tokens of the uncut text, whatever a tokenizer puts around a text."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
import torch
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from tokenizers.trainers import BpeTrainer, UnigramTrainer
from transformers import PreTrainedTokenizerFast

import standin
from ahn.io.text import encode_chunks, json_lines, read_text, special_tokens, text_chunks

SOURCE = Path(json.__file__).read_text()
TEXTS = {
    "code": SOURCE,
    "prose": "The ring keeps what a window forgets. " * 60,
    "lines": "alpha beta gamma\n" * 90,
    "blank lines": "\n\n  alpha\n\n\n    beta\n" * 40,
    "other": "Grüße aus Zürich,\n漢字 und 🦉🦉.\n" * 40,
    "one line": "no_blank_" * 200,
    "numbers": "\n".join(str(7**n) for n in range(60)),
}
MARK = "\u2581"


def byte_level(**options):
    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(**options)
    inner.decoder = decoders.ByteLevel()
    return inner, BpeTrainer(
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), vocab_size=600,
        special_tokens=["<unk>", "<s>", "</s>"], show_progress=False,
    )  # fmt: skip


def split_as_llama3():
    inner, trainer = byte_level(add_prefix_space=False)
    pattern = Regex(r"\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+")
    inner.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(pattern, "isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ])  # fmt: skip
    return inner, trainer


def metaspace(scheme, split=True):
    inner = Tokenizer(models.BPE(unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme, split=split)
    return inner, BpeTrainer(
        vocab_size=500, special_tokens=["<unk>", "<s>", "</s>"], show_progress=False
    )


def as_llama2():
    """Its normalizer puts the mark before every text."""
    inner = Tokenizer(models.BPE(unk_token="<unk>"))
    inner.normalizer = normalizers.Sequence([
        normalizers.Prepend(MARK), normalizers.Replace(" ", MARK)
    ])  # fmt: skip
    inner.pre_tokenizer = pre_tokenizers.Split(Regex(f"(?={MARK})"), "isolated")
    return inner, BpeTrainer(
        vocab_size=500, special_tokens=["<unk>", "<s>", "</s>"], show_progress=False
    )


def unigram():
    inner = Tokenizer(models.Unigram())
    inner.pre_tokenizer = pre_tokenizers.Metaspace()
    return inner, UnigramTrainer(
        vocab_size=300, special_tokens=["<unk>", "<s>", "</s>"], unk_token="<unk>",
        show_progress=False,
    )  # fmt: skip


KINDS = {
    "bytes": lambda: byte_level(add_prefix_space=False),
    "bytes after a blank": lambda: byte_level(add_prefix_space=True),
    "llama 3": split_as_llama3,
    "marks first": lambda: metaspace("first"),
    "marks always": lambda: metaspace("always"),
    "marks never": lambda: metaspace("never"),
    "marks, whole": lambda: metaspace("first", split=False),
    "llama 2": as_llama2,
    "unigram": unigram,
}
AROUND = {
    "nothing": None,
    "begin": "<s> $A",
    "both": "<s> $A </s>",
    "end": "$A </s>",
}


def made(kind, around="nothing"):
    inner, trainer = KINDS[kind]()
    inner.train_from_iterator(TEXTS.values(), trainer)
    if AROUND[around] is not None:
        inner.post_processor = processors.TemplateProcessing(
            single=AROUND[around], special_tokens=[("<s>", 1), ("</s>", 2)]
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=inner, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )


def in_pieces(text, size):
    return [text[i : i + size] for i in range(0, len(text), size)]


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_a_text_in_pieces_has_the_tokens_of_the_whole(kind):
    tokenizer = made(kind)
    for name, text in TEXTS.items():
        whole = tokenizer(text)["input_ids"]
        cuts = [list(text_chunks(io.BytesIO(text.encode()), name, 700))]
        cuts += [in_pieces(text, 333), text.splitlines(keepends=True)]
        for pieces in cuts:
            got = torch.cat(list(encode_chunks(tokenizer, pieces)), 1)[0].tolist()
            assert got == whole, (name, len(pieces))


@pytest.mark.parametrize("around", AROUND)
@pytest.mark.parametrize("kind", ["bytes", "marks first", "llama 2"])
def test_special_tokens_stand_at_the_ends_alone(kind, around):
    tokenizer = made(kind, around)
    before, after = special_tokens(tokenizer)
    assert (before, after) == ([1] * ("<s>" in str(AROUND[around])),
                               [2] * ("</s>" in str(AROUND[around])))  # fmt: skip
    for pieces in (["alpha beta\n"], in_pieces(TEXTS["lines"], 100), ["", "alpha", ""]):
        got = torch.cat(list(encode_chunks(tokenizer, pieces)), 1)[0].tolist()
        assert got == tokenizer("".join(pieces))["input_ids"]


def test_an_empty_text_is_refused():
    for pieces in ([], [""], ["", ""]):
        with pytest.raises(ValueError, match="prompt: expected some text, got none"):
            list(encode_chunks(standin.tokenizer(), pieces))


BOM = b"\xef\xbb\xbf"


def test_a_byte_order_mark_is_no_text(tmp_path):
    data = BOM + "Grüße\nund mehr".encode()
    for size in (1, 2, 3, 4, 100):
        assert "".join(text_chunks(io.BytesIO(data), "x", size)) == "Grüße\nund mehr"
    (tmp_path / "a.txt").write_bytes(data)
    assert read_text(tmp_path / "a.txt") == "Grüße\nund mehr"
    inside = "a\ufeffb"  # there it is a character
    assert "".join(text_chunks(io.BytesIO(inside.encode()), "x")) == inside


def test_what_is_not_utf8_is_named(tmp_path):
    (tmp_path / "a.txt").write_bytes("Grüße".encode("utf-16"))
    with pytest.raises(ValueError, match=r"a.txt: expected UTF-8 text, got the byte 0xff"):
        read_text(tmp_path / "a.txt")


def test_a_line_feed_alone_ends_a_line_of_jsonl():
    text = "".join(json.dumps({"x": f"a{sep}b"}, ensure_ascii=False) + end
                   for sep in ("\u2028", "\u2029", "\x85", "\x0b\x0c".replace("\x0b\x0c", "\u3000"))
                   for end in ("\n", "\r\n", "\n\n"))  # fmt: skip
    assert [json.loads(line)["x"][0] for line in json_lines(text)] == ["a"] * 12

"""What the embedded model is trained on, what it never sees, and how it is cut into tokens."""

import hashlib
import random
from pathlib import Path

import pytest

from ahn.embedded import corpus
from ahn.embedded.tokenizer import END_OF_TEXT, check_lossless, save_tokenizer, train_tokenizer


@pytest.fixture
def library(tmp_path, monkeypatch):
    """A small standard library: every held-out module as a file, `json` with a test, fixtures."""
    for module in corpus.HELD_OUT:
        body = "\n".join(f"def {module}_function_{i}(argument): return {i}" for i in range(40))
        (tmp_path / f"{module}.py").write_text(body)
    texts = {
        "json/__init__.py": "import json.decoder\n",
        "json/decoder.py": "def decode(text): pass\n",
        "zlib_user.py": "import zlib\n",
        "test/test_json/test_decode.py": "class TestDecode: pass\n",
        "test/test_http_cookies.py": "class CookieTests: pass\n",
        "test/test_asyncio/utils.py": "class Loop: pass\n",
        "test/typinganndata/ann_module.py": "x: int = 1\n",
        "test/_typed_dict_helper.py": "import typing\n",
        "site-packages/other.py": "installed = True\n",
        "renamed_copy.py": (tmp_path / "argparse.py").read_text() + "\nlast = 1\n",
        "same.py": "import zlib\n",
        "nul.py": "a = '\0'\n",
    }
    for name, text in texts.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    (tmp_path / "latin.py").write_bytes("# caf\xe9".encode("latin-1"))
    monkeypatch.setattr(corpus, "_library", lambda: tmp_path)
    return tmp_path


def test_only_what_is_neither_held_out_nor_copied_is_trained_on(library):
    names = [name for name, _ in corpus.training_documents()]
    assert names == [
        "json/__init__.py",
        "json/decoder.py",
        "test/test_json/test_decode.py",
        "same.py",
    ]


def test_held_out_documents_do_not_need_the_test_package(library):
    with_tests = corpus.held_out_documents()
    for path in sorted((library / "test").rglob("*.py")):
        path.unlink()
    assert corpus.held_out_documents() == with_tests
    assert tuple(name for name, _ in with_tests) == corpus.HELD_OUT


def test_missing_source_is_refused_by_name(library):
    (library / "tarfile.py").unlink()
    with pytest.raises(ValueError, match=r"tarfile: expected its source .* got none"):
        corpus.held_out_documents()


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("http/client.py", True),
        ("test/test_httplib.py", True),
        ("test/test_email/data/spam.py", True),
        ("test/subprocessdata/fd_status.py", True),
        ("test/ann_module2.py", True),
        ("html/parser.py", False),
        ("types.py", False),
        ("test/test_asyncgen.py", False),
    ],
)
def test_is_held_out_by_name(path, expected):
    assert corpus.is_held_out(path) is expected


def test_this_interpreters_held_out_modules_are_whole_and_stable():
    documents = corpus.held_out_documents()
    assert documents == corpus.held_out_documents()
    assert tuple(name for name, _ in documents) == corpus.HELD_OUT
    texts = dict(documents)
    assert "class ArgumentParser" in texts["argparse"]
    assert "class HTTPConnection" in texts["http"]
    assert "class BaseEventLoop" in texts["asyncio"]
    assert all(len(text) > 20_000 for text in texts.values())


@pytest.mark.slow
def test_no_file_of_a_held_out_module_is_trained_on(monkeypatch):
    # Top-level modules up to "d" stand for the rest of the library, which takes long to compare.
    files = [
        (path, text)
        for path, text in corpus._library_files()
        if corpus.is_held_out(path) or ("/" not in path and path < "d")
    ]
    monkeypatch.setattr(corpus, "_library_files", lambda: iter(files))
    trained = corpus.training_documents()
    held_out = {_digest(text) for path, text in files if corpus.is_held_out(path)}
    assert len(held_out) > 50 and len(trained) > 20
    assert held_out.isdisjoint(_digest(text) for _, text in trained)


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def test_a_file_gives_the_corpus_back(tmp_path):
    written = corpus.Corpus("3.12.1", (("a.py", "x = 'é'\n"),), (("http", "y\n"),))
    corpus.write_corpus(written, tmp_path / "corpus.xz")
    assert corpus.read_corpus(tmp_path / "corpus.xz") == written
    assert [path.name for path in tmp_path.iterdir()] == ["corpus.xz"]


def _python_text() -> str:
    return Path(random.__file__).read_text(encoding="utf-8")


def test_tokenizer_is_lossless_and_keeps_its_tokens_when_saved(tmp_path):
    from transformers import AutoTokenizer, Qwen3Config

    tokenizer = train_tokenizer([_python_text()], 600)
    odd = "\t\tx =\u00a0'é\U0001f600'\r\n\n\n    # 1234  \n\f" + END_OF_TEXT
    check_lossless(tokenizer, [_python_text(), odd, ""])
    save_tokenizer(tokenizer, tmp_path, context=128)
    # A model's config beside it must not make AutoTokenizer choose another way to cut.
    Qwen3Config().save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    assert loaded(odd)["input_ids"] == tokenizer.encode(odd).ids
    assert loaded.eos_token_id == tokenizer.token_to_id(END_OF_TEXT) == 0
    assert len(loaded) == 600


def test_tokens_follow_the_grain_of_python():
    tokenizer = train_tokenizer([_python_text()], 600)
    tokens = [tokenizer.decode([i]) for i in tokenizer.encode("\n        return self.x12").ids]
    assert tokens[0] == "\n        "
    assert tokens[-2:] == ["1", "2"]


@pytest.mark.parametrize(("texts", "size"), [(["x = 1"], 4096), (["x = 1"], 257)])
def test_impossible_vocabulary_is_refused(texts, size):
    with pytest.raises(ValueError, match="expected"):
        train_tokenizer(texts, size)

"""A model, its tokenizer and a session that has read a text."""

from __future__ import annotations

import pytest

import talks


@pytest.fixture(scope="session")
def tokenizer():
    return talks.chatting()


@pytest.fixture(scope="session")
def model():
    return talks.new_model()


@pytest.fixture
def session(model, tokenizer):
    """One that has read a text far beyond the window."""
    made = talks.new_session(model, tokenizer)
    assert made.read(talks.TEXT) > 4 * talks.WINDOW
    return made

"""Every class of transformers that generates text: what it turns out to be is in docs/models.md."""

from __future__ import annotations

import os

import pytest
import transformers
from table import NAMES, PAGE, is_of_this_version, page, read_page
from trials import REFUSED, WORKS, try_class

QUICK = {  # one for each kind that no other test has
    "BambaForCausalLM": WORKS,  # its decoder would count positions from zero in every chunk
    "GlmAsrForConditionalGeneration": WORKS,  # hears
    "GPT2LMHeadModel": REFUSED,
    "JambaForCausalLM": REFUSED,  # a recurrence that begins anew in every chunk
    "Lfm2ForCausalLM": WORKS,  # other names of an attention's parts
    "MiniMaxForCausalLM": REFUSED,  # a cache of its own
    "Molmo2ForConditionalGeneration": WORKS,  # masks are made twice
    "NemotronHForCausalLM": WORKS,  # layers without a mixer
}
KNOWN = [name for name in QUICK if hasattr(transformers, name)]
TEXT = PAGE.read_text()
SAID = read_page(TEXT)
is_page_of_this_version = pytest.mark.skipif(
    not is_of_this_version(TEXT), reason="docs/models.md is of another version of transformers"
)


@pytest.mark.parametrize("name", NAMES if os.environ.get("AHN_EVERY_MODEL") else KNOWN)
def test_a_class_holds_the_laws_or_is_refused(name):
    outcome = try_class(name)
    if is_of_this_version(TEXT):
        assert outcome == SAID[name]


@is_page_of_this_version
def test_the_page_has_every_class_and_the_kinds_that_are_tried_quickly():
    assert set(SAID) == set(NAMES)
    assert {name: SAID[name].result for name in QUICK} == QUICK
    assert page({name: SAID[name] for name in NAMES}) == TEXT

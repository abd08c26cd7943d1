"""Long texts are no texts to a policy, and short ones are what they were."""

from hashlib import sha256

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentd.daemon.admission.acts import MAX_TEXT, PREFIX, cut

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=50),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=9), inner),
)


@given(values)
def test_what_is_short_is_as_it_was(value):
    assert cut(value) == value


@pytest.mark.parametrize("text", ["a" * MAX_TEXT, "ä" * (MAX_TEXT // 2)])
def test_the_bound_is_in_bytes(text):
    assert cut(text) == text
    data = f"{text}b".encode()
    assert cut(f"{text}b") == {
        "truncated": True,
        "length": len(data),
        "sha256": sha256(data).hexdigest(),
        "prefix": text.encode()[:PREFIX].decode(),
    }


def test_texts_are_found_wherever_they_are():
    long = "x" * (MAX_TEXT + 1)
    found = cut({"args": ["a", long], "deep": {"er": (long,)}})
    assert found["args"][0] == "a"
    assert found["args"][1] == found["deep"]["er"][0] == cut(long)


def test_a_prefix_ends_before_a_character_that_is_cut_and_half_a_pair_is_no_error():
    assert cut("a" + "ä" * MAX_TEXT)["prefix"] == "a" + "ä" * ((PREFIX - 1) // 2)
    assert cut("\ud800" * MAX_TEXT)["length"] == 3 * MAX_TEXT

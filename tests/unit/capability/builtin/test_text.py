from base64 import b64decode

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agentd.capability.builtin.text import decoded, encoded
from agentd.model.characters import whole_characters
from agentd.model.errors import InvalidInput

# Others use the machine, too: a slow moment is no failure.
BUSY = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])


@BUSY
@given(st.binary(max_size=200))
def test_it_stands_for_the_same_bytes_and_is_never_much_longer(data: bytes) -> None:
    (text,), encoding = encoded(data)
    assert decoded(text, encoding) == data
    assert len(msgspec.json.encode(text)) <= 2.3 * len(data) + 500


def test_text_is_text_and_control_codes_are_not() -> None:
    assert encoded(b"a\tb\r\n", "ü\x1b[0m".encode()) == (["a\tb\r\n", "ü\x1b[0m"], "utf-8")
    assert encoded(b"\x01" * 1000)[1] == "base64"
    assert encoded(b"a\0")[1] == "base64"
    assert encoded(b"\xff")[1] == "base64"


def test_one_that_is_no_text_makes_all_base64() -> None:
    (one, other), encoding = encoded(b"abc", b"\xff")
    assert (b64decode(one), b64decode(other), encoding) == (b"abc", b"\xff", "base64")


@BUSY
@given(st.text(min_size=1, max_size=20), st.integers(0, 80))
def test_a_cut_loses_a_part_of_one_character_at_most(text: str, cut: int) -> None:
    data = text.encode()[:cut]
    kept = whole_characters(data)
    assert data.startswith(kept) and len(data) - len(kept) <= 3
    assert text.startswith(kept.decode())
    assert len(kept.decode()) == len(data.decode(errors="ignore"))


@pytest.mark.parametrize("text", ["a", "a===", "ab c", "\u00e9", "YQ==\n"])
def test_what_is_no_base64(text: str) -> None:
    with pytest.raises(InvalidInput, match="not base64"):
        decoded(text, "base64")

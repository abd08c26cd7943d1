"""Bytes cut anywhere, and interleaved with another stream's, have the text of the whole."""

from hypothesis import given
from hypothesis import strategies as st

from agentd.model.characters import Texts, Whole

STREAMS = st.sampled_from(["stdout", "stderr"])
# Bytes of characters, so that halves, wrong rests and what is no UTF-8 are all common.
DATA = st.lists(st.sampled_from("a\xe9\u20ac\U0001f600".encode() + b"\xff\xc0\xed\xa0"), min_size=1)
PIECES = st.lists(st.tuples(STREAMS, DATA.map(bytes)), max_size=12)


@given(PIECES)
def test_the_texts_together_are_the_text_of_the_whole(pieces: list[tuple[str, bytes]]) -> None:
    texts = Texts()
    seen = {"stdout": "", "stderr": ""}
    for stream, data in pieces:
        seen[stream] += texts.feed(stream, data)
    for stream, text in texts.rest():
        seen[stream] += text
    for name, text in seen.items():
        whole = b"".join(data for stream, data in pieces if stream == name)
        assert text == whole.decode(errors="replace")


@given(PIECES)
def test_every_byte_is_passed_on_and_no_character_is_cut(pieces: list[tuple[str, bytes]]) -> None:
    whole = Whole()
    passed = [(stream, whole.feed(stream, data)) for stream, data in pieces]
    ends = list(whole.rest())
    for name in ("stdout", "stderr"):
        given_ = b"".join(data for stream, data in pieces if stream == name)
        assert b"".join(data for stream, data in [*passed, *ends] if stream == name) == given_
        texts = "".join(d.decode(errors="replace") for s, d in [*passed, *ends] if s == name)
        assert texts == given_.decode(errors="replace")

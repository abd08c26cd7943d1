"""Bytes as text. Of UTF-8 that comes in pieces no character is cut in two where they meet."""

import codecs
import re
from collections.abc import Iterator

_SURROGATE = re.compile("[\ud800-\udfff]")


def without_surrogates(name: str) -> str:
    """Return a name that UTF-8 can write: U+FFFD for each byte of it that is not UTF-8."""
    return _SURROGATE.sub("\ufffd", name)


def whole_characters(data: bytes) -> bytes:
    """Return ``data`` without a character at its end whose last bytes are missing."""
    for back in range(1, min(4, len(data) + 1)):
        if data[-back] >= 0xC0:  # the first byte of a character
            try:
                _, used = codecs.utf_8_decode(data[-back:], "strict", False)
            except UnicodeDecodeError:
                return data  # whatever came next, it would be no character
            return data if used else data[:-back]
        if data[-back] < 0x80:
            break
    return data


class Whole:
    """Bytes of several streams, passed on as they come but for the beginning of a character.

    That waits for its rest, as long as that takes: nothing could be shown of it before.
    """

    def __init__(self) -> None:
        self._begun: dict[str, bytes] = {}

    def feed(self, stream: str, data: bytes) -> bytes:
        data = self._begun.pop(stream, b"") + data
        whole = whole_characters(data)
        if len(whole) < len(data):
            self._begun[stream] = data[len(whole) :]
        return whole

    def rest(self) -> Iterator[tuple[str, bytes]]:
        """Yield for each stream the bytes that still wait, at its end."""
        while self._begun:
            yield self._begun.popitem()


class Texts:
    """The text of several streams, each decoded by itself; what is no UTF-8 becomes U+FFFD."""

    def __init__(self) -> None:
        self._decoders: dict[str, codecs.IncrementalDecoder] = {}

    def feed(self, stream: str, data: bytes) -> str:
        """``data`` is empty where bytes of the stream are lost: no character goes over that."""
        decoder = self._decoders.get(stream)
        if decoder is None:
            made = codecs.getincrementaldecoder("utf-8")
            decoder = self._decoders[stream] = made("replace")
        return decoder.decode(data, not data)

    def rest(self) -> Iterator[tuple[str, str]]:
        """Yield U+FFFD for each stream that ended within a character."""
        while self._decoders:
            stream, decoder = self._decoders.popitem()
            if text := decoder.decode(b"", True):
                yield stream, text

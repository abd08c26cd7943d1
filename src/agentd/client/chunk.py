"""Pieces of a command's output, as the SDK gives them."""

from collections.abc import Iterator, Mapping

from agentd.model.characters import Texts


class Chunk:
    """A piece of output: ``stream`` is "stdout" or "stderr", ``data`` its bytes, ``text`` its text.

    A character whose bytes come in two pieces is in the text of the second, so that the texts of a
    stream, one after the other, are its whole text; bytes that are no UTF-8 are U+FFFD in their
    place. At the end of a stream that stops within a character comes a piece without bytes.
    """

    __slots__ = ("data", "stream", "text")

    def __init__(self, stream: str, data: bytes, text: str | None = None) -> None:
        self.stream = stream
        self.data = data
        self.text = data.decode(errors="replace") if text is None else text

    def __str__(self) -> str:
        return self.text

    def __repr__(self) -> str:
        return f"Chunk({self.stream!r}, {self.data!r})"


class Chunks:
    """Makes them of the bytes of one command, in their order."""

    def __init__(self) -> None:
        self._texts = Texts()
        self._primed: set[str] = set()

    def make(self, stream: str, data: bytes, before: Mapping[str, bytes]) -> Chunk:
        """Make one; ``before`` has the bytes ahead of a stream that was taken up amid it."""
        if stream in before and stream not in self._primed:
            self._texts.feed(stream, before[stream])  # a character may have begun in them
        self._primed.add(stream)
        return Chunk(stream, data, self._texts.feed(stream, data))

    def rest(self) -> Iterator[Chunk]:
        """Return what is left at the end of the output."""
        for stream, text in self._texts.rest():
            yield Chunk(stream, b"", text)

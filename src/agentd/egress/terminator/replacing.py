"""Texts replaced in a stream that comes in pieces, cut anywhere."""

from collections.abc import Callable, Mapping

#: What is put in place of what was found; it may raise, and then nothing of the piece goes on.
Put = Callable[[bytes], bytes]
_PRINTABLE = bytes(range(0x20, 0x7F))


class Replacer:
    """Replaces texts. Not thread-safe. Holds back what could be the beginning of a text, and
    nothing else: at most one byte less than the longest. Of two texts that begin at one place it
    takes the longer.

    A ``steady`` one holds back as much whatever the texts are, as they are on one line: who sees
    how much comes when, of what they have written themselves, learns nothing of them.
    """

    def __init__(self, texts: Mapping[bytes, Put], *, steady: bool = False) -> None:
        """None of them is empty; if ``steady`` all are printable ASCII."""
        self._texts = sorted(texts.items(), key=lambda pair: len(pair[0]), reverse=True)
        self._steady = steady
        self._held = b""

    def feed(self, data: bytes) -> bytes:
        """Return what can go on. Raises what a ``Put`` raises."""
        data, out = self._held + data, []
        while data:
            safe = self._safe(data)
            piece, end = self._replaced(data, safe)
            out.append(piece)
            data = data[end:]
            if end <= safe:  # else what seemed to begin was within what was found
                break
        self._held = data
        return b"".join(out)

    def finish(self) -> bytes:
        """Return what was held back, at the end of the stream. Raises what a ``Put`` raises."""
        data, self._held = self._held, b""
        return self._replaced(data, len(data))[0]

    def _safe(self, data: bytes) -> int:
        """Up to where no text begins that may end in the next piece."""
        if self._steady and self._texts:
            at = max(0, len(data) - len(self._texts[0][0]) + 1)
            return at + len(data[at:].rstrip(_PRINTABLE))
        return min((_begins(data, text) for text, _ in self._texts), default=len(data))

    def _replaced(self, data: bytes, safe: int) -> tuple[bytes, int]:
        """Replace what begins before ``safe``: that, and how far it went."""
        out, at = [], 0
        found = {text: data.find(text) for text, _ in self._texts}
        while True:
            first: tuple[int, bytes, Put] | None = None
            for text, put in self._texts:
                where = found[text]
                if 0 <= where < at:
                    where = found[text] = data.find(text, at)
                if 0 <= where < safe and (first is None or where < first[0]):
                    first = where, text, put
            if first is None:
                end = max(at, safe)
                out.append(data[at:end])
                return b"".join(out), end
            where, text, put = first
            out += [data[at:where], put(text)]
            at = where + len(text)


def _begins(data: bytes, text: bytes) -> int:
    """Where the end of ``data`` is the beginning of ``text`` and not all of it; else its length."""
    at = max(0, len(data) - len(text) + 1)
    while (at := data.find(text[:1], at)) >= 0:
        if data.startswith(text[: len(data) - at], at):
            return at
        at += 1
    return len(data)

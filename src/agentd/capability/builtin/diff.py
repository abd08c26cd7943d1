"""A unified diff of replacements whose places are known: linear in the text, however it looks.

difflib looks for them by itself, and takes minutes for a file that is made for that.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

CONTEXT = 3
MAX_BLOCK = 1 << 20  # characters, old and new, of changed lines that hang together
_NO_NEWLINE = "\n\\ No newline at end of file\n"


class Span(NamedTuple):
    """``text`` instead of old[start:end]; not empty."""

    start: int
    end: int
    text: str


class _Block(NamedTuple):
    """Whole lines that differ. ``at`` is the offset of the first, ``line`` its number from 0."""

    at: int
    line: int
    old: list[str]
    new: list[str]

    @property
    def end(self) -> int:
        return self.at + sum(map(len, self.old))

    @property
    def last_line(self) -> int:
        return self.line + len(self.old)


def replaced(old: str, spans: Sequence[Span]) -> str:
    """``spans`` are in order and do not overlap."""
    pieces: list[str] = []
    at = 0
    for span in spans:
        pieces += (old[at : span.start], span.text)
        at = span.end
    return "".join((*pieces, old[at:]))


def unified(old: str, spans: Sequence[Span], name: str, limit: int) -> tuple[str, bool]:
    """Return the diff, at most ``limit`` characters of it, and whether that is not all."""
    shown = name if name.isprintable() else ascii(name)[1:-1]
    text = ""
    moved = 0  # by how many lines the new text is ahead
    for hunk in _hunks(_joined(_blocks(old, spans))):
        if hunk is None:
            return text, True
        text += (
            _shown(old, hunk, moved)
            if text
            else (f"--- a/{shown}\n+++ b/{shown}\n{_shown(old, hunk, moved)}")
        )
        moved += sum(len(block.new) - len(block.old) for block in hunk)
        if len(text) > limit:
            return text[:limit], True
    return text, False


def _joined(blocks: Iterator[_Block | None]) -> Iterator[_Block | None]:
    """Blocks that touch as one: what the one removes the other may add."""
    touching: list[_Block] = []
    for block in blocks:
        if touching and (block is None or block.at != touching[-1].end):
            yield from _as_one(touching)
            touching = []
        if block is None:
            yield None
            return
        touching.append(block)
    if touching:
        yield from _as_one(touching)


def _as_one(blocks: list[_Block]) -> Iterator[_Block]:
    """Join them; nothing where they come to nothing together."""
    old = [line for block in blocks for line in block.old]
    new = [line for block in blocks for line in block.new]
    one = _trimmed(blocks[0].at, blocks[0].line, old, new)
    if one.old or one.new:
        yield one


def _hunks(blocks: Iterator[_Block | None]) -> Iterator[list[_Block] | None]:
    """Blocks whose contexts touch, together; None where one is too large to be shown."""
    hunk: list[_Block] = []
    for block in blocks:
        if hunk and (block is None or block.line - hunk[-1].last_line > 2 * CONTEXT):
            yield hunk
            hunk = []
        if block is None:
            yield None
            return
        hunk.append(block)
    if hunk:
        yield hunk


def _shown(old: str, hunk: list[_Block], moved: int) -> str:
    before = _lines_before(old, hunk[0].at)
    after = _lines_after(old, hunk[-1].end)
    body = [" " + line for line in before]
    olds = news = len(before) + len(after)
    end = hunk[0].at
    for block in hunk:
        between = _lines(old[end : block.at])
        olds += len(between) + len(block.old)
        news += len(between) + len(block.new)
        body += [" " + line for line in between]
        body += ["-" + line for line in block.old]
        body += ["+" + line for line in block.new]
        end = block.end
    body += [" " + line for line in after]
    first = hunk[0].line - len(before)
    head = f"@@ -{_range(first, olds)} +{_range(first + moved, news)} @@\n"
    return head + "".join(line if line.endswith("\n") else line + _NO_NEWLINE for line in body)


def _range(first: int, count: int) -> str:
    """An empty range is named by the line before it."""
    start = first + 1 if count else first
    return str(start) if count == 1 else f"{start},{count}"


def _blocks(old: str, spans: Sequence[Span]) -> Iterator[_Block | None]:
    """Yield blocks; None, and no more, for one that is too large to be shown."""
    index = line = counted = 0
    while index < len(spans):
        start, end, behind = _extent(old, spans, index)
        moved = [Span(s.start - start, s.end - start, s.text) for s in spans[index:behind]]
        index = behind
        if end - start + sum(len(span.text) for span in moved) > MAX_BLOCK:
            yield None
            return
        line += old.count("\n", counted, start)
        counted = start
        before = old[start:end]
        block = _trimmed(start, line, _lines(before), _lines(replaced(before, moved)))
        if block.old or block.new:
            yield block


def _extent(old: str, spans: Sequence[Span], index: int) -> tuple[int, int, int]:
    """Return the whole lines that the span at ``index`` changes, with the spans that begin in them:
    where they start and end, and the first span behind them."""
    first = index
    start = end = at = old.rfind("\n", 0, spans[index].start) + 1
    tail = "\n"  # the last character of the new lines; where there are none, no line is cut
    while True:
        while index < len(spans) and (index == first or spans[index].start < end):
            span = spans[index]
            if span.start > at:
                tail = old[span.start - 1]
            tail = span.text[-1:] or tail
            at = span.end
            if at > end:
                end = _line_end(old, at)
            index += 1
        last = old[end - 1] if end > at else tail
        if last == "\n" or end == len(old):
            return start, end, index
        # Its last newline went: what was the next line is a part of it now.
        end = _line_end(old, end + 1)


def _trimmed(at: int, line: int, old: list[str], new: list[str]) -> _Block:
    """Trim the lines at its start and its end that are the same."""
    shorter = min(len(old), len(new))
    head = 0
    while head < shorter and old[head] == new[head]:
        head += 1
    tail = 0
    while tail < shorter - head and old[-1 - tail] == new[-1 - tail]:
        tail += 1
    return _Block(
        at + sum(map(len, old[:head])),
        line + head,
        old[head : len(old) - tail],
        new[head : len(new) - tail],
    )


def _line_end(text: str, position: int) -> int:
    """Behind the newline of the line that the character before ``position`` is in."""
    found = text.find("\n", position - 1)
    return len(text) if found < 0 else found + 1


def _lines_before(text: str, position: int) -> list[str]:
    start = position
    for _ in range(CONTEXT):
        if start == 0:
            break
        start = text.rfind("\n", 0, start - 1) + 1
    return _lines(text[start:position])


def _lines_after(text: str, position: int) -> list[str]:
    end = position
    for _ in range(CONTEXT):
        if end < len(text):
            end = _line_end(text, end + 1)
    return _lines(text[position:end])


def _lines(text: str) -> list[str]:
    """With their newlines. Only "\\n" ends one, unlike splitlines."""
    *whole, last = text.split("\n")
    return [line + "\n" for line in whole] + ([last] if last else [])

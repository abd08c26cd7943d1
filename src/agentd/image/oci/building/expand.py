"""Variables and quotes in a Dockerfile's words: ``$A``, ``${A:-b}``, ``'$A'``, ``\\$A``."""

import re
from collections.abc import Callable

Lookup = Callable[[str], str | None]
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_OPERATOR = re.compile(r":?[-+?]")
_MAX_LETTERS = 1 << 20
_MAX_IN_ALL = 1 << 25


class Unexpandable(ValueError):
    """The text says what is wrong."""


class Expanded:
    """How much the words of one Dockerfile have become, in letters: what a build keeps of them."""

    def __init__(self) -> None:
        self._total = 0

    def count(self, text: str) -> str:
        """Return it. Raises Unexpandable."""
        self._total += len(text)
        if self._total > _MAX_IN_ALL:
            raise Unexpandable(f"with it all words become longer than {_MAX_IN_ALL} letters")
        return text


class _Growing:
    """A text to which pieces are added. Raises Unexpandable as soon as it is too long."""

    def __init__(self) -> None:
        self._pieces: list[str] = []
        self._size = 0

    def add(self, piece: str) -> None:
        self._size += len(piece)
        if self._size > _MAX_LETTERS:
            raise Unexpandable(f"it becomes longer than {_MAX_LETTERS} letters")
        self._pieces.append(piece)

    def text(self) -> str:
        return "".join(self._pieces)


def expand(text: str, lookup: Lookup, escape: str, *, quotes: bool = True) -> str:
    """Return ``text`` with what its variables mean, and without its quotes: with ``quotes`` False
    those are letters like others, as in a heredoc. Raises Unexpandable."""
    return _Expander(text, lookup, escape, quotes).all()


class _Expander:
    def __init__(self, text: str, lookup: Lookup, escape: str, quotes: bool) -> None:
        self._text, self._lookup, self._escape, self._quotes = text, lookup, escape, quotes
        self._at = 0

    def all(self) -> str:
        found = _Growing()
        while self._at < len(self._text):
            found.add(self._one())
        return found.text()

    def _one(self) -> str:
        letter = self._take()
        if letter == "$":
            return self._variable()
        if letter == self._escape:
            if self._at >= len(self._text):
                return letter
            after = self._take()
            return after if self._quotes or after == "$" else letter + after
        if self._quotes and letter == "'":
            return self._until("'")
        if self._quotes and letter == '"':
            return self._double()
        return letter

    def _until(self, end: str) -> str:
        stop = self._text.find(end, self._at)
        if stop < 0:
            raise Unexpandable(f"nothing ends the quote {end}")
        found, self._at = self._text[self._at : stop], stop + 1
        return found

    def _double(self) -> str:
        found = _Growing()
        while self._at < len(self._text):
            letter = self._take()
            if letter == '"':
                return found.text()
            if letter == "$":
                found.add(self._variable())
            elif letter == self._escape and self._text[self._at : self._at + 1] in (
                *('"', "$"),
                self._escape,
            ):
                found.add(self._take())
            else:
                found.add(letter)
        raise Unexpandable('nothing ends the quote "')

    def _variable(self) -> str:
        if self._text[self._at : self._at + 1] != "{":
            name = _NAME.match(self._text, self._at)
            if name is None:
                return "$"
            self._at = name.end()
            return self._lookup(name[0]) or ""
        self._at += 1
        name = _NAME.match(self._text, self._at)
        if name is None:
            raise Unexpandable("${ without a name")
        self._at = name.end()
        operator = _OPERATOR.match(self._text, self._at)
        if operator is None:
            rest = self._until("}")
            if rest:
                raise Unexpandable(f"${{{name[0]}{rest}}}: only :- :+ :? - + ? follow a name")
            return self._lookup(name[0]) or ""
        self._at = operator.end()
        return self._chosen(name[0], operator[0], self._braced())

    def _chosen(self, name: str, operator: str, word: str) -> str:
        value = self._lookup(name)
        there = bool(value) if operator.startswith(":") else value is not None
        if operator.endswith("-"):
            return value or "" if there else self._inner(word)
        if operator.endswith("+"):
            return self._inner(word) if there else ""
        if not there:
            raise Unexpandable(f"{name} is not set: {self._inner(word) or 'it is needed'}")
        return value or ""

    def _braced(self) -> str:
        """What is left to the closing brace, those in it included."""
        begin, depth = self._at, 1
        while self._at < len(self._text):
            letter = self._take()
            if letter == self._escape and self._at < len(self._text):
                self._at += 1
            elif letter == "{":
                depth += 1
            elif letter == "}":
                depth -= 1
                if not depth:
                    return self._text[begin : self._at - 1]
        raise Unexpandable("nothing ends ${")

    def _inner(self, word: str) -> str:
        if word.count("${") > 20:
            raise Unexpandable("${ is nested too deep")
        return _Expander(word, self._lookup, self._escape, self._quotes).all()

    def _take(self) -> str:
        self._at += 1
        return self._text[self._at - 1]

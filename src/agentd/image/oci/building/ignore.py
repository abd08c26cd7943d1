"""``.dockerignore``: what of a context no COPY sees. Patterns are Go's, with ``**`` and ``!``.

A pattern is hostile, as a context is: with few wildcards it is a regular expression, with more all
that it may mean is followed at once, so that no pattern takes longer than its length times that of
a path.
"""

import functools
import re
from collections.abc import Callable, Iterator
from typing import NamedTuple

MAX_BYTES = 1 << 20
_MAX_PATTERNS = 10_000
_MAX_PATTERN = 4096  # in letters, as a path
_FEW = 2  # wildcards of a regular expression, which tries each place for each of them
Fits = Callable[[str], bool]
# Of a pattern: what is within a name, what is anything, folders or nothing.
_STAR, _ANY, _FOLDERS = "[^/]*", ".*", "(?:.*/)?"
_WILD = frozenset((_STAR, _ANY, _FOLDERS))


class BadPattern(ValueError):
    pass


class Ignored:
    """Which paths are left out; the last pattern that fits one decides."""

    def __init__(self, text: str = "") -> None:
        """Raises BadPattern, which names the line."""
        self._rules: list[_Rule] = []
        for number, line in enumerate(text.removeprefix("\ufeff").splitlines(), 1):
            pattern = line.strip()
            if not pattern or line.startswith("#"):
                continue
            again = pattern.startswith("!")
            parts = _cleaned(pattern.removeprefix("!").strip())
            if parts:
                try:
                    self._rules.append(_Rule(fitting("/".join(parts)), again))
                except BadPattern as error:
                    raise BadPattern(f"line {number}: {error}") from error
            if len(self._rules) > _MAX_PATTERNS:
                raise BadPattern(f"line {number}: over {_MAX_PATTERNS} patterns")
        #: Whether something in what is left out may be taken all the same.
        self.again = any(rule.again for rule in self._rules)

    def __bool__(self) -> bool:
        return bool(self._rules)

    def leaves_out(self, path: str) -> bool:
        """Return whether it, relative to the context, is left out, as all in a folder that is."""
        found = False
        for rule in self._rules:
            if rule.again == found and any(rule.fits(each) for each in _prefixes(path)):
                found = not rule.again
        return found


class _Rule(NamedTuple):
    fits: Fits
    again: bool


def _prefixes(path: str) -> list[str]:
    parts = path.split("/")
    return ["/".join(parts[:count]) for count in range(len(parts), 0, -1)]


def _cleaned(pattern: str) -> list[str]:
    done: list[str] = []
    for part in pattern.split("/"):
        if part == "..":
            done = done[:-1]
        elif part not in ("", "."):
            done.append(part)
    return done


@functools.lru_cache(_MAX_PATTERNS)
def fitting(pattern: str) -> Fits:
    """Return what says whether a whole path fits. Raises BadPattern."""
    if len(pattern) > _MAX_PATTERN:
        raise BadPattern(f"{pattern[:50]!r}... is longer than {_MAX_PATTERN} letters")
    tokens: list[str] = []
    for token in _tokens(pattern):
        if not (token in _WILD and tokens and tokens[-1] == token):
            tokens.append(token)
    try:
        if sum(token in _WILD for token in tokens) > _FEW:
            return _Automaton(tokens).fits
        whole = re.compile("".join(tokens), re.DOTALL)
    except re.error as error:
        raise BadPattern(f"{pattern[:200]!r} is no pattern: {error}") from error
    return lambda path: whole.fullmatch(path) is not None


def _tokens(pattern: str) -> Iterator[str]:
    """The wildcards, and the regular expression of each other letter."""
    at = 0
    while at < len(pattern):
        letter = pattern[at]
        if pattern.startswith("**/", at):
            yield _FOLDERS
            at += 3
        elif pattern.startswith("**", at):
            yield _ANY
            at += 2
        elif letter == "*":
            yield _STAR
            at += 1
        elif letter == "?":
            yield "[^/]"
            at += 1
        elif letter == "[":
            end = pattern.find("]", at + 2)
            if end < 0:
                raise BadPattern(f"nothing ends the [ of {pattern[:200]!r}")
            inner = pattern[at + 1 : end]
            negated = "^" if inner.startswith("^") else ""
            inner = re.sub(r"([\\\[&~|^])", r"\\\1", inner.removeprefix("^"))
            yield f"(?!/)[{negated}{inner}]"
            at = end + 1
        elif letter == "\\" and at + 1 < len(pattern):
            yield re.escape(pattern[at + 1])
            at += 2
        else:
            yield re.escape(letter)
            at += 1


class _Automaton:
    """Follows all meanings at once: a bit for each place in the pattern that was reached."""

    def __init__(self, tokens: list[str]) -> None:
        """Raises re.error."""
        self._letters: list[tuple[int, re.Pattern[str]]] = []
        self._star = self._any = self._folders = 0
        bit = 1
        for token in tokens:
            if token == _FOLDERS:  # a place before them, and one amid them
                self._folders |= bit
                bit <<= 1
            elif token == _STAR:
                self._star |= bit
            elif token == _ANY:
                self._any |= bit
            else:
                self._letters.append((bit, re.compile(token, re.DOTALL)))
            bit <<= 1
        self._end = bit
        self._begin = self._onward(1)
        self._taking: dict[str, int] = {}

    def fits(self, path: str) -> bool:
        amid = self._folders << 1
        now = self._begin
        for letter in path:
            stays = now & (self._any | amid)
            if letter == "/":
                ends = (now & amid) << 1
            else:
                stays |= now & self._star
                ends = 0
            now = self._onward(stays | ends | (now & self._takes(letter)) << 1)
            if not now:
                return False
        return bool(now & self._end)

    def _takes(self, letter: str) -> int:
        """The places of which it is the next letter."""
        if letter not in self._taking:
            fit = (bit for bit, one in self._letters if one.fullmatch(letter))
            self._taking[letter] = functools.reduce(int.__or__, fit, 0)
        return self._taking[letter]

    def _onward(self, now: int) -> int:
        """With the places that are reached by no letter: wildcards may be nothing."""
        while True:
            skipped = (now & (self._star | self._any)) << 1
            skipped |= (now & self._folders) << 1 | (now & self._folders) << 2
            if now | skipped == now:
                return now
            now |= skipped

"""``.dockerignore``: what of a context no COPY sees. Patterns are Go's, with ``**`` and ``!``."""

import functools
import re
from typing import NamedTuple

MAX_BYTES = 1 << 20
_MAX_PATTERNS = 10_000


class BadPattern(ValueError):
    pass


class Ignored:
    """Which paths are left out; the last pattern that fits one decides."""

    def __init__(self, text: str = "") -> None:
        """Raises BadPattern."""
        self._rules: list[_Rule] = []
        for line in text.removeprefix("\ufeff").splitlines():
            pattern = line.strip()
            if not pattern or line.startswith("#"):
                continue
            again = pattern.startswith("!")
            parts = _cleaned(pattern.removeprefix("!").strip())
            if parts:
                self._rules.append(_Rule(translated("/".join(parts)), again))
            if len(self._rules) > _MAX_PATTERNS:
                raise BadPattern(f"over {_MAX_PATTERNS} patterns")
        #: Whether something in what is left out may be taken all the same.
        self.again = any(rule.again for rule in self._rules)

    def leaves_out(self, path: str) -> bool:
        """``path`` is relative to the context. What lies in a folder that is left out is, too."""
        found = False
        for rule in self._rules:
            if rule.again == found and any(rule.fits(each) for each in _prefixes(path)):
                found = not rule.again
        return found


class _Rule(NamedTuple):
    expression: re.Pattern[str]
    again: bool

    def fits(self, path: str) -> bool:
        return self.expression.fullmatch(path) is not None


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


@functools.cache
def translated(pattern: str) -> re.Pattern[str]:
    """A pattern over whole paths as a regular expression. Raises BadPattern."""
    found, at = "", 0
    while at < len(pattern):
        if pattern.startswith("**/", at):
            found, at = f"{found}(?:.*/)?", at + 3
        elif pattern.startswith("**", at):
            found, at = f"{found}.*", at + 2
        elif pattern[at] == "*":
            found, at = f"{found}[^/]*", at + 1
        elif pattern[at] == "?":
            found, at = f"{found}[^/]", at + 1
        elif pattern[at] == "[":
            end = pattern.find("]", at + 2)
            if end < 0:
                raise BadPattern(f"nothing ends the [ of {pattern!r}")
            inner = pattern[at + 1 : end]
            negated = inner.startswith("^")
            inner = re.sub(r"([\\\[&~|^])", r"\\\1", inner.removeprefix("^"))
            found, at = f"{found}(?!/)[{'^' if negated else ''}{inner}]", end + 1
        elif pattern[at] == "\\" and at + 1 < len(pattern):
            found, at = found + re.escape(pattern[at + 1]), at + 2
        else:
            found, at = found + re.escape(pattern[at]), at + 1
    try:
        return re.compile(found, re.DOTALL)
    except re.error as error:
        raise BadPattern(f"{pattern!r} is no pattern: {error}") from error

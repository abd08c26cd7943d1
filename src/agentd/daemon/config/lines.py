"""On which line of a TOML text each key stands; tomllib does not tell.

The text has been read by tomllib already: what is scanned here is valid TOML 1.0.
"""

import re
import tomllib

Path = tuple[str | int, ...]
Found = tuple[Path, str, str]  # what a rule finds: where, what, and its fix

_BARE = re.compile(r"[A-Za-z0-9_-]+")
_SPACE = re.compile(r"(?:[ \t\r\n]|#[^\n]*)*")
_STRING = re.compile(
    r'"""(?:[^\\]|\\.)*?"{3,5}'  # up to two quotes may stand before the closing three
    r"|'''.*?'{3,5}"
    r'|"(?:[^"\\\n]|\\.)*"'
    r"|'[^'\n]*'",
    re.DOTALL,
)
_SCALAR = re.compile(r"[^,\]}#\n]+")


def lines_of(text: str) -> dict[Path, int]:
    """Return the first line, from 1, of every key, table and element of an array, by its path."""
    return _Scan(text.replace("\r\n", "\n")).run()


class _Scan:
    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0
        self._lines: dict[Path, int] = {}
        self._arrays: dict[Path, int] = {}  # of tables: how many there are
        self._counted = (0, 1)  # a position and its line

    def run(self) -> dict[Path, int]:
        table: Path = ()
        while self._skip():
            if self._peek("["):
                table = self._header()
            else:
                self._pair(table)
        return self._lines

    def _header(self) -> Path:
        double = self._peek("[[")
        line = self._line()
        self._at += 2 if double else 1
        *parents, last = self._key()
        self._skip()
        self._at += 2 if double else 1
        path: Path = ()
        for name in parents:
            path = self._inside((*path, name), line)
        path = (*path, last)
        if not double:
            return self._inside(path, line)
        self._lines.setdefault(path, line)
        self._arrays[path] = self._arrays.get(path, 0) + 1
        return self._inside(path, line)

    def _inside(self, path: Path, line: int) -> Path:
        """Return a table's path; of an array of tables, its last one's."""
        self._lines.setdefault(path, line)
        if path in self._arrays:
            path = (*path, self._arrays[path] - 1)
            self._lines.setdefault(path, line)
        return path

    def _pair(self, table: Path) -> None:
        line = self._line()
        path = table
        for name in self._key():
            path = (*path, name)
            self._lines.setdefault(path, line)
        self._skip()
        self._at += 1  # =
        self._skip()
        self._value(path)

    def _key(self) -> list[str]:
        names = []
        while True:
            self._skip()
            match = _STRING.match(self._text, self._at) or _BARE.match(self._text, self._at)
            if match is None:
                raise ValueError(f"no key on line {self._line()}")
            self._at = match.end()
            names.append(_unquoted(match[0]))
            self._skip()
            if not self._peek("."):
                return names
            self._at += 1

    def _value(self, path: Path) -> None:
        if self._peek("{"):
            self._at += 1
            while self._skip() and not self._peek("}"):
                self._pair(path)
                self._comma()
            self._at += 1
        elif self._peek("["):
            self._at += 1
            count = 0
            while self._skip() and not self._peek("]"):
                self._lines[*path, count] = self._line()
                self._value((*path, count))
                self._comma()
                count += 1
            self._at += 1
        else:
            match = _STRING.match(self._text, self._at) or _SCALAR.match(self._text, self._at)
            if match is None:
                raise ValueError(f"no value on line {self._line()}")
            self._at = match.end()

    def _comma(self) -> None:
        self._skip()
        if self._peek(","):
            self._at += 1

    def _skip(self) -> bool:
        """Past spaces, comments and ends of lines; False at the end of the text."""
        match = _SPACE.match(self._text, self._at)
        self._at = match.end() if match else self._at
        return self._at < len(self._text)

    def _peek(self, word: str) -> bool:
        return self._text.startswith(word, self._at)

    def _line(self) -> int:
        at, line = self._counted
        line += self._text.count("\n", at, self._at)
        self._counted = (self._at, line)
        return line


def _unquoted(text: str) -> str:
    if text[0] not in "\"'":
        return text
    name: str = tomllib.loads(f"k = {text}")["k"]
    return name

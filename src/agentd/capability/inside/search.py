"""Lines that match, in the files of a directory.

In: root (absolute), shown (what paths begin with), pattern, regex, glob (or ""), case_sensitive,
max_matches, context. Out: matches, files, skipped, truncated; or error.
"""

from __future__ import annotations

import json
import os
import re
import stat
import sys
from typing import Any

MAX_FILE = 16 << 20
MAX_FILES = 200_000
MAX_LINE = 500  # characters of a line that are shown
MAX_TEXT = 4 << 20  # characters of all lines that are shown


class TooManyMatches(Exception):
    """There are more than may be shown."""


class Search:
    def __init__(self, asked: dict[str, Any]) -> None:
        self.pattern = compiled(asked)
        self.glob = re.compile(translated(asked["glob"])) if asked["glob"] else None
        self.by_path = "/" in asked["glob"]
        self.context = asked["context"]
        self.most = asked["max_matches"]
        self.matches: list[dict[str, Any]] = []
        self.files = self.skipped = self.text = 0

    def tree(self, root: str, shown: str) -> None:
        """Depth first, in order of names; links are not followed, but for the root itself."""
        pending = [(root, shown, "")]
        while pending:
            full, name, below = pending.pop()
            try:
                found = sorted(os.scandir(full), key=lambda entry: entry.name, reverse=True)
            except OSError:
                if full == root:
                    raise
                self.skipped += 1
                continue
            directories = []
            for entry in reversed(found):
                inner = os.path.join(below, entry.name)
                if entry.is_dir(follow_symlinks=False):
                    directories.append((entry.path, os.path.join(name, entry.name), inner))
                elif self.wanted(entry.name, inner):
                    self.file(entry.path, os.path.join(name, entry.name))
            pending += reversed(directories)

    def wanted(self, name: str, path: str) -> bool:
        if self.glob is None:
            return True
        return self.glob.fullmatch(path if self.by_path else name) is not None

    def file(self, path: str, shown: str, alone: bool = False) -> None:
        if self.files + self.skipped >= MAX_FILES:
            raise TooManyMatches
        try:
            data = content(path)
        except OSError:
            if alone:
                raise
            data = None
        if data is None or b"\0" in data[:8192]:
            self.skipped += 1
            return
        self.files += 1
        lines = data.decode("utf-8", "replace").split("\n")
        for index, line in enumerate(lines):
            found = self.pattern.search(line)
            if found is not None and (line or index + 1 < len(lines)):
                self.add(shown, lines, index, found.start())

    def add(self, shown: str, lines: list[str], index: int, at: int) -> None:
        if len(self.matches) >= self.most:
            raise TooManyMatches
        before = lines[max(0, index - self.context) : index]
        after = lines[index + 1 : index + 1 + self.context]
        match: dict[str, Any] = {
            "path": clean(shown),
            "line": index + 1,
            "column": at + 1,
            "text": around(lines[index], at),
            "before": [around(line, 0) for line in before],
            "after": [around(line, 0) for line in after],
        }
        self.text += len(shown) + sum(map(len, [match["text"], *match["before"], *match["after"]]))
        if self.text > MAX_TEXT:
            raise TooManyMatches
        self.matches.append(match)


def compiled(asked: dict[str, Any]) -> re.Pattern[str]:
    text = asked["pattern"] if asked["regex"] else re.escape(asked["pattern"])
    return re.compile(text, 0 if asked["case_sensitive"] else re.IGNORECASE)


def translated(glob: str) -> str:
    """A regular expression: ``*`` and ``?`` stay within a name, ``**/`` is any directories."""
    parts = re.split(r"(\*\*/|\*+|\?)", glob)
    known = {"**/": "(?:[^/]+/)*", "**": ".*", "?": "[^/]"}
    made = ""
    for part in parts:
        made += known.get(part) or ("[^/]*" if part.startswith("*") else re.escape(part))
    return "(?s:" + made + ")"


def content(path: str) -> bytes | None:
    """Read a regular file that is not too large; None otherwise."""
    # Looked at first: opening a device or a fifo acts on it.
    if not stat.S_ISREG(os.lstat(path).st_mode):
        return None
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
    with os.fdopen(os.open(path, flags), "rb") as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            return None
        data = file.read(MAX_FILE + 1)
    return data if len(data) <= MAX_FILE else None


def around(line: str, at: int) -> str:
    start = max(0, at - MAX_LINE // 4) if len(line) > MAX_LINE else 0
    return line[start : start + MAX_LINE].rstrip("\r")


def clean(path: str) -> str:
    """Names are bytes; what is not UTF-8 in one cannot be sent as it is."""
    return re.sub("[\ud800-\udfff]", "\ufffd", path)


def searched(asked: dict[str, Any]) -> dict[str, Any]:
    try:
        search = Search(asked)
    except (re.error, RecursionError, OverflowError, MemoryError) as error:
        return failed("bad_pattern", f"the pattern cannot be used: {error}")
    truncated = False
    try:
        mode = os.stat(asked["root"]).st_mode
        if stat.S_ISDIR(mode):
            search.tree(asked["root"], asked["shown"])
        elif stat.S_ISREG(mode):
            search.file(os.path.realpath(asked["root"]), asked["shown"], alone=True)
        else:
            return failed("not_a_file", "it is no file and no directory")
    except TooManyMatches:
        truncated = True
    except FileNotFoundError:
        return failed("not_found", "there is no such file or directory")
    except OSError as error:
        return failed("forbidden", f"it cannot be read: {error.strerror}")
    return {
        "matches": search.matches,
        "files": search.files,
        "skipped": search.skipped,
        "truncated": truncated,
    }


def failed(code: str, message: str) -> dict[str, Any]:
    return {"error": {"code": code, "message": message}}


if __name__ == "__main__":
    answer = json.dumps(searched(json.load(sys.stdin.buffer)), ensure_ascii=False)
    # Not escaped: what one character of a line takes is bounded by that, and with it the answer.
    sys.stdout.buffer.write(answer.encode())

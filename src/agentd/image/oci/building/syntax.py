"""A Dockerfile as text becomes instructions, as Docker's reference has them.

https://docs.docker.com/reference/dockerfile/ has the words. Nothing is expanded or run here.
"""

import json
import re
from typing import NamedTuple

from agentd.image.oci.building.errors import DockerfileError
from agentd.image.oci.building.expand import Expanded

MAX_BYTES = 1 << 20
MAX_INSTRUCTIONS = 2000
_SHOWN = 500
_DIRECTIVE = re.compile(r"#\s*([A-Za-z][A-Za-z0-9]*)\s*=\s*(.*?)\s*\Z")
_FLAG = re.compile(r"--([a-z][a-z0-9-]*)(?:=(\S*))?(?:\s+|\Z)")
_HEREDOC = re.compile(r"\d*<<(-?)([\"']?)([^\s<>;|&()\"']+)\2\Z")
_WITH_FLAGS = frozenset(("FROM", "RUN", "COPY", "ADD"))
_WITH_HEREDOCS = frozenset(("RUN", "COPY", "ADD"))


class Heredoc(NamedTuple):
    """``expands``: whether variables in it are replaced, as its name is not quoted."""

    name: str
    content: str
    expands: bool
    word: str  # as it stands in the instruction: "<<-'EOF'"


class Instructed(NamedTuple):
    """``text`` is what follows the flags, its lines joined; ``line`` counts from 1."""

    word: str
    line: int
    flags: dict[str, str]
    text: str
    heredocs: tuple[Heredoc, ...] = ()

    @property
    def shown(self) -> str:
        """Return it in one line, for a person."""
        flags = "".join(f"--{name}={value} " for name, value in self.flags.items())
        return " ".join(f"{self.word} {flags}{self.text}".split())

    @property
    def words(self) -> tuple[str, ...] | None:
        """Return the strings of the exec form, ``["a", "b"]``; None where it is not that."""
        if not self.text.startswith("["):
            return None
        try:
            found = json.loads(self.text)
        except (ValueError, RecursionError):
            return None
        if not isinstance(found, list) or not all(isinstance(each, str) for each in found):
            return None
        return tuple(found)


class Dockerfile(NamedTuple):
    name: str
    instructions: tuple[Instructed, ...]
    expanded: Expanded
    escape: str = "\\"

    def wrong(self, line: int, what: str, fix: str) -> DockerfileError:
        return DockerfileError(f"{self.name}:{line}: {what[:_SHOWN]}", remediation=fix)


def parse(text: str, name: str = "Dockerfile") -> Dockerfile:
    """Parse a Dockerfile. Raises DockerfileError."""
    return _Parser(text, name).parse()


class _Parser:
    def __init__(self, text: str, name: str) -> None:
        self._lines = text.removeprefix("\ufeff").split("\n")
        self._at = 0
        self._file = Dockerfile(name, (), Expanded())

    def parse(self) -> Dockerfile:
        self._directives()
        found: list[Instructed] = []
        while (instruction := self._next()) is not None:
            found.append(instruction)
            if len(found) > MAX_INSTRUCTIONS:
                raise self._wrong(instruction.line, f"over {MAX_INSTRUCTIONS} instructions")
        return self._file._replace(instructions=tuple(found))

    def _directives(self) -> None:
        """``# escape=`` at the very top; ``syntax`` and ``check`` are for other builders."""
        for number, line in enumerate(self._lines, 1):
            found = _DIRECTIVE.match(line.strip())
            if found is None:
                return
            if found[1].lower() == "escape":
                if found[2] not in ("\\", "`"):
                    raise self._wrong(number, f"escape cannot be {found[2]!r}", "use \\ or `")
                self._file = self._file._replace(escape=found[2])

    def _next(self) -> Instructed | None:
        while self._at < len(self._lines) and self._is_empty(self._lines[self._at]):
            self._at += 1
        if self._at >= len(self._lines):
            return None
        line = self._at + 1
        text = self._joined()
        if "\0" in text:
            raise self._wrong(line, "a NUL byte", "remove it")
        word, _, rest = text.strip().partition(" ")
        if "\t" in word:
            word, _, rest = text.strip().partition("\t")
        word, rest = word.upper(), rest.strip()
        flags: dict[str, str] = {}
        while word in _WITH_FLAGS and (flag := _FLAG.match(rest)):
            if flag[1] in flags:
                raise self._wrong(line, f"{word} has --{flag[1]} twice", "give it once")
            flags[flag[1]] = flag[2] if flag[2] is not None else ""
            rest = rest[flag.end() :]
        if not rest:
            raise self._wrong(
                line, f"{word[:40]} says nothing", "write what it is to do, or drop it"
            )
        instruction = Instructed(word, line, flags, rest)
        if any("\0" in each or not _is_unicode(each) for each in instruction.words or ()):
            raise self._wrong(line, f"{word[:40]} has a word that no program can be given")
        if word in _WITH_HEREDOCS and instruction.words is None:
            return instruction._replace(heredocs=self._heredocs(rest, line))
        return instruction

    def _joined(self) -> str:
        """A line and those that it is continued by, without comments among them. One that ends
        with two escapes, as C:\\\\ does, ends there."""
        escape = re.escape(self._file.escape)
        continued = re.compile(rf"(?<!{escape}){escape}[ \t]*\Z")
        found = ""
        first = True
        while self._at < len(self._lines):
            line = self._lines[self._at].rstrip("\r")
            if not first and self._is_empty(line):
                self._at += 1
                continue
            self._at += 1
            first = False
            whole = continued.sub("", line)
            found += whole
            if whole == line:
                break
        return found

    def _heredocs(self, text: str, line: int) -> tuple[Heredoc, ...]:
        found = []
        for word in split(text, self._file.escape):
            match = _HEREDOC.match(word)
            if match is None:
                continue
            content = []
            while self._at < len(self._lines):
                each = self._lines[self._at].rstrip("\r")
                self._at += 1
                each = each.lstrip("\t") if match[1] else each
                if each == match[3]:
                    break
                content.append(f"{each}\n")
            else:
                raise self._wrong(
                    line, f"nothing ends {word}", f"write a line that is {match[3]} alone"
                )
            found.append(Heredoc(match[3], "".join(content), not match[2], word))
        return tuple(found)

    def _is_empty(self, line: str) -> bool:
        text = line.strip()
        return not text or text.startswith("#")

    def _wrong(self, line: int, what: str, fix: str = "make it smaller") -> DockerfileError:
        return self._file.wrong(line, what, fix)


def _is_unicode(text: str) -> bool:
    """Whether it is without halves of a pair, as JSON may have them."""
    return not any("\ud800" <= letter <= "\udfff" for letter in text)


def split(text: str, escape: str) -> list[str]:
    """Split it into words between blanks; quotes keep blanks together, and stay in the words."""
    found: list[str] = []
    word, quote, at = "", "", 0
    while at < len(text):
        letter = text[at]
        if letter == escape and quote != "'" and at + 1 < len(text):
            word += text[at : at + 2]
            at += 2
            continue
        if quote:
            quote = "" if letter == quote else quote
        elif letter in "\"'":
            quote = letter
        elif letter.isspace():
            if word:
                found.append(word)
            word = ""
            at += 1
            continue
        word += letter
        at += 1
    return [*found, word] if word else found

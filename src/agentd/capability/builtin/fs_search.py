"""fs.search.v1: lines that match, found by a script in the sandbox.

It runs there because a pattern may take for ever, and because files are read where they are.
"""

from typing import Annotated, Any

import msgspec
from msgspec import Meta

from agentd.capability import script
from agentd.capability.builtin import fs
from agentd.capability.port import Call, Inside
from agentd.capability.shape import boolean, integer, parameters, string
from agentd.model import typed
from agentd.model.capability import About, Bounds, CallFailed, Example, Outcome

MAX_MATCHES = 10_000
MAX_CONTEXT = 10
_SCHEMA = parameters(
    ["pattern"],
    pattern=string(1, 10_000),
    regex=boolean("the pattern is a regular expression of Python's, not plain text", default=False),
    path={**fs.PATH, "default": "."},
    glob=string(
        maximum=1000, default="", description="only files like *.py, or src/**/*.py from the path"
    ),
    case_sensitive=boolean(default=True),
    max_matches=integer(1, MAX_MATCHES, 200),
    context=integer(0, MAX_CONTEXT, 0, "lines before and after"),
    timeout_ms=fs.TIMEOUT_MS,
)
_FILES = {"src/a.py": "import os\nprint(1)\n", "notes.txt": "Print it\n"}
_EXAMPLES = (
    Example(
        "plain text in all files",
        {"pattern": "print(", "context": 1},
        files=_FILES,
        value={
            "matches": [
                {
                    "path": "src/a.py",
                    "line": 2,
                    "column": 1,
                    "text": "print(1)",
                    "before": ["import os"],
                    "after": [""],
                }
            ],
            "files": 2,
            "truncated": False,
        },
    ),
    Example(
        "a regular expression, in some files",
        {"pattern": "^imp\\w+", "regex": True, "glob": "*.txt"},
        files=_FILES,
        value={"matches": [], "files": 1},
    ),
    Example("one that is none", {"pattern": "(", "regex": True}, files=_FILES, error="bad_pattern"),
    Example("where nothing is", {"pattern": "x", "path": "gone"}, error="not_found"),
)


_Text = Annotated[str, Meta(max_length=1000)]
_Number = Annotated[int, Meta(ge=0, le=1 << 40)]
_Lines = Annotated[list[_Text], Meta(max_length=MAX_CONTEXT)]


class Match(msgspec.Struct):
    """``line`` and ``column`` count from 1; a long line is shown around the match."""

    path: Annotated[str, Meta(max_length=2 * fs.MAX_PATH)]
    line: _Number
    column: _Number
    text: _Text
    before: _Lines
    after: _Lines


class _Found(msgspec.Struct):
    matches: Annotated[list[Match], Meta(max_length=MAX_MATCHES)]
    files: _Number
    skipped: _Number
    truncated: bool


_FOUND = typed.decoder(_Found)


class FsSearch:
    about = About(
        name="fs.search.v1",
        summary="find lines in the files of a directory",
        schema=_SCHEMA,
        bounds=Bounds(timeout=30.0, output=32 << 20),
        examples=_EXAMPLES,
    )

    def run(self, call: Call, inside: Inside) -> Outcome:
        asked = call.parameters
        shown = asked["path"].removeprefix("./")
        parameters = {
            "root": fs.place(inside, asked["path"]),
            "shown": "" if shown == "." else shown,
            **{name: asked[name] for name in _PASSED},
        }
        found = script.run(inside, "search", parameters, _FOUND, call.timeout)
        if len(found.matches) > asked["max_matches"]:
            raise CallFailed("script_failed", "the sandbox's Python sent more than was asked for")
        value: dict[str, Any] = msgspec.to_builtins(found)
        return Outcome(value)


_PASSED = ("pattern", "regex", "glob", "case_sensitive", "max_matches", "context")
CAPABILITY = FsSearch()

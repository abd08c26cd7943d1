"""fs.edit.v1: exact replacements in a text file, all of them or none."""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from agentd.capability.builtin import diff, fs
from agentd.capability.builtin.diff import Span
from agentd.capability.port import Call, Inside
from agentd.capability.shape import array, integer, parameters, string
from agentd.model.capability import About, Bounds, CallFailed, Example, Needs, Outcome
from agentd.model.units import counted

MAX_REPLACEMENTS = 10_000
MAX_DIFF = 64 << 10
_SCHEMA = parameters(
    ["path", "edits"],
    path=fs.PATH,
    edits=array(
        parameters(
            ["search", "replace"],
            search=string(1, description="exact text"),
            replace=string(),
            count=integer(
                1, MAX_REPLACEMENTS, 1, "how often it is there; another number is an error"
            ),
        ),
        100,
        "each is looked for in the file as it is before the call",
        minItems=1,
    ),
    timeout_ms=fs.TIMEOUT_MS,
)
_EXAMPLES = (
    Example(
        "one place",
        {"path": "a.txt", "edits": [{"search": "red", "replace": "blue"}]},
        files={"a.txt": "roses are red\n"},
        value={
            "replacements": [1],
            "size": 15,
            "diff": "--- a/a.txt\n+++ b/a.txt\n@@ -1 +1 @@\n-roses are red\n+roses are blue\n",
        },
    ),
    Example(
        "several, and each of them as often as said",
        {
            "path": "a.txt",
            "edits": [{"search": "x", "replace": "y", "count": 2}, {"search": "1", "replace": "2"}],
        },
        files={"a.txt": "x x 1\n"},
        value={"replacements": [2, 1], "size": 6},
    ),
    Example(
        "text that is there twice",
        {"path": "a.txt", "edits": [{"search": "x", "replace": "y"}]},
        files={"a.txt": "x x\n"},
        error="wrong_count",
    ),
    Example(
        "text that is not there",
        {"path": "a.txt", "edits": [{"search": "z", "replace": "y"}]},
        files={"a.txt": "x x\n"},
        error="no_match",
    ),
)


class FsEdit:
    about = About(
        name="fs.edit.v1",
        summary="replace exact text in a file",
        schema=_SCHEMA,
        needs=Needs(writes=True),
        bounds=Bounds(timeout=30.0, output=1 << 20),
        examples=_EXAMPLES,
    )

    def run(self, call: Call, inside: Inside) -> Outcome:
        asked = call.parameters
        deadline = fs.CallDeadline(call.timeout)
        with fs.refusals():
            # A link stays one: what it leads to is what is written.
            path, entry = fs.follow(inside, fs.place(inside, asked["path"]))
            old = _text(fs.read(inside, path, 0, fs.MAX_FILE + 1, deadline))
        spans = _spans(old, asked["edits"])
        _check_size(old, spans)
        new = diff.replaced(old, spans).encode()
        if len(new) > fs.MAX_FILE:
            raise _too_large()
        shown, cut = diff.unified(old, spans, asked["path"], MAX_DIFF)
        deadline.check()
        with fs.refusals():
            size = inside.files.write(path, new, mode=entry.mode & 0o777)
        return Outcome(
            {
                "replacements": [edit["count"] for edit in asked["edits"]],
                "size": size,
                "diff": shown,
                "diff_truncated": cut,
            }
        )


def _text(data: bytes) -> str:
    if len(data) > fs.MAX_FILE:
        raise _too_large()
    try:
        text = data.decode()
    except UnicodeDecodeError:
        text = "\0"
    if "\0" in text:
        raise CallFailed(
            "not_text",
            "the file is binary: it is not UTF-8, or holds a NUL",
            remediation="write it as a whole: fs.write.v1",
        )
    return text


def _spans(old: str, edits: Sequence[Mapping[str, Any]]) -> list[Span]:
    """Return where each edit applies, in order. Raises CallFailed unless each count is exact."""
    found: list[tuple[Span, int]] = []
    for number, edit in enumerate(edits):
        search = edit["search"]
        _check_count(old, search, edit["count"], number)
        at = -len(search)
        for _ in range(edit["count"]):
            at = old.index(search, at + len(search)) if at >= 0 else old.index(search)
            found.append((Span(at, at + len(search), edit["replace"]), number))
        if len(found) > MAX_REPLACEMENTS:
            raise CallFailed(
                "too_many", f"over {MAX_REPLACEMENTS} replacements", remediation="ask for fewer"
            )
    found.sort(key=lambda place: place[0].start)
    for (one, first), (other, second) in pairwise(found):
        if one.end > other.start:
            raise CallFailed(
                "overlap",
                f"edits {first} and {second} change the same text",
                remediation="make them one edit, or two calls",
            )
    return [span for span, _ in found]


def _check_count(old: str, search: str, expected: int, number: int) -> None:
    count = old.count(search)
    if count == expected:
        return
    if count:
        raise CallFailed(
            "wrong_count",
            f"the text of edit {number} is in the file {counted(count, 'time')}, not {expected}",
            remediation=f'search for more of the text around it, or say "count": {count}',
        )
    ends = "; its lines end with CR LF" if "\r\n" in old and "\n" in search else ""
    raise CallFailed(
        "no_match",
        f"the text of edit {number} is not in the file{ends}",
        remediation="read the file again, and copy the text with its spaces and newlines",
    )


def _check_size(old: str, spans: Sequence[Span]) -> None:
    """Before it is built: a large text at many places would fill the memory."""
    size = len(old) + sum(len(span.text) - (span.end - span.start) for span in spans)
    if size > fs.MAX_FILE:
        raise _too_large()


def _too_large() -> CallFailed:
    return CallFailed(
        "too_large",
        f"the file is, or would be, over {fs.MAX_FILE >> 20} MiB",
        remediation="change it with a command, sed or python3",
    )


CAPABILITY = FsEdit()

"""fs.list.v1: what is in a directory, and in those below it; links are shown, never followed."""

from typing import Any

from msgspec import json

from agentd.capability.builtin import fs
from agentd.capability.port import Call, Inside
from agentd.capability.shape import integer, parameters
from agentd.model.capability import About, Bounds, CallFailed, Example, Outcome
from agentd.model.characters import without_surrogates

MAX_ENTRIES = 10_000
MAX_TEXT = 4 << 20  # bytes of JSON of all that is shown: a link's target may have 4095
_SCHEMA = parameters(
    path={**fs.PATH, "default": "."},
    depth=integer(1, 8, 1, "1: the directory alone; 2: and what is in those in it"),
    limit=integer(1, MAX_ENTRIES, 1000),
    timeout_ms=fs.TIMEOUT_MS,
)
_EXAMPLES = (
    Example("nothing yet", {}, value={"entries": [], "truncated": False}),
    Example(
        "only so many",
        {"path": "d", "limit": 1},
        files={"d/a.txt": "", "d/b.txt": ""},
        value={"truncated": True},
    ),
    Example("one that is not there", {"path": "gone"}, error="not_found"),
    Example("a file", {"path": "a"}, files={"a": ""}, error="not_directory"),
)


class FsList:
    about = About(
        name="fs.list.v1",
        summary="list a directory, and those below it",
        schema=_SCHEMA,
        bounds=Bounds(timeout=30.0, output=8 << 20),
        examples=_EXAMPLES,
    )

    def run(self, call: Call, inside: Inside) -> Outcome:
        asked = call.parameters
        top, limit = fs.place(inside, asked["path"]), asked["limit"]
        walk = _Walk(inside, limit, fs.CallDeadline(call.timeout))
        level: list[_Directory] = [(top, {})]
        for _ in range(asked["depth"]):
            level = walk.level(level)
            if walk.full:
                break
        return Outcome({"entries": walk.entries, "truncated": walk.full})


# Where it is, and the entry that shows it; none of the one that was asked for.
_Directory = tuple[str, dict[str, Any]]


class _Walk:
    """Level by level, so that a limit leaves out what is deepest."""

    def __init__(self, inside: Inside, limit: int, deadline: fs.CallDeadline) -> None:
        self.entries: list[dict[str, Any]] = []
        self.full = False
        self._text = 0
        self._inside = inside
        self._limit = limit
        self._deadline = deadline

    def level(self, directories: list[_Directory]) -> list[_Directory]:
        """Add what is in them; return the directories in them."""
        below: list[_Directory] = []
        for full, entry in directories:
            self._deadline.check()
            below += self._add(full, entry)
            if self.full:
                break
        return below

    def _add(self, full: str, directory: dict[str, Any]) -> list[_Directory]:
        below: list[_Directory] = []
        name = directory.get("path", "")
        for entry in self._listed(full, directory):
            if len(self.entries) >= self._limit:
                self.full = True
                break
            shown = _shown(entry, f"{name}/{entry.name}".lstrip("/"))
            self._text += len(json.encode(shown))
            if self._text > MAX_TEXT:
                self.full = True
                break
            self.entries.append(shown)
            if entry.type == "dir":
                below.append((f"{full.rstrip('/')}/{entry.name}", shown))
        return below

    def _listed(self, full: str, directory: dict[str, Any]) -> list[Any]:
        try:
            with fs.refusals():
                return sorted(self._inside.files.list(full), key=lambda entry: str(entry.name))
        except CallFailed as error:
            if not directory:
                raise
            # One further down that cannot be listed, or has gone, is no end of it all.
            directory["error"] = error.code
            return []


def _shown(entry: Any, path: str) -> dict[str, Any]:
    shown: dict[str, Any] = {
        "path": without_surrogates(path),
        "type": entry.type,
        "size": entry.size,
        "mode": f"{entry.mode:04o}",
        "mtime": entry.mtime,
    }
    if entry.target is not None:
        shown["target"] = without_surrogates(entry.target)
    return shown


CAPABILITY = FsList()

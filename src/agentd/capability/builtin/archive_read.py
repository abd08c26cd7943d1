"""archive.read.v1: what is in an archive, one member of it, or all of it as files."""

import binascii
from base64 import b64decode
from typing import Any

import msgspec

from agentd.capability import script
from agentd.capability.builtin import fs, temporary, text
from agentd.capability.port import Call, Inside
from agentd.capability.shape import array, choice, integer, parameters, string
from agentd.model import typed
from agentd.model.capability import About, Bounds, CallFailed, Example, Needs, Outcome
from agentd.model.characters import whole_characters
from agentd.model.errors import InvalidInput

MAX_READ = 8 << 20
MAX_EXTRACTED = 4 << 30
MAX_MEMBERS = 100_000
_DEFAULT_BYTES = {"list": 0, "read": 1 << 20, "extract": 256 << 20}
_MOST_BYTES = {"list": MAX_EXTRACTED, "read": MAX_READ, "extract": MAX_EXTRACTED}
_NAME = string(1, 4000)
_SCHEMA = parameters(
    ["path"],
    path=fs.PATH,
    op=choice(["list", "read", "extract"], "list"),
    member={**_NAME, "description": "read: which file of it"},
    members=array(
        _NAME, 10_000, "extract: these, and what is below them; all if there are none", default=[]
    ),
    to={**fs.PATH, "description": "extract: a directory that is not there yet"},
    max_bytes=integer(
        1,
        MAX_EXTRACTED,
        description=(
            "read: how many are returned, at most 8 MiB (default 1 MiB); extract:"
            " how many may be written (default 256 MiB)"
        ),
    ),
    max_members=integer(1, MAX_MEMBERS, 10_000),
    max_ratio=integer(
        1, 100_000, 200, "bytes that may come out for one that is stored, past the first 8 MiB"
    ),
    timeout_ms=fs.TIMEOUT_MS,
)
_EXAMPLES = (
    Example(
        "something else, whatever it is called",
        {"path": "a.zip"},
        files={"a.zip": "roses are red\n"},
        error="not_an_archive",
    ),
    Example("one that is not there", {"path": "gone.tar"}, error="not_found"),
    Example(
        "an empty zip",
        {"path": "empty.bin"},
        files={"empty.bin": "PK\x05\x06" + "\0" * 18},
        value={"format": "zip", "members": [], "truncated": False},
    ),
    Example(
        "extracted beside it",
        {"path": "empty.zip", "op": "extract", "to": "out"},
        files={"empty.zip": "PK\x05\x06" + "\0" * 18},
        value={"files": 0, "directories": 0, "bytes": 0},
    ),
    Example(
        "never over what is there",
        {"path": "empty.zip", "op": "extract", "to": "out"},
        files={"empty.zip": "PK\x05\x06" + "\0" * 18, "out/mine": ""},
        error="exists",
    ),
)


class ArchiveEntry(msgspec.Struct, frozen=True):
    """``mode``: permission bits. ``problem``: the code that reading it would end with, or ""."""

    name: str
    type: str  # "file", "dir", "link", "other"
    size: int | None
    mode: int
    problem: str


class Listing(msgspec.Struct, frozen=True):
    format: str
    members: list[ArchiveEntry]
    truncated: bool


class MemberContent(msgspec.Struct, frozen=True):
    format: str
    member: str
    base64: str
    size: int | None
    truncated: bool


class Extracted(msgspec.Struct, frozen=True):
    format: str
    files: int
    directories: int
    bytes: int


_LISTING = typed.decoder(Listing)
_CONTENT = typed.decoder(MemberContent)
_EXTRACTED = typed.decoder(Extracted)


class ArchiveRead:
    about = About(
        name="archive.read.v1",
        summary="list, read or extract a zip, tar, gzip, bzip2 or xz file",
        schema=_SCHEMA,
        needs=Needs(writes=True),
        bounds=Bounds(timeout=120.0, output=24 << 20),
        examples=_EXAMPLES,
    )

    def run(self, call: Call, inside: Inside) -> Outcome:
        ask = _asked(call.parameters, inside)
        if ask["op"] == "list":
            listing = script.run(inside, "archive_read", ask, _LISTING, call.timeout)
            return Outcome(msgspec.to_builtins(listing))
        if ask["op"] == "read":
            return Outcome(
                _content(script.run(inside, "archive_read", ask, _CONTENT, call.timeout))
            )
        return Outcome(_extract(inside, ask, call.timeout))


def _asked(given: dict[str, Any], inside: Inside) -> dict[str, Any]:
    op = given["op"]
    needed = {"read": "member", "extract": "to"}.get(op)
    if needed and needed not in given:
        raise InvalidInput(f"archive.read.v1: {op} needs {needed}", remediation=f"give it {needed}")
    most = given.get("max_bytes", _DEFAULT_BYTES[op])
    if most > _MOST_BYTES[op]:
        raise InvalidInput(
            f"archive.read.v1: max_bytes of {op} is over {_MOST_BYTES[op]}",
            remediation="extract what is larger",
        )
    return {
        "op": op,
        "root": inside.workspace,
        "path": fs.place(inside, given["path"]),
        "to": fs.place(inside, given.get("to", ".")),
        "member": given.get("member", ""),
        "members": given["members"],
        "max_bytes": most,
        "max_members": given["max_members"],
        "max_ratio": given["max_ratio"],
    }


def _content(found: MemberContent) -> dict[str, Any]:
    try:
        data = b64decode(found.base64, validate=True)
    except binascii.Error:
        raise CallFailed("script_failed", "the sandbox's Python answered no base64") from None
    (content,), encoding = text.encoded(whole_characters(data) if found.truncated else data)
    if encoding == "base64":
        content = found.base64
    return {
        "format": found.format,
        "member": found.member,
        "content": content,
        "encoding": encoding,
        "size": found.size,
        "truncated": found.truncated,
    }


def _extract(inside: Inside, ask: dict[str, Any], timeout: float) -> dict[str, Any]:
    with temporary.beside(inside, ask["to"]) as name:
        ask = {**ask, "temporary": name}
        done = script.run(inside, "archive_read", ask, _EXTRACTED, timeout)
    return {"path": ask["to"], **msgspec.to_builtins(done)}


CAPABILITY = ArchiveRead()

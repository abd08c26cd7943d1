"""fs.read.v1: a part of a file, as text or as base64."""

from agentd.capability.builtin import fs, text
from agentd.capability.port import Call, Inside
from agentd.capability.shape import choice, integer, parameters
from agentd.model.capability import About, Bounds, CallFailed, Example, Outcome
from agentd.model.characters import whole_characters
from agentd.model.errors import OperationFailed

_SCHEMA = parameters(
    ["path"],
    path=fs.PATH,
    offset=integer(0, 1 << 62, 0, "bytes to leave out first"),
    max_bytes=integer(1, fs.MAX_FILE, 1 << 20),
    encoding=choice(
        ["auto", "utf-8", "base64"], "auto", "auto: utf-8 where it is text, else base64"
    ),
    timeout_ms=fs.TIMEOUT_MS,
)
_EXAMPLES = (
    Example(
        "a small file",
        {"path": "poem.txt"},
        files={"poem.txt": "roses are red\n"},
        value={"content": "roses are red\n", "encoding": "utf-8", "size": 14, "eof": True},
    ),
    Example(
        "a part of it",
        {"path": "poem.txt", "offset": 6, "max_bytes": 3},
        files={"poem.txt": "roses are red\n"},
        value={"content": "are", "length": 3, "offset": 6, "eof": False, "truncated": True},
    ),
    Example(
        "its bytes",
        {"path": "poem.txt", "encoding": "base64"},
        files={"poem.txt": "roses"},
        value={"content": "cm9zZXM=", "encoding": "base64"},
    ),
    Example("one that is not there", {"path": "gone.txt"}, error="not_found"),
    Example("a directory", {"path": "."}, error="is_directory"),
)


class FsRead:
    about = About(
        name="fs.read.v1",
        summary="read a file, or a part of it",
        schema=_SCHEMA,
        bounds=Bounds(timeout=30.0, output=24 << 20),
        examples=_EXAMPLES,
    )

    def run(self, call: Call, inside: Inside) -> Outcome:
        asked = call.parameters
        path, offset = fs.place(inside, asked["path"]), asked["offset"]
        # One byte more than asked for tells whether that was all.
        with fs.refusals():
            data = fs.read(
                inside, path, offset, asked["max_bytes"] + 1, fs.CallDeadline(call.timeout)
            )
        eof = len(data) <= asked["max_bytes"]
        data = data[: asked["max_bytes"]]
        content, encoding, length = _as_text(data, asked["encoding"], eof)
        return Outcome(
            {
                "content": content,
                "encoding": encoding,
                "length": length,
                "size": _size(inside, path, offset, len(data), eof),
                "offset": offset,
                "eof": eof,
                "truncated": not eof,
            }
        )


def _as_text(data: bytes, encoding: str, eof: bool) -> tuple[str, str, int]:
    """Return the content, its encoding, and how many bytes it stands for."""
    if encoding == "base64":
        return text.as_base64(data), encoding, len(data)
    # A part may end within a character, which the next part begins with then.
    part = data if eof else whole_characters(data) or data
    if encoding == "auto":
        (content,), encoding = text.encoded(part)
        if encoding == "base64":
            return text.as_base64(data), encoding, len(data)
        return content, encoding, len(part)
    try:
        return part.decode(), encoding, len(part)
    except UnicodeDecodeError as error:
        raise CallFailed(
            "not_text",
            f"it is not UTF-8 at byte {error.start} of what was read",
            remediation='ask for "encoding": "base64"',
        ) from None


def _size(inside: Inside, path: str, offset: int, length: int, eof: bool) -> int:
    """Return the size of the whole file; those of /proc say 0, and have what was seen of them."""
    seen = offset + length if length else 0
    if eof and length:
        return seen
    try:
        return max(int(fs.follow(inside, path)[1].size), seen)
    except OperationFailed:  # it has gone since
        return seen


CAPABILITY = FsRead()

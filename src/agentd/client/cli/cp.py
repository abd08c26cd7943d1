"""``agentd cp``: files and folders into a sandbox and out of it."""

import argparse
import errno
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple

from agentd.client.cli import remote, streams
from agentd.client.cli.interrupts import Interrupted, unwinding
from agentd.model.errors import InvalidInput, OperationFailed

if TYPE_CHECKING:
    from agentd.client.copy import Copied
    from agentd.client.files import Files

_EXAMPLES = """\
  agentd cp script.py sbx-abcdefghijkl:/workspace/
  agentd cp src sbx-abcdefghijkl:/workspace/src          a folder, as a whole
  agentd cp sbx-abcdefghijkl:/workspace/out.json .
  agentd cp -f sbx-abcdefghijkl:/workspace/dist ./dist   in the place of what is there
  agentd cp - sbx-abcdefghijkl:/workspace/in.txt         a file, from standard input
  agentd cp sbx-abcdefghijkl:/workspace/out.json -       a file, to standard output

Both ways alike: into TARGET, under the source's own name, where it ends with a slash, is . or
is a folder; else as TARGET. What is there is refused. With -f a folder takes the place of
TARGET itself, of which nothing remains; a file takes that of the file that is there. A folder
with a mount in it is not replaced. A link to a folder is that folder with a slash behind it.

What is copied out belongs to you, has no set-uid bits, and stays beneath the target: links that
lead out of the folder, devices and fifos are refused by name, sockets left out; a file with
several names becomes one for each.
A folder has at most 1,000,000 files, 64 GiB, and 256 folders below each other.
"""


class _Inside(NamedTuple):
    id: str
    path: str


def main(words: list[str]) -> int:
    options = _parser().parse_args(words)
    source, target = _place(options.source), _place(options.target)
    if source is None and target is not None:
        copied = _put(options, options.source, target)
    elif source is not None and target is None:
        try:
            copied = _get(options, source, options.target)
        except Interrupted as interrupted:
            return 128 + interrupted.number
    else:
        raise InvalidInput(
            "one of the two must be inside a sandbox, and the other not",
            remediation="write it as ID:/path",
        )
    if copied.skipped:
        print(f"agentd cp: left out: {remote.safe(copied.skipped)}", file=sys.stderr)
    left_out = {"skipped": copied.skipped} if copied.skipped else {}
    return remote.tell(options, {"bytes": copied.bytes, **left_out})


def _place(text: str) -> _Inside | None:
    id_, colon, path = text.partition(":")
    if not colon or "/" in id_ or not id_:
        return None
    if not path.startswith("/"):
        raise InvalidInput(
            f"path {path!r} inside is not absolute",
            remediation=f"write {id_}:/workspace/{path}" if path else f"write {id_}:/workspace/",
        )
    return _Inside(id_, path)


def _put(options: argparse.Namespace, source: str, target: _Inside) -> "Copied":
    try:
        return _upload(options, source, target)
    except OperationFailed as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            error.remediation = "write less, or make the sandbox with more --disk"
        raise


def _upload(options: argparse.Namespace, source: str, target: _Inside) -> "Copied":
    from agentd.client import copy

    if source != "-":
        copy.check_source(source)  # before anybody is asked
    with _files(options, target.id) as files:
        if source == "-":
            stream = streams.opened_input()
            return copy.upload_stream(files, stream, target.path, replace=options.force)
        return copy.upload(files, source, target.path, replace=options.force)


def _get(options: argparse.Namespace, source: _Inside, target: str) -> "Copied":
    from agentd.client import copy

    if target == "-" and options.json:
        raise InvalidInput(
            "the file itself goes to standard output", remediation="leave out --json"
        )
    with _files(options, source.id) as files:
        if target == "-":
            streams.check_output()
            return copy.download_stream(files, source.path, sys.stdout.buffer)
        with unwinding():  # what is made beside the target goes
            return copy.download(files, source.path, target, replace=options.force)


@contextmanager
def _files(options: argparse.Namespace, id_: str) -> "Iterator[Files]":
    from agentd.client.files import Files

    with remote.service(options) as service:
        yield Files(service.files, id_)


def _parser() -> argparse.ArgumentParser:
    parser = remote.parser("cp", "Copy into a sandbox, or out of it.", _EXAMPLES)
    parser.add_argument("-f", "--force", action="store_true", help="replace what is there")
    parser.add_argument("source", metavar="SOURCE", help="PATH, ID:/PATH, or - for stdin")
    parser.add_argument("target", metavar="TARGET", help="PATH, ID:/PATH, or - for stdout")
    return parser

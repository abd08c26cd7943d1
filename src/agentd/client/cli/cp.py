"""``agentd cp``: files and directories into a sandbox and out of it."""

import argparse
import os
from typing import TYPE_CHECKING, NamedTuple

from agentd.client.cli import remote
from agentd.model.errors import InvalidInput, OperationFailed

if TYPE_CHECKING:
    from agentd.client.http.files import RemoteFiles

_EXAMPLES = """\
  agentd cp script.py sbx-abcdefghijkl:/workspace/
  agentd cp src sbx-abcdefghijkl:/workspace/src          a directory, as a whole
  agentd cp sbx-abcdefghijkl:/workspace/out.json .
  agentd cp -f sbx-abcdefghijkl:/workspace/dist ./dist   over what is there

What is copied out belongs to you, has no set-uid bits, and stays beneath the target.
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
        copied = _get(options, source, options.target)
    else:
        raise InvalidInput(
            "one of the two must be inside a sandbox, and the other not",
            remediation="write it as ID:/path",
        )
    if options.json:
        remote.print_json({"bytes": copied})
    return 0


def _place(text: str) -> _Inside | None:
    id_, colon, path = text.partition(":")
    if not colon or "/" in id_ or not id_:
        return None
    if not path.startswith("/"):
        raise InvalidInput(
            f"path {path!r} inside is not absolute", remediation=f"write {id_}:/{path}"
        )
    return _Inside(id_, path)


def _put(options: argparse.Namespace, source: str, target: _Inside) -> int:
    from agentd.client.cli import tree

    if not os.path.exists(source):
        raise InvalidInput(f"{source!r} does not exist", remediation="correct the path")
    with remote.sandbox(options, target.id) as sandbox:
        files = sandbox.files
        name = os.path.basename(os.path.abspath(source))
        into = target.path.endswith("/") or _is_folder(files, target.path)
        path = os.path.join(target.path, name) if into else target.path
        if not os.path.isdir(source):
            mode = os.stat(source).st_mode & 0o777
            with open(source, "rb") as file:
                return files.write(path, file, mode=mode, parents=True)
        counter = tree.Counter()
        # The folder is named in the archive, so that its own mode arrives with it.
        files.mkdir(os.path.dirname(path.rstrip("/")) or "/", parents=True)
        name = os.path.basename(path.rstrip("/"))
        files.write_tar(os.path.dirname(path.rstrip("/")) or "/", tree.pack(source, name, counter))
        return counter.bytes


def _get(options: argparse.Namespace, source: _Inside, target: str) -> int:
    from agentd.client.cli import tree

    with remote.sandbox(options, source.id) as sandbox:
        entry = sandbox.files.stat(source.path)
        name = os.path.basename(source.path.rstrip("/"))
        if os.path.isdir(target) or target.endswith("/"):
            if not name:
                raise InvalidInput("the root has no name", remediation="name the target folder")
            target = os.path.join(target, name)
        if os.path.lexists(target) and not options.force:
            raise InvalidInput(f"{target} exists already", remediation="remove it, or add -f")
        if entry.type == "dir":
            pieces = sandbox.files.read_tar(source.path)
            return tree.unpack(pieces, target)
        if entry.type != "file":
            raise InvalidInput(
                f"{source.path} is a {entry.type}", remediation="copy files and directories"
            )
        return tree.save(sandbox.files.read_iter(source.path), target, entry.mode & 0o777)


def _is_folder(files: "RemoteFiles", path: str) -> bool:
    try:
        return files.stat(path).type == "dir"
    except OperationFailed:
        return False


def _parser() -> argparse.ArgumentParser:
    parser = remote.parser("cp", "Copy into a sandbox, or out of it.", _EXAMPLES)
    parser.add_argument("-f", "--force", action="store_true", help="write over what is there")
    parser.add_argument("source", metavar="SOURCE", help="PATH, or ID:/PATH")
    parser.add_argument("target", metavar="TARGET", help="PATH, or ID:/PATH")
    return parser

"""``agentd snapshot``: what a daemon keeps of its sandboxes; and what was saved to a path."""

import argparse
import os
import re
from typing import TYPE_CHECKING

from agentd.client.cli import fork, image_cache, remote, streams, table
from agentd.client.cli.parser import Parser, named
from agentd.model.errors import InvalidInput

if TYPE_CHECKING:
    from collections.abc import Iterator

    from agentd.client.embedded import Snapshot
    from agentd.model.api import SnapshotView

_EXAMPLES = """\
examples:
  agentd snapshot take sbx-abcdefghijkl         a daemon's, under an id
  agentd snapshot ls
  agentd create --snapshot snp-0123456789abcdef
  agentd snapshot rm snp-0123456789abcdef
  agentd run --save-snapshot ready -- sh -c 'echo done > state'      a path of yours
  agentd snapshot inspect ready
  agentd run --snapshot ready -- cat state
  agentd snapshot export ready ready.tar        then: agentd image pull oci-archive:ready.tar
"""
_ACTIONS = {
    "take": "keep a daemon's sandbox as it is now",
    "ls": "list what a daemon keeps for you",
    "inspect": "show what it is; of one at a path, that it is whole",
    "export": "write it to FILE as an archive of an OCI image",
    "rm": "delete it",
}
_ID = re.compile(r"snp-[0-9a-f]{16}")


def main(words: list[str]) -> int:
    parser = _parser()
    options = parser.parse_args(words)
    if (options.what is None) is not (options.action == "ls"):
        parser.error("ls takes no name" if options.what else f"{options.action} WHAT is missing")
    if (options.file is None) is (options.action == "export"):
        parser.error(
            "export WHAT FILE: FILE is missing"
            if options.file is None
            else f"{options.action} takes one WHAT, and only export a FILE"
        )
    if options.file == "-" and options.json:
        raise InvalidInput(
            "the archive itself goes to standard output", remediation="leave out --json"
        )
    if options.file == "-":
        streams.check_output()
    if options.action in ("take", "ls") or _is_id(options.what):
        return _of_daemon(options)
    from agentd.sandbox import snapshots

    snapshot = snapshots.load(options.what)
    if options.action == "rm":
        snapshot.delete()
        return remote.tell(options, {"removed": snapshot.path})
    if options.action == "export" and options.file == "-":
        from agentd.sandbox import exports  # late: few need it

        return _print(exports.pieces(snapshot.export))
    if options.action == "export":
        snapshot.export(options.file)
        return remote.tell(options, {"exported": options.file})
    snapshots.verify(snapshot)
    _show(snapshot, as_json=options.json)
    return 0


def _is_id(text: str) -> bool:
    return _ID.fullmatch(text) is not None and not os.path.exists(text)


def _of_daemon(options: argparse.Namespace) -> int:
    with remote.service(options) as service:
        if options.action == "take":
            made = service.sandboxes.snapshot(options.what)
            fork.tell_fidelity(options, "snapshot", made.fidelity)
            return remote.tell(options, made, made.id)
        if options.action == "export":
            from agentd.client import exported  # late: few need it

            pieces = service.snapshots.export(options.what)
            if options.file == "-":
                return _print(pieces)
            exported.write(pieces, options.file)
            return remote.tell(options, {"exported": options.file})
        if options.action == "rm":
            service.snapshots.delete(options.what)
            return remote.tell(options, {"removed": options.what})
        if options.action == "ls":
            found = service.snapshots.list()
            return _tell(options, found, found)
        view = service.snapshots.get(options.what)
        return _tell(options, view, (view,))


def _print(pieces: "Iterator[bytes]") -> int:
    """Write an archive to standard output."""
    for piece in pieces:
        streams.write_all(1, piece)
    return 0


def _tell(options: argparse.Namespace, value: object, found: "tuple[SnapshotView, ...]") -> int:
    from agentd.model.units import readable_size

    rows = [
        (view.id, view.sandbox, view.fidelity, table.ago(view.created), readable_size(view.bytes))
        for view in found
    ]
    return table.tell(options, value, ("ID", "SANDBOX", "KEEPS", "CREATED", "SIZE"), rows)


def _parser() -> Parser:
    parser = Parser(
        prog="agentd snapshot",
        description="Keep a daemon's sandbox, list what it keeps; look at a saved sandbox, and "
        "check that it is whole; or delete it.",
        epilog=_EXAMPLES,
    )
    parser.action(_ACTIONS)
    parser.add_argument(
        "what",
        metavar="WHAT",
        nargs="?",
        type=named,  # "" would be the folder that one stands in
        help="a sandbox to take, a snapshot's id, or its path",
    )
    about = "the archive that export writes; - is standard output"
    parser.add_argument("file", metavar="FILE", nargs="?", help=about)
    remote.daemon_options(parser)
    return parser


def _show(snapshot: "Snapshot", *, as_json: bool) -> None:

    from agentd.model.units import counted, format_size, readable_size

    manifest = snapshot.manifest
    if as_json:
        remote.print_json(manifest)
        return
    facts = {
        "id": manifest.id,
        "backend": f"{manifest.backend} ({manifest.level})",
        "keeps": manifest.fidelity,
        "image": manifest.spec.image,
        "memory": "default"
        if manifest.spec.limits.memory is None
        else format_size(manifest.spec.limits.memory),
        "user": manifest.spec.user or "default",
        "network": ",".join(manifest.spec.egress) or manifest.spec.net,
        "created": manifest.created,
        "agentd": manifest.agentd,
        "size": f"{readable_size(snapshot.size)} in {counted(len(manifest.files), 'file')}, all as "
        f"they were written; {readable_size(image_cache.on_disk(snapshot.path))} on disk",
    }
    for name, value in facts.items():
        print(f"{name:<8} {remote.safe(value)}")

"""``agentd snapshot``: what was saved with ``agentd run --save-snapshot`` or from the SDK."""

from typing import TYPE_CHECKING

from agentd.client.cli import image_cache, remote
from agentd.client.cli.parser import Parser

if TYPE_CHECKING:
    from agentd.client.embedded import Snapshot

_EXAMPLES = """\
examples:
  agentd run --save-snapshot ready -- ./set-up
  agentd snapshot inspect ready
  agentd run --snapshot ready -- ./use
  agentd snapshot rm ready
"""


def main(words: list[str]) -> int:
    options = _parser().parse_args(words)
    from agentd.sandbox import snapshots

    snapshot = snapshots.load(options.path)
    if options.action == "rm":
        snapshot.delete()
        if options.json:
            remote.print_json({"removed": snapshot.path})
        return 0
    snapshots.verify(snapshot)
    _show(snapshot, as_json=options.json)
    return 0


def _parser() -> Parser:
    parser = Parser(
        prog="agentd snapshot",
        description="Look at a saved sandbox, and check that it is whole; or delete it.",
        epilog=_EXAMPLES,
    )
    parser.action({"inspect": "show what it is, and that it is whole", "rm": "delete it"})
    parser.add_argument("path", metavar="PATH")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    return parser


def _show(snapshot: "Snapshot", *, as_json: bool) -> None:

    from agentd.model.units import format_size, readable_size

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
        "created": manifest.created,
        "agentd": manifest.agentd,
        "size": f"{readable_size(snapshot.size)} in {len(manifest.files)} files, all as they were "
        f"written; {readable_size(image_cache.on_disk(snapshot.path))} on disk",
    }
    for name, value in facts.items():
        print(f"{name:<8} {value}")

"""``agentd ls``: the sandboxes of a daemon."""

import argparse

from agentd.client.cli import remote, table

_EXAMPLES = """\
  agentd ls
  agentd ls --label job=7 --json
  agentd ls -q | xargs agentd kill
"""
_PAGE = 500


def main(words: list[str]) -> int:
    options = _parser().parse_args(words)
    labels = remote.labels(options.label)
    from agentd.model.api import SandboxPage, SandboxView

    found: list[SandboxView] = []
    with remote.client(options) as client:
        cursor = None
        while True:
            query = [("label", f"{k}={v}") for k, v in labels.items()]
            query += [("state", options.state)] if options.state else []
            query += [("limit", str(_PAGE)), *([("cursor", cursor)] if cursor else [])]
            page = client.call("GET", "/v1/sandboxes", query=query, into=SandboxPage)
            found += page.sandboxes
            cursor = page.next
            if cursor is None:
                break
    _show(found, options)
    return 0


def _show(found: list, options: argparse.Namespace) -> None:  # type: ignore[type-arg]
    if options.json:
        remote.print_json(found)
    elif options.quiet:
        for view in found:
            print(view.id)
    else:
        rows = [
            (
                view.id,
                view.state,
                f"{view.backend} ({view.level})",
                table.ago(view.created),
                table.until(view.deadline),
                view.principal,
                ",".join(f"{k}={v}" for k, v in view.labels.items()) or "-",
            )
            for view in found
        ]
        table.show(("ID", "STATE", "WALL", "CREATED", "ENDS", "OWNER", "LABELS"), rows)


def _parser() -> argparse.ArgumentParser:
    parser = remote.parser("ls", "List the sandboxes that you may see.", _EXAMPLES)
    parser.add_argument("-q", "--quiet", action="store_true", help="print only the ids")
    parser.add_argument("--state", metavar="STATE", help="only those in this state, such as ready")
    parser.add_argument(
        "--label",
        metavar="KEY=VALUE",
        action="append",
        default=[],
        help="only those with this label",
    )
    return parser

"""``agentd inspect``: all about one sandbox."""

import argparse
import shlex
from typing import TYPE_CHECKING

from agentd.client.cli import remote, table

if TYPE_CHECKING:
    from agentd.model.api import ProcessView, SandboxView

_EXAMPLES = """\
  agentd inspect sbx-abcdefghijkl
  agentd inspect sbx-abcdefghijkl --json | jq .enforcement
"""


def main(words: list[str]) -> int:
    options = _parser().parse_args(words)
    with remote.service(options) as service:
        view, processes = service.sandboxes.get(options.id), service.commands.list(options.id)
    if options.json:
        import msgspec

        remote.print_json({**msgspec.to_builtins(view), "processes": processes})
    else:
        _show(view, processes)
    return 0


def _show(view: "SandboxView", processes: "tuple[ProcessView, ...]") -> None:
    table.facts(
        [
            ("id", view.id),
            ("state", view.state),
            ("wall", f"{view.backend} ({view.level})"),
            ("image", view.image),
            *((("template", view.template),) if view.template else ()),
            *(("package", str(each)) for each in view.packages),
            *((("image digest", view.image_digest),) if view.image_digest else ()),
            ("owner", view.principal),
            ("created", table.ago(view.created)),
            ("ends", table.until(view.deadline)),
            ("workspace", view.workspace),
            ("network", _network(view)),
            *((f"label {key}", value) for key, value in view.labels.items()),
            *((f"uses {key}", value) for key, value in view.usage.items()),
        ]
    )
    print()
    from agentd.client.cli import held

    table.show(held.HEADINGS, held.rows(view.enforcement))
    if processes:
        print()
        show_processes(processes)


def _network(view: "SandboxView") -> str:
    if view.net != "restricted":
        return view.net
    return f"what rules allow: {', '.join(view.egress) or 'nothing'}"


def show_processes(processes: "tuple[ProcessView, ...]") -> None:
    rows = [
        (
            process.id,
            process.state if process.result is None else process.result.cause.message,
            table.ago(process.started),
            sum(process.output.values()),
            shlex.join(process.argv) + (" ..." if process.argv_cut else ""),
        )
        for process in processes
    ]
    table.show(("PROCESS", "STATE", "STARTED", "OUTPUT", "COMMAND"), rows)


def _parser() -> argparse.ArgumentParser:
    parser = remote.parser("inspect", "Show all about one sandbox.", _EXAMPLES)
    parser.add_argument("id", metavar="ID", help=remote.SANDBOX_HELP)
    return parser

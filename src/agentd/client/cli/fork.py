"""``agentd fork``: copies of a sandbox as it is now."""

import argparse

from agentd.client.cli import output, remote

_EXAMPLES = """\
  agentd fork sbx-abcdefghijkl                prints the id of the copy
  agentd fork build --count 8                 eight, a line each: all of them, or none
  box=$(agentd fork build) && agentd exec $box -- make test && agentd kill $box
"""


def main(words: list[str]) -> int:
    options = _parser().parse_args(words)
    from agentd.model.snapshot import MAX_FORKS
    from agentd.model.units import parse_count

    count = parse_count(options.count, "--count", most=MAX_FORKS)
    with remote.service(options) as service:
        made = service.sandboxes.fork(options.id, count)
    tell_fidelity(options, "fork", made[0].fidelity)
    return remote.tell(options, made, "\n".join(view.id for view in made))


def tell_fidelity(options: argparse.Namespace, command: str, fidelity: str) -> None:
    """Say on standard error what was kept; JSON says it itself."""
    kept = "its files and its processes" if fidelity == "memory" else "its files, and no process"
    if not options.json:
        output.say(f"{fidelity}: {kept}", command)


def _parser() -> argparse.ArgumentParser:
    parser = remote.parser(
        "fork",
        "Make copies of a sandbox as it is now, which goes on. What they have of it, its files or "
        "its processes too, is told on standard error.",
        _EXAMPLES,
    )
    parser.add_argument("id", metavar="ID", help=remote.SANDBOX_HELP)
    parser.add_argument(
        "--count", default="1", metavar="N", help="so many, 64 at most (default: 1)"
    )
    return parser

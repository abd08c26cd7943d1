"""``agentd stats``: what a daemon is doing."""

import argparse

from agentd.client.cli import remote, table

_EXAMPLES = """\
  agentd stats
  agentd stats --json | jq .sandboxes
"""


def main(words: list[str]) -> int:
    options = _parser().parse_args(words)
    with remote.service(options) as service:
        version, stats = service.machine.version(), service.machine.stats()
        address = service.url
    import msgspec

    told = {**msgspec.to_builtins(stats), "url": address, "version": version}
    facts = [
        ("daemon", address),
        ("version", version.get("agentd", "unknown")),
        ("sandboxes", stats.sandboxes),
        ("commands that run", stats.processes),
        ("requests that wait", stats.queue),
        *((f"ready: {name}", count) for name, count in stats.pool.items()),
        *((name.replace("_", " "), value) for name, value in stats.totals.items()),
    ]
    return table.tell_facts(options, told, facts)


def _parser() -> argparse.ArgumentParser:
    return remote.parser("stats", "Show what the daemon is doing.", _EXAMPLES)

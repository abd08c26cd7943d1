"""The command that ``run``, ``exec`` and ``shell`` are given, and its environment."""

import argparse
import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from agentd.model.spec import ExecRequest


def env_options(
    parser: "argparse.ArgumentParser | argparse._ArgumentGroup",
    what: str = "a variable for it; without a value, the caller's own",
) -> None:
    parser.add_argument(
        "-e", "--env", metavar="NAME[=VALUE]", action="append", default=[], help=what
    )
    parser.add_argument(
        "--env-file", metavar="FILE", action="append", default=[], help="NAME=value lines"
    )


def environment(options: argparse.Namespace) -> dict[str, str]:
    """Return the variables that the options say. Raises InvalidInput."""
    from agentd.client import build

    env: dict[str, str] = {}
    for path in options.env_file:
        env |= build.parse_env_file(path)
    return env | dict(build.parse_variable(text) for text in options.env)


def request(options: argparse.Namespace, timeout: str | None = None) -> "ExecRequest":
    """Return the command that the options say. Raises InvalidInput."""
    from agentd.client import build

    env, pty = environment(options), None
    if options.tty:
        from agentd.client.cli import terminal

        terminal.require()
        pty = terminal.size()
        env.setdefault("TERM", os.environ.get("TERM", "xterm"))
    return build.exec_request(
        options.command,
        cwd=options.cwd,
        env=env,
        timeout=timeout,
        stdin=options.stdin or options.tty,
        pty=pty,
    )

"""``agentd serve``: the daemon, in the foreground."""

import argparse
import os

from agentd.client.cli.parser import Parser, named
from agentd.model.errors import InvalidInput

_EXAMPLES = """\
examples:
  agentd serve                                     one's own daemon, on a unix socket
  agentd serve --profile server --listen unix:/run/agentd/agentd.sock --listen 127.0.0.1:8443
  agentd serve --config agentd.toml                TLS, keys, quotas: see agentd config show
  agentd serve --listen 127.0.0.1:8080 --insecure  no credential asked, on this machine alone
  agentd serve --capability-digest sha256:9f2c...  under that policy bundle and no other

Then, elsewhere: agentd create; agentd ls; AGENTD_URL=unix:PATH agentd stats

The socket is $XDG_RUNTIME_DIR/agentd/agentd.sock, for root /run/agentd/agentd.sock, and where
neither can be used /tmp/agentd-run-UID/agentd.sock, in $TMPDIR where /tmp is read-only: clients
look in the same places. The state is in $XDG_STATE_HOME/agentd, for root in /var/lib/agentd.
Options stand above the file and the environment; --listen takes the place of all listeners in the
file.

SIGTERM drains: what was asked is answered, sandboxes stay for the next start until their leases
end. A second one ends at once. SIGHUP reads the configuration again.

exit codes: 0 told to end; 2 wrong options or configuration; 125 it could not come up, or not go on;
143 told twice
"""


def main(words: list[str]) -> int:
    options = _parser().parse_args(words)
    from agentd.client import embedded

    return embedded.serve(options.config, os.environ, options.profile, _given(options))


def _given(options: argparse.Namespace) -> "list[tuple[tuple[str, ...], object]]":
    """Return what the command line says, as the configuration has it."""
    given: list[tuple[tuple[str, ...], object]] = []
    if options.listen:
        given.append((("listen",), [{"address": _absolute(where)} for where in options.listen]))
    if options.state:
        given.append((("daemon", "state"), os.path.abspath(options.state)))
    if options.insecure:
        given.append((("daemon", "insecure"), True))
    if options.capability_digest:
        given.append((("policy", "sha256"), _hexadecimal(options.capability_digest)))
    return given


def _hexadecimal(digest: str) -> str:
    """Read a digest as policies' are shown, or its digits alone. Raises InvalidInput."""
    digits = digest.removeprefix("sha256:").lower()
    if len(digits) != 64 or set(digits) - set("0123456789abcdef"):
        raise InvalidInput(
            f"--capability-digest {digest!r} is no SHA-256",
            remediation="write it as sha256: and 64 hexadecimal digits; agentd policy explain "
            "shows a bundle's",
        )
    return digits


def _absolute(where: str) -> str:
    path = where.removeprefix("unix:")
    if path == where or not path or path.startswith(("/", "~", "@")):
        return where
    return f"unix:{os.path.abspath(path)}"


def _parser() -> Parser:
    parser = Parser(
        prog="agentd serve",
        description="Serve sandboxes over HTTP, on a unix socket unless told otherwise.",
        epilog=_EXAMPLES,
    )
    parser.add_argument(
        "--config", type=named, metavar="FILE", help="its configuration (default: the usual)"
    )
    parser.add_argument(
        "--listen",
        metavar="unix:PATH|HOST:PORT",
        action="append",
        default=[],
        help="where clients connect",
    )
    parser.add_argument(
        "--state", type=named, metavar="DIR", help="where it keeps what outlives it"
    )
    parser.add_argument(
        "--profile",
        type=named,
        metavar="NAME",
        help="what lies beneath it all: workstation, server, paranoid",
    )
    parser.add_argument(
        "--capability-digest",
        type=named,
        metavar="DIGEST",
        help="of the policy bundle: with any other it does not start, nor takes it over",
    )
    parser.add_argument(
        "--insecure", action="store_true", help="ask nobody for a credential on TCP; loopback alone"
    )
    return parser

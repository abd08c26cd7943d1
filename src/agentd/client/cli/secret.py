"""``agentd secret``: values that sandboxes use and never have."""

import argparse
import sys
from typing import TYPE_CHECKING

from agentd.client.cli import remote, table
from agentd.client.cli.parser import Parser
from agentd.model.errors import InvalidInput

if TYPE_CHECKING:
    from agentd.model.service import Secrets

_SET_EXAMPLES = """\
  agentd secret set API_TOKEN                  asks for it, without an echo
  agentd secret set API_TOKEN < token.txt      the line that is there
  agentd secret set API_TOKEN --from-env API_TOKEN
"""
_EXAMPLES = f"""\
examples:
{_SET_EXAMPLES}  agentd create --secret API_TOKEN@api.example.com
  agentd secret ls
  agentd secret rm API_TOKEN
"""


def main(words: list[str]) -> int:
    options = _parser().parse_args(words)
    if options.action == "set":
        _check(options)
    with remote.service(options) as service:
        return int(options.run(options, service.secrets))


def _parser() -> Parser:
    parser = Parser(
        prog="agentd secret",
        description="Secrets that a daemon keeps: sandboxes use them at the hosts that they are "
        "created with, and have a placeholder. Nobody reads one back.",
        epilog=_EXAMPLES,
    )
    actions = parser.actions(remote.daemon_options)
    set_ = actions.add("set", "keep one, in place of one of that name", _SET_EXAMPLES, _set)
    set_.add_argument("name", metavar="NAME", help="by which it is asked for")
    # To say why there is none; with a default, as it is not to be missed.
    set_.add_argument("value", nargs="*", default=(), help=argparse.SUPPRESS)
    set_.add_argument("--from-env", metavar="VAR", help="its value is this variable's")
    actions.add("ls", "list yours", "  agentd secret ls\n", _ls)
    remove = actions.add("rm", "forget them", "  agentd secret rm API_TOKEN\n", remote.remove)
    remove.add_argument("names", metavar="NAME", nargs="+", help="of some of yours")
    return parser


def _set(options: argparse.Namespace, secrets: "Secrets") -> int:
    made = secrets.set(options.name, _value(options))
    return remote.tell(options, made, made.name)


def _check(options: argparse.Namespace) -> None:
    """Raises InvalidInput before a daemon is asked; a value is never of the command line, which all
    of the machine reads."""
    from agentd.model.secret import check_secret_name

    if options.value:
        raise InvalidInput(
            f"secret {options.name} is not taken from an argument, which all of the machine reads",
            remediation=f"agentd secret set {options.name} asks for it, or reads standard input; "
            "what was written is in your shell's history: have another issued",
        )
    check_secret_name(options.name)
    if options.from_env is not None:
        from agentd.client import secrets

        secrets.from_env(options.name, options.from_env)


def _value(options: argparse.Namespace) -> str:
    from agentd.client import secrets
    from agentd.model.secret import MAX_VALUE

    if options.from_env is not None:
        return secrets.from_env(options.name, options.from_env)
    if sys.stdin is not None and sys.stdin.isatty():
        import getpass

        try:
            return getpass.getpass(f"{options.name}: ")
        except EOFError:
            return ""
    data = b"" if sys.stdin is None else sys.stdin.buffer.read(MAX_VALUE + 3)
    return secrets.line(data, options.name)


def _ls(options: argparse.Namespace, secrets: "Secrets") -> int:
    found = secrets.list()
    rows = [(view.name, table.ago(view.created), table.ago(view.changed)) for view in found]
    return table.tell(options, found, ("SECRET", "CREATED", "CHANGED"), rows)

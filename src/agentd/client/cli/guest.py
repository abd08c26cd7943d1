"""``agentd guest``: the guest agent as one file, for images of your own."""

from agentd.client.cli.parser import Parser
from agentd.model.errors import InvalidInput

_EXAMPLES = """\
examples:
  agentd guest --out agentd-guest.pyz
  ./agentd-guest.pyz --listen vsock:5000           inside a virtual machine, as its PID 1
"""


def _parser() -> Parser:
    parser = Parser(
        prog="agentd guest",
        description="Write the guest agent as one executable file that needs only Python 3.11.",
        epilog=_EXAMPLES,
    )
    parser.add_argument("--out", metavar="FILE", required=True, help="where to write it")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    return parser


def main(words: list[str]) -> int:
    options = _parser().parse_args(words)
    path = options.out
    from agentd.guest.bundle import build

    try:
        digest = build(path)
    except OSError as error:
        raise InvalidInput(
            f"cannot write {path!r}: {error.strerror}", remediation="give a writable path"
        ) from error
    if options.json:
        from agentd.client.cli import remote

        remote.print_json({"path": path, "sha256": digest})
    else:
        print(f"{path} sha256:{digest}")
    return 0

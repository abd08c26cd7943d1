"""``agentd guest``: the guest agent for machines of your own, with a Python or without."""

from agentd.client.cli import remote, streams
from agentd.client.cli.interrupts import Interrupted, unwinding
from agentd.client.cli.parser import Parser, named
from agentd.model.errors import InvalidInput

_EXAMPLES = """\
examples:
  agentd guest --out agentd-guest.pyz
  ./agentd-guest.pyz --listen vsock:5000           inside a virtual machine, as its PID 1
  agentd guest --out - | ssh machine 'cat > agentd-guest.pyz'
  agentd guest --bundle guest.tar.gz               where there is no Python, nor a libc
  tar -xzf guest.tar.gz -C /opt && /opt/agentd-guest/agentd-guest --listen stdio
"""


def _parser() -> Parser:
    parser = Parser(
        prog="agentd guest",
        description="Write the guest agent: as one executable file that needs only Python 3.11,"
        " or with an interpreter of its own, which needs nothing but Linux on this processor.",
        epilog=_EXAMPLES,
    )
    form = parser.add_mutually_exclusive_group(required=True)
    about = "where to write the file; - is standard output"
    form.add_argument("--out", type=named, metavar="FILE", help=about)
    form.add_argument(
        "--bundle",
        type=named,
        metavar="PATH",
        help="where to write agent and interpreter: a file that ends in .tar, .tar.gz or .tgz,"
        " or a new directory",
    )
    remote.json_option(parser)
    return parser


def main(words: list[str]) -> int:
    options = _parser().parse_args(words)
    if options.out == "-":
        return _print(json=options.json)
    try:
        told = _bundle(options.bundle) if options.out is None else _file(options.out)
    except Interrupted as interrupted:
        return 128 + interrupted.number
    return remote.tell(options, told, f"{told['path']} sha256:{told['sha256']}")


def _print(*, json: bool) -> int:
    from agentd.guest.bundle import pack, sources

    if json:
        raise InvalidInput(
            "the agent itself goes to standard output", remediation="leave out --json"
        )
    streams.check_output()
    streams.write_all(1, pack(sources()))
    return 0


def _file(path: str) -> dict[str, object]:
    from agentd.guest.bundle import build

    try:
        return {"path": path, "sha256": build(path)}
    except OSError as error:
        raise InvalidInput(
            f"cannot write {path!r}: {error.strerror}", remediation="give a writable path"
        ) from error


def _bundle(path: str) -> dict[str, object]:
    if path == "-":
        raise InvalidInput(
            "a bundle has its form from its name, and - has none",
            remediation="name a file, as guest.tar.gz",
        )
    from agentd.image.runtime import export

    with unwinding():  # what is made beside the path goes
        made = export.write(path)
    return {"path": made.path, "sha256": made.digest, "python": made.version, "bytes": made.size}

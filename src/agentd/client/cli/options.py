"""``agentd run``'s options: parsed here, judged by ``client.build``."""

import argparse
from typing import TYPE_CHECKING, cast

from agentd.client.cli import remote
from agentd.client.cli.command import env_options
from agentd.client.cli.parser import AddedUp, Parser, named
from agentd.model.errors import InvalidInput

if TYPE_CHECKING:
    from agentd.model.options import SandboxOptions

_EXAMPLES = """\
examples:
  agentd run -- python3 -c 'print(6*7)'
  agentd run --json --timeout 2s -- sh -c 'echo out; exit 3'
  tar c src | agentd run -i -- sh -c 'tar x && find . -name "*.py" | wc -l'
  agentd run -t -- bash
  agentd run -w .:cow -- sh -c 'rm -rf *; ls'      the host's files stay as they were
  agentd run --mount $PWD:$PWD:rw -C $PWD -- .venv/bin/pytest      a project at its own path
  agentd run --net pypi -- pip download six        PyPI, and nothing else
  agentd run --with numpy,pandas -- python3 -c 'import pandas'
  agentd run --volume data:/data -- ls /data       a volume, made by agentd volume create
  agentd run --user root --writable -- sh -c 'mkdir /app; echo x >> /etc/hosts'
  agentd run --isolation process -w . -- make -n   no namespaces, no privileges needed
  agentd run --backend oci --runtime crun -- id    a wall that crun builds
  agentd run --template py -- python -V            as the configuration says of py
  agentd run --save-snapshot ready -- sh -c 'echo done > state'
  agentd run --snapshot ready -- cat state         as often as you like

exit codes:
  the command's own; 128+n ended by signal n; 124 timed out; 125 agentd failed;
  126 not executable; 127 not found; 2 wrong options

Ctrl-Z pauses the sandbox along with agentd run, where its wall can; fg resumes both.
"""


def run_parser() -> Parser:
    parser = Parser(
        prog="agentd run",
        usage="agentd run [options] -- COMMAND [ARG...]",
        description="Run a command in a fresh sandbox that is destroyed afterwards: with --image "
        "and without a command, what the image runs.",
        epilog=_EXAMPLES,
    )
    _where_options(parser)
    wall_options(parser)
    _kept_options(parser)
    _command_options(parser)
    limit_options(parser).add_argument("--timeout", metavar="TIME", help="as 250ms, 2s, 10m")
    parser.add_argument("command", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    return parser


def parse_run(words: list[str]) -> argparse.Namespace:
    """Parse the words of ``agentd run``. Raises InvalidInput; exits 0 on --help."""
    head, dashes, tail = remote.split(words)
    options = run_parser().parse_args(head)
    # ``run sh -c x -- y``: the command began before the dashes, so they belong to it.
    options.command = options.command + dashes + tail if options.command else tail
    if not (options.command or options.image or options.template):
        raise InvalidInput("no command given", remediation="write it after --: agentd run -- ls")
    if options.json and options.tty:
        raise InvalidInput(
            "--json and --tty cannot go together",
            remediation="drop one: a terminal is not captured",
        )
    remote.check_where(options)
    if options.url and (options.snapshot or options.save_snapshot):
        raise InvalidInput(
            "a daemon keeps its snapshots itself",
            remediation="use agentd create --snapshot ID, or --embedded",
        )
    if options.apply and not (options.workspace or "").endswith(":cow"):
        raise InvalidInput(
            "--apply needs a copy-on-write workspace", remediation="add --workspace PATH:cow"
        )
    return options


def sandbox_options(options: argparse.Namespace) -> "SandboxOptions":
    """Return what ``wall_options`` and ``limit_options`` say; variables are ``env_options``'s."""
    from agentd.model.options import SandboxOptions

    names = SandboxOptions.__annotations__.keys() - {"env"}
    given = {n: v for n, v in vars(options).items() if n in names and v is not None}
    if given.get("net") == "":
        given["net"] = []  # rules, of which there are none
    return cast("SandboxOptions", given)


def _where_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("where it runs")
    group.add_argument(
        "--url",
        metavar="URL",
        help="this daemon, as unix:PATH or https://HOST:PORT (default: AGENTD_URL, or the one at "
        "the usual socket; in this process where there is none)",
    )
    group.add_argument("--embedded", action="store_true", help="in this process, without a daemon")
    group.add_argument(
        "-v", "--verbose", action="store_true", help="say where it runs, and what its wall holds"
    )


def _kept_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("what is kept")
    group.add_argument(
        "--apply",
        action="store_true",
        help="write a cow workspace's changes back after exit code 0",
    )
    group.add_argument(
        "--snapshot",
        type=named,
        metavar="PATH",
        help="start where the sandbox that was saved there stood; its limits and image hold",
    )
    group.add_argument(
        "--save-snapshot",
        type=named,
        metavar="PATH",
        help="after exit code 0 save the sandbox there: files, and a machine's processes",
    )


def wall_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("the wall")
    group.add_argument(
        "--isolation",
        metavar="LEVEL",
        help="the least that will do: none, process, namespace, userspace-kernel, microvm "
        "(default: namespace)",
    )
    group.add_argument(
        "--backend", metavar="NAME", help="this wall and no other; see agentd doctor"
    )
    group.add_argument(
        "--runtime",
        metavar="NAME",
        help="the OCI runtime that builds it: runc or crun of oci, runsc or runsc-kvm of gvisor",
    )
    group.add_argument(
        "-w",
        "--workspace",
        metavar="PATH[:ro|rw|cow]",
        help="a host directory as /workspace (default rw); cow leaves the host's files alone and "
        "lists the changes",
    )
    group.add_argument(
        "--mount",
        dest="mounts",
        metavar="SRC:DST[:ro|rw]",
        action="append",
        default=[],
        help="show a host path inside, anywhere beside the programs (default ro)",
    )
    group.add_argument(
        "--volume",
        dest="volumes",
        metavar="NAME:DST[:ro|rw]",
        action="append",
        default=[],
        help="have a volume inside, which outlives the sandbox: agentd volume (default rw)",
    )
    group.add_argument(
        "--with",
        dest="packages",
        type=_packages,
        action="extend",
        metavar="PACKAGE,...",
        help="have packages of PyPI to import, as numpy,pandas>=2: wheels alone",
    )
    group.add_argument(
        "--image", metavar="NAME", help="an OCI image, or what a virtual machine boots"
    )
    group.add_argument(
        "--template",
        type=named,
        metavar="NAME",
        help="as the configuration says: image, wall, what it starts",
    )
    group.add_argument(
        "--net",
        action=AddedUp,
        metavar="none|host|RULES",
        help="none (default), host, or what it may reach, as pypi,api.example.com,10.1.2.3:5432; "
        "with a daemon 'ask public' has somebody asked first; "
        "'' is rules too: nothing, until agentd net set gives others; with record:FILE what is "
        "asked is written there, and replay:FILE answers from that and reaches nothing",
    )
    group.add_argument(
        "--secret",
        dest="secrets",
        metavar="NAME[=SOURCE]@HOST",
        action="append",
        default=[],
        help="use a secret there and never have it: the variable NAME stands in for it; SOURCE is "
        "env:VAR, file:PATH or command:CMD, else agentd secret",
    )
    group.add_argument("--user", metavar="root|sandbox|UID", help="who the command runs as inside")
    group.add_argument(
        "--writable",
        action="store_true",
        help="have all of the root written to, /etc and /usr too; the host's files stay",
    )


def _packages(text: str) -> list[str]:
    from agentd.model.packages import packages_of

    return list(packages_of(text))


def _command_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("the command")
    group.add_argument("-C", "--cwd", metavar="DIR", help="its working directory, as seen inside")
    env_options(group)
    group.add_argument("-i", "--stdin", action="store_true", help="pass standard input")
    group.add_argument("-t", "--tty", action="store_true", help="give it a terminal (implies -i)")
    group.add_argument(
        "--json", action="store_true", help="capture the output and print one JSON object"
    )


def limit_options(parser: argparse.ArgumentParser) -> "argparse._ArgumentGroup":
    group = parser.add_argument_group("limits")
    group.add_argument("--memory", metavar="SIZE", help="as 128M, 2G; of all its processes")
    group.add_argument("--cpus", metavar="N", help="cores, as 0.5")
    group.add_argument("--pids", metavar="N", help="processes and threads")
    group.add_argument("--disk", metavar="SIZE", help="bytes written outside mounts")
    group.add_argument("--open-files", metavar="N", help="descriptors a process")
    group.add_argument("--output", metavar="SIZE", help="bytes of stdout and of stderr, each")
    group.add_argument("--net-bytes", metavar="SIZE", help="over a network of rules, both ways")
    group.add_argument("--net-rate", metavar="SIZE", help="of these a second")
    return group

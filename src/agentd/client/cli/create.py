"""``agentd create``: a sandbox that a daemon keeps."""

import argparse

from agentd.client.cli import command, remote
from agentd.client.cli.options import limit_options, sandbox_options, wall_options
from agentd.client.cli.parser import named
from agentd.model.errors import InvalidInput

_EXAMPLES = """\
  agentd create                              prints its id
  agentd create --timeout 30s --ttl 1h --label job=7
  agentd create --name build                 then: agentd exec build -- make
  box=$(agentd create) && agentd exec $box -- uname -a && agentd kill $box
  agentd create --idle-timeout 10m           paused when unused, resumed by the next request
  agentd create --volume data:/data          a volume, made by agentd volume create
  agentd create --net ''                     reaches nothing, until agentd net set
  agentd create --template py                as the daemon's configuration says of py
  agentd create --isolation microvm --json
  agentd create --snapshot snp-0123456789abcdef
"""


def main(words: list[str]) -> int:
    options = _parser().parse_args(words)
    from agentd.client import build
    from agentd.client.cli import cassettes, held, slow

    files = cassettes.of(options)
    if files.record:
        raise InvalidInput(
            "nobody would be here to write the cassette when the sandbox ends",
            remediation="say record without a file, and agentd net cassette SANDBOX > FILE later",
        )
    wanted = sandbox_options(options)
    wanted["env"] = command.environment(options)
    body = build.sandbox_body(
        snapshot=options.snapshot,
        template=options.template,
        name=options.name,
        labels=remote.labels(options.label),
        ttl=options.ttl,
        wait=options.wait,
        idle_timeout=options.idle_timeout,
        on_idle=options.on_idle,
        **wanted,
    )
    with remote.service(options) as service, slow.told("create", service.url, options):
        view = service.sandboxes.create(body)
        try:
            files.play(service.network, view.id)
        except BaseException:
            service.sandboxes.kill(view.id)
            raise
    held.tell(view.enforcement, "create", verbose=options.verbose, quiet=options.json)
    return remote.tell(options, view, view.id)


def _parser() -> argparse.ArgumentParser:
    parser = remote.parser(
        "create", "Make a sandbox that goes on until it is killed, or its lease ends.", _EXAMPLES
    )
    parser.add_argument(
        "-v", "--verbose", action="store_true", help="show what its wall holds, on stderr"
    )
    group = parser.add_argument_group("the sandbox")
    group.add_argument("--name", type=named, metavar="NAME", help="to find it by, as by its id")
    group.add_argument(
        "--wait", type=named, metavar="TIME", help="for room in your quota, at most so long"
    )
    group.add_argument("--ttl", metavar="TIME", help="until it is ended unless renewed, as 10m")
    group.add_argument(
        "--idle-timeout", metavar="TIME", help="unused for so long, as 10m, it is paused or ended"
    )
    group.add_argument(
        "--on-idle",
        choices=("pause", "end"),
        help="pause, which is usual: the next request resumes it; or end",
    )
    group.add_argument(
        "--label", metavar="KEY=VALUE", action="append", default=[], help="to find it by"
    )
    group.add_argument("--snapshot", type=named, metavar="ID", help="as that sandbox was")
    command.env_options(group, "a variable of all its commands")
    wall_options(parser)
    limit_options(parser).add_argument("--timeout", metavar="TIME", help="of each command, as 2s")
    return parser

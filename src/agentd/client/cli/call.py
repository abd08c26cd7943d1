"""``agentd call``: a capability, by a daemon where there is one."""

import argparse
import json
import sys
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

from agentd.client.cli import output, params, place, remote
from agentd.client.cli.options import limit_options, sandbox_options, wall_options
from agentd.client.cli.parser import Parser, named
from agentd.model.characters import Texts
from agentd.model.errors import AgentdError, InvalidInput

if TYPE_CHECKING:
    from agentd.client.http.address import Address
    from agentd.model.api import CallBody, CallView

_EXAMPLES = """\
  agentd call shell.exec.v1 --params '{"command":"uname","args":["-r"]}'
  agentd call fs.read.v1 --sandbox sbx-abcdefghijkl --params '{"path":"a.txt"}'
  agentd call python.exec.v1 --params '{"code":"x=1\\nx+1"}'
  agentd call --request signed.json            as agentd sign wrote it; for a daemon
  agentd call python.exec.v1 --sandbox $box --keep --params @params.json --json | jq .commands
  agentd call shell.exec.v1 --params @params.json --json | jq .receipt

It prints the value, which is JSON; with --json all of the answer: decision, wall, receipt, value.
agentd capability show NAME lists the parameters.

exit codes:
  0 it was done; 1 the call failed; 2 wrong options or parameters; 125 it was refused
"""
_FAILED = 1


def main(words: list[str]) -> int:
    words, spelled = params.renamed(words, "call")
    options = _parser().parse_args(words)
    if options.more:
        raise InvalidInput(
            f"{options.more[0]} stands behind the capability",
            remediation="""its parameters are --params '{"path": "a.txt"}'""",
        )
    remote.check_where(options)
    body = _request(options, spelled)
    where = _daemon(options)
    if options.verbose:
        output.say(f"via {where or 'this process'}", "call")
    try:
        view = _call(where, body, options)
    except AgentdError as error:
        from agentd.model.capability import CallFailed

        if error.code in ("not_found", "too_large") or isinstance(error, CallFailed):
            output.say(str(error), "call")
            return _FAILED
        raise
    from agentd.client.cli import held

    held.tell(view.enforcement, "call", verbose=options.verbose, quiet=options.json)
    shown: Any = view if options.json else view.value
    if options.json or not sys.stdout.isatty():
        remote.print_json(shown)
    else:
        print(json.dumps(view.value, indent=2, ensure_ascii=True))
    return 0 if view.status == "ok" else _FAILED


def _call(
    where: "Address | None", body: "CallBody | bytes", options: argparse.Namespace
) -> "CallView":
    shown = _Shown() if options.follow else None
    emit = None if shown is None else shown.take
    # What comes ahead of the answer says enough of a daemon.
    silent = shown is not None and where is not None
    waits = nullcontext() if silent else place.making(where, "call", options)
    try:
        with place.service(where) as service, waits:
            if isinstance(body, bytes):
                return service.capabilities.request(body, emit=emit)
            return service.capabilities.call(
                body.capability,
                body.parameters,
                sandbox=body.sandbox,
                create=body.create,
                bundle=body.bundle,
                keep=body.keep,
                emit=emit,
            )
    finally:
        if shown is not None:
            shown.end()


class _Shown:
    """What comes ahead of the answer, on stderr."""

    def __init__(self) -> None:
        self._texts = Texts()

    def take(self, kind: str, data: bytes) -> None:
        if sys.stderr.isatty():
            self._write(self._texts.feed(kind, data))
        else:
            sys.stderr.buffer.write(data)
            sys.stderr.flush()

    def end(self) -> None:
        for _, text in self._texts.rest():
            self._write(text)

    def _write(self, text: str) -> None:
        """Write it; nothing of the sandbox's reaches a terminal as control codes."""
        sys.stderr.write("".join(c if c in "\n\t" else remote.safe(c) for c in text))
        sys.stderr.flush()


def _daemon(options: argparse.Namespace) -> "Address | None":
    from agentd.client.http import address

    if options.embedded:
        return None
    return address.given(options.url) or address.default()


def _request(options: argparse.Namespace, spelled: str) -> "CallBody | bytes":
    """Raises InvalidInput. A whole request is sent as it stands: what is signed must not change."""
    if options.request is not None:
        if options.name is not None or options.params is not None:
            raise InvalidInput(
                "--request is the whole request", remediation=f"leave out the name and {spelled}"
            )
        own = {n: getattr(options, n) for n in ("template", "sandbox", "bundle", "keep")}
        for name, value in {**sandbox_options(options), **own}.items():
            if value:
                raise InvalidInput(
                    f"--request is the whole request, and {name} is given beside it",
                    remediation=f"write {name} into the request, or leave --request out",
                )
        raw = params.read(options.request)
        params.parsed(raw, "the request")
        return raw
    if options.name is None:
        raise InvalidInput("no capability is named", remediation="agentd capability ls lists them")
    _check_place(options)
    from agentd.client import build
    from agentd.model.api import CallBody

    return CallBody(
        capability=options.name,
        parameters=params.parsed(params.text(options.params), spelled),
        sandbox=options.sandbox,
        create=build.sandbox_body(template=options.template, **sandbox_options(options)),
        bundle=options.bundle,
        keep=options.keep,
    )


def _check_place(options: argparse.Namespace) -> None:
    """Raises InvalidInput for an option that means nothing without another, or beside it."""
    if options.keep and options.sandbox is None:
        raise InvalidInput(
            "--keep is given without --sandbox",
            remediation="name the sandbox to call it in: one made for the call ends with it",
        )
    making = {**sandbox_options(options), "template": options.template}
    for name, value in making.items() if options.sandbox is not None else ():
        if value or (name == "net" and value is not None):
            option = {"mounts": "mount", "volumes": "volume", "secrets": "secret"}.get(name, name)
            option = {"packages": "with"}.get(option, option).replace("_", "-")
            raise InvalidInput(
                f"--{option} says how to make a sandbox, and --sandbox names one that is there",
                remediation="leave out one of the two",
            )


def _parser() -> Parser:
    parser = Parser(
        prog="agentd call",
        usage="agentd call [options] NAME --params PARAMETERS",
        description="Call a capability: what a policy allows, with a signed receipt of it.",
        epilog=f"examples:\n{_EXAMPLES}",
    )
    parser.add_argument("name", metavar="NAME", nargs="?", help="as fs.read.v1")
    # What is meant for parameters: to say how they are given.
    parser.add_argument("more", nargs="*", default=(), help=argparse.SUPPRESS)
    params.add(parser, "its own, a JSON object; @FILE or @- reads them")
    parser.add_argument(
        "--sandbox", type=named, metavar="ID", help="in this one (default: one made for it)"
    )
    parser.add_argument(
        "--request", type=named, metavar="FILE", help="a whole request, signed or not"
    )
    parser.add_argument(
        "--bundle", type=named, metavar="DIGEST", help="refuse under any other policy"
    )
    parser.add_argument(
        "--keep",
        action="store_true",
        help="let its commands stay for agentd logs and attach; with --sandbox",
    )
    parser.add_argument("--follow", action="store_true", help="its output as it comes, on stderr")
    parser.add_argument(
        "-v", "--verbose", action="store_true", help="say where it ran, and what its wall held"
    )
    parser.add_argument(
        "--url", metavar="URL", help="the daemon (default: AGENTD_URL, or the usual socket)"
    )
    parser.add_argument("--embedded", action="store_true", help="in this process, without a daemon")
    wall_options(parser)
    limit_options(parser).add_argument("--timeout", metavar="TIME", help="as 250ms, 2s, 10m")
    return parser

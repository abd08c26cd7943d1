"""``agentd net``: what sandboxes may reach, and what they did."""

import argparse
import sys
import time
from typing import TYPE_CHECKING

from agentd.client.cli import remote, table
from agentd.client.cli.parser import AddedUp, Parser
from agentd.model.errors import InvalidInput, NotFound, SandboxEnded

if TYPE_CHECKING:
    from agentd.model.network import ConnectionPage, ConnectionView, NetworkView

_EXAMPLES = """\
examples:
  agentd net presets                              what each of them opens
  agentd net explain https://pypi.org/simple --net pypi,npm
  agentd net explain db.internal:5432 build       of a daemon's sandbox
  agentd net ls build                             what it connected to, and was refused
  agentd net set build pypi,api.example.com       from now on; '' lets it reach nothing
  agentd net watch build
  agentd net cassette build > tape.jsonl          of one made with --net record,api.example.com
"""
REFUSED = 1
_REACHES = {"host": "all that this machine does", "none": "nothing"}
_CASSETTE = {"": "", "record": ", and recorded", "replay": ", and answered from the cassette"}
_LOOK_SECONDS = 1.0


def main(words: list[str]) -> int:
    return _parser().run(words)


def _parser() -> Parser:
    parser = Parser(
        prog="agentd net",
        description="The network of sandboxes: which rules hold, and what came of them.",
        epilog=_EXAMPLES,
    )
    actions = parser.actions(remote.json_option)
    actions.add("presets", "list the presets", "  agentd net presets\n", _presets)
    explain = actions.add(
        "explain",
        "would this be allowed, and by which rule? 1 where not, or where somebody is asked",
        "  agentd net explain https://pypi.org/simple --net pypi\n"
        "  agentd net explain https://example.com --net 'pypi,ask public'\n"
        "  agentd net explain 10.1.2.3:5432 sbx-abcdefghijkl\n"
        "  agentd net explain 'POST https://github.com/a/b' --net github-read\n",
        _explain,
    )
    explain.add_argument("target", metavar="[METHOD ]URL|HOST:PORT", help="what would be asked for")
    explain.add_argument(
        "id", metavar="SANDBOX", nargs="?", help="by the rules of this one, its id or name"
    )
    explain.add_argument(
        "--net", action=AddedUp, metavar="RULES", help="by these, as agentd run takes them"
    )
    about = "list the last connections of one, and what it was refused"
    ls = actions.add("ls", about, "  agentd net ls sbx-abcdefghijkl\n", _ls)
    ls.add_argument("id", metavar="SANDBOX", help=remote.SANDBOX_HELP)
    set_ = actions.add(
        "set",
        "let other rules hold in one that was made with rules",
        "  agentd net set sbx-abcdefghijkl pypi,npm\n"
        "  agentd net set sbx-abcdefghijkl ''              nothing any more\n",
        _set,
    )
    set_.add_argument("id", metavar="SANDBOX", help=remote.SANDBOX_HELP)
    set_.add_argument("rules", metavar="RULES", help="as pypi,api.example.com; '' is none")
    cassette = actions.add(
        "cassette",
        "print what one with record asked; or put in what one with replay answers from",
        "  agentd net cassette sbx-abcdefghijkl > tape.jsonl\n"
        "  agentd net cassette sbx-abcdefghijkl --put tape.jsonl      - reads standard input\n",
        _cassette,
    )
    cassette.add_argument("id", metavar="SANDBOX", help=remote.SANDBOX_HELP)
    cassette.add_argument("--put", metavar="FILE", help="from its beginning, in place of another")
    about, example = (
        "show connections as they come, until Ctrl-C or its end",
        "  agentd net watch build\n",
    )
    watch = actions.add("watch", about, example, _watch)
    watch.add_argument("id", metavar="SANDBOX", help=remote.SANDBOX_HELP)
    for each in (explain, ls, set_, cassette, watch):
        each.add_argument("--url", metavar="URL", help=remote.URL_HELP)
    return parser


def _presets(options: argparse.Namespace) -> int:
    from agentd.egress.compile import preset
    from agentd.model.egress import PRESETS

    found = [preset(name) for name in PRESETS]
    rows = [(each.name, each.version, each.about, " ".join(each.rules)) for each in found]
    return table.tell(options, found, ("PRESET", "VERSION", "WHAT", "OPENS"), rows)


def _explain(options: argparse.Namespace) -> int:
    from agentd.egress.compile import table_of
    from agentd.egress.explain import explain
    from agentd.egress.table import EgressTable
    from agentd.model.egress import cassette

    if (options.net is None) == (options.id is None):
        both = "" if options.net is None else ", those of --net or the sandbox's"
        raise InvalidInput(f"by which rules{both}?", remediation="give --net RULES, or a sandbox")
    if options.net is not None:
        from agentd.egress.compile import compile_table

        wire = compile_table(_rules(options.net))
    else:
        view = _rules_of(options)
        own = dict.fromkeys(view.own_hosts, ("", 0))  # where they lead is not told
        wire = {**table_of(view.rules, own), "cassette": cassette(view.egress)}
        wire["terminated"] = view.terminated
    rules = EgressTable(wire)
    found = explain(rules, options.target)
    secret = ", and read for a secret" if rules.is_terminated(found.host, found.port) else ""
    allowed = f"allowed by {found.rule}{secret}{_CASSETTE[found.cassette]}"
    how = allowed if found.allowed else f"refused: {found.reason}"
    how = f"asked about, by {found.rule}" if found.ask else how
    what = f"{found.request} at " if found.request else ""
    host = f"[{found.host}]" if ":" in found.host else found.host
    remote.tell(options, found, f"{what}{host}:{found.port} is {how}")
    return 0 if found.allowed else REFUSED


def _rules_of(options: argparse.Namespace) -> "NetworkView":
    with remote.service(options) as service:
        view = service.network.get(options.id)
    if view.net != "restricted":
        raise InvalidInput(
            f"{options.id} has the network {view.net}, and no rules",
            remediation="ask of one that was made with rules, as --net pypi",
        )
    return view


def _rules(text: str) -> tuple[str, ...]:
    """Return the rules of a text with commas; none of an empty one. Raises InvalidInput."""
    from agentd.model.egress import network

    kind, rules = network(text if text.strip() else [])
    if kind != "restricted":
        raise InvalidInput(
            f"{kind!r} is no list of rules",
            cause=f"with it a sandbox reaches {_REACHES[kind]}",
            remediation="write rules, as pypi,api.example.com",
        )
    return rules


def _ls(options: argparse.Namespace) -> int:
    with remote.service(options) as service:
        page = service.network.connections(options.id)
    headings = ("HOST", "ADDRESS", "PORT", "DECISION", "BY", "SENT", "RECEIVED", "MS")
    table.tell(options, page, headings, [_row(each) for each in page.connections])
    if (lost := page.totals.get("lost")) and not options.json:
        print(f"agentd net: {lost} came too fast to be listed", file=sys.stderr)
    return 0


def _row(each: "ConnectionView") -> tuple[object, ...]:
    port = "dns" if each.port is None else each.port  # it came no further than its name
    decision = "allowed" if each.allowed else "refused" if each.ended else "asked"
    ms = f"{each.ms:.0f}" if each.ended and each.allowed else "-"
    by = each.reason or each.rule
    if each.allowed and each.reason and each.rule:
        by = f"{each.rule} ({each.reason})"  # which let it through, and what it ended of
    host = each.name or "-"
    if each.method:
        host, decision = f"{each.method} {host}{each.path}", f"{decision} {each.status}"
    # Where a name led is known once it was dialled: before, it has one for this sandbox alone.
    address = each.address if each.allowed or not each.name else ""
    return host, address or "-", port, decision, by, each.sent, each.received, ms


def _set(options: argparse.Namespace) -> int:
    rules = _rules(options.rules)
    with remote.service(options) as service:
        view = service.network.set(options.id, rules)
    return remote.tell(options, view, remote.safe(", ".join(view.egress) or "nothing"))


def _cassette(options: argparse.Namespace) -> int:
    from agentd.client.cli import streams

    put = None if options.put is None else _put(options.put)
    with remote.service(options) as service:
        if put is None:
            streams.write_all(1, service.network.cassette(options.id))
        else:
            service.network.play(options.id, put)
            remote.tell(options, {"sandbox": options.id, "put": options.put})
    return 0


def _put(path: str) -> bytes:
    from agentd.client import cassettes
    from agentd.client.cli import params
    from agentd.model.cassette import MAX_CASSETTE

    if path == "-":  # what it holds the service looks at
        return params.read(path, most=MAX_CASSETTE + 1)
    return cassettes.read(path)


def _watch(options: argparse.Namespace) -> int:
    with remote.service(options) as service:
        page = service.network.connections(options.id)
        newest = _newest(page)
        while True:
            for each in page.connections:
                _tell(each, options)
            sys.stdout.flush()
            time.sleep(_LOOK_SECONDS)
            before = page
            try:
                page = service.network.connections(options.id, page.next)
            except (NotFound, SandboxEnded):
                return 0
            _tell_lost(page, before, newest)
            newest = max(newest, _newest(page))


def _newest(page: "ConnectionPage") -> int:
    return max((each.n for each in page.connections), default=0)


def _tell_lost(page: "ConnectionPage", before: "ConnectionPage", newest: int) -> None:
    """Tell how many came since ``before`` that are not in the page: it has the last thousand, and
    they are numbered. ``newest`` is the last that was there before it."""
    came = sum(each.n > newest for each in page.connections)
    lost = max(0, _newest(page) - newest - came)
    lost += max(0, page.totals.get("lost", 0) - before.totals.get("lost", 0))
    if lost:
        print(f"agentd net: {lost} came too fast to be listed", file=sys.stderr, flush=True)


def _tell(each: "ConnectionView", options: argparse.Namespace) -> None:
    if options.json:
        sys.stdout.buffer.write(remote.json_line(each))
        return
    host, address, port, decision, by, sent, received, _ = _row(each)
    done = f"  sent {sent}, received {received}" if each.allowed and each.ended else ""
    where = f"{host if host != '-' else address}:{port}" if each.port is not None else host
    where = str(host) if each.method else where
    print(f"{decision:8} {remote.safe(where):40} {remote.safe(by)}{done}".rstrip())

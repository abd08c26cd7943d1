"""``agentd print-seccomp``: the filter of system calls that a sandbox's commands run under."""

from typing import TYPE_CHECKING

from agentd.client.cli import remote, table
from agentd.client.cli.parser import Parser, named
from agentd.model.isolation import IsolationLevel

if TYPE_CHECKING:
    from agentd.client.embedded import Profile

_EXAMPLES = """\
examples:
  agentd print-seccomp
  agentd print-seccomp shell.exec.v1
  agentd print-seccomp --level process --net host
  agentd print-seccomp --rw
  agentd print-seccomp --json | jq -r '.rules[] | .why'
  agentd print-seccomp --asm | less

A capability's needs say which level is the least that will do, and whether it has a network; more
can be asked for, and then --level says what holds. The filter of the process level is another
where agentd runs as an ordinary user.
"""


def main(words: list[str]) -> int:
    options = _parser().parse_intermixed_args(words)
    level = IsolationLevel.parse(options.level) if options.level else None
    from agentd.client import embedded

    profile = embedded.seccomp_profile(options.capability, level, options.net, rw=options.rw)
    if options.asm:
        print("\n".join(embedded.seccomp_assembly(profile)))
    elif options.json:
        remote.print_json(profile)
    else:
        _show(profile)
    return 0


def _parser() -> Parser:
    parser = Parser(
        prog="agentd print-seccomp",
        description="Print the filter of system calls that is in force for a level's sandboxes, or "
        "for those of a capability: every rule with its reason.",
        epilog=_EXAMPLES,
    )
    parser.add_argument("capability", metavar="CAPABILITY", nargs="?", help="as shell.exec.v1")
    parser.add_argument(
        "--level",
        type=named,
        metavar="process|namespace",
        help="default: the capability's, or namespace",
    )
    parser.add_argument(
        "--net", choices=("none", "host"), help="default: the capability's, or none"
    )
    parser.add_argument(
        "--rw", action="store_true", help="of sandboxes that a folder is mounted into read-write"
    )
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="print one JSON object")
    form.add_argument("--asm", action="store_true", help="print the compiled program, disassembled")
    return parser


def _show(profile: "Profile") -> None:
    from itertools import groupby

    asked = f"level {profile.level}, network {profile.net}"
    asked += ", a folder mounted rw" if profile.rw else ""
    table.facts(
        [
            ("in force for", f"{profile.capability}, at {asked}" if profile.capability else asked),
            (
                "filter",
                f"{profile.label}, {profile.instructions} instructions for {profile.machine}",
            ),
            ("architecture", profile.architecture),
            ("unknown calls", f"fail with {profile.unknown}, those of future kernels too"),
            ("the rest", "what no rule names is allowed"),
        ]
    )
    for group, rules in groupby(profile.rules, lambda rule: rule.group):
        table.paragraph(f"\n{group}", "bold")
        for rule in rules:
            when = f" when {rule.when}" if rule.when else ""
            calls = table.Marked(" ".join(rule.calls), "cyan")
            table.indented((calls, table.Marked(f"{when}: {rule.errno}", "")), 2)
            table.indented((table.Marked(rule.why, "dim"),), 4)

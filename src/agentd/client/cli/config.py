"""``agentd config``: what is wrong with the daemon's configuration, and what holds."""

from typing import TYPE_CHECKING

from agentd.client.cli import remote
from agentd.client.cli.parser import Parser, named

if TYPE_CHECKING:
    from collections.abc import Sequence

    from agentd.daemon.config import Problem

_EXAMPLES = """\
examples:
  agentd config check
  agentd config check agentd.toml --json
  agentd config show                         every setting, and what said so
  AGENTD_LOG__LEVEL=debug agentd config show | grep log

A file starts from a profile, profile = "workstation", "server" or "paranoid"; variables such as
AGENTD_LEASES__DEFAULT=5m stand above the file. Without PATH it is AGENTD_CONFIG's, the user's
agentd/agentd.toml or /etc/agentd/agentd.toml.

exit codes: 0 all is well, but for warnings; 1 there are problems; 2 wrong options
"""
FOUND_PROBLEMS = 1


def main(words: list[str]) -> int:
    options = _parser().parse_intermixed_args(words)
    from agentd.client import embedded

    path, found = embedded.read_config(options.path)
    if options.action == "check":
        return _check(path, found.problems, found.warnings, as_json=options.json)
    return remote.tell(options, found.plain(), found.text().removesuffix("\n"))


def _parser() -> Parser:
    parser = Parser(
        prog="agentd config",
        description="Check the daemon's configuration, or show what holds.",
        epilog=_EXAMPLES,
    )
    parser.action({"check": "say what is wrong with it", "show": "print every setting"})
    parser.add_argument(
        "path", type=named, metavar="PATH", nargs="?", help="the file (default: the usual)"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    return parser


def _check(
    path: str | None, problems: "list[Problem]", warnings: "Sequence[Problem]", *, as_json: bool
) -> int:
    name = path or "no file: the profile and the environment"
    if as_json:
        told = {"warnings": warnings} if warnings else {}
        remote.print_json({"path": path, "ok": not problems, "problems": problems, **told})
    elif not problems and not warnings:
        print(f"{name}: all is well")
    for problem in [] if as_json else problems:
        _print_problem(path, problem)
    for problem in [] if as_json else warnings:
        _print_problem(path, problem, "warning: ")
    return FOUND_PROBLEMS if problems else 0


def _print_problem(path: str | None, problem: "Problem", kind: str = "") -> None:
    where = f"{path}:{problem.line}" if problem.line else path or "environment"
    if problem.key.startswith("AGENTD_"):
        where = "environment"
    key = f"{problem.key}: " if problem.key else ""
    hint = f" ({problem.suggestion})" if problem.suggestion else ""
    if path and path in problem.message and not problem.line:
        where = ""  # it says so itself
    at = f"{where}: " if where else ""
    print(remote.safe(f"{at}{kind}{key}{problem.message}{hint}"))

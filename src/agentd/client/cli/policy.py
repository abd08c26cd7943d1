"""``agentd policy``: check, test and learn policy bundles, and ask why one decides as it does."""

import argparse
import os
import signal
import subprocess
import sys
import tempfile
from typing import TYPE_CHECKING, Any

from agentd.client.cli import params, remote, table
from agentd.client.cli.parser import AddedUp, Parser, named
from agentd.model.errors import InvalidInput
from agentd.model.units import counted

if TYPE_CHECKING:
    from agentd.client.embedded import Explained
    from agentd.policy.testing import TestResult

_EXAMPLES = """\
examples:
  agentd policy check ./policy
  agentd policy test strict                  the tests of a bundle that agentd ships
  agentd policy explain --bundle strict --as bob --scopes files \\
      --call fs.write.v1 --params '{"path": "/etc/passwd", "content": ""}'
  agentd policy explain --as alice --call shell.exec.v1 \\
      --params '{"command": "ls"}'
  agentd policy learn --out ./policy -- ./what-the-agent-does
  agentd policy learn --out ./policy -- agentd serve       what a daemon is asked, until Ctrl-C

DIR is a folder, or permissive, strict or paranoid. Without --bundle, explain takes the one in
force: AGENTD_POLICY's, else the configuration's. Without --scopes it takes those that a signer has;
--sandbox says how the sandbox is, as '{"net": "host"}'.

exit codes: 0 all is well, or allowed; 1 problems, failed tests, denied or undecided;
2 wrong options
"""
_EXPLAIN = """\
  agentd policy explain --as alice --call shell.exec.v1 \\
      --params '{"command": "ls"}'
  agentd policy explain --bundle strict --as bob --scopes files \\
      --call fs.write.v1 --params '{"path": "/etc/passwd", "content": ""}'
"""
_LEARNING = """\
  agentd policy learn --out ./policy -- ./what-the-agent-does
  agentd policy learn --out ./policy -- agentd serve   until Ctrl-C
"""
FAILED = 1
_LEARN = "AGENTD_POLICY_LEARN"


def main(words: list[str]) -> int:
    head, _, command = remote.split(words)
    spelled = params.OPTION
    if head[:1] == ["explain"]:
        head, spelled = params.renamed(head, "policy")
    options = _parser().parse_args(head)
    if command and options.action != "learn":
        raise InvalidInput(f"policy {options.action} runs no command", remediation="leave it out")
    if options.action == "check":
        return _check(options)
    if options.action == "test":
        return _test(options)
    return _explain(options, spelled) if options.action == "explain" else _learn(options, command)


def _parser() -> Parser:
    parser = Parser(
        prog="agentd policy",
        description="Check, test and learn policy bundles, and ask why one decides as it does.",
        epilog=_EXAMPLES,
    )
    actions = parser.actions()
    for name, about in (
        ("check", "say what is wrong with a bundle"),
        ("test", "run the tests of a bundle"),
    ):
        action = actions.add(
            name, about, f"  agentd policy {name} ./policy\n  agentd policy {name} strict\n"
        )
        action.add_argument(
            "bundle", type=named, metavar="DIR", help="or a bundle that agentd ships"
        )
        action.add_argument("--json", action="store_true", help="print one JSON object")
    explain = actions.add("explain", "decide a call, and say which rule decided", _EXPLAIN)
    explain.add_argument("--bundle", type=named, metavar="DIR", help="default: the one in force")
    explain.add_argument(
        "--as", dest="principal", type=named, metavar="NAME", required=True, help="who asks"
    )
    explain.add_argument(
        "--scopes", action=AddedUp, metavar="A,B", help='what they may; "" for nothing'
    )
    explain.add_argument("--call", metavar="NAME", required=True, help="as fs.read.v1")
    params.add(explain, "the call's, a JSON object; @FILE or @- reads them")
    explain.add_argument("--sandbox", metavar="JSON", default="{}", help="default: a new one")
    learn = actions.add(
        "learn",
        "write a bundle that allows what a command does",
        _LEARNING,
        usage="agentd policy learn --out DIR [--json] -- COMMAND [ARG...]",
    )
    learn.add_argument(
        "--out", type=named, metavar="DIR", required=True, help="where to write the bundle"
    )
    learn.add_argument("--json", action="store_true", help="print one JSON object")
    return parser


def _check(options: argparse.Namespace) -> int:
    from agentd.policy import checking

    problems = checking.check(options.bundle)
    if options.json:
        remote.print_json({"bundle": options.bundle, "ok": not problems, "problems": problems})
    elif not problems:
        print(f"{remote.safe(options.bundle)}: all is well")
    else:
        for problem in problems:
            print(remote.safe(str(problem)))
    return FAILED if problems else 0


def _test(options: argparse.Namespace) -> int:
    from agentd.policy import testing

    results = testing.test(options.bundle)
    failed = [result for result in results if not result.passed]
    if options.json:
        ok = bool(results) and not failed
        remote.print_json({"bundle": options.bundle, "ok": ok, "tests": results})
    elif not results:
        print("no tests: they are rules test_... of *_test.rego files in the folder")
    else:
        _show(results)
        print(f"{len(results) - len(failed)} passed, {len(failed)} failed")
    return FAILED if failed or not results else 0


def _show(results: "list[TestResult]") -> None:
    rows = [
        (
            "pass" if result.passed else "FAIL",
            result.name,
            f"{result.seconds * 1000:.1f} ms",
            "" if result.passed else f"{result.file}:{result.line}: {result.message}",
        )
        for result in results
    ]
    if rows:
        table.show(("", "TEST", "TIME", "WHY"), rows)


def _explain(options: argparse.Namespace, spelled: str) -> int:
    from agentd.client import embedded

    found = embedded.explain_policy(
        options.bundle,
        options.call,
        params.parsed(params.text(options.params), spelled),
        principal=options.principal,
        scopes=None if options.scopes is None else _split(options.scopes),
        sandbox=_object(options.sandbox, "--sandbox"),
    )
    if options.json:
        remote.print_json(found)
    else:
        _print(found, options.principal)
    return 0 if found.explanation.decision.allow else FAILED


def _split(scopes: str) -> list[str]:
    return [scope for scope in scopes.split(",") if scope]


def _print(found: "Explained", principal: str) -> None:
    decision, fired = found.explanation.decision, found.explanation.fired
    duties = decision.obligations
    word = "undecided" if decision.undecided else "allowed" if decision.allow else "denied"
    limits = [f"{k} {v}" for k, v in _set(duties.limits).items()]
    pairs = [
        ("decision", word),
        ("why", decision.undecided or "; ".join(decision.reasons) or "-"),
        ("level", "-" if duties.level is None else f"{duties.level.label} or more"),
        ("limits", ", ".join(limits) or "-"),
        ("network", "none" if duties.no_network else "as asked"),
        ("approval", "needed" if duties.approve else "-"),
        ("who", f"{principal}, with {', '.join(found.scopes) or 'no scope'}"),
        ("policy", f"{found.policy.bundle}, as {found.policy.said_by} says"),
        ("bundle", decision.bundle or "-"),
    ]
    table.facts(pairs)
    if fired:
        print()
        table.show(("EFFECT", "RULE", "WHY"), [(f.effect, f.rule, f.message) for f in fired])


def _learn(options: argparse.Namespace, command: list[str]) -> int:
    from agentd.policy import learn, learning, testing

    if not command:
        raise InvalidInput("no command given", remediation="write it after --")
    learn.check_out(options.out)  # before a long day of what it does
    with tempfile.TemporaryDirectory(prefix="agentd-learn-") as folder:
        path = os.path.join(folder, "seen")
        open(path, "xb").close()
        code = _run(command, {**os.environ, _LEARN: path})
        seen = learning.recorded(path)
        results = testing.test(str(learn.learn(seen, options.out)))
    failed = [result for result in results if not result.passed]
    if options.json:
        about = {"bundle": options.out, "seen": len(seen), "exit_code": code, "tests": results}
        remote.print_json({**about, "ok": not failed})
    else:
        ended = f"; the command ended with {code}" if code else ""
        calls, tests = counted(len(seen), "call"), counted(len(results), "test")
        print(f"{remote.safe(options.out)}: {calls} seen, {tests}{ended}")
        _show(failed)
    return FAILED if failed else 0


def _run(command: list[str], env: dict[str, str]) -> int:
    """Return its exit code. Ctrl-C and SIGTERM are for the command: a daemon ends by them, and is
    learned from.

    Raises InvalidInput where it cannot be run.
    """
    began: list[subprocess.Popen[bytes]] = []
    early: list[int] = []  # signals that came before it had begun

    def pass_on(number: int, frame: object) -> None:
        if not began:
            early.append(number)
        for process in began:
            process.send_signal(number)

    # Handlers and not SIG_IGN, which the command would inherit. It gets Ctrl-C as we do.
    before = {
        signal.SIGINT: signal.signal(signal.SIGINT, lambda *_: None),
        signal.SIGTERM: signal.signal(signal.SIGTERM, pass_on),
    }
    try:
        # What it prints is not what this command answers with --json.
        with subprocess.Popen(command, env=env, stdout=sys.stderr) as process:
            began.append(process)
            for number in early:
                process.send_signal(number)
            return process.wait()
    except OSError as error:
        raise InvalidInput(
            f"cannot run {command[0]!r}",
            cause=error.strerror or str(error),
            remediation="name a program of PATH, or the path of one that may be executed; "
            "a script without #! goes behind its interpreter: sh FILE",
        ) from error
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)


def _set(limits: Any) -> dict[str, float]:
    import msgspec

    return {k: v for k, v in msgspec.structs.asdict(limits).items() if v is not None}


def _object(text: str, option: str) -> dict[str, Any]:
    import msgspec

    try:
        return msgspec.json.decode(text.encode(), type=dict[str, Any])
    except (msgspec.MsgspecError, UnicodeError) as error:
        raise InvalidInput(
            f"{option} is no JSON object",
            cause=str(error),
            remediation='quote it: \'{"path": "a"}\'',
        ) from error

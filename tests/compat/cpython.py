"""CPython's own test suite inside of sandboxes: ``scripts/compat --cpython``.

Each module runs in a sandbox of its own. One that fails there runs once more outside, and in
bubblewrap, which says whose the failure is. Debian's package libpython3.13-testsuite has the suite.
"""

import argparse
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from tests.compat.page import put
from tests.compat.rows import NOBODY, PATH, last_line, run

from agentd import Sandbox

PYTHON = "/usr/bin/python3"
SECONDS = 900  # for a module
BEGIN, END = "<!-- cpython: begin -->", "<!-- cpython: end -->"
# What CPython's regrtest ends with: https://devguide.python.org, "Running & writing tests".
_PASSED, _NO_TESTS = 0, 4
# Module -> why it may fail inside.
_REASONS = {
    "test_fcntl": "by design: dnotify tells of files that others open",
    "test_socket": "by design: UDP-Lite is shut, no program was found that needs it",
}


class Module(NamedTuple):
    """How a module ended inside ("passed", "none", "failed"), and where it failed elsewhere."""

    name: str
    inside: str
    said: str = ""
    outside_fails: bool = False
    bubblewrap_fails: bool = False


def main() -> int:
    options = _parsed()
    names = [name for name in modules() if options.only in name]
    if not names:
        print(f"no module of {PYTHON} has {options.only!r} in its name: {PYTHON} -m test --list")
        return 2
    found = [_told(_judged(name), n, len(names)) for n, name in enumerate(names, 1)]
    table = "\n".join(_table(found))
    print(table)
    if options.write:
        put(Path(options.write), BEGIN, END, table)
    return 1 if any(_is_ours(module) for module in found) else 0


def modules() -> list[str]:
    """Their names; none where the suite is not installed."""
    listed = subprocess.run(
        [PYTHON, "-m", "test", "--list-tests"], capture_output=True, text=True, check=False
    )
    return [line for line in listed.stdout.splitlines() if line.startswith("test")]


def _parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="scripts/compat --cpython", description=__doc__)
    parser.add_argument("--only", default="", metavar="TEXT", help="modules that have it in a name")
    parser.add_argument("--write", metavar="FILE", help="put the table into a page")
    return parser.parse_args()


def _judged(name: str) -> Module:
    command = [PYTHON, "-m", "test", name]
    state, said = inside(command)
    if state != "failed":
        return Module(name, state)
    with tempfile.TemporaryDirectory(prefix="agentd-compat-") as folder:
        outside = run(command, Path(folder), seconds=SECONDS, user=NOBODY)
    with tempfile.TemporaryDirectory(prefix="agentd-compat-") as folder:
        boxed = run([*_bubblewrap(folder), *command], Path("/"), seconds=SECONDS)
    return Module(name, state, said, not outside.passed, not boxed.passed)


def inside(command: Sequence[str]) -> tuple[str, str]:
    """(state, why): of a sandbox with a memory limit that a module with subprocesses fits in."""
    with Sandbox.create(embedded=True, isolation="namespace", memory="2G") as sandbox:
        result = sandbox.run(command, timeout=SECONDS)
    if result.exit_code == _PASSED:
        return "passed", ""
    if result.exit_code == _NO_TESTS:
        return "none", ""
    said = result.text + result.stderr.decode(errors="replace")
    several = "several" if "multiple errors occurred" in said else last_line(said)
    return "failed", ", ".join(_cases(said)) or several


def _cases(text: str) -> list[str]:
    """The names of those that failed: in verbose output, or else of where their tracebacks are."""
    named = re.findall(r"^(?:FAIL|ERROR): (test\w*)", text, re.MULTILINE)
    named += re.findall(r'^  File ".*", line \d+, in (test\w*)$', text, re.MULTILINE)
    return list(dict.fromkeys(named))


def _bubblewrap(folder: str) -> list[str]:
    """As much like a sandbox of ours as its options allow: the host's programs, an empty folder."""
    links = [
        ("usr/bin", "/bin"),
        ("usr/lib", "/lib"),
        ("usr/lib64", "/lib64"),
        ("usr/sbin", "/sbin"),
    ]
    return [
        *("bwrap", "--unshare-all", "--die-with-parent", "--new-session", "--clearenv"),
        *("--uid", str(NOBODY), "--gid", str(NOBODY), "--setenv", "PATH", PATH),
        *("--setenv", "LANG", "C.UTF-8", "--setenv", "HOME", "/work"),
        *("--ro-bind", "/usr", "/usr", "--ro-bind", "/etc", "/etc"),
        *(word for source, target in links for word in ("--symlink", source, target)),
        *("--proc", "/proc", "--dev", "/dev", "--tmpfs", "/tmp", "--tmpfs", "/var/tmp"),
        *("--bind", folder, "/work", "--chdir", "/work"),
    ]


def _told(module: Module, number: int, count: int) -> Module:
    whose = f" {_whose(module)}: {module.said}" if module.inside == "failed" else ""
    line = f"{time.strftime('%H:%M:%S')} {number}/{count} {module.inside:7} {module.name}{whose}"
    print(line[:300], file=sys.stderr, flush=True)
    return module


def _whose(module: Module) -> str:
    if module.outside_fails:
        return "fails outside too"
    if module.bubblewrap_fails:
        return "fails in bubblewrap too"
    return _REASONS.get(module.name, "fails here alone")


def _is_ours(module: Module) -> bool:
    elsewhere = module.outside_fails or module.bubblewrap_fails or module.name in _REASONS
    return module.inside == "failed" and not elsewhere


def _table(found: Iterable[Module]) -> Iterator[str]:
    found = list(found)
    failed = [module for module in found if module.inside == "failed"]
    passed = sum(module.inside == "passed" for module in found)
    none = sum(module.inside == "none" for module in found)
    yield f"Of {len(found)} modules {passed} pass inside, {none} have no tests here."
    yield ""
    yield "| fails inside | cases | elsewhere |"
    yield "|---|---|---|"
    for module in failed:
        yield f"| {module.name} | {module.said[:120]} | {_whose(module)} |".replace("\n", " ")


if __name__ == "__main__":
    sys.exit(main())

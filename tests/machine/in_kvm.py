"""``make test-kvm``, inside the machine: a part of it, however its tests end.

At the end what it came to, and which tests failed. What failed runs once more: what passes then was
slow, and is named. Exits with 1 where a test failed twice, or the part was not run to its end.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as xml
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

_TESTS = Path("tests")
# Those plugins alone that these tests need: to import the others takes a minute here.
_OURS = ("tests.machine.at_once", "tests.machine.patience", "tests.machine.resumed")
_PLUGINS = ("pytest_timeout", "anyio.pytest_plugin", *_OURS, "no:cacheprovider")
_PYTEST = [sys.executable, "-m", "pytest", "-v", *(f"-p{name}" for name in _PLUGINS)]
_FAILED, _NONE_CHOSEN = 1, 5  # pytest's exit statuses
_KEPT_SECONDS = 60.0  # of all, for the summary
_PROGRAMS = Path("/usr/local/bin")  # where agentd and the tests look for Firecracker's


@dataclass
class Part:
    """Tests that are run together, and what they came to."""

    what: str
    tests: Sequence[str]
    options: Sequence[str] = ()
    counts: "Counter[str]" = field(default_factory=Counter)
    failed: list[str] = field(default_factory=list)
    passed: set[str] = field(default_factory=set)
    seconds: float = 0.0
    trouble: str = "not reached"

    def __str__(self) -> str:
        counts = ", ".join(f"{n} {word}" for word, n in self.counts.items()) or "no test"
        end = f"; {self.trouble}" if self.trouble else ""
        return f"{self.what}: {counts}{end} ({self.seconds:.0f} s)"

    def run(self, deadline: float) -> None:
        began = time.monotonic()
        if began > deadline:
            return
        with tempfile.TemporaryDirectory() as folder:
            report = Path(folder, "report.xml")
            report_as = [f"--junitxml={report}", "-o", "junit_family=xunit1", "--tb=short"]
            argv = [*_PYTEST, *report_as, *self.options, *self.tests]
            environment = os.environ | {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
            try:
                left = deadline - began
                done = subprocess.run(argv, env=environment, timeout=left, check=False)
                known = done.returncode in (0, _FAILED, _NONE_CHOSEN)
                self.trouble = "" if known else f"pytest ended with {done.returncode}"
            except subprocess.TimeoutExpired:
                self.trouble = "no time was left for the rest"
            if report.exists():
                self._count(report)
        self.seconds = time.monotonic() - began

    def _count(self, report: Path) -> None:
        ended: dict[str, str] = {}  # one that fails in itself and after it is there twice
        for case in xml.parse(report).iter("testcase"):  # noqa: S314  (pytest's own)
            kinds = {child.tag for child in case}
            word = "failed" if kinds & {"failure", "error"} else "passed"
            ended[_name(case)] = "skipped" if "skipped" in kinds else word
        self.counts.update(ended.values())
        self.failed += [name for name, word in ended.items() if word == "failed"]
        self.passed |= {name for name, word in ended.items() if word == "passed"}


def _name(case: xml.Element) -> str:
    """As pytest takes it. Its attribute ``file`` is where a test was written, not collected."""
    words = case.attrib["classname"].split(".")
    number = next(
        n for n in range(len(words), 0, -1) if Path(*words[:n]).with_suffix(".py").exists()
    )
    return "::".join([f"{'/'.join(words[:number])}.py", *words[number:], case.attrib["name"]])


def _pending() -> list[str]:
    files = sorted(_TESTS.glob("*/test_*.py"))
    return [str(file) for file in files if "mark.pending_kvm" in file.read_text()]


#: Name -> the tests, and which of them. A test of a command in a machine that is there, of the
#: machine itself, of the groups around any sandbox; and of calls those that have a machine, since
#: whether one is allowed is decided without.
PARTS: dict[str, tuple[Sequence[str], Sequence[str]]] = {
    "pending": (_pending(), ("-m", "pending_kvm")),
    "commands": (("tests/contract",), ("-k", "qemu and not HTTP", "-m", "shares_machine")),
    "machines": (("tests/contract",), ("-k", "qemu and not HTTP", "-m", "not shares_machine")),
    "qemu": (("tests/integration/test_qemu.py",), ()),
    "groups": (("tests/unit/linux/cgroup",), ()),
    "limits": (
        ("tests/contract/test_limits.py",),
        ("-k", "(linux or landlock) and not (landlock and HTTP)"),
    ),
    "calls": (
        ("tests/contract/test_calls.py",),
        # The policy whose sandboxes are on qemu.
        ("-k", "paranoid and not HTTP and (same_answer or keeps_what or public_key)"),
    ),
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--list", action="store_true", help="the parts' names alone")
    parser.add_argument("--seconds", type=float, default=7200.0, help="for all of it")
    parser.add_argument("part", nargs="?", choices=PARTS)
    chosen = parser.parse_args()
    if chosen.list:
        print(*PARTS)
        return 0
    deadline = time.monotonic() + chosen.seconds - _KEPT_SECONDS
    if folder := os.environ.get("FIRECRACKER"):
        for program in ("firecracker", "jailer"):
            shutil.copy2(Path(folder, program), _PROGRAMS)
    part = Part(chosen.part, *PARTS[chosen.part])
    part.run(deadline)
    _say(str(part))
    again = Part("failed, or FLAKY: once more", part.failed)
    if again.tests:
        _say(again.what)
        again.run(deadline)
    return _summary(part, again)


def _summary(part: Part, again: Part) -> int:
    failed = [name for name in again.tests if name not in again.passed]
    for name in again.tests:
        print(f"{'FAILED' if name in failed else 'FLAKY: passed alone'}: {name}")
    print(f"{part}; {len(failed)} of the failed ones failed once more, too")
    return 1 if failed or part.trouble else 0


def _say(text: str) -> None:
    print(f"\n=== {text}", flush=True)


if __name__ == "__main__":
    sys.exit(main())

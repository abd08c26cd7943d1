"""``make test-kvm``, inside the machine: one file of tests after the other, however each ends.

Before each file, which it is and of how many; at the end what each came to, and which tests failed.
What failed runs once more: what passes then was slow, and is named. Exits with 1 where a test
failed twice, or a file was not run to its end.
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
_OURS = ("tests.machine.at_once", "tests.machine.patience")
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
            # The older format names the file of a test.
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


def _name(case: xml.Element) -> str:
    """As pytest takes it."""
    file = case.attrib["file"]
    module = file.removesuffix(".py").replace("/", ".")
    classes = case.attrib["classname"].removeprefix(module).split(".")
    return "::".join([file, *filter(None, classes), case.attrib["name"]])


def parts() -> list[Part]:
    """File by file, since to collect all tests takes longer here than to run these."""

    def each(what: str, files: Sequence[Path], *options: str) -> list[Part]:
        return [Part(f"{what}: {file}", [str(file)], options) for file in files]

    def found(pattern: str) -> list[Path]:
        return sorted(_TESTS.glob(pattern))

    pending = [file for file in found("*/test_*.py") if "mark.pending_kvm" in file.read_text()]
    calls = found("contract/test_calls.py")
    other = {"test_calls.py", "test_arguments.py"}  # no test of theirs is named after qemu
    walls = [file for file in found("contract/test_*.py") if file.name not in other]
    return [
        *each("pending KVM", pending, "-m", "pending_kvm"),
        *each("contract suite, accel=kvm", walls, "-k", "qemu and not HTTP"),
        *each("qemu", found("integration/test_qemu.py")),
        *each("cgroup v2", found("unit/linux/cgroup/test_*.py")),
        *each("limits on cgroup v2", found("contract/test_limits.py"), "-k", "not qemu"),
        # The policy whose sandboxes are on qemu.
        *each("contract suite's calls, accel=kvm", calls, "-k", "paranoid and not HTTP"),
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, required=True, help="for all of it")
    deadline = time.monotonic() + parser.parse_args().seconds - _KEPT_SECONDS
    if folder := os.environ.get("FIRECRACKER"):
        for program in ("firecracker", "jailer"):
            shutil.copy2(Path(folder, program), _PROGRAMS)
    todo = parts()
    for number, part in enumerate(todo, 1):
        _say(f"{number} of {len(todo)}: {part.what}")
        part.run(deadline)
        _say(f"{number} of {len(todo)}: {part}")
    again = Part("FLAKY or failed: once more", [name for part in todo for name in part.failed])
    if again.tests:
        _say(again.what)
        again.run(deadline)
    return _summary(todo, again)


def _summary(done: Sequence[Part], again: Part) -> int:
    _say("summary")
    for part in done:
        print(part)
    failed = again.failed if again.counts else list(again.tests)
    for name in again.tests:
        print(f"{'FAILED' if name in failed else 'FLAKY: passed alone'}: {name}")
    total = sum((part.counts for part in done), Counter[str]())
    counts = ", ".join(f"{n} {word}" for word, n in total.items())
    partly = sum(bool(part.trouble) for part in done)
    twice = f"{len(failed)} of the failed ones failed once more, too"
    print(f"{len(done)} parts, {partly} of them not run to their end: {counts}; {twice}")
    return 1 if failed or partly else 0


def _say(text: str) -> None:
    print(f"\n=== {text}", flush=True)


if __name__ == "__main__":
    sys.exit(main())

"""A plugin for pytest: tells of each test that passed, and leaves out those that had before.

A part of ``make test-kvm`` takes an hour in a machine that forgets all. Whoever started the machine
writes down what it tells (``written_down``), in the folder that ``scripts/part`` names: there is
one for each state of the files.
"""

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

FOLDER = "AGENTD_TESTS_PASSED"  # in the environment; absent: nothing is remembered
_LIST = "tests"
_TOLD = "=== passed: "


def _list() -> Path | None:
    folder = os.environ.get(FOLDER)
    return Path(folder, _LIST) if folder else None


class _Passed:
    """Those of this run, as their reports come."""

    def __init__(self) -> None:
        self._called: set[str] = set()

    def pytest_collection_modifyitems(
        self, config: pytest.Config, items: list[pytest.Item]
    ) -> None:
        found = _list()
        before = set(found.read_text().splitlines()) if found and found.exists() else set()
        out = [item for item in items if item.nodeid in before]
        if out:
            config.hook.pytest_deselected(items=out)
            items[:] = [item for item in items if item.nodeid not in before]
            print(f"\n{len(out)} tests are left out: they passed on these files before")

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "call" and report.passed:
            self._called.add(report.nodeid)
        elif report.when == "teardown" and report.passed and report.nodeid in self._called:
            print(f"\n{_TOLD}{report.nodeid}", flush=True)


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(_Passed())


@contextlib.contextmanager
def written_down() -> Iterator[Callable[[bytes], None]]:
    """Yields what takes the output of such a run, in pieces as they come."""
    found, rest = _list(), b""
    if found is None:
        yield lambda data: None
        return
    found.parent.mkdir(parents=True, exist_ok=True)
    with found.open("ab", buffering=0) as file:

        def note(data: bytes) -> None:
            nonlocal rest
            *lines, rest = (rest + data).split(b"\n")
            told = [line.strip() for line in lines if line.startswith(_TOLD.encode())]
            file.write(b"".join(line.removeprefix(_TOLD.encode()) + b"\n" for line in told))

        yield note

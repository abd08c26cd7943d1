"""Runs a bundle's tests: rules of *_test.rego whose names begin with test_, as opa has them."""

import os
import re
import time
from collections.abc import Iterator

import msgspec

from agentd.model.errors import AgentdError
from agentd.policy import answer, build, lint
from agentd.policy.frames import Load, Query
from agentd.policy.process import NoAnswer, WorkerProcess
from agentd.policy.source import BundleSource, read
from agentd.policy.workplace import workplace

SECONDS = 5.0  # of one test
_RULE = re.compile(r"^(test_\w+)")


class TestResult(msgspec.Struct, frozen=True):
    """``message`` says why it failed, "" where it passed; ``line`` is where its rule begins."""

    __test__ = False  # it is none of pytest's

    name: str
    file: str
    line: int
    passed: bool
    seconds: float
    message: str = ""


def test(where: str | BundleSource) -> list[TestResult]:
    """Run the tests of the bundle at a path, or of the shipped one of that name; [] for none.

    Raises BundleError, AgentdError.
    """
    source = read(where) if isinstance(where, str) else where
    found = dict(_rules(source))
    if not found:
        return []
    with workplace() as folder:
        path = os.path.join(folder, "tests")
        build.compiled(source, path, source.tests, tuple(found))
        return list(_run(path, found))


test.__test__ = False  # type: ignore[attr-defined]


def _rules(source: BundleSource) -> Iterator[tuple[str, tuple[str, int]]]:
    for file, text in source.tests.items():
        folder = lint.package(text).replace(".", "/")
        for number, line in enumerate(text.splitlines(), 1):
            if rule := _RULE.match(line):
                yield f"{folder}/{rule[1]}", (file, number)


def _run(path: str, found: dict[str, tuple[str, int]]) -> Iterator[TestResult]:
    process: WorkerProcess | None = None
    try:
        for entrypoint, (file, line) in found.items():
            begin = time.perf_counter()
            try:
                process = process or _loaded(path)
                text = process.ask(b"q", msgspec.json.encode(Query(entrypoint)), SECONDS)
                passed = answer.passed(text.decode())
                message = "" if passed else "it is not true"
            except (NoAnswer, ValueError) as error:
                passed, message = False, str(error)
            except AgentdError as error:
                passed, message, process = False, str(error), None
            name = entrypoint.replace("/", ".")
            yield TestResult(name, file, line, passed, time.perf_counter() - begin, message)
    finally:
        if process is not None:
            process.close()


def _loaded(path: str) -> WorkerProcess:
    process = WorkerProcess()
    try:
        load = msgspec.json.encode(Load(path, SECONDS))
        process.work(b"l", load, "loading the compiled tests")
    except BaseException:
        process.close()
        raise
    return process

import os
from collections.abc import Iterator
from functools import partial

import pytest

from agentd.client import build
from agentd.daemon.calls.inside import HandleInside
from agentd.daemon.pipeline import Pipeline, run
from agentd.model.limits import Limits
from agentd.model.principal import local
from agentd.model.result import CauseCode
from agentd.model.spec import ExecRequest, SandboxSpec
from agentd.sandbox.manager import Manager

ALICE = local("alice")
NO_LIMITS = Limits()


class Box(HandleInside):
    """With its pipeline and its handle."""

    def __init__(
        self, pipeline: Pipeline, spec: SandboxSpec, cancel: int = -1, most: Limits = NO_LIMITS
    ) -> None:
        self.pipeline = pipeline
        handle = pipeline.open(ALICE, spec)
        super().__init__(handle, partial(run, handle), cancel, most)


@pytest.fixture
def inside() -> Iterator[Box]:
    manager = Manager()
    yield Box(Pipeline(manager), build.sandbox_spec(backend="host", output=1000))
    manager.close()


def ignore(kind: str, data: bytes) -> None: ...


def test_paths_are_from_the_workspace_and_stay_as_they_are(inside: Box) -> None:
    assert inside.path("a/../b") == f"{inside.workspace}/a/../b"
    assert inside.path("/etc/x") == "/etc/x"


def test_its_files_are_the_sandbox_s(inside: Box) -> None:
    inside.files.write(inside.path("f"), b"x")
    assert inside.execute(ExecRequest(argv=("cat", "f"))).stdout == b"x"


@pytest.mark.parametrize("emit", [None, ignore])
def test_a_request_s_bounds_do_not_widen_the_sandbox_s(inside: Box, emit: object) -> None:
    short = Box(inside.pipeline, build.sandbox_spec(backend="host", timeout="300ms"))
    wide = ExecRequest(argv=("sleep", "600"), timeout=500.0)
    assert short.execute(wide, emit=emit).cause.code is CauseCode.TIMEOUT  # type: ignore[arg-type]
    wide = ExecRequest(argv=("yes",), output_limit=1 << 30)
    result = inside.execute(wide, emit=emit)  # type: ignore[arg-type]
    assert result.cause.code is CauseCode.OUTPUT_LIMIT and len(result.stdout) == 1000
    narrow = ExecRequest(argv=("yes",), output_limit=10)
    assert inside.execute(narrow, emit=emit).stdout == b"y\n" * 5  # type: ignore[arg-type]


def test_what_the_decision_lets_it_have_bounds_its_commands(inside: Box) -> None:
    ours = Box(inside.pipeline, build.sandbox_spec(backend="host"), most=Limits(output=4))
    assert ours.execute(ExecRequest(argv=("yes",))).stdout == b"y\ny\n"


def test_what_is_sent_ahead_is_the_result_s(inside: Box) -> None:
    seen: list[tuple[str, bytes]] = []
    argv = ("sh", "-c", "cat; echo no >&2; exit 4")
    result = inside.execute(ExecRequest(argv=argv), b"in", lambda *piece: seen.append(piece))
    assert (result.exit_code, result.stdout, result.stderr) == (4, b"in", b"no\n")
    assert sorted(seen) == [("stderr", b"no\n"), ("stdout", b"in")]


def test_much_goes_in_while_much_comes_out(inside: Box) -> None:
    data = b"x" * (6 << 20)
    seen: list[int] = []
    wide = Box(inside.pipeline, build.sandbox_spec(backend="host"))
    result = wide.execute(ExecRequest(argv=("cat",)), data, lambda _, d: seen.append(len(d)))
    assert result.stdout == data and sum(seen) == len(data)


@pytest.fixture
def cancel() -> Iterator[tuple[int, int]]:
    """A pipe: what is written to the second end is readable at the first."""
    ends = os.pipe()
    yield ends
    for end in ends:
        os.close(end)


def test_a_command_is_ended_by_whoever_asked(inside: Box, cancel: tuple[int, int]) -> None:
    ours = Box(inside.pipeline, build.sandbox_spec(backend="host"), cancel[0])
    argv = ("sh", "-c", "echo started; sleep 600")
    result = ours.execute(
        ExecRequest(argv=argv), emit=lambda *_: os.write(cancel[1], b"x") and None
    )
    assert result.cause.code is CauseCode.CANCELLED and result.stdout == b"started\n"
    # And those that come after it.
    assert ours.execute(ExecRequest(argv=("sleep", "600"))).cause.code is CauseCode.CANCELLED
    assert ours.execute(ExecRequest(argv=("sleep", "600")), b"x").cause.code is CauseCode.CANCELLED


def test_one_that_nobody_ends_is_as_ever(inside: Box, cancel: tuple[int, int]) -> None:
    ours = Box(inside.pipeline, build.sandbox_spec(backend="host"), cancel[0])
    result = ours.execute(ExecRequest(argv=("cat",)), b"in")
    assert (result.exit_code, result.stdout) == (0, b"in")

import os
from collections.abc import Iterator

import pytest

from agentd.client import build
from agentd.daemon.calls.inside import HandleInside
from agentd.daemon.pipeline import Labels, Pipeline
from agentd.model.cause import CauseCode
from agentd.model.errors import Refused
from agentd.model.limits import Limits
from agentd.model.principal import Principal, local
from agentd.model.spec import ExecRequest, SandboxSpec
from agentd.sandbox.manager import Manager, SandboxHandle

ALICE = local("alice")


class Ended:
    request_id = "req-1"

    def end(self, result: object, outputs: object) -> str:
        return ""

    def fail(self, error: BaseException | None) -> None: ...


class NoFalse:
    """A gate that lets all through but one program."""

    def sandbox(self, who: Principal, spec: SandboxSpec, labels: Labels) -> SandboxSpec:
        return spec

    def fork(self, who: Principal, handle: SandboxHandle, count: int, labels: Labels) -> None: ...

    def command(
        self, who: Principal, handle: SandboxHandle, request: ExecRequest, labels: Labels
    ) -> tuple[ExecRequest, Ended]:
        if request.argv[0] == "false":
            raise Refused(f"{who.name} may not run false")
        return request, Ended()


@pytest.fixture
def inside() -> Iterator[HandleInside]:
    manager = Manager()
    pipeline = Pipeline(manager, NoFalse())  # type: ignore[arg-type]
    spec = build.sandbox_spec(backend="host", timeout="300ms", output=1000)
    yield HandleInside(pipeline, ALICE, pipeline.open(ALICE, spec))
    manager.close()


def ignore(kind: str, data: bytes) -> None: ...


def test_paths_are_from_the_workspace_and_stay_as_they_are(inside: HandleInside) -> None:
    assert inside.path("a/../b") == f"{inside.workspace}/a/../b"
    assert inside.path("/etc/x") == "/etc/x"


def test_its_files_are_the_sandbox_s(inside: HandleInside) -> None:
    inside.files.write(inside.path("f"), b"x")
    assert inside.execute(ExecRequest(argv=("cat", "f"))).stdout == b"x"


@pytest.mark.parametrize("emit", [None, ignore])
def test_a_request_s_bounds_do_not_widen_the_sandbox_s(inside: HandleInside, emit: object) -> None:
    wide = ExecRequest(argv=("sleep", "600"), timeout=500.0)
    assert inside.execute(wide, emit=emit).cause.code is CauseCode.TIMEOUT  # type: ignore[arg-type]
    wide = ExecRequest(argv=("yes",), output_limit=1 << 30)
    result = inside.execute(wide, emit=emit)  # type: ignore[arg-type]
    assert result.cause.code is CauseCode.OUTPUT_LIMIT and len(result.stdout) == 1000
    narrow = ExecRequest(argv=("yes",), output_limit=10)
    assert inside.execute(narrow, emit=emit).stdout == b"y\n" * 5  # type: ignore[arg-type]


@pytest.mark.parametrize("emit", [None, ignore])
def test_its_commands_go_by_the_pipeline_s_gate(inside: HandleInside, emit: object) -> None:
    with pytest.raises(Refused, match="alice may not run false"):
        inside.execute(ExecRequest(argv=("false",)), emit=emit)  # type: ignore[arg-type]


def test_those_of_a_call_that_was_admitted_do_not(inside: HandleInside) -> None:
    most = Limits(output=4)
    ours = HandleInside(inside._pipeline, ALICE, inside._handle, admitted=True, most=most)
    assert ours.execute(ExecRequest(argv=("false",))).exit_code == 1
    assert ours.execute(ExecRequest(argv=("yes",))).stdout == b"y\ny\n"


def test_what_is_sent_ahead_is_the_result_s(inside: HandleInside) -> None:
    seen: list[tuple[str, bytes]] = []
    argv = ("sh", "-c", "cat; echo no >&2; exit 4")
    result = inside.execute(ExecRequest(argv=argv), b"in", lambda *piece: seen.append(piece))
    assert (result.exit_code, result.stdout, result.stderr) == (4, b"in", b"no\n")
    assert sorted(seen) == [("stderr", b"no\n"), ("stdout", b"in")]


def test_much_goes_in_while_much_comes_out(inside: HandleInside) -> None:
    spec = build.sandbox_spec(backend="host")
    handle = inside._pipeline.open(ALICE, spec)
    data = b"x" * (6 << 20)
    seen: list[int] = []
    wide = HandleInside(inside._pipeline, ALICE, handle)
    result = wide.execute(ExecRequest(argv=("cat",)), data, lambda _, d: seen.append(len(d)))
    assert result.stdout == data and sum(seen) == len(data)


@pytest.fixture
def cancel() -> Iterator[tuple[int, int]]:
    """A pipe: what is written to the second end is readable at the first."""
    ends = os.pipe()
    yield ends
    for end in ends:
        os.close(end)


def test_a_command_is_ended_by_whoever_asked(inside: HandleInside, cancel: tuple[int, int]) -> None:
    handle = inside._pipeline.open(ALICE, build.sandbox_spec(backend="host"))
    ours = HandleInside(inside._pipeline, ALICE, handle, cancel=cancel[0])
    argv = ("sh", "-c", "echo started; sleep 600")
    result = ours.execute(
        ExecRequest(argv=argv), emit=lambda *_: os.write(cancel[1], b"x") and None
    )
    assert result.cause.code is CauseCode.CANCELLED and result.stdout == b"started\n"
    # And those that come after it.
    assert ours.execute(ExecRequest(argv=("sleep", "600"))).cause.code is CauseCode.CANCELLED
    assert ours.execute(ExecRequest(argv=("sleep", "600")), b"x").cause.code is CauseCode.CANCELLED


def test_one_that_nobody_ends_is_as_ever(inside: HandleInside, cancel: tuple[int, int]) -> None:
    ours = HandleInside(inside._pipeline, ALICE, inside._handle, cancel=cancel[0])
    result = ours.execute(ExecRequest(argv=("cat",)), b"in")
    assert (result.exit_code, result.stdout) == (0, b"in")

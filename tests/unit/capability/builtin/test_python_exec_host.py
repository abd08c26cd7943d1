"""What the sandbox's Python says is hostile: a sandbox that says anything at all."""

import base64
import json
from collections.abc import Callable
from typing import Any

import pytest

from agentd.capability import schema
from agentd.capability.builtin.python_exec import CAPABILITY
from agentd.capability.call import CallContext
from agentd.model.capability import CallFailed
from agentd.model.result import Cause, CauseCode, Result, SandboxInfo, Timing, Usage
from agentd.model.spec import ExecRequest

OK = {"value": {"status": "ok"}}


class Liar:
    """Inside a sandbox whose program writes these pieces to stderr, and this to stdout."""

    workspace = "/workspace"

    def __init__(self, pieces: list[bytes], answer: Any = OK) -> None:
        self._pieces = pieces
        self._answer = answer if isinstance(answer, bytes) else json.dumps(answer).encode()

    def execute(
        self,
        request: ExecRequest,
        stdin: bytes = b"",
        emit: Callable[[str, bytes], None] | None = None,
    ) -> Result:
        assert emit is not None
        for piece in self._pieces:
            emit("stderr", piece)
        emit("stdout", self._answer)
        return Result(
            request_id="r",
            status="ok",
            exit_code=0,
            signal=None,
            cause=Cause(CauseCode.EXITED, ""),
            stdout=self._answer,
            stderr=b"".join(self._pieces),
            truncated=False,
            usage=Usage(),
            timing=Timing(),
            sandbox=SandboxInfo("s", "linux", "namespace"),
            enforcement={},
        )


def line(kind: str, data: bytes) -> bytes:
    text = base64.b64encode(data).decode()
    return json.dumps({"kind": kind, "data": text}).encode() + b"\n"


def value(inside: Liar, emitted: list[tuple[str, bytes]] | None = None, **more: Any) -> Any:
    keep = [] if emitted is None else emitted
    parameters = schema.check(CAPABILITY.about, {"code": "1", **more})
    call = CallContext.of(
        CAPABILITY.about, parameters, request_id="r", emit=lambda *piece: keep.append(piece)
    )
    return CAPABILITY.run(call, inside).value  # type: ignore[arg-type]


def test_lines_are_put_together_from_pieces() -> None:
    data = line("stdout", b"one") + line("stderr", b"two") + line("display", b'{"text/plain":"3"}')
    for size in (1, 7, len(data)):
        emitted: list[tuple[str, bytes]] = []
        pieces = [data[start : start + size] for start in range(0, len(data), size)]
        got = value(Liar(pieces), emitted)
        assert (got["stdout"], got["stderr"]) == ("one", "two")
        assert got["displays"] == [{"text/plain": "3"}]
        assert [kind for kind, _ in emitted] == ["stdout", "stderr", "display"]


def test_more_than_was_asked_for_is_dropped() -> None:
    emitted: list[tuple[str, bytes]] = []
    got = value(Liar([line("stdout", b"x" * 60)] * 3), emitted, max_output=100)
    assert (got["stdout"], got["truncated"]) == ("x" * 100, True)
    assert sum(len(data) for _, data in emitted) == 100


def test_displays_are_bounded() -> None:
    got = value(Liar([line("display", b"{}")] * 100))
    assert (len(got["displays"]), got["truncated"]) == (64, True)
    big = line("display", json.dumps({"text/plain": "x" * (3 << 20)}).encode())
    got = value(Liar([big] * 4))
    assert (len(got["displays"]), got["truncated"]) == (2, True)


def test_a_long_line_is_passed_on_at_the_end_in_one_with_the_others() -> None:
    emitted: list[tuple[str, bytes]] = []
    big = json.dumps({"text/plain": "x" * (2 << 20)}).encode()
    said = line("stdout", b"one") + line("display", big) + line("stdout", b"two")
    got = value(
        Liar([said[start : start + 65536] for start in range(0, len(said), 65536)]), emitted
    )
    assert (got["stdout"], got["displays"]) == ("onetwo", [json.loads(big)])
    whole = [*emitted[:2], ("display", b"".join(data for _, data in emitted[2:]))]
    assert whole == [("stdout", b"one"), ("stdout", b"two"), ("display", big)]


@pytest.mark.parametrize(
    "pieces",
    [
        [b"Traceback (most recent call last):\n"],
        [b"\xff\xfe\n"],
        [b"{}\n"],
        [b'{"kind":"audit","data":""}\n'],
        [b'{"kind":"stdout","data":"*"}\n'],
        [b'{"kind":"stdout","data":5}\n'],
        [b"[" * 100_000 + b"\n"],
        [b"x" * (1 << 20)] * 13,
        [line("display", b"{%b}" % b",".join(b'"%d":""' % n for n in range(2000)))],
        [line("display", b"[]")],
        [line("display", b'{"text/plain": {"a": 1}}')],
        [line("display", b"\xff")],
    ],
)
def test_a_line_that_is_none_of_ours_ends_the_call(pieces: list[bytes]) -> None:
    with pytest.raises(CallFailed) as caught:
        value(Liar(pieces))
    assert caught.value.code == "script_failed"


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"{",
        b"\xff",
        {},
        {"value": None},
        {"value": {"status": "fine"}},
        {"value": {"status": "ok", "result": {"text/plain": 1}}},
        {"value": {"status": "ok", "result": []}},
        {"value": {"status": "ok", "error": {"name": "x"}}},
        {"value": {"status": "ok", "kernel": "mine"}},
        {"value": {"status": "ok", "execution_count": "1"}},
        {"value": {"status": "ok", "execution_count": 1 << 70}},
        {"value": {"status": "ok", "contexts": [{"context": "a"}]}},
    ],
)
def test_an_answer_that_is_none_of_ours_ends_the_call(answer: Any) -> None:
    with pytest.raises(CallFailed) as caught:
        value(Liar([], answer))
    assert caught.value.code == "script_failed"


def test_a_failure_says_what_to_do() -> None:
    with pytest.raises(CallFailed) as caught:
        value(Liar([], {"error": {"code": "busy", "message": "other code \x1b[31m runs"}}))
    assert caught.value.code == "busy"
    assert "\x1b" not in caught.value.message
    assert "interrupt" in caught.value.remediation

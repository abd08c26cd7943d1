import inspect
import json
from collections.abc import Iterator
from typing import Any, get_type_hints

import pytest

from agentd.daemon.observe.log import Log
from agentd.daemon.observe.meter import Meter
from agentd.daemon.observe.observed import Observer, observed
from agentd.daemon.service.service import DaemonService
from agentd.model import context
from agentd.model.errors import Forbidden, NotFound, QuotaExceeded, SandboxError
from agentd.model.principal import Principal
from agentd.model.service import Service

WHO = Principal("ann", frozenset({"admin"}), "local")


class Counts(Meter):
    def __init__(self) -> None:
        self.calls: list[tuple[str, str]] = []

    def request(self, op: str, status: str, seconds: float) -> None:
        assert 0 <= seconds < 60
        self.calls.append((op, status))


class Commands:
    """Answers with what it is told to."""

    def __init__(self, observer: Observer) -> None:
        self._observer, self._who = observer, WHO
        self.answer: Any = "answer"
        self.requests: list[str] = []

    @observed("exec")
    def exec(self, sandbox: str, body: object = None) -> Any:
        self.requests.append(context.current())
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


def made(level: str = "debug") -> tuple[Commands, Counts, list[bytes]]:
    lines: list[bytes] = []
    counts = Counts()
    log = Log(level, "json", write=lines.append)
    return Commands(Observer(counts, log)), counts, lines


def test_every_method_of_the_contract_is_told_of() -> None:
    for noun, prop in inspect.getmembers(DaemonService, lambda one: isinstance(one, property)):
        if not hasattr(Service, noun):
            continue
        kind = get_type_hints(prop.fget)["return"]
        wanted = get_type_hints(getattr(Service, noun).fget)["return"]
        for name in (one for one in vars(wanted) if one[0] != "_" and one != "version"):
            assert hasattr(getattr(kind, name), "__wrapped__"), f"{noun}.{name}"


@pytest.mark.parametrize("by_name", [False, True])
def test_a_call_is_counted_and_told_with_whose_it_is(*, by_name: bool) -> None:
    commands, counts, lines = made()
    with context.request("req-1"):
        assert (commands.exec(sandbox="sbx-1") if by_name else commands.exec("sbx-1")) == "answer"
    assert counts.calls == [("exec", "ok")]
    (event,) = map(json.loads, lines)
    assert event["event"] == "request" and event["op"] == "exec" and event["code"] == "ok"
    assert (event["request"], event["sandbox"], event["principal"]) == ("req-1", "sbx-1", "ann")
    assert commands.requests == ["req-1"]


def test_a_call_outside_of_a_request_gets_an_id() -> None:
    commands, counts, _ = made()
    commands.exec("sbx-1")
    commands.exec("sbx-1")
    first, second = commands.requests
    assert first.startswith("req-") and first != second and context.current() == ""
    assert len(counts.calls) == 2


@pytest.mark.parametrize(
    ("error", "code", "level"),
    [
        (NotFound("there is none"), "not_found", "info"),
        (QuotaExceeded("too many"), "quota_exceeded", "info"),
        (SandboxError("it broke"), "sandbox_error", "warning"),
        (ValueError("a bug, with a secret"), "internal", "warning"),
    ],
)
def test_an_error_is_told_by_its_code(error: Exception, code: str, level: str) -> None:
    commands, counts, lines = made("info")
    commands.answer = error
    with pytest.raises(type(error)):
        commands.exec("sbx-1")
    assert counts.calls == [("exec", code)]
    (event,) = map(json.loads, lines)
    assert (event["code"], event["level"]) == (code, level)
    assert "secret" not in lines[0].decode()


def test_who_may_not_do_it_is_told_to_whoever_writes_denials_down() -> None:
    told: list[tuple[str, ...]] = []
    commands = Commands(Observer(denied=lambda *about: told.append(tuple(map(str, about)))))
    for error in (NotFound("there is none"), Forbidden("ann lacks the scope 'run'")):
        commands.answer = error
        with pytest.raises(type(error)):
            commands.exec("sbx-1")
    assert told == [("exec", "ann", "sbx-1", "ann lacks the scope 'run'")]


def test_pieces_are_counted_when_the_last_is_taken_or_nobody_wants_more() -> None:
    counts = Counts()

    def pieces() -> Iterator[bytes]:
        yield from Observer(counts).pieces("read_file_data", "ann", "sbx-1", iter((b"a", b"b")))

    assert list(pieces()) == [b"a", b"b"]
    some = pieces()
    assert next(some) == b"a"
    some.close()
    assert counts.calls == [("read_file_data", "ok"), ("read_file_data", "cancelled")]

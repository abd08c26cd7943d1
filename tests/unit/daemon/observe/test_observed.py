import json
from collections.abc import Iterator
from typing import Any

import pytest

from agentd.daemon.observe.log import Log
from agentd.daemon.observe.meter import Meter
from agentd.daemon.observe.observed import OPERATIONS, observed
from agentd.daemon.service.service import DaemonService
from agentd.model import context
from agentd.model.errors import Forbidden, NotFound, QuotaExceeded, SandboxError
from agentd.model.principal import Principal

WHO = Principal("ann", frozenset({"admin"}), "local")


class Counts(Meter):
    def __init__(self) -> None:
        self.calls: list[tuple[str, str]] = []

    def request(self, op: str, status: str, seconds: float) -> None:
        assert 0 <= seconds < 60
        self.calls.append((op, status))


class Fake:
    """Answers every operation with what it is told to."""

    def __init__(self) -> None:
        self.answer: Any = "answer"
        self.requests: list[str] = []

    def __getattr__(self, name: str) -> Any:
        def call(*args: object, **options: object) -> Any:
            self.requests.append(context.current())
            if isinstance(self.answer, Exception):
                raise self.answer
            return self.answer

        return call


def made(level: str = "debug") -> tuple[Any, Fake, Counts, list[bytes]]:
    lines: list[bytes] = []
    fake, counts = Fake(), Counts()
    service: Any = fake
    return observed(service, counts, Log(level, "json", write=lines.append)), fake, counts, lines


def test_it_has_all_that_the_service_has() -> None:
    service, *_ = made()
    wanted = {name for name in dir(DaemonService) if not name.startswith("_")}
    assert {name for name in wanted if not callable(getattr(service, name, None))} == set()
    assert {"exec", "create", "run"} <= set(OPERATIONS) <= wanted


def test_a_call_is_counted_and_told_with_whose_it_is() -> None:
    service, fake, counts, lines = made()
    with context.request("req-1"):
        assert service.get(WHO, "sbx-1") == "answer"
    assert counts.calls == [("get", "ok")]
    (event,) = map(json.loads, lines)
    assert event["event"] == "request" and event["op"] == "get" and event["code"] == "ok"
    assert (event["request"], event["sandbox"], event["principal"]) == ("req-1", "sbx-1", "ann")
    assert fake.requests == ["req-1"]


def test_a_call_outside_of_a_request_gets_an_id() -> None:
    service, fake, _, _ = made()
    service.list(WHO, {}, 1, "")
    service.list(WHO, {}, 1, "")
    first, second = fake.requests
    assert first.startswith("req-") and first != second and context.current() == ""


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
    service, fake, counts, lines = made("info")
    fake.answer = error
    with pytest.raises(type(error)):
        service.exec(WHO, "sbx-1", None)
    assert counts.calls == [("exec", code)]
    (event,) = map(json.loads, lines)
    assert (event["code"], event["level"]) == (code, level)
    assert "secret" not in lines[0].decode()


def test_who_may_not_do_it_is_told_to_whoever_writes_denials_down() -> None:
    told: list[tuple[str, ...]] = []
    fake = Fake()
    service: Any = fake
    seen = observed(
        service, Meter(), Log("error", "json"), lambda *about: told.append(tuple(map(str, about)))
    )
    for error in (NotFound("there is none"), Forbidden("ann lacks the scope 'run'")):
        fake.answer = error
        with pytest.raises(type(error)):
            seen.exec(WHO, "sbx-1", None)
    assert told == [("exec", "ann", "sbx-1", "ann lacks the scope 'run'")]


def test_pieces_are_counted_when_the_last_is_taken_or_nobody_wants_more() -> None:
    service, fake, counts, _ = made()

    def pieces() -> Iterator[bytes]:
        yield b"a"
        yield b"b"

    fake.answer = pieces()
    assert list(service.read_file(WHO, "sbx-1", "/x")) == [b"a", b"b"]
    assert counts.calls == [("read_file", "ok"), ("read_file_data", "ok")]
    counts.calls.clear()
    fake.answer = pieces()
    some = service.read_tar(WHO, "sbx-1", "/x")
    assert next(some) == b"a"
    some.close()
    assert counts.calls == [("read_tar", "ok"), ("read_tar_data", "cancelled")]

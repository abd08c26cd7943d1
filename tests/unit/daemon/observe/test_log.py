import contextvars
import json
import logging
import threading
import warnings
from collections.abc import Callable
from typing import Any

import pytest

from agentd.daemon.observe.log import Log
from agentd.daemon.observe.rate import Bound
from agentd.model import context, redact

KEY = "agd_abcdefghijkl_" + "a2" * 26


class Lines:
    def __init__(self) -> None:
        self.raw: list[bytes] = []

    def __call__(self, line: bytes) -> None:
        self.raw.append(line)

    @property
    def json(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.raw]


def made(form: str = "json", level: str = "info", **options: Any) -> tuple[Log, Lines]:
    lines = Lines()
    return Log(level, form, write=lines, **options), lines


def test_json_is_one_object_a_line() -> None:
    log, lines = made()
    log.info("sandbox ended", sandbox="sbx-1", reason="two\nlines", n=3)
    (line,) = lines.raw
    assert line.count(b"\n") == 1 and line.endswith(b"\n")
    (event,) = lines.json
    assert list(event)[:3] == ["timestamp", "level", "event"]
    assert event["event"] == "sandbox ended" and event["reason"] == "two\nlines"
    assert event["n"] == 3 and event["timestamp"].endswith("Z")


def test_text_is_one_line_that_no_value_can_break_out_of() -> None:
    log, lines = made("text")
    log.info("took", name='a"b\n\x1b[31m level=error', plain="x-1", many=["a", "b"], odd="\udcff")
    (line,) = lines.raw
    assert line.count(b"\n") == 1 and b"\x1b" not in line
    assert b'name="a\\"b\\n\\x1b[31m level=error"' in line
    assert b"plain=x-1 many=a,b" in line


def test_a_level_is_left_out_below_the_one_that_is_set() -> None:
    log, lines = made(level="warning")
    log.info("no")
    log.error("yes")
    log.set("debug", "text")
    log.debug("now")
    assert len(lines.raw) == 2
    assert b'"event":"yes"' in lines.raw[0] and b" debug now" in lines.raw[1]
    assert log.lines == {"debug": 1, "info": 0, "warning": 0, "error": 1}


def test_lines_have_their_request_and_sandbox_in_every_thread_of_their_own() -> None:
    log, lines = made()
    both = threading.Barrier(2)

    def work(number: int) -> None:
        context.sandbox.set(f"sbx-{number}")  # a thread has its own
        with context.request(f"req-{number}"):
            both.wait()
            log.info("at work", number=number)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    contextvars.Context().run(log.info, "outside")
    for event in lines.json[:2]:
        assert event["request"] == f"req-{event['number']}"
        assert event["sandbox"] == f"sbx-{event['number']}"
    assert "request" not in lines.json[2] and "sandbox" not in lines.json[2]


@pytest.mark.parametrize(
    "name",
    ["api_key", "X-API-Key", "apikey", "authorization", "clientSecret", "env", "stdin", "PASSWORD"],
)
def test_a_field_is_hidden_by_its_name_however_deep(name: str) -> None:
    log, lines = made()
    log.info("asked", **{name: "hunter2"}, inner={"list": [{name: "hunter2"}]})
    assert b"hunter2" not in lines.raw[0]
    assert lines.json[0][name] == redact.HIDDEN


@pytest.mark.parametrize("name", ["keyboard", "monkey", "sandbox", "principal", "environs"])
def test_a_name_that_only_sounds_alike_is_not_hidden(name: str) -> None:
    assert not redact.is_secret(name)


@pytest.mark.parametrize(
    "text",
    [
        f"the key {KEY} is wrong",
        f"Authorization: Bearer {KEY}",
        "header Bearer abcdef0123456789",
        "token eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.c2lnbmF0dXJl",
        "fetching https://user:hunter2@example.org/jwks",
        "-----BEGIN EC PRIVATE KEY-----\nMHcCAQEEI\n-----END EC PRIVATE KEY-----",
    ],
)
def test_a_secret_is_hidden_by_its_look_wherever_it_stands(text: str) -> None:
    log, lines = made()
    log.info(text, error=text, inner=[text])
    for secret in (b"a2a2", b"0123456789", b"c2lnbm", b"hunter2", b"MHcCAQ"):
        assert secret not in lines.raw[0]
    assert redact.HIDDEN.encode() in lines.raw[0]


def test_the_id_of_a_key_stays() -> None:
    assert redact.text(KEY) == f"agd_abcdefghijkl_{redact.HIDDEN}"


def test_output_of_commands_is_told_by_its_size() -> None:
    assert redact.fields({"data": b"secret output", "x" * 9: "y" * 9000})["data"] == "13 bytes"
    assert len(redact.fields({"x": "y" * 100_000})["x"]) < 5000


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_a_flood_is_bounded_counted_and_hides_nothing_else() -> None:
    clock = Clock()
    bound = Bound(event=(1, 3), whole=(100, 100), clock=clock)
    log, lines = made(bound=bound)
    for _ in range(10):
        log.info("flood")
    log.info("another")
    assert [e["event"] for e in lines.json] == ["flood"] * 3 + ["another"]
    assert bound.dropped == 7
    clock.now += 1
    log.info("flood")
    assert lines.json[-1]["left_out"] == 7
    assert bound.dropped == 7


def test_many_events_are_bounded_together_but_not_with_troubles() -> None:
    bound = Bound(event=(1, 1), whole=(1, 5), clock=Clock())
    log, lines = made(bound=bound)
    for n in range(2000):
        log.info(f"event {n}")
    log.error("trouble")
    assert [e["event"] for e in lines.json] == [f"event {n}" for n in range(5)] + ["trouble"]


def test_what_other_packages_log_comes_out_alike() -> None:
    log, lines = made()
    log.capture()
    try:
        logging.getLogger("uvicorn.error").error("it %s", "broke")
        logging.getLogger("uvicorn.error").info("not this")
        try:
            raise ValueError(KEY)
        except ValueError:
            logging.getLogger("agentd.ingest").exception("failed")
        with warnings.catch_warnings():
            warnings.simplefilter("always")
            warnings.warn("deprecated", DeprecationWarning, stacklevel=1)
    finally:
        log.release()
    logging.getLogger("uvicorn.error").critical("after")
    first, second, third = lines.json
    assert (first["event"], first["level"], first["logger"]) == (
        "it broke",
        "error",
        "uvicorn.error",
    )
    assert "ValueError" in second["exception"] and "a2a2" not in second["exception"]
    assert "deprecated" in third["event"]


def test_a_log_that_cannot_be_written_fails_nobody() -> None:
    def fail(_: bytes) -> None:
        raise OSError("gone")

    class Odd:
        def __str__(self) -> str:
            raise ValueError

    log = Log(write=fail)
    log.info("a")
    log, lines = made()
    log.info("b", odd=Odd())
    log.info("c")
    assert [e["event"] for e in lines.json] == ["c"]


def test_many_threads_write_whole_lines() -> None:
    log, lines = made(bound=Bound(event=(1e9, 1e9), whole=(1e9, 1e9)))

    def work(say: Callable[..., None]) -> None:
        for n in range(100):
            say("line", n=n)

    threads = [threading.Thread(target=work, args=(log.info,)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(lines.json) == 400 and log.lines["info"] == 400

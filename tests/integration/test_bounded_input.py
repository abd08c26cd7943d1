"""What a daemon keeps in memory of what it is sent: stdin that no command reads, and bodies of
requests that came to nothing."""

import contextlib
import json
import select
import socket
from collections.abc import Iterator

import pytest
from tests.integration.test_answered_output import resident, sent
from tests.security.daemons import Daemon, running, until

_MIB = 1 << 20
_LARGE = "x" * (30 * _MIB)


@pytest.fixture(scope="module")
def daemon() -> Iterator[Daemon]:
    with running() as made:
        yield made


@pytest.fixture(scope="module")
def box(daemon: Daemon) -> str:
    return daemon.sandbox()


def fed(daemon: Daemon, path: str, size: int) -> tuple[socket.socket, int]:
    """A connection that sends stdin, and how much of ``size`` bytes is taken from it."""
    made = socket.socket(socket.AF_UNIX)
    made.connect(daemon.socket)
    head = f"POST {path}/stdin HTTP/1.1\r\nHost: x\r\nContent-Length: {size}\r\n\r\n"
    made.sendall(head.encode())
    made.setblocking(False)
    poll, taken = select.poll(), 0
    poll.register(made, select.POLLOUT)
    while taken < size and poll.poll(2000):
        with contextlib.suppress(BlockingIOError):
            taken += made.send(bytes(min(_MIB, size - taken)))
    return made, taken


def answered(client: socket.socket) -> bytes:
    """What it is told; it goes on with its body until then, as it may have stopped too early."""
    while not select.select([client], [], [], 0.1)[0]:
        with contextlib.suppress(BlockingIOError, BrokenPipeError, ConnectionResetError):
            client.send(bytes(1 << 16))
    return client.recv(1 << 16)


@pytest.mark.parametrize("long", ["name", "cwd"])
def test_a_command_of_a_name_without_end_ends_as_any_other(
    daemon: Daemon, box: str, long: str
) -> None:
    """What a command ended by is kept with its output, where it has 64 KiB."""
    path, endless = f"/v1/sandboxes/{box}", "/\x1b[2J" + "x" * 70_000
    wanted = {"cmd": [endless]} if long == "name" else {"cmd": ["true"], "cwd": endless}
    answer = daemon.ask("POST", f"{path}/exec", wanted)
    assert answer.status == 200, answer.body[:200]
    cause = answer.json["cause"]
    assert cause["code"] == "spawn_failed"
    assert "File name too long" in cause["message"] and len(cause["message"]) < 2000
    assert cause["message"].startswith("/\\x1b[2Jxxx")  # and a terminal shows it as it is
    begun = daemon.ask("POST", f"{path}/exec", {**wanted, "wait": False}).json["id"]
    until(lambda: daemon.ask("GET", f"{path}/processes/{begun}").json["state"] == "ended")
    output = f"{path}/processes/{begun}/output?stream=stdout&follow=true"
    assert daemon.ask("GET", output).status == 200  # it is over
    assert b"Traceback" not in daemon.log


@pytest.mark.parametrize("cmd", ["yes", "sleep 600"])
def test_stdin_that_no_command_reads_stays_with_its_client(
    daemon: Daemon, box: str, cmd: str
) -> None:
    """Whether it writes meanwhile or not; and it can still be signalled."""
    wanted = {"cmd": cmd, "wait": False, "stdin_open": True}
    process = daemon.ask("POST", f"/v1/sandboxes/{box}/exec", wanted).json["id"]
    path = f"/v1/sandboxes/{box}/processes/{process}"
    client, taken = fed(daemon, path, 64 * _MIB)
    with client:
        assert taken < 8 * _MIB
        assert daemon.ask("POST", f"{path}/signal", {"signal": 9}).status == 204
        until(lambda: daemon.ask("GET", path).json["state"] == "ended")
        assert answered(client).split()[1] == b"409"


def test_stdin_comes_in_order_whoever_sends_it_and_whenever_it_is_read(
    daemon: Daemon, box: str
) -> None:
    first, rest = "a" * (3 * _MIB), b"b" * (3 * _MIB)
    cmd = "until [ -e now ]; do sleep 0.1; done; cat > all; rm now"
    wanted = {"cmd": cmd, "wait": False, "stdin_open": True, "stdin": first}
    process = daemon.ask("POST", f"/v1/sandboxes/{box}/exec", wanted).json["id"]
    path = f"/v1/sandboxes/{box}/processes/{process}"
    with sent(daemon, f"/v1/sandboxes/{box}/exec", {"cmd": "sleep 1; touch now"}) as later:
        kind = {"Content_Type": "application/octet-stream"}
        assert daemon.ask("POST", f"{path}/stdin?eof=true", rest, **kind).status == 204
        assert later.recv(64).split()[1] == b"200"
    until(lambda: daemon.ask("GET", path).json["state"] == "ended")
    found = daemon.ask("GET", f"/v1/sandboxes/{box}/files?path=/workspace/all").body
    assert found == first.encode() + rest


def test_a_command_that_has_not_read_its_stdin_ends_with_its_client(
    daemon: Daemon, box: str
) -> None:
    path = f"/v1/sandboxes/{box}/"
    with sent(daemon, f"{path}exec", {"cmd": "sleep 601", "stdin": "x" * (4 * _MIB)}):

        def shown() -> dict[str, object]:
            found = daemon.ask("GET", f"{path}processes").json
            return next((one for one in found if "sleep 601" in one["argv"]), {})

        until(lambda: shown().get("state") == "running")
    until(lambda: shown()["state"] == "ended")
    result = shown()["result"]
    assert isinstance(result, dict) and result["cause"]["code"] == "cancelled"


def test_no_callers_unread_stdin_fills_the_memory(daemon: Daemon) -> None:
    """Of commands that nobody waits for; there is room again once it is read, or they end."""
    box, before = daemon.sandbox(), resident(daemon)
    path = f"/v1/sandboxes/{box}/exec"
    cmd = (
        "until [ -e read ]; do sleep 0.1; done; head -c 1M > /dev/null; cat > /dev/null; sleep 600"
    )
    wanted = {"cmd": cmd, "wait": False, "stdin": _LARGE}
    said = [daemon.ask("POST", path, wanted).status for _ in range(10)]
    assert said == [201] * 9 + [429]
    assert resident(daemon) - before < 400 * _MIB
    refused = daemon.ask("POST", path, wanted)
    assert "stdin" in refused.json["message"] and "9" not in refused.json["remediation"]
    assert daemon.ask("POST", path, {**wanted, "stdin": "small"}).status == 201
    daemon.ask("POST", path, {"cmd": "touch read"})
    until(lambda: daemon.ask("POST", path, wanted).status == 201)
    until(lambda: resident(daemon) - before < 100 * _MIB)


@pytest.mark.parametrize(
    ("path", "body", "key"),
    [
        ("exec", {"cmd": "cat", "nonsense": _LARGE}, ""),
        ("exec", {"cmd": "cat", "cwd": "/\0", "stdin": _LARGE}, ""),
        ("exec", {"cmd": "cat", "cwd": "/\0", "stdin": _LARGE}, "key"),
        ("/v1/call", {"capability": "fs.write.v1", "parameters": {"content": _LARGE}}, ""),
        ("/v1/call/stream", {"capability": "fs.write.v1", "parameters": {"a": _LARGE}}, ""),
    ],
    ids=["unfit", "refused", "keyed", "call", "stream"],
)
def test_the_body_of_a_request_that_came_to_nothing_does_not_stay(
    daemon: Daemon, box: str, path: str, body: dict[str, object], key: str
) -> None:
    """An error's frames have it, and an error that they have, too, is let go of by nobody."""
    where = path if path.startswith("/") else f"/v1/sandboxes/{box}/{path}"
    if path.startswith("/"):
        body = {**body, "sandbox": box}
    before = resident(daemon)
    for number in range(8):
        headers = {"Idempotency_Key": f"{key}{number}"} if key else {}
        answer = daemon.ask("POST", where, json.dumps(body).encode(), **headers)
        assert answer.status == 400 or b"event: error" in answer.body
    assert resident(daemon) - before < 120 * _MIB


@pytest.mark.parametrize(
    "said",
    [
        {"cmd": ["sh", "-c", "sleep 600", *["x" * 110_000] * 9]},
        {
            "cmd": "sleep 600",  # four bytes for each character of the values
            "env": {f"{n}{'x' * 55_000}": "x" * 13_750 + "\N{PACKAGE}" for n in range(9)},
        },
    ],
    ids=["words", "variables"],
)
def test_no_callers_running_commands_fill_the_memory_with_their_words(
    daemon: Daemon, said: dict[str, object]
) -> None:
    """Of those that nobody waits for; there is room again as they end."""
    unread = {"cmd": "sleep 600", "wait": False, "stdin": _LARGE}
    wanted = {**said, "wait": False}
    full, box = daemon.sandbox(), daemon.sandbox()
    paths = [f"/v1/sandboxes/{each}/exec" for each in (full, box)]
    assert [daemon.ask("POST", paths[0], unread).status for _ in range(8)] == [201] * 8
    answers = [daemon.ask("POST", paths[1], wanted) for _ in range(24)]
    taken = [answer.status for answer in answers].index(429)
    assert 240 * _MIB < 8 * len(_LARGE) + taken * 990_000 < 260 * _MIB
    assert answers[taken].code == "full" and "words" in answers[taken].json["message"]
    assert daemon.ask("POST", paths[1], {"cmd": "true", "wait": False}).status == 201
    daemon.ask("DELETE", f"/v1/sandboxes/{full}")
    until(lambda: daemon.ask("POST", paths[1], wanted).status == 201)
    daemon.ask("DELETE", f"/v1/sandboxes/{box}")

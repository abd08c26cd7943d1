import os
import socket
from collections.abc import Iterator

import pytest

from agentd.serve.systemd import Notifier


@pytest.fixture(params=["path", "abstract"])
def manager(
    request: pytest.FixtureRequest, tmp_path: object
) -> Iterator[tuple[socket.socket, str]]:
    name = f"@agentd-test-{os.getpid()}" if request.param == "abstract" else f"{tmp_path}/n"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind("\0" + name[1:] if name[0] == "@" else name)
        sock.settimeout(120)
        yield sock, name


def test_each_state_is_a_datagram(manager: tuple[socket.socket, str]) -> None:
    sock, name = manager
    environ = {"NOTIFY_SOCKET": name, "HOME": "/"}
    notifier = Notifier(environ)
    assert environ == {"HOME": "/"}, "children would speak for us"
    notifier.ready("listening on\nunix:/x")
    assert sock.recv(4096).decode().split("\n") == [
        "READY=1",
        f"MAINPID={os.getpid()}",
        "STATUS=listening on unix:/x",
    ]
    notifier.reloading()
    first, second = sock.recv(4096).decode().split("\n")
    assert first == "RELOADING=1" and second.removeprefix("MONOTONIC_USEC=").isdigit()
    notifier.stopping("draining")
    assert sock.recv(4096) == b"STOPPING=1\nSTATUS=draining"
    notifier.alive()
    assert sock.recv(4096) == b"WATCHDOG=1"


def test_nobody_listens_and_nothing_happens(tmp_path: object) -> None:
    Notifier({}).ready("x")
    Notifier({"NOTIFY_SOCKET": f"{tmp_path}/gone"}).ready("x")


@pytest.mark.parametrize(
    ("environ", "every"),
    [
        ({}, None),
        ({"WATCHDOG_USEC": "30000000"}, 15.0),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": str(os.getpid())}, 15.0),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "1"}, None),
        ({"WATCHDOG_USEC": "0"}, None),
        ({"WATCHDOG_USEC": "x"}, None),
    ],
)
def test_the_watchdog_is_told_twice_in_its_time(environ: dict[str, str], every: object) -> None:
    assert Notifier(environ).watchdog_seconds == every
    assert "WATCHDOG_USEC" not in environ

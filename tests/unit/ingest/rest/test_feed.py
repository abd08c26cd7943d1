"""The feed of events over HTTP, with many who follow it and one who does not read."""

import contextlib
import re
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.unit.ingest.harness import Running

from agentd.ingest.web.limits import WebLimits
from agentd.model.events import EventKind

MANY = 500
LAST = b"last"


@pytest.fixture
def running(tmp_path: Path) -> Iterator[Running]:
    with Running(tmp_path, WebLimits(reauthorise=0.5)) as made:
        yield made


def follow(running: Running, last: str = "") -> socket.socket:
    """As alice, whose head has not come yet."""
    client = running.raw()
    again = f"Last-Event-ID: {last}\r\n" if last else ""
    client.sendall(
        b"GET /v1/events HTTP/1.1\r\nHost: localhost\r\nAccept: text/event-stream\r\n"
        b"X-API-Key: agd_alice\r\n" + again.encode() + b"\r\n"
    )
    return client


def until(client: socket.socket, wanted: bytes) -> bytes:
    heard = b""
    while wanted not in heard:
        part = client.recv(1 << 16)
        assert part, heard[-200:]
        heard += part
    return heard


def publish(running: Running, count: int, text: str = "") -> None:
    for _ in range(count):
        running.service.events.publish(EventKind.PROCESS, "alice", "sbx-1", text=text)


def test_each_of_many_is_told_and_none_holds_a_thread(running: Running) -> None:
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(follow(running)) for _ in range(MANY)]
        for client in clients:
            until(client, b"\r\n\r\n")
        before = threading.active_count()
        publish(running, 1, LAST.decode())
        for client in clients:
            until(client, LAST)
        # Of those that look it up there are no more than for anybody.
        assert max(before, threading.active_count()) < running.limits.short + 20


def test_who_does_not_read_holds_up_nobody_and_is_told_what_is_lost(running: Running) -> None:
    text = "x" * 2000
    with follow(running) as slow, follow(running) as quick:
        slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        until(slow, b"\r\n\r\n")
        until(quick, b"\r\n\r\n")
        for number in range(50):
            publish(running, 99, text)
            publish(running, 1, f"mark{number}.")
            heard = until(quick, f"mark{number}.".encode())
            assert b"event: lost" not in heard
        found = until(slow, b"mark49.")
    assert found.count(b"event: lost") == 1
    identity, first = re.search(rb"id: (\S+)\nevent: lost\ndata: {}\n\nid: (\S+)\n", found).groups()  # type: ignore[union-attr]
    # Who comes back with the id of the loss goes on right behind it.
    with follow(running, identity.decode()) as again:
        heard = until(again, b"\nevent: process")
    assert re.findall(rb"^id: (\S+)", heard.replace(b"\r\n\r\n", b"\n"), re.M)[0] == first

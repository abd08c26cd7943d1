"""Servers inside are reached alike wherever the sandbox is: their URL, a port here, plain bytes."""

import asyncio
import contextlib
import errno
import hashlib
import http.client
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.security.daemons import WAIT, Daemon, running, until
from websockets.exceptions import InvalidStatus
from websockets.sync.client import unix_connect

from agentd import AsyncSandbox, Client, InvalidInput, OperationFailed, Sandbox
from agentd.client import forward as forward_module

# Answers with the digest of all that it is sent, and then with all of it.
SERVER = """
import hashlib, socket, threading
server = socket.create_server(("127.0.0.1", 7000))
print("up", flush=True)
def answer(client):
    data = b"".join(iter(lambda: client.recv(65536), b""))
    client.sendall(hashlib.sha256(data).digest() + data)
    client.close()
while True:
    threading.Thread(target=answer, args=server.accept()[:1], daemon=True).start()
"""
# Says all that it will, and then tells the digest of all that it is sent.
FIRST = """
import hashlib, socket
server = socket.create_server(("127.0.0.1", 7001))
print("up", flush=True)
while True:
    client, _ = server.accept()
    client.sendall(b"bye")
    client.shutdown(socket.SHUT_WR)
    data = b"".join(iter(lambda: client.recv(65536), b""))
    print(hashlib.sha256(data).hexdigest(), flush=True)
    client.close()
"""
# Says all that it will, and reads nothing.
DEAF = """
import socket, time
server = socket.create_server(("127.0.0.1", 7002))
print("up", flush=True)
kept = []
while True:
    kept.append(server.accept()[0])
    kept[-1].sendall(b"bye")
    kept[-1].shutdown(socket.SHUT_WR)
"""
# Says more than anybody hears, and reads nothing.
# It lingers for no time, so that its end is a reset, whatever it has read by then.
FLOOD = """
import socket, struct
server = socket.create_server(("127.0.0.1", 7003))
print("up", flush=True)
client, _ = server.accept()
client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
while True:
    client.sendall(b"x" * 65536)
"""
MANY = os.urandom(3 << 20)


@pytest.fixture(scope="module")
def daemon() -> Iterator[Daemon]:
    with running('[[listen]]\naddress = "127.0.0.1:0"\n') as made:
        yield made


@pytest.fixture(params=["embedded", "unix", "tcp"])
def where(request: pytest.FixtureRequest, daemon: Daemon) -> dict[str, Any]:
    if request.param == "embedded":
        return {"embedded": True}
    return {
        "url": daemon.url if request.param == "unix" else _tcp(daemon),
        "api_key": daemon.key("a"),
    }


def _tcp(daemon: Daemon) -> str:
    # Where it listens is told first; later lines name who came.
    number = re.findall(r"127\.0\.0\.1:([0-9]+)", daemon.log.decode())[0]
    return f"http://127.0.0.1:{number}"


@contextlib.contextmanager
def served(sandbox: Sandbox) -> Iterator[None]:
    with sandbox.start(["python3", "-c", SERVER]) as process:
        assert next(iter(process)).data == b"up\n"
        yield


def fetched(url: str, path: str) -> bytes:
    connection = http.client.HTTPConnection(url.removeprefix("http://"), timeout=WAIT)
    with contextlib.closing(connection):
        connection.request("GET", path)
        return connection.getresponse().read()


def asked(address: tuple[str, int], data: bytes) -> bytes:
    with socket.create_connection(address, WAIT) as client:
        client.sendall(data)
        client.shutdown(socket.SHUT_WR)
        return b"".join(iter(lambda: client.recv(1 << 16), b""))


def test_much_goes_both_ways_and_each_side_ends_for_itself(where: dict[str, Any]) -> None:
    with Sandbox.create(**where) as sandbox, served(sandbox), sandbox.ports.forward(7000) as port:
        for data in (b"", b"little", MANY):
            assert asked(port.address, data) == hashlib.sha256(data).digest() + data


def test_its_url_is_there_until_the_sandbox_is_closed(where: dict[str, Any]) -> None:
    with Sandbox.create(**where) as sandbox:
        sandbox.files.write("/workspace/page", "a page")
        command = "python3 -u -m http.server 8080 --bind 127.0.0.1"
        with sandbox.start(command, cwd="/workspace") as process:
            assert b"Serving" in next(iter(process)).data
            url = sandbox.ports.url(8080)
            assert sandbox.ports.url(8080) == url
            with pytest.raises(InvalidInput, match="port is of type float"):
                sandbox.ports.url(8080.0)  # type: ignore[arg-type]
            assert fetched(url, "/page") == b"a page"
    with pytest.raises(ConnectionRefusedError):
        fetched(url, "/page")


_SHORT = """
import os, resource, socket, time
from agentd import Sandbox
with Sandbox.create(embedded=True) as sandbox:
    server = "import socket; s = socket.create_server(('127.0.0.1', 7000)); print('up', flush=True)"
    server += "\\nwhile 1: s.accept()[0].sendall(b'hello')"
    process = sandbox.start(["python3", "-c", server])
    next(iter(process))
    port = sandbox.ports.forward(7000)
    client = socket.socket()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    held = [os.dup(0)]
    resource.setrlimit(resource.RLIMIT_NOFILE, (held[0] + 1, hard))
    try:
        while True:
            held.append(os.dup(0))
    except OSError:
        client.connect(port.address)
    time.sleep(1)  # that it is accepted is tried meanwhile
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    with socket.create_connection(port.address, 60) as another:
        print(another.recv(5))
    process.kill()
"""


def test_it_goes_on_once_there_are_descriptors_again() -> None:
    """Whoever connects then would wait for ever: it listens, and nobody accepts."""
    done = subprocess.run(
        [sys.executable, "-c", _SHORT], capture_output=True, timeout=200, text=True, check=False
    )
    assert (done.stdout, done.stderr) == ("b'hello'\n", "")


def test_plain_bytes_without_waiting(where: dict[str, Any]) -> None:
    with Sandbox.create(**where) as sandbox, served(sandbox):
        port = sandbox.ports.open(7000)
        try:
            with pytest.raises(TimeoutError):
                port.recv(0.01)
            assert port.send_some(b"bytes") == 5
            port.half_close()
            found = b"".join(iter(lambda: port.recv(WAIT), b""))
            assert found == hashlib.sha256(b"bytes").digest() + b"bytes"
            assert port.pending() and port.recv(0) == b""
        finally:
            port.close()
        with pytest.raises(OperationFailed) as refused:
            sandbox.ports.open(7001)
        assert refused.value.errno == errno.ECONNREFUSED
        with pytest.raises(InvalidInput):
            sandbox.ports.open(0)
        with (
            pytest.raises(InvalidInput, match="cannot be had"),
            socket.create_server(("127.0.0.1", 0)) as taken,
        ):
            sandbox.ports.forward(7000, taken.getsockname()[1])


def test_what_is_sent_after_a_server_has_said_all_arrives(where: dict[str, Any]) -> None:
    """By a port of this machine, whose client closes at once, and by a connection of our own."""
    with Sandbox.create(**where) as sandbox, sandbox.start(["python3", "-c", FIRST]) as process:
        lines = iter(process)
        assert next(lines).data == b"up\n"
        forward = sandbox.ports.forward(7001)
        for data in (b"x" * 1000, MANY):
            with socket.create_connection(forward.address, WAIT) as client:
                assert b"".join(iter(lambda c=client: c.recv(100), b"")) == b"bye"
                client.sendall(data)
            assert next(lines).data.decode().strip() == hashlib.sha256(data).hexdigest()
        with sandbox.ports.open(7001) as port:
            assert b"".join(iter(lambda: port.recv(WAIT), b"")) == b"bye"
            assert port.send_some(b"x") == 1
            port.half_close()
        assert next(lines).data.decode().strip() == hashlib.sha256(b"x").hexdigest()


# Of a daemon that pings 40 times as often.
PINGS = """
import sys

if "serve" in sys.orig_argv:
    from uvicorn.config import Config
    init = Config.__init__

    def with_pings(self, *args, **options):
        init(self, *args, **{"ws_ping_timeout": 0.5, **options, "ws_ping_interval": 0.5})

    Config.__init__ = with_pings
"""


def test_a_connection_lasts_though_nobody_looks_at_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "sitecustomize.py").write_text(PINGS)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with (
        running() as daemon,
        Sandbox.create(url=daemon.url) as sandbox,
        sandbox.start(["python3", "-c", SERVER]) as process,
    ):
        assert next(iter(process)).data == b"up\n"
        with sandbox.ports.open(7000) as port:
            time.sleep(3)
            assert port.send_some(b"x") == 1
            port.half_close()
            told = b"".join(iter(lambda: port.recv(WAIT), b""))
        assert told.startswith(hashlib.sha256(b"x").digest())


def unread(port: int) -> bool:
    """Whether what came to a port of this machine is not read, and stays so."""
    for _ in range(10):
        rows = (line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:])
        if not any(r[1].endswith(f":{port:04X}") and not r[4].endswith(":00000000") for r in rows):
            return False
        time.sleep(0.1)
    return True


def test_a_client_that_has_gone_is_not_kept_by_a_server_that_reads_nothing(
    where: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(forward_module, "MOST", 1)
    with Sandbox.create(**where) as sandbox, sandbox.start(["python3", "-c", DEAF]) as process:
        assert next(iter(process)).data == b"up\n"
        forward = sandbox.ports.forward(7002)

        def hears() -> bool:
            with (
                contextlib.suppress(ConnectionResetError),  # there is one too many
                socket.create_connection(forward.address, WAIT) as client,
            ):
                return client.recv(100) == b"bye"
            return False

        with socket.create_connection(forward.address, WAIT) as client:
            assert b"".join(iter(lambda: client.recv(100), b"")) == b"bye"
            while not unread(forward.host_port):  # its end has room behind that
                client.sendall(MANY[: 16 << 10])
                time.sleep(0.02)
        until(hears)


def test_two_of_whom_neither_hears_the_other_are_not_looked_at_all_the_time(
    where: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    looks: list[object] = []
    wait = forward_module._Carrier._wait
    monkeypatch.setattr(
        forward_module._Carrier, "_wait", lambda *of: (looks.append(of), wait(*of))[1]
    )
    with Sandbox.create(**where) as sandbox, contextlib.ExitStack() as stack:
        server = stack.enter_context(sandbox.start(["python3", "-uc", FLOOD]))
        next(iter(server))
        forward = stack.enter_context(sandbox.ports.forward(7003))
        client = stack.enter_context(socket.create_connection(forward.address, 3))
        with pytest.raises(TimeoutError):
            while True:
                client.sendall(b"y" * 65536)
        looks.clear()
        time.sleep(1)
        assert len(looks) < 500
        client.settimeout(WAIT)
        assert client.recv(3) == b"xxx"


@pytest.mark.parametrize("by", ["the forward", "the server"])
def test_what_was_cut_off_is_not_taken_for_the_whole(where: dict[str, Any], by: str) -> None:
    """As by a client of HTTP that is told no length."""
    with Sandbox.create(**where) as sandbox, sandbox.start(["python3", "-uc", FLOOD]) as server:
        next(iter(server))
        forward = sandbox.ports.forward(7003)
        with socket.create_connection(forward.address, WAIT) as client:
            assert client.recv(3) == b"xxx"
            if by == "the forward":
                forward.close()
            else:
                server.kill()
            with pytest.raises(ConnectionResetError):
                while client.recv(65536):
                    pass


def test_one_too_many_is_not_taken_for_one_whose_server_has_said_all(
    where: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(forward_module, "MOST", 1)
    with Sandbox.create(**where) as sandbox, served(sandbox):
        forward = sandbox.ports.forward(7000)
        with socket.create_connection(forward.address, WAIT) as client:
            with (
                pytest.raises(ConnectionResetError),  # by either: it may come as it is connected
                socket.create_connection(forward.address, WAIT) as other,
            ):
                other.recv(1)
            client.sendall(b"all")
            client.shutdown(socket.SHUT_WR)
            digest = hashlib.sha256(b"all").digest()
            assert b"".join(iter(lambda: client.recv(100), b"")) == digest + b"all"


def test_where_nothing_listens_the_connection_ends(where: dict[str, Any]) -> None:
    with (
        Sandbox.create(**where) as sandbox,
        sandbox.ports.forward(7001) as port,
        socket.create_connection(port.address, WAIT) as client,
        contextlib.suppress(ConnectionResetError),
    ):
        assert client.recv(1) == b""


def test_for_asyncio(where: dict[str, Any]) -> None:
    async def main() -> bytes:
        async with await AsyncSandbox.create(**where) as sandbox:
            process = await sandbox.start(["python3", "-c", SERVER])
            assert (await anext(aiter(process))).data == b"up\n"
            with await sandbox.ports.forward(7000) as port:
                reader, writer = await asyncio.open_connection(*port.address)
                writer.write(b"async")
                writer.write_eof()
                found = await reader.read()
                writer.close()
            await process.close()
            assert (await sandbox.ports.url(7000)).startswith("http://127.0.0.1:")
            return found

    assert asyncio.run(main()).endswith(b"async")


def test_by_the_command_line(daemon: Daemon) -> None:
    with (
        Client(daemon.url) as client,
        Sandbox.create(url=daemon.url) as sandbox,
        served(sandbox),
    ):
        words = [sys.executable, "-m", "agentd", "port", sandbox.id, "7000", "--url", daemon.url]
        with subprocess.Popen(words, stdout=subprocess.PIPE) as command:
            assert command.stdout is not None
            host, _, number = command.stdout.readline().decode().strip().partition(":")
            assert asked((host, int(number)), b"cli").endswith(b"cli")
            command.send_signal(signal.SIGINT)
            assert command.wait(WAIT) == 130
        with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as command:
            assert command.stdout is not None and command.stderr is not None
            assert command.stdout.readline()
            client.sandboxes.kill(sandbox.id)
            assert command.wait(WAIT) == 125
            assert b"there is no sandbox" in command.stderr.read()


def test_by_a_websocket(daemon: Daemon) -> None:
    mine, other = daemon.key("a"), daemon.key("b")
    unfit = daemon.key("c", "read")
    box = daemon.sandbox(mine)
    with Sandbox.connect(box, url=daemon.url, api_key=mine) as sandbox, served(sandbox):

        def open_(port: object, key: str = mine) -> Any:
            url = f"ws://localhost/v1/sandboxes/{box}/tunnels/{port}"
            return unix_connect(daemon.socket, url, additional_headers={"X-API-Key": key})

        with open_(7000) as tunnel:
            tunnel.send(b"plain ")
            tunnel.send(b"bytes")
            tunnel.send('{"op": "eof"}')
            heard = list(tunnel)
        assert b"".join(h for h in heard if isinstance(h, bytes)).endswith(b"plain bytes")
        assert heard[-1] == '{"event":"eof"}'
        for port, key, status in (
            (7001, mine, 409),
            (0, mine, 400),
            (65536, mine, 400),
            ("x", mine, 400),
            (7000, other, 404),
            (7000, unfit, 403),
            (7000, "agd_no", 401),
        ):
            with pytest.raises(InvalidStatus) as refused:
                open_(port, key)
            assert refused.value.response.status_code == status, (port, status)
        with open_(7000) as tunnel:
            tunnel.send('{"op": "nonsense"}')
            assert '"invalid_input"' in tunnel.recv(WAIT)
    starts = daemon.records(kind="start", sandbox=box, capability="sandbox.port.v1")
    until(
        lambda: (
            len(daemon.records(kind="end", sandbox=box, capability="sandbox.port.v1"))
            == len(starts)
        )
    )
    daemon.ask("DELETE", f"/v1/sandboxes/{box}")

"""The relay's process, with programs in namespaces of their own and servers of the host's."""

import errno
import os
import signal
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.captured import Captured, Names, Served, echo, eventually, relayed
from tests.unit.egress.relay.test_hello import client_hello

from agentd.egress.admitted import Admitted
from agentd.egress.compile import compile_table
from agentd.egress.keeper import RelayKeeper
from agentd.model.egress import EgressBounds, StaticHost
from agentd.testing.patience import SLOWER

RESET, REFUSED = errno.ECONNRESET, errno.ECONNREFUSED


@pytest.fixture(scope="module")
def host() -> Iterator[tuple[RelayKeeper, Names]]:
    """A relay, and a name server that knows some names."""
    known = {
        "far.example": ["203.0.113.9"],
        "six.example": ["2001:db8::9"],
        "loop.example": ["127.0.0.1"],
        "empty.example": [],
    }
    with relayed(**known) as (keeper, names):
        yield keeper, names


@pytest.fixture(params=["sockets", "streams"])
def inside(request: pytest.FixtureRequest) -> Iterator[Captured]:
    """What is dialled arrives as in a namespace, or as of a machine, at the same relay."""
    captured = Captured(streams=request.param == "streams")
    yield captured
    captured.close()


@pytest.fixture
def served() -> Iterator[Callable[[Callable[[socket.socket], None]], Served]]:
    made: list[Served] = []

    def serve(what: Callable[[socket.socket], None]) -> Served:
        made.append(Served(what))
        return made[-1]

    yield serve
    for each in made:
        each.close()


def table(*rules: str, **hosts: int) -> dict[str, Any]:
    """``hosts``: names, with _ for a dot, that are served at a port of 127.0.0.1."""
    found = [StaticHost(name.replace("_", "."), "127.0.0.1", port) for name, port in hosts.items()]
    return compile_table(rules, EgressBounds(hosts=tuple(found)))


def rows(admitted: Admitted, count: int, *, ended: bool = True) -> list[dict[str, Any]]:
    """The first ``count`` that there are, once they have ended."""

    def there() -> bool:
        found = admitted.connections().rows
        return len(found) >= count and all(row["ended"] == ended for row in found)

    eventually(there)
    return sorted(admitted.connections().rows, key=lambda row: int(row["n"]))


def test_bytes_go_both_ways_and_are_counted(host, inside, served) -> None:
    keeper, _ = host
    port = served(echo).port
    admitted = keeper.admit(inside.sockets, table("db.internal:*", db_internal=port))
    assert inside.ask("talk('db.internal', 5432, b'hello')") == "hello"
    assert inside.ask("len(whole('db.internal', 5432, b'x' * 300000))") == 300_000
    first, second = sorted(rows(admitted, 2), key=lambda row: row["sent"])
    assert (first["name"], first["rule"], first["allowed"]) == (
        "db.internal",
        "db.internal:*",
        True,
    )
    assert (second["sent"], second["received"]) == (300_000, 300_000)
    totals = admitted.connections().totals
    assert (totals["allowed"], totals["denied"], totals["sent"]) == (2, 0, 300_005)
    admitted.close()


def test_a_server_may_speak_first_and_end_first(host, inside, served) -> None:
    keeper, _ = host
    port = served(lambda sock: sock.sendall(b"220 ready")).port
    admitted = keeper.admit(inside.sockets, table("mail.internal:25", mail_internal=port))
    assert inside.ask("talk('mail.internal', 25)") == "220 ready"
    admitted.close()


@pytest.mark.parametrize("size", [1000, 3_000_000])
def test_what_a_program_says_after_a_server_has_said_all_arrives(
    host, inside, served, size: int
) -> None:
    """A connection is over once both have said all, and what was said last has arrived."""
    keeper, _ = host
    heard: list[int] = []

    def serve(sock: socket.socket) -> None:
        sock.sendall(b"bye")
        sock.shutdown(socket.SHUT_WR)
        count = 0
        try:
            while data := sock.recv(65536):
                count += len(data)
        finally:
            heard.append(count)

    port = served(serve).port
    admitted = keeper.admit(inside.sockets, table("mail.internal:25", mail_internal=port))
    assert inside.ask("keep('mail.internal', 25)") == 0
    assert inside.ask("kept[0].recv(10), kept[0].recv(10)") == ["bye", ""]
    inside.ask(f"kept[0].sendall(b'x' * {size})")
    inside.ask("kept[0].close()")
    (row,) = rows(admitted, 1)
    assert (row["reason"], row["sent"], row["received"]) == ("", size, 3)
    eventually(lambda: heard == [size])
    admitted.close()


def test_a_name_that_no_rule_has_does_not_exist_and_never_leaves(host, inside) -> None:
    keeper, names = host
    admitted = keeper.admit(inside.sockets, table("far.example"))
    assert inside.ask("resolve('secret.evil.example')") == [3, ""]
    assert ("secret.evil.example", 1) not in names.asked
    (row, *_) = rows(admitted, 1)
    assert (row["name"], row["port"], row["allowed"]) == ("secret.evil.example", None, False)
    admitted.close()


def test_names_have_synthetic_addresses_and_no_other_records(host, inside) -> None:
    keeper, names = host
    rules = ("far.example", "six.example", "gone.example", "empty.example", "loop.example")
    admitted = keeper.admit(inside.sockets, table(*rules))
    code, address = inside.ask("resolve('far.example')")
    assert (code, address[:4]) == (0, "198.")
    assert inside.ask("resolve('far.example', 28)") == [0, ""]
    assert inside.ask("resolve('gone.example')") == [3, ""]
    assert inside.ask("resolve('empty.example')") == [0, ""]
    assert inside.ask("resolve('loop.example')") == [0, ""]
    before = len(names.asked)
    for kind in (2, 15, 16, 65, 255, 10):
        assert inside.ask(f"resolve('far.example', {kind})") == [0, ""]
    assert len(names.asked) == before
    # An answer comes from whoever was asked, or a program would not take it.
    assert inside.ask("resolve('far.example', 1, '1.2.3.4')") == [0, address]
    if len(inside.sockets) == 4:
        assert inside.ask("resolve('far.example', 1, '2001:db8::53')") == [0, address]
    loop = [row for row in rows(admitted, 1) if row["name"] == "loop.example"]
    assert "loopback" in loop[0]["reason"]
    admitted.close()


def test_what_no_rule_allows_is_reset_and_told(host, inside, served) -> None:
    keeper, _ = host
    port = served(echo).port
    rules = table("db.internal:5432", "!db.internal:22", db_internal=port)
    admitted = keeper.admit(inside.sockets, rules)
    refused = (RESET, REFUSED)
    assert inside.ask("talk('8.8.8.8', 53, b'x')") in refused
    assert inside.ask(f"talk('127.0.0.1', {port}, b'x')") in refused
    assert inside.ask("talk('169.254.169.254', 80, b'x')") in refused
    assert inside.ask("talk('db.internal', 6000, b'x')") in refused
    assert inside.ask("talk('db.internal', 22, b'x')") in refused
    assert inside.ask("talk('198.18.0.77', 443, b'x')") in refused
    assert inside.ask("talk('127.0.0.1', 1019, b'x')") in refused
    found = [(row["name"] or row["address"], row["port"], row["rule"]) for row in rows(admitted, 5)]
    assert found == [
        ("8.8.8.8", 53, ""),
        ("169.254.169.254", 80, ""),
        ("db.internal", 6000, ""),
        ("db.internal", 22, "!db.internal:22"),
        ("198.18.0.77", 443, ""),
    ]
    admitted.close()


def test_repeated_denials_are_counted(host, inside) -> None:
    keeper, _ = host
    admitted = keeper.admit(inside.sockets, table("far.example"))
    assert inside.ask("[resolve('no.example')[0] for _ in range(20)]") == [3] * 20
    eventually(lambda: admitted.connections().totals["denied"] >= 20)
    assert len(admitted.connections().rows) == 1
    admitted.close()


def test_this_hosts_own_address_is_nobodys_to_grant(host, inside) -> None:
    keeper, _ = host
    address = own_address()
    admitted = keeper.admit(inside.sockets, table(f"{address}:*"))
    assert inside.ask(f"talk('{address}', 9, b'x')") in (RESET, REFUSED)
    (row,) = rows(admitted, 1)
    assert (row["allowed"], row["reason"]) == (False, f"{address} is this host itself")
    admitted.close()


def own_address() -> str:
    """One of this machine's, which is no loopback."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        try:
            sock.connect(("203.0.113.1", 9))
        except OSError:
            pytest.skip("this machine has no address but the loopback's")
        return str(sock.getsockname()[0])


def test_the_server_name_must_be_the_name(host, inside, served) -> None:
    keeper, _ = host
    port = served(echo).port
    admitted = keeper.admit(inside.sockets, table("api.internal:*", api_internal=port))
    right, wrong, none = (client_hello(name) for name in ("api.internal", "b.internal", None))
    assert len(inside.ask(f"talk('api.internal', 443, {right!r})")) > 0
    pieces = [right[at : at + 50] for at in range(0, len(right), 50)]
    assert len(inside.ask(f"talk('api.internal', 443, {pieces!r})")) > 0
    assert inside.ask(f"talk('api.internal', 443, {wrong!r})") == RESET
    assert inside.ask(f"talk('api.internal', 443, {none!r})") == RESET
    assert inside.ask("talk('api.internal', 443, b'SSH-2.0-x')") == RESET
    assert inside.ask(f"talk('api.internal', 8443, {wrong!r})") == RESET
    assert len(inside.ask(f"talk('api.internal', 8443, {none!r})")) > 0
    # In no order: who is let through ends when both ends have said all.
    reasons = sorted(row["reason"] for row in rows(admitted, 7))
    other, none_named = reasons[3:5], reasons[5:]
    assert reasons[:3] == [""] * 3
    assert other == ["it dialled api.internal and asks for b.internal"] * 2
    assert none_named[0] == "its ClientHello names no server"
    assert "no TLS" in none_named[1]
    admitted.close()


def test_the_host_of_the_first_request_must_be_the_name(host, inside, served) -> None:
    keeper, _ = host
    port = served(echo).port
    admitted = keeper.admit(inside.sockets, table("web.internal", web_internal=port))
    get = b"GET / HTTP/1.1\r\nHost: %s\r\n\r\n"
    assert "Host" in inside.ask(f"talk('web.internal', 80, {get % b'web.internal'!r})")
    assert inside.ask(f"talk('web.internal', 80, {get % b'other.internal'!r})") == RESET
    # In whichever order they ended.
    assert sorted(row["allowed"] for row in rows(admitted, 2)) == [False, True]
    admitted.close()


def test_other_rules_end_what_they_do_not_allow(host, inside, served) -> None:
    keeper, _ = host
    port = served(echo).port
    hosts = {"a_internal": port, "b_internal": port}
    admitted = keeper.admit(inside.sockets, table("a.internal:1", "b.internal:1", **hosts))
    assert inside.ask("keep('a.internal', 1)") == 0
    assert inside.ask("keep('b.internal', 1)") == 1
    assert inside.ask("[s.send(b'x') and s.recv(1) == b'x' for s in kept]") == [True, True]
    admitted.set(table("b.internal:1", **hosts))
    assert inside.ask("kept[0].recv(1)") == RESET
    assert inside.ask("kept[1].send(b'y') and kept[1].recv(1) == b'y'") is True
    assert inside.ask("resolve('a.internal')") == [3, ""]
    assert inside.ask("talk('a.internal', 1)") in (RESET, REFUSED)
    admitted.close()


def nobody(captured: Captured) -> tuple[int, Any]:
    """What a program meets where no relay takes what it dials and asks: a machine's own front end
    is there, and has nobody to pass that on to."""
    return (RESET, [2, ""]) if captured.streams else (REFUSED, REFUSED)


def test_a_released_sandbox_is_refused_and_others_go_on(host, inside, served) -> None:
    keeper, _ = host
    refused = nobody(inside)
    port = served(echo).port
    other = Captured()
    rules = table("db.internal:1", db_internal=port)
    first, second = keeper.admit(inside.sockets, rules), keeper.admit(other.sockets, rules)
    assert inside.ask("keep('db.internal', 1)") == 0
    first.close()
    assert inside.ask("kept[0].recv(1)") in (RESET, "")
    assert (inside.ask("talk('8.8.8.8', 1)"), inside.ask("resolve('db.internal')")) == refused
    assert other.ask("talk('db.internal', 1, b'on')") == "on"
    second.close()
    other.close()


def test_a_relay_that_was_killed_is_followed_by_another(inside, served) -> None:
    port = served(echo).port
    with relayed() as (keeper, _):
        admitted = keeper.admit(inside.sockets, table("db.internal:1", db_internal=port))
        address = inside.ask("resolve('db.internal')")[1]
        assert inside.ask("keep('db.internal', 1)") == 0
        assert not rows(admitted, 1, ended=False)[0]["ended"]
        first = keeper.pid
        os.kill(first, signal.SIGKILL)
        assert inside.ask("kept[0].recv(1)") in (RESET, "")
        # By the address that it remembers: what it dials meanwhile waits for the next relay.
        assert inside.ask(f"talk('{address}', 1, b'again')") == "again"
        assert keeper.pid != first
        assert rows(admitted, 2)[0]["reason"] == "the relay died"


def test_where_no_relay_can_be_had_programs_are_refused(inside, served, monkeypatch) -> None:
    port = served(echo).port
    with relayed() as (keeper, _):
        admitted = keeper.admit(inside.sockets, table("db.internal:1", db_internal=port))
        assert inside.ask("talk('db.internal', 1, b'x')") == "x"
        monkeypatch.setattr("agentd.egress.process.MODULE", "agentd.egress.no_such_relay")
        os.kill(keeper.pid, signal.SIGKILL)
        refused, servfail = nobody(inside)
        eventually(lambda: inside.ask("talk('8.8.8.8', 1)") == refused)
        assert inside.ask("resolve('db.internal')") == servfail
        admitted.close()


FORKS = """
import os, threading
from tests.captured import Captured, Served, echo, relayed
from tests.unit.egress.test_relay import table
served, inside = Served(echo), Captured()
with relayed() as (keeper, _):
    admitted = keeper.admit(inside.sockets, table("db.internal:1", db_internal=served.port))
    held, free = threading.Event(), threading.Event()
    def hold():  # as any thread may when a program forks
        with keeper._changed:
            held.set()
            free.wait()
    thread = threading.Thread(target=hold)
    thread.start()
    held.wait()
    child = os.fork()
    if child == 0:
        keeper.close()
        admitted.close()
        os._exit(0)
    free.set()
    thread.join()
    print(os.waitpid(child, 0)[1], inside.ask("talk('db.internal', 1, b'mine')"))
    admitted.close()
inside.close()
served.close()
"""


def test_a_fork_of_its_host_ends_nothing() -> None:
    root = Path(__file__).resolve().parents[3]
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", FORKS],
        env={**os.environ, "PYTHONPATH": f"{root / 'src'}:{root}"},
        capture_output=True,
        text=True,
        check=False,
        timeout=120 * SLOWER,
    )
    assert done.stdout == "0 mine\n", done.stderr


def test_it_ends_with_its_host(inside) -> None:
    with relayed() as (keeper, _):
        keeper.admit(inside.sockets, table("far.example"))
        pidfd = os.pidfd_open(keeper.pid)
    try:
        poll = __import__("select").poll()
        poll.register(pidfd)
        assert poll.poll(30_000 * SLOWER)
    finally:
        os.close(pidfd)
    assert inside.ask("talk('8.8.8.8', 1)") == nobody(inside)[0]


def test_what_was_a_connections_that_ended_is_not_taken_for_the_next_ones(inside, served) -> None:
    """Where the next has the number of a descriptor of one that ended as it was accepted."""
    reset = threading.Event()

    def serve(sock: socket.socket) -> None:
        if sock.recv(5) == b"first":
            reset.wait(60)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            sock.close()
        else:
            sock.sendall(b"hello")

    server = served(serve)
    with relayed() as (keeper, _):
        admitted = keeper.admit(inside.sockets, table("db.internal:*", db_internal=server.port))
        address = inside.ask("resolve('db.internal')")[1]
        inside.ask(f"keep('{address}', 1)")
        inside.ask("kept[0].sendall(b'first')")
        eventually(lambda: len(server._threads) == 1)
        os.kill(keeper.pid, signal.SIGSTOP)  # what happens now it meets at once, in this order
        try:
            linger = "kept[0].setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)"
            inside.ask("globals().update(RESET=struct.pack('ii', 1, 0))")
            inside.ask(linger)
            inside.ask("kept[0].close()")
            inside.ask(f"keep('{address}', 1)")
            reset.set()
            server._threads[0].join(60)
        finally:
            os.kill(keeper.pid, signal.SIGCONT)
        inside.ask("kept[1].sendall(b'other')")
        assert inside.ask("kept[1].recv(5)") == "hello", rows(admitted, 2)
        admitted.close()

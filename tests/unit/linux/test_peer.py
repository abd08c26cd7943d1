import os
import socket
import subprocess
import sys
from types import SimpleNamespace

import pytest

from agentd.linux import peer
from agentd.linux.peer import Peer, peer_of


def test_the_kernel_tells_who_is_there():
    ours, theirs = socket.socketpair()
    with ours, theirs:
        assert peer_of(ours) == Peer(os.geteuid(), os.getpid(), foreign=False)


def _connected_from(prefix: list[str], tmp_path) -> Peer:
    """Who is seen at the other end of a connection that a child makes, started with ``prefix``."""
    path = str(tmp_path / "s")
    code = "import socket,sys; s=socket.socket(1); s.connect(sys.argv[1]); s.recv(1)"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen(1)
        listener.settimeout(120)
        with subprocess.Popen([*prefix, sys.executable, "-I", "-S", "-c", code, path]) as child:
            try:
                connection, _ = listener.accept()
                with connection:
                    return peer_of(connection)
            finally:
                child.kill()


def test_a_child_in_our_namespaces_is_one_of_us(tmp_path):
    seen = _connected_from([], tmp_path)
    assert (seen.uid, seen.foreign) == (os.geteuid(), False)


@pytest.mark.root
@pytest.mark.parametrize("namespaces", [["-U", "-r"], ["-p", "-f", "--kill-child"]])
def test_a_process_in_a_namespace_of_its_own_is_foreign(tmp_path, namespaces):
    seen = _connected_from(["unshare", *namespaces], tmp_path)
    # The uid alone would have let it in.
    assert (seen.uid, seen.foreign) == (os.geteuid(), True)


@pytest.mark.parametrize("pidfd", [True, False])
def test_a_process_that_is_gone_is_nobody_we_know(tmp_path, pidfd, monkeypatch):
    if not pidfd:
        monkeypatch.setattr(peer, "_SO_PEERPIDFD", 0x7FFF)
    path = str(tmp_path / "s")
    code = "import socket,sys; s=socket.socket(1); s.connect(sys.argv[1])"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen(1)
        subprocess.run([sys.executable, "-I", "-S", "-c", code, path], check=True)
        connection, _ = listener.accept()
        with connection:
            assert peer_of(connection).foreign


def test_a_number_that_went_to_another_process_is_not_believed(monkeypatch):
    ours, theirs = socket.socketpair()
    with ours, theirs:
        monkeypatch.setattr(peer, "is_ready", lambda pidfd: True)
        assert peer_of(ours).foreign


@pytest.mark.root
def test_another_users_process_in_our_namespaces_is_no_stranger(as_user):
    # Its namespaces may not be looked at, but its line of pids may.
    assert as_user.call(lambda: peer._other_namespace(os.getppid())) is False


def test_what_cannot_be_found_out_is_foreign(monkeypatch):
    def gone(path):
        raise FileNotFoundError(path)

    assert not peer._other_namespace(os.getpid())
    monkeypatch.setattr(peer, "os", SimpleNamespace(stat=gone))  # not everybody's: others run
    assert peer._other_namespace(os.getpid())

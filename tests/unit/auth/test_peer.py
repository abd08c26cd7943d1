import os
import socket
import subprocess
import sys

import pytest

from agentd.auth import peer
from agentd.auth.peer import Peer, PeerProvider, PeerRule, peer_of
from agentd.model.credential import Credential
from agentd.model.errors import Forbidden

RUN = PeerRule(frozenset({"run"}))
NAMED = PeerRule(frozenset({"admin"}), "me")


def test_a_uid_has_its_rule_and_the_others_theirs():
    provider = PeerProvider({1000: NAMED, "*": RUN})
    me = provider.authenticate(Credential(peer_uid=1000))
    other = provider.authenticate(Credential(peer_uid=1001))
    assert (me.name, me.scopes, me.via) == ("me", {"admin"}, "peer")
    assert (other.name, other.scopes, other.credential) == ("uid:1001", {"run"}, "uid:1001")
    assert provider.authenticate(Credential(api_key="x")) is None


def test_a_uid_without_a_rule_is_told_which_to_add():
    with pytest.raises(Forbidden, match=r"uid 1001 is not let in .*uid = 1001"):
        PeerProvider({1000: NAMED}).authenticate(Credential(peer_uid=1001))


@pytest.mark.parametrize("uid", [65534, -1])
def test_users_without_a_number_here_are_not_all_one_principal(uid):
    with pytest.raises(Forbidden):
        PeerProvider({"*": RUN}).authenticate(Credential(peer_uid=uid))


def test_a_sandbox_with_our_own_uid_is_not_us():
    credential = Credential(peer_uid=1000, peer_pid=7, foreign=True)
    with pytest.raises(Forbidden, match="process 7 is in a container or a sandbox"):
        PeerProvider({1000: NAMED}).authenticate(credential)
    assert PeerProvider({1000: NAMED}, containers=True).authenticate(credential).name == "me"


def test_the_first_rule_for_a_uid_holds():
    assert peer.rules_of([(1, NAMED), (1, RUN), ("*", RUN)]) == {1: NAMED, "*": RUN}


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
        monkeypatch.setattr(peer, "_has_ended", lambda pidfd: True)
        assert peer_of(ours).foreign


@pytest.mark.root
def test_another_users_process_in_our_namespaces_is_no_stranger(as_user):
    # Its namespaces may not be looked at, but its line of pids may.
    assert as_user.call(lambda: peer._other_namespace(os.getppid())) is False


def test_what_cannot_be_found_out_is_foreign(monkeypatch):
    def gone(path):
        raise FileNotFoundError(path)

    assert not peer._other_namespace(os.getpid())
    monkeypatch.setattr(peer.os, "stat", gone)
    assert peer._other_namespace(os.getpid())

"""Root of a sandbox, on the wall of namespaces: it can do to the sandbox's own what root does."""

from collections.abc import Callable

import pytest

from agentd.client.sandbox import Sandbox

pytestmark = pytest.mark.parametrize("kind", ["linux", "linux over HTTP"], indirect=True)
_TAR = """
import io, tarfile
with tarfile.open("f.tar", "w") as tar:
    for name, uid, gid, mode in (("a", 33, 44, 0o640), ("b", 65534, 65534, 0o600)):
        info = tarfile.TarInfo(name)
        info.uid, info.gid, info.mode, info.size = uid, gid, mode, 3
        tar.addfile(info, io.BytesIO(b"had"))
"""
_PORT = "import socket; print(socket.create_server(('127.0.0.1', 80)).getsockname()[1])"


@pytest.fixture
def root(make: Callable[..., Sandbox]) -> Sandbox:
    return make(user="root")


def _has_ids(sandbox: Sandbox) -> bool:
    return "0 to 65535" in sandbox.enforcement["user_namespace"].detail


def test_it_owns_and_gives_away(root: Sandbox) -> None:
    given = root.run("touch x && chown 33:44 x && stat -c %u:%g x && chown 0:0 x && stat -c %u x")
    if not _has_ids(root):  # agentd is an ordinary user's: one id, and it says so
        assert "and no other" in root.enforcement["user_namespace"].detail
        assert b"Invalid argument" in given.stderr
        return
    assert given.text == "33:44\n0\n"
    root.run(["python3", "-c", _TAR], check=True)
    assert root.run("tar xpf f.tar && stat -c '%n %u:%g %a' a b").text == (
        "a 33:44 640\nb 65534:65534 600\n"
    )
    # What belongs to others is root's to read, by commands and by the agent.
    assert root.run("cat a b").text == "hadhad"
    assert root.files.read("/workspace/b") == b"had"


def test_it_becomes_another_and_that_one_is_no_root(root: Sandbox) -> None:
    if not _has_ids(root):
        pytest.skip("an ordinary user's sandbox has one id")
    nobody = ["setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups"]
    assert root.run([*nobody, "id", "-u"]).text == "65534\n"
    root.run("umask 077; echo secret > /tmp/secret", check=True)
    assert root.run([*nobody, "cat", "/tmp/secret"]).exit_code != 0
    script = "touch /tmp/own && rm /tmp/own && kill -0 1"
    assert root.run([*nobody, "sh", "-c", script]).exit_code != 0
    signalled = root.run([*nobody, "sleep", "600"], timeout=0.5)
    assert signalled.cause.code == "timeout"


def test_a_port_below_1024_is_its(root: Sandbox, make: Callable[..., Sandbox]) -> None:
    assert root.run(["python3", "-c", _PORT]).text == "80\n"
    assert make().run(["python3", "-c", _PORT]).exit_code != 0


def test_what_it_may_is_told_and_what_it_may_not_is_refused(root: Sandbox) -> None:
    told = root.enforcement["capabilities"]
    assert told.enforced
    for name in ("CAP_CHOWN", "CAP_SETUID", "CAP_NET_BIND_SERVICE", "CAP_SETFCAP"):
        assert name in told.detail
    for command in (
        "mount -t tmpfs none /tmp",
        "hostname other",
        "touch /usr/x",
        "touch /etc/x",
        "date -s 2001-01-01",
        "mknod /tmp/null c 1 3",
        "unshare -r true",
    ):
        assert root.run(command).exit_code != 0, command

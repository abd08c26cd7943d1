"""Root of a sandbox, on the wall of namespaces: it can do to the sandbox's own what root does."""

import os
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest

from agentd.client.sandbox import Sandbox
from agentd.model.result import CauseCode
from agentd.testing.walls.claims import needs

pytestmark = pytest.mark.parametrize("kind", ["linux", "linux over HTTP"], indirect=True)
_TAR = """
printf had > a && chmod 640 a && chown 33:44 a && printf had > b && chmod 600 b &&
chown 65534:65534 b && tar cf f.tar a b && rm a b
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
    root.run(_TAR, check=True)
    assert root.run("tar xpf f.tar && stat -c '%n %u:%g %a' a b").text == (
        "a 33:44 640\nb 65534:65534 600\n"
    )
    # What belongs to others is root's to read, by commands and by the agent.
    assert root.run("cat a b").text == "hadhad"
    assert root.files.read("/workspace/b") == b"had"


def test_it_becomes_another_and_that_one_is_no_root(root: Sandbox) -> None:
    if not _has_ids(root):
        pytest.skip("an ordinary user's sandbox has one id")
    if root.run("setpriv --help 2>&1 | grep -q reuid").exit_code:
        needs(root, "the setpriv of util-linux")
    nobody = ["setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups"]
    assert root.run([*nobody, "id", "-u"]).text == "65534\n"
    root.run("umask 077; echo secret > /tmp/secret", check=True)
    assert root.run([*nobody, "cat", "/tmp/secret"]).exit_code != 0
    script = "touch /tmp/own && rm /tmp/own && kill -0 1"
    assert root.run([*nobody, "sh", "-c", script]).exit_code != 0
    signalled = root.run([*nobody, "sleep", "600"], timeout=0.5)
    assert signalled.cause.code == "timeout"


def test_it_has_a_root_within_its_root(root: Sandbox, make: Callable[..., Sandbox]) -> None:
    needs(root, "python3")
    code = "import os; os.mkdir('/tmp/in'); os.chroot('/tmp'); print(os.listdir('/'))"
    assert root.run(["python3", "-c", code]).text == "['in']\n"
    assert b"PermissionError" in make().run(["python3", "-c", code]).stderr


def test_a_port_below_1024_is_its(root: Sandbox, make: Callable[..., Sandbox]) -> None:
    needs(root, "python3")
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
        "date -s 2001-01-01 && test $(date +%Y) = 2001",
        "mknod /tmp/null c 1 3",
        "unshare -r true",
    ):
        assert root.run(command).exit_code != 0, command


@pytest.fixture
def own(make: Callable[..., Sandbox]) -> Sandbox:
    return make(user="root", writable=True)


def test_all_of_a_writable_root_can_be_written_to(
    own: Sandbox, make: Callable[..., Sandbox]
) -> None:
    own.run("mkdir /app /tests /logs && touch /app/x /etc/y", check=True)
    own.run("touch /opt/f /srv/f /media/f /root/f /mnt/f", check=True)  # as hier(7) has them
    needs(own, "getent", "/usr/bin/env")
    own.run("echo 127.0.0.1 db >> /etc/hosts; mkdir -p /usr/local/bin /opt/x", check=True)
    own.run("printf '#!/bin/sh\\necho hi\\n' > /usr/local/bin/hi && chmod +x /usr/local/bin/hi")
    assert own.run("hi; getent hosts db; cat /usr/bin/env | head -c 4 | tail -c 3").text == (
        "hi\n127.0.0.1       db\nELF"
    )
    own.run("rm /usr/bin/env && cp /usr/bin/true /usr/bin/env && mv /etc/passwd /etc/was")
    assert own.run("env; stat -c %u:%g /usr/bin/env /usr /etc/was /app").text == "0:0\n" * 4
    assert own.files.read("/etc/hosts").endswith(b"127.0.0.1 db\n")
    own.files.write("/app/by-the-agent", b"data")
    # The host's are as they were, and so is another sandbox, before and after.
    assert not any(os.path.lexists(path) for path in ("/app/x", "/etc/y", "/usr/local/bin/hi"))
    assert b"ELF" in Path("/usr/bin/env").read_bytes()[:4]
    assert os.path.getsize("/usr/bin/env") != os.path.getsize("/usr/bin/true")
    other = make(user="root", writable=True)
    assert other.run("ls -d /app /etc/y /usr/local/bin/hi 2>/dev/null").text == ""
    assert other.run("env | grep -c PATH; head -n1 /etc/passwd").text.startswith("1\nroot:x:0:0")
    assert make().run("test -e /etc/y || touch /etc/y").exit_code != 0


def test_another_user_writes_to_its_root_as_well(make: Callable[..., Sandbox]) -> None:
    sandbox = make(writable=True)
    done = sandbox.run("id -u; mkdir /app && touch /app/x /etc/y /usr/local/bin/z; stat -c %u /etc")
    assert done.text == "1000\n1000\n"
    # What is not everybody's on the host stays so, and /proc is the kernel's.
    assert sandbox.run("echo 1 > /proc/sys/net/ipv4/ip_forward").exit_code != 0


def test_what_is_written_anywhere_counts_as_disk(make: Callable[..., Sandbox]) -> None:
    sandbox = make(user="root", writable=True, disk="8M")
    done = sandbox.run("mkdir /app; head -c 16000000 /dev/zero > /app/large")
    assert done.cause.code is CauseCode.DISK_FULL
    assert (
        sandbox.run("rm /app/large; head -c 4000000 /dev/zero > /etc/large; echo $?").text == "0\n"
    )


def test_it_is_told_and_mounts_and_a_copied_workspace_go_with_it(
    make: Callable[..., Sandbox], folder: Path
) -> None:
    (folder / "file").write_text("host")
    sandbox = make(
        user="root", writable=True, workspace=f"{folder}:cow", mounts=[f"{folder}:/data/in"]
    )
    told = sandbox.enforcement["root"]
    assert (told.asked, told.enforced) == ("writable", True)
    assert "changes lists none of it" in told.detail
    script = "cat /data/in/file; echo more >> file; touch /data/x /etc/y; touch /data/in/x"
    done = sandbox.run(script)
    assert done.text == "host"
    assert b"Read-only file system" in done.stderr
    assert sandbox.changes() == ("M file",)
    assert (folder / "file").read_text() == "host"


def test_a_large_file_system_is_not_read_beyond_what_everybody_may(
    own: Sandbox, make: Callable[..., Sandbox]
) -> None:
    if os.getuid() != 0:
        pytest.skip("a file of root's in /usr takes root to make")
    with tempfile.NamedTemporaryFile(dir="/usr/local/share", prefix="agentd-test-") as secret:
        secret.write(b"secret")
        secret.flush()
        for sandbox in (own, make(writable=True)):
            for command in ("cat", "head -c1", "cp -t /tmp", "chmod 644", "chown 0:0"):
                done = sandbox.run(f"{command} {secret.name}")
                assert done.exit_code != 0, command
                assert b"secret" not in done.stdout
        assert Path(secret.name).stat().st_mode & 0o777 == 0o600

"""A daemon and its clients where there is no runtime directory: su, cron, containers."""

import fcntl
import os
import signal
import socket
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.conftest import FOUND, OrdinaryUser

_FOLDER = Path(f"/tmp/agentd-run-{FOUND}")


@pytest.fixture
def folder_is_ours() -> Iterator[None]:
    """One test at a time: this user's folder in /tmp is the same for every process that tests."""
    with open(f"/var/tmp/agentd-tests-{os.getuid()}", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@pytest.fixture
def user(as_user_found: OrdinaryUser, folder_is_ours: None) -> Iterator[OrdinaryUser]:
    if os.access(f"/run/user/{FOUND}", os.F_OK) or _FOLDER.exists():
        pytest.skip(f"uid {FOUND} has a runtime directory here, or a daemon in {_FOLDER}")
    del as_user_found.env["XDG_RUNTIME_DIR"]
    yield as_user_found
    if _FOLDER.exists():
        _FOLDER.rmdir()


def serving(user: OrdinaryUser) -> "subprocess.Popen[bytes]":
    drop = [f"--reuid={FOUND}", f"--regid={FOUND}", "--clear-groups"]
    return subprocess.Popen(
        ["setpriv", *drop, *user._python, "-m", "agentd", "serve"],
        env=user.env, cwd=user.home, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )  # fmt: skip


def test_a_daemon_without_a_runtime_directory_is_found(user: OrdinaryUser) -> None:
    user.env["XDG_RUNTIME_DIR"] = "/run/user/4294967294"  # as su leaves it: another user's
    with serving(user) as daemon:
        assert daemon.stdout is not None
        ready = daemon.stdout.readline().decode()
        try:
            assert f" ready on unix:{_FOLDER}/agentd.sock " in ready
            found = _FOLDER.lstat()
            assert (found.st_uid, stat.S_IMODE(found.st_mode)) == (FOUND, 0o700)
            assert user.agentd("stats").stdout.decode().startswith("daemon")
            del user.env["XDG_RUNTIME_DIR"]
            assert user.agentd("stats").stdout.decode().startswith("daemon")
            # What everybody could have put there is not believed.
            _FOLDER.chmod(0o755)
            assert b"no daemon at " in user.agentd("stats").stderr
        finally:
            daemon.send_signal(signal.SIGTERM)
            daemon.wait(120)


def test_a_folder_that_others_may_enter_is_not_listened_in(user: OrdinaryUser) -> None:
    _FOLDER.mkdir(0o755)
    done = user.agentd("serve")
    assert done.returncode == 2
    assert f"{_FOLDER} is not a folder of uid {FOUND} alone".encode() in done.stderr


@pytest.mark.root
@pytest.mark.parametrize(
    ("owner", "mode", "inner"),
    [(1000, 0o755, FOUND), (FOUND, 0o777, FOUND), (0, 0o1777, 1000), (0, 0o777, FOUND)],
    ids=["another's", "open to all", "another's in a sticky one", "root's, open to all"],
)
def test_where_another_could_listen_nobody_looks(
    user: OrdinaryUser, owner: int, mode: int, inner: int
) -> None:
    """As su leaves it: a folder of somebody who has put a daemon of their own there."""
    place = user.home / "run"
    (place / "agentd").mkdir(parents=True)
    os.chown(place / "agentd", inner, inner)
    os.chown(place, owner, owner)
    place.chmod(mode)
    user.env["XDG_RUNTIME_DIR"] = str(place)
    with socket.socket(socket.AF_UNIX) as theirs:
        theirs.bind(f"{place}/agentd/agentd.sock")
        (place / "agentd" / "agentd.sock").chmod(0o666)
        theirs.listen()
        theirs.setblocking(False)
        for words in (["stats"], ["run", "--", "true"]):
            user.agentd(*words)
            with pytest.raises(BlockingIOError):
                theirs.accept()
    os.unlink(f"{place}/agentd/agentd.sock")
    with serving(user) as daemon:
        assert daemon.stdout is not None
        ready = daemon.stdout.readline().decode()
        daemon.send_signal(signal.SIGTERM)
        assert f" ready on unix:{_FOLDER}/agentd.sock " in ready


@pytest.mark.root
def test_root_does_not_take_the_daemon_of_who_called_su(tmp_path: Path) -> None:
    (tmp_path / "agentd").mkdir()
    os.chown(tmp_path, 1000, 1000)
    env = {**os.environ, "XDG_RUNTIME_DIR": str(tmp_path), "XDG_STATE_HOME": str(tmp_path)}
    create = "from agentd import Sandbox\nwith Sandbox.create() as sb: print(sb.url)"
    with socket.socket(socket.AF_UNIX) as theirs:
        theirs.bind(f"{tmp_path}/agentd/agentd.sock")
        theirs.listen()
        theirs.setblocking(False)
        subprocess.run([sys.executable, "-c", create], env=env, timeout=100, check=True)
        with pytest.raises(BlockingIOError):
            theirs.accept()


def test_a_daemon_that_cannot_listen_hides_no_log(as_user: OrdinaryUser) -> None:
    called = as_user.agentd("call", "fs.list.v1", "--embedded")
    assert called.returncode == 0, called.stderr
    failed = as_user.agentd("serve", "--listen", "unix:/proc/nowhere")
    assert failed.returncode == 2 and b"cannot listen on" in failed.stderr
    assert os.listdir(f"{as_user.env['XDG_STATE_HOME']}/agentd") == ["embedded"]
    tail = as_user.agentd("audit", "tail")
    assert b"fs.list.v1" in tail.stdout and b"of calls without a daemon" in tail.stderr
    # Nor does an empty one that an older agentd left.
    (Path(as_user.env["XDG_STATE_HOME"]) / "agentd" / "audit").mkdir()
    assert b"fs.list.v1" in as_user.agentd("audit", "tail").stdout


def test_a_call_where_home_cannot_be_written_names_the_variable(as_user: OrdinaryUser) -> None:
    del as_user.env["XDG_STATE_HOME"]
    as_user.env["HOME"] = "/usr" if as_user.is_other else "/nonexistent"
    done = as_user.agentd("call", "fs.list.v1", "--embedded")
    assert done.returncode == 125
    assert b"set XDG_STATE_HOME to a folder that you can write to" in done.stderr


READ_ONLY = """
for place in /tmp /run; do
    mount --bind $place $place && mount -o remount,bind,ro $place || exit 9
done
cd "$TMPDIR" && mkfifo ready && { "$@" serve --state "$TMPDIR/state" > ready & }
head -n 1 ready
"$@" stats
kill $! && wait $!
ls -d agentd-*
"""


@pytest.mark.root
def test_where_tmp_is_read_only_both_look_in_tmpdir() -> None:
    """In a mount namespace that only the child sees."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("AGENTD_", "XDG_RUNTIME"))}
    with tempfile.TemporaryDirectory(prefix="agentd-", dir="/var/tmp") as folder:
        ran = subprocess.run(
            [*["unshare", "--mount", "sh", "-c"], READ_ONLY, "sh", sys.executable, "-m", "agentd"],
            env={**kept, "TMPDIR": folder},
            capture_output=True,
            text=True,
            timeout=100,
            check=False,
        )
    ready, *stats, left = ran.stdout.splitlines()
    assert f" ready on unix:{folder}/agentd-run-0/agentd.sock " in ready, ran.stderr
    assert stats[0].startswith("daemon") and left == "agentd-run-0", ran

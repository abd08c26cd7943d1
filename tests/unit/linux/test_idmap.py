import errno
import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from agentd.linux import idmap, mounts, process

_STARTS = {"os.fork", "os.posix_spawn", "os.exec", "subprocess.Popen", "os.forkpty"}
pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="mapping foreign ids needs uid 0")


@pytest.fixture(autouse=True)
def nothing_left() -> Iterator[None]:
    before = set(os.listdir("/proc/self/fd")), set(process.children(os.getpid()))
    yield
    assert (set(os.listdir("/proc/self/fd")), set(process.children(os.getpid()))) == before


def test_files_of_one_owner_belong_to_the_mapped_one_and_back(tmp_path: Path) -> None:
    tmp_path.chmod(0o700)
    (tmp_path / "secret").write_text("text")
    (tmp_path / "secret").chmod(0o600)
    (tmp_path / "foreign").write_text("other")
    os.chown(tmp_path / "foreign", 12345, 12345)
    userns = idmap.userns_fd(0, 0, 65533)
    try:
        tree = mounts.clone_tree(str(tmp_path), readonly=False, idmap_fd=userns)
    except OSError as error:
        if error.errno == errno.EINVAL:
            pytest.skip("the filesystem of the temporary directory has no idmapped mounts")
        raise
    finally:
        os.close(userns)
    code = (
        "import os, sys\nos.fchdir(int(sys.argv[1]))\nos.setgroups([])\n"
        "os.setresgid(65533, 65533, 65533)\nos.setresuid(65533, 65533, 65533)\n"
        "print(open('secret').read(), os.stat('secret').st_uid, os.stat('foreign').st_uid)\n"
        "open('made', 'x').close()"
    )
    try:
        done = subprocess.run(
            [sys.executable, "-c", code, str(tree)],
            pass_fds=[tree],
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
    finally:
        os.close(tree)
    assert done.stdout.split() == ["text", "65533", "65534"], done.stderr
    made = (tmp_path / "made").stat()
    assert (made.st_uid, made.st_gid) == (0, 0)


def test_without_the_map_the_files_are_out_of_reach(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("text")
    (tmp_path / "secret").chmod(0o600)
    tree = mounts.clone_tree(str(tmp_path), readonly=False)
    code = (
        "import os, sys\nos.fchdir(int(sys.argv[1]))\nos.setresuid(65533, 65533, 65533)\n"
        "try:\n    open('secret')\nexcept PermissionError:\n    print('denied')"
    )
    try:
        done = subprocess.run(
            [sys.executable, "-c", code, str(tree)],
            pass_fds=[tree],
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
    finally:
        os.close(tree)
    assert done.stdout.strip() == "denied", done.stderr


def test_the_descriptor_is_the_callers_and_not_inherited() -> None:
    first, second = (idmap.userns_fd(0, 0, uid) for uid in (1001, 1002))
    try:
        assert not os.get_inheritable(first)
        assert os.fstat(first).st_ino != os.fstat(second).st_ino
    finally:
        os.close(first)
        os.close(second)


def test_many_threads_make_them_at_once_and_nothing_is_left() -> None:
    def make(uid: int) -> int:
        fd = idmap.userns_fd(0, 0, uid)
        try:
            return os.fstat(fd).st_ino
        finally:
            os.close(fd)

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(make, range(2_000_000_000, 2_000_000_400)))


def test_no_interpreter_is_started() -> None:
    programs: list[object] = []
    sys.addaudithook(lambda event, args: programs.append(args) if event in _STARTS else None)
    os.close(idmap.userns_fd(0, 0, 1003))
    assert not programs


def test_a_map_that_the_kernel_refuses_leaves_nothing() -> None:
    with pytest.raises(OSError, match="uid_map"):
        idmap.userns_fd(0, 0, (1 << 32) - 1)


def test_where_no_namespace_can_be_made_the_error_says_why() -> None:
    code = (
        "import resource\nfrom agentd.linux import idmap\n"
        "open('/proc/sys/user/max_user_namespaces', 'w').write('0')\n"
        "try:\n    idmap.userns_fd(0, 0, 0)\nexcept OSError as error:\n    print(error)"
    )
    unshare = ["unshare", "--user", "--map-root-user", sys.executable, "-c", code]
    done = subprocess.run(unshare, capture_output=True, text=True, timeout=60, check=False)
    assert "no user namespace for idmapped mounts: No space left" in done.stdout, done.stderr

import errno
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from agentd.linux import idmap, mounts, process

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="mapping foreign ids needs uid 0")


@pytest.fixture(autouse=True)
def nothing_left() -> Iterator[None]:
    idmap.close_all()
    before = set(os.listdir("/proc/self/fd")), set(process.children(os.getpid()))
    yield
    idmap.close_all()
    assert (set(os.listdir("/proc/self/fd")), set(process.children(os.getpid()))) == before


def test_files_of_one_owner_belong_to_the_mapped_one_and_back(tmp_path: Path) -> None:
    tmp_path.chmod(0o700)
    (tmp_path / "secret").write_text("text")
    (tmp_path / "secret").chmod(0o600)
    (tmp_path / "foreign").write_text("other")
    os.chown(tmp_path / "foreign", 12345, 12345)
    userns = idmap.userns_fd(0, 65533, 0, 65533)
    try:
        tree = mounts.clone_tree(str(tmp_path), readonly=False, idmap_fd=userns)
    except OSError as error:
        if error.errno == errno.EINVAL:
            pytest.skip("the filesystem of the temporary directory has no idmapped mounts")
        raise
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
            timeout=30,
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
            timeout=30,
            check=False,
        )
    finally:
        os.close(tree)
    assert done.stdout.strip() == "denied", done.stderr


def test_one_namespace_for_one_mapping() -> None:
    first = idmap.userns_fd(0, 1001, 0, 1001)
    assert idmap.userns_fd(0, 1001, 0, 1001) == first
    assert idmap.userns_fd(0, 1002, 0, 1002) != first
    assert not os.get_inheritable(first)


def test_the_cache_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(idmap, "_MAX_CACHED", 2)
    for uid in (1, 2, 3):
        idmap.userns_fd(0, uid, 0, uid)
    assert len(idmap._cache) == 2


def test_a_map_that_the_kernel_refuses_leaves_nothing() -> None:
    with pytest.raises(OSError, match="uid_map"):
        idmap.userns_fd(0, 0, 0, 0, count=0)


def test_a_holder_that_cannot_make_the_namespace_says_why(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(idmap, "_HOLDER", "import os; os._exit(28)")
    with pytest.raises(OSError, match=r"no user namespace .*: No space left") as error:
        idmap.userns_fd(0, 1, 0, 1)
    assert error.value.errno == errno.ENOSPC

import os
import signal
import subprocess
import sys
import time

import pytest

from agentd.daemon.store.errors import StoreError, StoreLocked
from agentd.daemon.store.lock import OwnerLock

# Its child inherits the lock and outlives it, until its input ends.
PARENT = """
import os, sys
from agentd.daemon.store.lock import OwnerLock
lock = OwnerLock(sys.argv[1])
if os.fork() == 0:
    print(os.getpid(), flush=True)
    os.close(1)
    sys.stdin.read()
else:
    os._exit(0)
"""


def test_held_until_closed_and_the_file_stays(tmp_path):
    path = str(tmp_path / "store.lock")
    lock = OwnerLock(path)
    with pytest.raises(StoreLocked, match=f"in use by process {os.getpid()} "):
        OwnerLock(path)
    lock.close()
    lock.close()
    assert os.path.exists(path)
    OwnerLock(path).close()


def test_one_that_a_child_of_the_dead_holder_holds_is_told_as_such(tmp_path):
    path = str(tmp_path / "store.lock")
    argv = [sys.executable, "-W", "ignore", "-c", PARENT, path]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as parent:
        child = int(parent.stdout.readline())
        parent.wait()
        with pytest.raises(StoreLocked, match=f"a child of process {parent.pid}, which has ended"):
            OwnerLock(path)
        os.kill(child, signal.SIGKILL)
    for _ in range(1000):
        try:
            OwnerLock(path).close()
            return
        except StoreLocked:
            time.sleep(0.02)
    pytest.fail("the lock outlived its last holder")


def test_a_link_is_not_followed(tmp_path):
    (tmp_path / "lock").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(StoreError, match="symbolic links"):
        OwnerLock(str(tmp_path / "lock"))
    assert not (tmp_path / "elsewhere").exists()


def test_it_is_held_though_its_file_was_removed(tmp_path):
    path = tmp_path / "store.lock"
    lock = OwnerLock(str(path))
    path.unlink()
    with pytest.raises(StoreLocked, match="in use by another process"):
        OwnerLock(str(path))
    lock.close()
    OwnerLock(str(path)).close()

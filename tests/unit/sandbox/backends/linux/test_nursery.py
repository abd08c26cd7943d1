import os
import signal
import socket
from collections.abc import Iterator
from typing import Any

import pytest

from agentd.model.errors import SandboxError
from agentd.model.spec import SandboxSpec
from agentd.sandbox.backends.linux.backend import LinuxBackend
from agentd.sandbox.backends.linux.nursery import Nursery


@pytest.fixture
def backend() -> Iterator[LinuxBackend]:
    backend = LinuxBackend()
    found = backend.probe()
    if not found.usable:
        backend.close()
        pytest.skip(f"linux: {found.blockers[0].what}")
    yield backend
    backend.close()


def _nursery(backend: LinuxBackend) -> Nursery:
    (nursery,) = backend._nurseries.values()
    return nursery


def _kill(nursery: Nursery) -> None:
    os.kill(nursery.pid, signal.SIGKILL)  # our own child, not collected yet
    os.waitid(os.P_PID, nursery.pid, os.WEXITED | os.WNOWAIT)


def test_a_request_of_a_dead_zygote_says_so(backend: LinuxBackend) -> None:
    nursery = _nursery(backend)
    _kill(nursery)
    with pytest.raises(SandboxError):
        for _ in range(2):  # the first may still fit into its socket
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            with ours, theirs:
                nursery.spawn(theirs, None, None).answer()
    with pytest.raises((SandboxError, OSError)):
        nursery.clone_tree("/usr", -1, readonly=True)


def test_the_next_launch_starts_another(backend: LinuxBackend) -> None:
    first = _nursery(backend)
    _kill(first)
    wall = backend.launch(backend.plan(SandboxSpec()))
    try:
        assert wall.alive()
        assert _nursery(backend).pid != first.pid
    finally:
        wall.kill()


def test_closing_is_idempotent_and_ends_the_sandboxes(backend: LinuxBackend) -> None:
    wall = backend.launch(backend.plan(SandboxSpec()))
    backend.close()
    backend.close()
    assert wall.wait(120)
    wall.kill()
    wall.kill()


# What a folder's name led to was judged and opened; it leads elsewhere once the zygote's
# first process makes the mount.
SWAPPED = """
import errno, os
from agentd.sandbox.backends.linux.nursery import Nursery
os.chdir(os.environ["HOME"])
for name in ("judged", "other"):
    os.mkdir(name)
nursery = Nursery(net="none")
nursery.wait_ready()
path = os.path.realpath("judged")
source = os.open(path, os.O_PATH)
os.close(nursery.clone_tree(path, source, readonly=True))
os.rename("judged", "moved")
os.rename("other", "judged")
before = len(os.listdir("/proc/self/fd"))
try:
    nursery.clone_tree(path, source, readonly=True)
except OSError as error:
    print(errno.errorcode[error.errno], len(os.listdir("/proc/self/fd")) - before)
nursery.close()
"""


def test_a_folder_that_was_replaced_meanwhile_is_not_mounted(as_user: Any) -> None:
    done = as_user.python("-c", SWAPPED)
    assert (done.returncode, done.stdout) == (0, b"ESTALE 0\n"), done.stderr.decode()

"""Threat: by POSIX message queues code reaches others' queues, or uses up the kernel's memory.

Controls: an ipc namespace of its own, with limits of its own; RLIMIT_MSGQUEUE, which bounds a user
in all. At the process level seccomp: there the namespace is the host's.
"""

import re
from collections.abc import Callable
from typing import Any

import pytest

QUEUES = """
def opened(name, flags=os.O_CREAT | os.O_RDWR, most=1, size=1):
    attributes = struct.pack("=8q", 0, most, size, 0, 0, 0, 0, 0)
    return call("mq_open", name, flags, 0o600, attributes)
"""
EXCHANGE = """
fd = opened(b"queue", most=2, size=16)
said("send", call("mq_timedsend", fd, b"hello", 5, 0, 0))
taken = ctypes.create_string_buffer(16)
said("receive", call("mq_timedreceive", fd, taken, 16, 0, 0))
said("text", taken.value.decode())
said("listed", os.listdir("/dev/mqueue"))
"""
OTHERS = """
said("open", opened(b"queue", os.O_RDONLY))
said("remove", call("mq_unlink", b"queue"))
"""
MANY = """
count = 0
while isinstance(got := opened(str(count).encode()), int):
    os.close(got)
    count += 1
said("count", count)
said("then", got)
said("large", opened(b"large", size=1 << 24))
"""


@pytest.mark.parametrize("user", ["sandbox", "root"])
def test_a_sandbox_has_queues_of_its_own(sandbox: Callable[..., Any], user: str) -> None:
    box = sandbox("linux", user=user)
    said = box.attack(QUEUES + EXCHANGE)
    assert said == {"send": "0", "receive": "5", "text": "hello", "listed": "['queue']"}
    another = sandbox("linux", user=user)
    assert another.attack(QUEUES + OTHERS) == {"open": "ENOENT", "remove": "ENOENT"}
    assert box.attack(QUEUES + OTHERS)["remove"] == "0"


def test_queues_are_bounded(sandbox: Callable[..., Any]) -> None:
    said = sandbox("linux", user="root").attack(QUEUES + MANY)
    assert 0 < int(said["count"]) <= 256
    assert said["then"] in ("ENOSPC", "EMFILE")
    assert said["large"] in ("EINVAL", "ENOSPC", "EMFILE")


@pytest.mark.parametrize("without", [set(), {"landlock"}], ids=["whole", "no landlock"])
def test_the_bounds_are_not_lifted(sandbox: Callable[..., Any], without: set[str]) -> None:
    """Not by root of the sandbox either: where it owns them, Landlock alone forbids it."""
    script = """
    for name in ("queues_max", "msg_max", "msgsize_max"):
        said(name, opens(f"/proc/sys/fs/mqueue/{name}", os.O_WRONLY))
    """
    said = sandbox("linux", user="root", without=without).attack(re.sub("(?m)^    ", "", script))
    assert (set(said.values()) == {"EACCES"}) is (not without), said


def test_at_the_process_level_there_are_none(sandbox: Callable[..., Any]) -> None:
    box = sandbox("landlock")
    assert box.attack(QUEUES + OTHERS) == {"open": "ENOSYS", "remove": "ENOSYS"}

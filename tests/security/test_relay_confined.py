"""Threat: what was said took over the relay, or the terminator, and one of its controls has a hole.

Controls: each by itself here. The filter has no call but those of an event loop; the process is
nobody, in no group; it has no capability though it stay root, nor does anybody read its memory; and
it holds nothing but the descriptors of its host.
"""

import contextlib
import errno
import json
import os
import select
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.captured import Captured, eventually, relayed
from tests.unit.egress.terminator.world import judging

from agentd.egress import process as processes
from agentd.egress import terminating
from agentd.egress.compile import compile_table
from agentd.egress.keeper import RelayKeeper

RELAY, TERMINATOR = processes.MODULE, terminating.MODULE
# Each with arguments that no kernel takes: where it is let through it says so by another error.
CALLS = """
add_key bind bpf chroot clone execve execveat fanotify_init fsopen getdents64 inotify_init1
io_setup io_uring_setup keyctl kill linkat listen memfd_create mount move_mount mq_open
name_to_handle_at open_by_handle_at open_tree openat openat2 perf_event_open pidfd_getfd
pidfd_open prctl prlimit64 process_vm_readv process_vm_writev ptrace readlinkat renameat2
request_key sendfile sendmmsg seccomp setns setpriority setrlimit setuid shmget statx tgkill
umount2 unlinkat unshare userfaultfd vmsplice
"""
PROBE = f"""
import ctypes, json, socket
from agentd.linux import abi
from agentd.linux.seccomp.tables import numbers
libc = ctypes.CDLL(None, use_errno=True)
libc.syscall.restype = ctypes.c_long
def probed():
    found = {{}}
    words = [ctypes.c_long(-1)] * 6
    for name in {CALLS!r}.split():
        number = numbers(abi.MACHINE).get(name)
        if number is not None:
            code = libc.syscall(ctypes.c_long(number), *words)
            found[name] = ctypes.get_errno() if code == -1 else 0
    for name, args in {{
        "datagrams": (socket.AF_UNIX, socket.SOCK_DGRAM),
        "messages": (socket.AF_UNIX, socket.SOCK_SEQPACKET),
        "of another family": (socket.AF_TIPC, socket.SOCK_STREAM),
    }}.items():
        try:
            socket.socketpair(*args)
            found[name] = 0
        except OSError as error:
            found[name] = error.errno
    return json.dumps(found)
"""
IN_RELAY = f"""
{PROBE}
from agentd.egress.relay import relay
def tried(self):
    self._control.send(json.dumps({{"rows": [{{"fault": probed()}}], "lost": 0}}).encode())
    serve(self)
serve, relay.Relay.serve = relay.Relay.serve, tried
"""
IN_TERMINATOR = f"""
{PROBE}
from agentd.egress.terminator import terminator
async def tried(self):
    self.records.fault(probed())
    await serve(self)
serve, terminator.Terminator.serve = terminator.Terminator.serve, tried
"""


def module(usual: str, more: str) -> str:
    """``usual`` with something run before its main."""
    return f"{usual.rpartition('.')[0]} import main; exec({more!r}, globals()); from {usual}"


@pytest.fixture(autouse=True)
def grouped() -> Iterator[None]:
    """Its host is in a group."""
    if os.geteuid() != 0:
        yield
        return
    before = os.getgroups()
    os.setgroups([*before, 54321])
    yield
    os.setgroups(before)


@contextlib.contextmanager
def relay() -> Iterator[RelayKeeper]:
    inside = Captured()
    try:
        with relayed() as (keeper, _):
            admitted = keeper.admit(inside.sockets, compile_table(["db.internal:1"]))
            yield keeper
            admitted.close()
    finally:
        inside.close()


def status(pid: int) -> dict[str, str]:
    lines = Path(f"/proc/{pid}/status").read_text(encoding="ascii").splitlines()
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


def nobody(pid: int) -> None:
    if os.geteuid() != 0:
        return
    found = status(pid)
    users, groups = (found[name].split() for name in ("Uid", "Gid"))
    assert len(set(users)) == 1 and users[0] != "0"
    assert groups == users and found["Groups"] == ""
    assert int(found["CapBnd"], 16) == 0


def test_a_relays_filter_lets_through_what_it_calls_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "MODULE", module(RELAY, IN_RELAY))
    with relay() as keeper:
        eventually(lambda: keeper.faults)
        found: dict[str, int] = json.loads(keeper.faults[0])
        nobody(keeper.pid)
    assert len(found) > 40
    assert found == dict.fromkeys(found, errno.EPERM)


def test_a_terminators_filter_lets_through_what_it_calls_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(terminating, "MODULE", module(TERMINATOR, IN_TERMINATOR))
    ours, forgotten = os.pipe()
    os.set_inheritable(forgotten, True)
    with judging(tmp_path) as made:
        os.close(forgotten)
        eventually(lambda: made.keeper.faults)
        found: dict[str, int] = json.loads(made.keeper.faults[0])
        nobody(made.keeper.terminating.pid)
        ends = select.poll()
        ends.register(ours, select.POLLHUP)
        assert ends.poll(0)  # it has nothing that its host forgot to mark
    os.close(ours)
    assert found == dict.fromkeys(found, errno.EPERM)


@pytest.mark.root
def test_one_that_stays_root_has_no_capability_and_shows_its_memory_to_nobody(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As in a container whose root may be no other user. By: what is given up beside the user."""
    monkeypatch.setattr(processes, "_nobody", lambda: None)
    told = """
import ctypes
from agentd.egress.relay import confine, main
libc, install = ctypes.CDLL(None), confine.install
dumpable = []
confine.install = lambda *args: (dumpable.append(libc.prctl(3, 0, 0, 0, 0)), install(*args))
main.confine = lambda user: [*confine.confine(user), f"dumpable {dumpable}"]
"""
    monkeypatch.setattr(processes, "MODULE", module(RELAY, told))
    with relay() as keeper:
        found: dict[str, Any] = status(keeper.pid)
        assert found["Uid"].split()[0] == "0"
        assert [int(found[name], 16) for name in ("CapEff", "CapPrm", "CapInh", "CapAmb")] == [
            0
        ] * 4
        assert "dumpable [0]" in keeper.confinement

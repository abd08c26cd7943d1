"""A daemon whose supervisor dies, stands still, or loses walls while the daemon comes up."""

import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.security.daemons import WAIT, Answer, Daemon, Later, running, until

from agentd.sandbox.supervisor.main import _run as supervising
from agentd.sandbox.supervisor.own_socket import OwnSocket
from agentd.sandbox.supervisor.server import Supervisor


def supervisor(daemon: Daemon) -> int:
    return int((daemon.state / "supervisor.sock.lock").read_text())


def run(daemon: Daemon, sandbox: str, cmd: str = "echo here") -> Answer:
    return daemon.ask("POST", f"/v1/sandboxes/{sandbox}/exec", {"cmd": cmd})


def readiness(daemon: Daemon) -> int:
    return daemon.ask("GET", "/readyz").status


@pytest.fixture
def daemon() -> Iterator[Daemon]:
    with running() as made:
        yield made


def test_another_takes_the_place_of_a_killed_one(daemon: Daemon) -> None:
    for _ in range(2):
        ours = [daemon.sandbox() for _ in range(3)]
        waits = Later(lambda ours=ours: run(daemon, ours[0], "sleep 100"))  # type: ignore[misc]
        until(lambda ours=ours: bool(daemon.ask("GET", f"/v1/sandboxes/{ours[0]}/processes").json))  # type: ignore[misc]
        before = supervisor(daemon)
        os.kill(before, signal.SIGKILL)
        ended = waits.answer()
        assert ended.status == 200 and ended.json["cause"]["code"] == "backend_lost", ended.body
        for id_ in ours:
            until(lambda id_=id_: daemon.ask("GET", f"/v1/sandboxes/{id_}").status == 404)  # type: ignore[misc]
            told = f"sandbox={id_} reason=backend_lost".encode()
            until(lambda told=told: told in daemon.log)  # type: ignore[misc]
        until(lambda: readiness(daemon) == 200)
        assert supervisor(daemon) != before
        made = daemon.sandbox()
        assert run(daemon, made).json["stdout"] == "here\n"
        assert daemon.ask("DELETE", f"/v1/sandboxes/{made}").status == 204
    assert daemon.is_up
    assert daemon.log.count(b"went on with another supervisor") == 2


def test_a_daemon_that_can_have_no_other_ends_and_says_so(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as told:
        told.bind(str(tmp_path / "notify"))
        told.setblocking(False)
        notify = ("env", f"NOTIFY_SOCKET={tmp_path}/notify", "WATCHDOG_USEC=200000")
        with running(prefix=notify) as daemon:
            lost = daemon.sandbox()
            log = daemon.state / "supervisor.sock.log"
            log.unlink()
            log.symlink_to(tmp_path / "elsewhere")  # it is not followed, so that none can start
            os.kill(supervisor(daemon), signal.SIGKILL)
            until(lambda: readiness(daemon) == 503)
            until(lambda: daemon.ask("GET", f"/v1/sandboxes/{lost}").status == 404)
            drain(told)
            assert daemon.process is not None
            assert daemon.process.wait(120) == 125
            daemon.stop()
            assert b"WATCHDOG=1" not in drain(told)
            assert b"no other supervisor can be started" in daemon.log
            log.unlink()
            daemon.start()
            assert run(daemon, daemon.sandbox()).json["stdout"] == "here\n"


def drain(told: socket.socket) -> list[bytes]:
    found = []
    while True:
        try:
            found += told.recv(4096).splitlines()
        except BlockingIOError:
            return found


def test_one_that_does_not_answer_is_told_of_and_no_sandbox_is_lost(daemon: Daemon) -> None:
    ours = daemon.sandbox()
    pid = supervisor(daemon)
    os.kill(pid, signal.SIGSTOP)
    try:
        until(lambda: b"supervisor does not answer" in daemon.ask("GET", "/readyz").body)
        assert readiness(daemon) == 503
    finally:
        os.kill(pid, signal.SIGCONT)
    until(lambda: readiness(daemon) == 200)
    assert run(daemon, ours).json["stdout"] == "here\n"


def agents(daemon: Daemon) -> list[int]:
    """The first process of each sandbox of its zygote."""
    found: list[int] = []
    for first in children(supervisor(daemon)):
        for zygote in children(first):
            found += children(zygote)
    return found


def children(pid: int) -> list[int]:
    found: list[int] = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        found += [int(word) for word in (task / "children").read_text().split()]
    return found


def connections(daemon: Daemon) -> int:
    path = str(daemon.state / "supervisor.sock")
    return sum(line.endswith(path) for line in Path("/proc/net/unix").read_text().splitlines())


def pidfds(pid: int) -> int:
    """How many processes it watches."""
    found = [os.readlink(fd) for fd in Path(f"/proc/{pid}/fd").iterdir() if fd.is_symlink()]
    return sum("pidfd" in target for target in found)


def test_walls_that_end_while_a_daemon_comes_up(daemon: Daemon) -> None:
    """It is stopped as soon as it has its supervisor, and told of the ends when it goes on."""
    for _ in range(5):
        ours = [daemon.sandbox() for _ in range(4)]
        first = agents(daemon)
        daemon.stop(kill=True)
        until(lambda: connections(daemon) == 1)  # the listener
        starter = threading.Thread(target=daemon.start)
        starter.start()
        while connections(daemon) == 1:
            time.sleep(0.001)
        assert daemon.process is not None
        os.kill(daemon.process.pid, signal.SIGSTOP)
        for pid in first:
            os.kill(pid, signal.SIGKILL)
        until(lambda: pidfds(supervisor(daemon)) <= 1)  # it may hold one that is made ahead
        os.kill(daemon.process.pid, signal.SIGCONT)
        starter.join(WAIT)
        assert not starter.is_alive(), "it did not come up"
        for id_ in ours:
            until(lambda id_=id_: daemon.ask("GET", f"/v1/sandboxes/{id_}").status == 404)  # type: ignore[misc]
        made = daemon.sandbox()
        assert run(daemon, made).json["stdout"] == "here\n"
        assert daemon.ask("DELETE", f"/v1/sandboxes/{made}").status == 204
    assert b"a thread broke" not in daemon.log


@pytest.mark.parametrize("names", [("",), ("", ".lock", ".log")])
def test_one_whose_names_were_removed_is_found_by_the_next_daemon(
    daemon: Daemon, names: tuple[str, ...]
) -> None:
    """As a cleaner of /tmp does, or a careless rm."""
    ours, pid = daemon.sandbox(), supervisor(daemon)
    for name in names:
        (daemon.state / f"supervisor.sock{name}").unlink()
    if len(names) > 1:
        until((daemon.state / "supervisor.sock.lock").exists)
    daemon.stop(kill=True)
    daemon.start()
    assert daemon.is_up, daemon.log[-2000:]
    assert supervisor(daemon) == pid
    assert run(daemon, ours).json["stdout"] == "here\n"


def test_one_that_has_nothing_to_keep_ends_with_its_folder(daemon: Daemon) -> None:
    """Who removes the state of a daemon that has ended is not hindered by files made anew."""
    supervised = os.pidfd_open(supervisor(daemon))
    try:
        assert daemon.stop() == 0
        for name in ("supervisor.sock", "supervisor.sock.lock"):
            (daemon.state / name).unlink()
        left = daemon.state.stat().st_mtime_ns
        ended, _, _ = select.select([supervised], [], [], WAIT)
        assert ended and daemon.state.stat().st_mtime_ns == left
    finally:
        os.close(supervised)


class _Cleared(OwnSocket):
    """Its names are removed at the worst moment: just after it saw them."""

    def is_removed(self) -> bool:
        seen = super().is_removed()
        for name in (self._path, f"{self._path}.lock"):
            Path(name).unlink(missing_ok=True)
        return seen


def test_one_that_has_nothing_to_keep_makes_nothing_anew_while_its_folder_goes(
    tmp_path: Path,
) -> None:
    own, serving = _Cleared(str(tmp_path / "s")), Supervisor()
    assert own.take()
    own.listen(0.1)
    try:
        supervising(serving, own)
        assert list(tmp_path.iterdir()) == []
    finally:
        serving.close()
        own.close()
        os.close(own._lock)  # which goes with its process


def test_nobody_takes_over_from_a_daemon_whose_locks_were_removed(daemon: Daemon) -> None:
    ours = daemon.sandbox()
    for name in ("store.lock", "audit/lock"):
        (daemon.state / name).unlink()
    other = ["--listen", f"unix:{daemon.state}/other.sock", "--state", str(daemon.state)]
    argv = [sys.executable, "-m", "agentd", "serve", *other]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=WAIT, check=False)
    assert (done.returncode, done.stdout) == (125, "")
    assert f"the store {daemon.state} is in use by another process (stop" in done.stderr
    assert run(daemon, ours).json["stdout"] == "here\n"


def test_one_whose_place_another_took_ends_with_its_sandboxes(daemon: Daemon) -> None:
    """Nobody could ask it any more, and nobody would end them."""
    ours, before = daemon.sandbox(), supervisor(daemon)
    os.kill(before, signal.SIGSTOP)
    try:
        daemon.stop(kill=True)
        for path in daemon.state.glob("supervisor.sock*"):
            path.unlink()
        daemon.start()
    finally:
        os.kill(before, signal.SIGCONT)
    assert supervisor(daemon) != before
    until(lambda: not Path(f"/proc/{before}").exists())
    assert daemon.ask("GET", f"/v1/sandboxes/{ours}").status == 404
    made = daemon.sandbox()
    assert run(daemon, made).json["stdout"] == "here\n"
    daemon.stop()
    daemon.start()  # its socket is where it was
    assert run(daemon, made).json["stdout"] == "here\n"

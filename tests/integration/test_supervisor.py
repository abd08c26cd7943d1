"""A supervisor of its own, real sandboxes, and a daemon's end that comes and goes."""

import contextlib
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from agentd.model.egress import EgressBounds, StaticHost
from agentd.model.errors import AgentdError, BackendLost, InvalidInput
from agentd.model.mount import parse_workspace
from agentd.model.spec import ExecRequest, SandboxSpec
from agentd.sandbox.abilities import CHANGES, NETWORK, PAUSE, SNAPSHOT
from agentd.sandbox.handle import SandboxHandle
from agentd.sandbox.manager import Manager, connect
from agentd.sandbox.supervisor import client, remote, wire
from agentd.sandbox.supervisor.held import WallRecord

WAIT = 120.0


class Daemon:
    """What a daemon holds: a link and a manager. ``ended`` gathers what it was told."""

    def __init__(self, path: str) -> None:
        self.ended: list[tuple[str, str]] = []
        self.link = client.connect(path, lambda id_, reason: self.ended.append((id_, reason)))
        self.manager = Manager(load=remote.loader(self.link))

    @property
    def pid(self) -> int:
        pid: int = self.link.ask("hello")["pid"]
        return pid


@pytest.fixture
def path(tmp_path: Path) -> Iterator[str]:
    place = str(tmp_path / "s")
    yield place
    with contextlib.suppress(AgentdError, OSError):
        link = client.connect(place, lambda *_: None)
        link.ask("shutdown")
        until(link.lost.is_set)
        link.close()


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + WAIT
    while not condition():
        assert time.monotonic() < deadline, "it did not come to pass"
        time.sleep(0.02)


def gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "ZX"
    except FileNotFoundError:
        return True


def made(daemon: Daemon) -> tuple[SandboxHandle, remote.RemoteWall]:
    handle = daemon.manager.create(SandboxSpec())
    assert isinstance(handle.wall, remote.RemoteWall)
    return handle, handle.wall


def run(guest: object, *argv: str) -> tuple[int | None, bytes]:
    end, out, _, _ = guest.run(ExecRequest(argv, cwd="/workspace"))  # type: ignore[attr-defined]
    return end.exit_code, out


def test_a_sandbox_outlives_its_daemon_and_the_next_one_goes_on_with_it(path: str) -> None:
    first = Daemon(path)
    handle = first.manager.create(SandboxSpec(env={"A": "1"}))
    assert run(handle.guest, "sh", "-c", "echo kept > a.txt") == (0, b"")
    handle.guest.close()
    first.link.close()  # all that the supervisor sees of a kill -9

    second = Daemon(path)
    [held] = remote.held(second.link)
    assert held.id == handle.wall.save()["wall"]
    assert (held.backend, held.spec.env) == ("linux", {"A": "1"})
    wall = remote.wall_of(second.link, held)
    guest = connect(wall)
    assert run(guest, "cat", "a.txt") == (0, b"kept\n")
    assert wall.enforcement == handle.wall.enforcement
    assert wall.counters().keys() == handle.wall.counters().keys()
    guest.close()
    wall.kill()
    assert remote.held(second.link) == []
    second.link.close()


def groups(wall: object) -> list[Path]:
    group = wall._group  # type: ignore[attr-defined]
    of = group.where()["directories"] if group is not None else {}
    return [folder for folder in map(Path, of.values()) if folder.exists()]


def processes(folders: list[Path]) -> set[int]:
    return {int(p) for f in folders for p in (f / "cgroup.procs").read_text().split()}


def test_a_kill_is_answered_when_nothing_runs_and_then_its_group_goes(path: str) -> None:
    daemon = Daemon(path)
    handle = daemon.manager.create(SandboxSpec())
    run(handle.guest, "sh", "-c", "sleep 600 >/dev/null 2>&1 &")
    folders = groups(handle.wall)
    members = processes(folders)
    assert not folders or len(members) == 2, "the agent and the sleep"
    handle.wall.begin_kill()  # type: ignore[attr-defined]
    daemon.manager.destroy(handle)
    assert all(gone(pid) for pid in members) and daemon.ended == []
    until(lambda: not any(folder.exists() for folder in folders))
    daemon.manager.close()
    daemon.link.close()


@pytest.mark.parametrize("background", [False, True])
@pytest.mark.parametrize("adopted", [False, True])
def test_a_daemon_ends_a_sandbox_by_itself(path: str, adopted: bool, background: bool) -> None:
    daemon = Daemon(path)
    handle, wall = made(daemon)
    agent = processes(groups(wall))
    if background:
        run(handle.guest, "sh", "-c", "for n in $(seq 40); do sleep 600 >/dev/null 2>&1 & done")
    commands = processes(groups(wall)) - agent
    assert not background or not agent or len(commands) == 40
    if adopted:
        wall = remote.wall_of(daemon.link, remote.held(daemon.link)[0])
    supervisor = daemon.pid
    os.kill(supervisor, signal.SIGSTOP)
    try:
        assert wall.alive()
        wall.end()
        # The kernel may still be freeing what the agent held; what is left of commands is gone.
        assert all(gone(pid) for pid in commands)
        assert wall.wait(WAIT)
    finally:
        os.kill(supervisor, signal.SIGCONT)
    wall.kill()
    handle.wall.kill()
    assert remote.held(daemon.link) == []
    daemon.manager.close()
    daemon.link.close()


def test_a_lease_that_is_told_and_not_asked_for_is_kept(path: str) -> None:
    daemon = Daemon(path)
    _, wall = made(daemon)
    wall.tell_lease(0.2)
    until(lambda: daemon.ended == [(wall.id, "lease_expired")])
    wall.tell_lease(60)
    assert remote.held(daemon.link) == []
    daemon.manager.close()
    daemon.link.close()


def test_what_nobody_renews_ends_by_itself_and_the_daemon_is_told(path: str) -> None:
    daemon = Daemon(path)
    (_, wall), (_, stays) = made(daemon), made(daemon)
    stays.renew(None)
    wall.renew(0.2)
    until(lambda: daemon.ended == [(wall.id, "lease_expired")])
    assert not wall.alive()
    with pytest.raises(BackendLost, match="has ended"):
        wall.renew(60)
    assert [held.id for held in remote.held(daemon.link)] == [stays.id]
    assert remote.held(daemon.link)[0].deadline is None
    daemon.manager.close()
    assert remote.held(daemon.link) == []
    daemon.link.close()


def test_a_wall_that_nobody_claims_has_a_lease_from_the_start(path: str) -> None:
    daemon = Daemon(path)
    daemon.manager.create(SandboxSpec())
    [held] = remote.held(daemon.link)
    assert held.deadline is not None
    assert 0 < held.deadline - time.time() <= 60
    daemon.manager.close()
    daemon.link.close()


def test_an_agent_ends_its_sandbox_by_itself_when_nobody_else_can(path: str) -> None:
    daemon = Daemon(path)
    handle = daemon.manager.create(SandboxSpec())
    supervisor = daemon.pid
    handle.guest.call("sys.lease", ms=200)
    os.kill(supervisor, signal.SIGSTOP)
    try:
        with pytest.raises(AgentdError):
            handle.guest.run(ExecRequest(("sleep", "30"), cwd="/workspace"))
    finally:
        os.kill(supervisor, signal.SIGCONT)
    until(lambda: not handle.wall.alive())
    daemon.manager.close()
    daemon.link.close()


def test_when_the_supervisor_is_killed_the_kernel_ends_every_sandbox(path: str) -> None:
    daemon = Daemon(path)
    handles = [daemon.manager.create(SandboxSpec()) for _ in range(3)]
    supervisor = daemon.pid
    children = Path(f"/proc/{supervisor}/task/{supervisor}/children").read_text().split()
    inside = [run(h.guest, "sh", "-c", "sleep 600 & echo started") for h in handles]
    assert inside == [(0, b"started\n")] * 3
    os.kill(supervisor, signal.SIGKILL)
    until(daemon.link.lost.is_set)
    until(lambda: all(gone(int(pid)) for pid in children))
    until(lambda: not any(handle.wall.alive() for handle in handles))
    with pytest.raises(BackendLost, match="every sandbox with it"):
        daemon.manager.create(SandboxSpec())
    daemon.manager.close()
    daemon.link.close()
    again = Daemon(path)
    assert again.pid != supervisor
    assert remote.held(again.link) == []
    again.link.close()


def test_there_is_one_supervisor_a_socket_and_the_newest_daemon_has_it(path: str) -> None:
    first, second = Daemon(path), Daemon(path)
    assert second.pid != 0
    until(first.link.lost.is_set)
    with pytest.raises(BackendLost):
        first.link.ask("hello")
    first.link.close()
    second.link.close()


def test_one_that_takes_us_and_ends_is_followed_by_another(path: str) -> None:
    dying = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    dying.bind(path)
    dying.listen()

    def end() -> None:
        taken, _ = dying.accept()
        os.unlink(path)
        dying.close()
        taken.close()

    thread = threading.Thread(target=end)
    thread.start()
    daemon = Daemon(path)
    assert daemon.pid not in (0, os.getpid())
    thread.join()
    daemon.link.close()


def test_a_daemon_of_an_older_version_is_answered_in_its_own_way(path: str, tmp_path: Path) -> None:
    daemon = Daemon(path)
    (tmp_path / "work").mkdir()
    spec = SandboxSpec(mounts=(parse_workspace(f"{tmp_path}/work:cow"),))
    handle = daemon.manager.create(spec)
    run(handle.guest, "touch", "a")
    (held,) = daemon.link.ask("list", after="")["sandboxes"]
    known = {"pause", "snapshot", "branch", "changes", "network"}
    assert set(held["can"]) | set(held["lacks"]) == known
    assert held["fidelity"] == "files"
    assert daemon.link.ask("changes", id=held["id"]) == ["A a"]  # it asked for no file
    assert handle.overlay().changes() == ("A a",)
    for op in ("pause", "resume") if "pause" in held["lacks"] else ():
        with pytest.raises(InvalidInput, match=f"cannot {op}"):
            daemon.link.ask(op, id=held["id"])
    for op in ("kill_all", "__class__", "begin_kill", "first_process", "save_"):
        with pytest.raises(InvalidInput, match="the supervisor does not know"):
            daemon.link.ask(op, id=held["id"])
    daemon.manager.close()
    daemon.link.close()


def test_a_supervisor_of_an_older_version_is_understood() -> None:
    """It answers True to what has no result, and changes in its message."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    heard: list[wire.Message] = []

    def answer() -> None:
        with theirs, contextlib.suppress(EOFError, OSError):
            while True:
                message, _ = wire.receive(theirs)
                heard.append(message)
                value = ["A a"] if message["op"] == "changes" else True
                wire.send(theirs, {"n": message["n"], "ok": value})

    thread = threading.Thread(target=answer)
    thread.start()
    link = client.SupervisorLink(ours, lambda *_: None)
    held = WallRecord(
        id="wall-1",
        spec=SandboxSpec(),
        backend="toy",
        workspace="/workspace",
        passes_descriptors=False,
        enforcement={},
        can=("pause", "snapshot", "changes", "of a later version"),
        fidelity="files",
        counted=None,
        deadline=None,
    )
    wall = remote.RemoteWall(link, held)
    pauses, snapshots, overlay = (row.of(wall) for row in (PAUSE, SNAPSHOT, CHANGES))
    assert pauses and snapshots and overlay
    assert overlay.changes() == ("A a",)
    pauses.pause()
    snapshots.snapshot("/some/folder")
    assert snapshots.fidelity == "files"
    link.close()
    thread.join()
    asked = [{**message, "n": 0} for message in heard]
    assert asked == [
        {"n": 0, "op": "changes", "id": "wall-1", "file": True},
        {"n": 0, "op": "pause", "id": "wall-1"},
        {"n": 0, "op": "snapshot", "id": "wall-1", "folder": "/some/folder"},
    ]


def test_errors_come_across_with_their_class_and_words(path: str) -> None:
    daemon = Daemon(path)
    with pytest.raises(AgentdError) as caught:
        daemon.manager.create(SandboxSpec(user="nobody-there"))
    direct = Manager()
    with pytest.raises(AgentdError) as there:
        direct.create(SandboxSpec(user="nobody-there"))
    direct.close()
    assert type(caught.value) is type(there.value)
    assert caught.value.as_dict() == there.value.as_dict()
    daemon.link.close()


def test_the_rules_of_a_network_outlive_the_daemon_that_set_them(path: str) -> None:
    first = Daemon(path)
    with socket.create_server(("127.0.0.1", 0)) as server:
        host = StaticHost("db.internal", "127.0.0.1", server.getsockname()[1])
        rules = ("db.internal:5432",)
        bounds = EgressBounds(hosts=(host,))
        spec = SandboxSpec(net="restricted", egress=rules, egress_bounds=bounds)
        handle = first.manager.create(spec)
        network = NETWORK.of(handle.wall)
        assert network is not None
        assert handle.wall.enforcement["network"].detail.endswith(" db.internal:5432")
        look = ("getent", "hosts", "db.internal")
        assert run(handle.guest, *look)[0] == 0
        assert network.set_network((), bounds).detail.endswith(" nothing")
        assert handle.wall.enforcement["network"].detail.endswith(" nothing")
        assert run(handle.guest, *look)[0] == 2  # getent(1): not found
        with pytest.raises(InvalidInput, match="'no rule' has the method"):
            network.set_network(("no rule",), bounds)
        handle.guest.close()
        first.link.close()

        second = Daemon(path)
        [held] = remote.held(second.link)
        assert (held.spec.net, held.spec.egress, held.spec.egress_bounds) == (
            *("restricted", ()),
            bounds,
        )
        assert held.enforcement["network"].detail.endswith(" nothing")
        wall = remote.wall_of(second.link, held)
        again = NETWORK.of(wall)
        assert again is not None
        again.set_network(rules, bounds)
        guest = connect(wall)
        assert run(guest, *look)[0] == 0
        dial = "exec 3<>/dev/tcp/db.internal/5432"
        assert run(guest, "bash", "-c", dial)[0] == 0
        until(lambda: again.connections(0).totals["allowed"] == 1)
        assert again.connections(0).rows[-1]["rule"] == "db.internal:5432"
        guest.close()
        wall.kill()
    second.link.close()


def test_a_sandbox_without_rules_says_that_it_has_none(path: str) -> None:
    daemon = Daemon(path)
    _, wall = made(daemon)
    assert NETWORK.of(wall) is None
    assert "restricted" in wall.lacks["network"]
    with pytest.raises(InvalidInput, match="cannot set_network"):
        daemon.link.ask("set_network", id=wall.id, egress=["pypi"])
    daemon.manager.close()
    daemon.link.close()

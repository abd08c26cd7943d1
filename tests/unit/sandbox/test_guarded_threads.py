"""Threads that must live: an error that nobody expected is told, and they go on."""

import os
import socket
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from agentd.daemon.sandboxes.endings import Endings
from agentd.model.errors import AgentdError, BackendLost, SandboxError
from agentd.sandbox.finisher import Finisher
from agentd.sandbox.supervisor import server, wire
from agentd.sandbox.supervisor.client import SupervisorLink
from agentd.sandbox.supervisor.server import Supervisor

WAIT = 120.0
Pair = tuple[socket.socket, socket.socket]


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> list[BaseException | None]:
    """What threads told as the daemon's log would have it."""
    found: list[BaseException | None] = []
    monkeypatch.setattr(threading, "excepthook", lambda args: found.append(args.exc_value))
    return found


@pytest.fixture
def pair() -> Iterator[Pair]:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with theirs:
        yield ours, theirs


def test_an_end_that_cannot_be_taken_keeps_no_answer_from_whoever_waits(
    pair: Pair, told: list[BaseException | None]
) -> None:
    def ended(id_: str, reason: str) -> None:
        raise AttributeError("no attribute 'sandboxes'")

    link = SupervisorLink(pair[0], ended)
    asked = link.begin("hello")
    number = wire.receive(pair[1])[0]["n"]
    wire.send(pair[1], {"event": "ended", "id": "wall-1", "reason": "backend_lost"})
    wire.send(pair[1], {"n": number, "ok": "here"})
    assert asked.result(WAIT) == ("here", [])
    assert [type(error) for error in told] == [AttributeError]
    link.close()


@pytest.mark.parametrize("nonsense", [b"{}", b'{"n": "x"}', b"[]", b"no JSON"])
def test_whoever_waits_is_told_when_the_links_thread_ends(
    pair: Pair, told: list[BaseException | None], nonsense: bytes
) -> None:
    link = SupervisorLink(pair[0], lambda *_: None)
    asked = link.begin("hello")
    pair[1].send(nonsense)
    with pytest.raises(BackendLost):
        asked.result(WAIT)
    assert link.lost.wait(WAIT)
    link.close()


def test_a_link_goes_on_with_another_supervisor(pair: Pair) -> None:
    link = SupervisorLink(pair[0], lambda *_: None)
    pair[1].shutdown(socket.SHUT_RDWR)
    assert link.lost.wait(WAIT)
    with pytest.raises(BackendLost):
        link.ask("hello")
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    link.replace(ours)
    with theirs:
        asked = link.begin("hello")
        wire.send(theirs, {"n": wire.receive(theirs)[0]["n"], "ok": 7})
        assert asked.result(WAIT) == (7, [])
        link.close()


def test_a_daemon_without_a_free_descriptor_loses_the_answer_and_not_the_link(pair: Pair) -> None:
    import resource

    link = SupervisorLink(pair[0], lambda *_: None)
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    taken: list[int] = []
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, before[1]))
    try:
        asked = link.begin("stream")
        number = wire.receive(pair[1])[0]["n"]
        try:
            while True:
                taken.append(os.dup(0))
        except OSError:
            pass
        wire.send(pair[1], {"n": number, "ok": None}, [0])
        with pytest.raises(SandboxError, match="no descriptor is left"):
            asked.result(WAIT)
    finally:
        for fd in taken:
            os.close(fd)
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
    assert not link.lost.is_set()
    link.close()


class _Odd:
    """A backend that fails in its own way, or answers what is no answer."""

    name = "odd"

    def probe(self) -> Any:
        return {"not": {1, 2}, "json": object()}

    def plan(self, spec: object) -> object:
        raise RuntimeError("an odd one")

    def close(self) -> None:
        """Nothing."""


def test_a_supervisor_answers_whatever_becomes_of_the_answer(
    pair: Pair, told: list[BaseException | None]
) -> None:
    supervisor = Supervisor(load=lambda name: _Odd())  # type: ignore[arg-type,return-value]
    serving = threading.Thread(target=supervisor.serve, args=(pair[1],))
    serving.start()
    link = SupervisorLink(pair[0], lambda *_: None)
    supervisor._operations["unsent"] = lambda _: ({"not": {1, 2}, "json": object()}, [])
    for op in ("unsent", "plan", "launch", "counters", "nonsense"):
        with pytest.raises(AgentdError):
            link.ask(op, WAIT, backend="odd", id="x", spec={})
    probed = link.ask("probe", WAIT, backend="odd")
    assert not probed["usable"] and "returned dict" in probed["blockers"][0]["what"]
    assert link.ask("hello", WAIT)["sandboxes"] == 0
    link.close()
    serving.join(WAIT)
    supervisor.close()


class _Stubborn:
    """A wall, and the backend of it, that does not let itself be killed the first time."""

    name, workspace, passes_descriptors = "stubborn", "/workspace", False

    def __init__(self, raised: BaseException) -> None:
        self.enforcement: dict[str, object] = {}
        self.asked = 0
        self.raised = raised

    def plan(self, spec: object) -> object:
        return spec

    def launch(self, plan: object) -> "_Stubborn":
        return self

    def close(self) -> None:
        """Nothing."""

    def unasked(self, *_: object) -> None:
        """Nothing of it is asked here."""

    open_stream = counters = usage = wait = save = unasked

    def alive(self) -> bool:
        return self.asked < 2

    def kill(self) -> None:
        self.asked += 1
        if self.asked < 2:
            raise self.raised


@pytest.mark.parametrize("raised", [SandboxError("it holds on"), SystemExit("it holds on")])
@pytest.mark.parametrize("how", ["its lease", "a daemon"])
def test_what_could_not_be_killed_is_killed_when_its_lease_ends(
    pair: Pair,
    told: list[BaseException | None],
    monkeypatch: pytest.MonkeyPatch,
    how: str,
    raised: BaseException,
) -> None:
    monkeypatch.setattr(server, "_AGAIN_SECONDS", 0.0)
    wall = _Stubborn(raised)
    supervisor = Supervisor(load=lambda name: wall)  # type: ignore[arg-type,return-value]
    threads = [threading.Thread(target=supervisor.serve, args=(pair[1],))]
    threads.append(threading.Thread(target=supervisor.watch))
    for thread in threads:
        thread.start()
    ended = threading.Semaphore(0)
    link = SupervisorLink(pair[0], lambda *_: ended.release())
    lease = 0.0 if how == "its lease" else None
    link.ask("launch", WAIT, backend="stubborn", id="wall-1", spec={}, lease=lease)
    if how == "a daemon":
        wall.asked = -1  # it is asked once more, by who answers the daemon
        with pytest.raises(SandboxError, match="holds on"):
            link.ask("kill", WAIT, id="wall-1")
    else:
        assert ended.acquire(timeout=WAIT)
    assert ended.acquire(timeout=WAIT)
    assert not wall.alive()
    assert link.ask("hello", WAIT)["sandboxes"] == 0
    assert any("it holds on" in str(error) for error in told)
    assert SystemExit not in map(type, told)  # of which no thread would have said anything
    link.close()
    supervisor.close()
    for thread in threads:
        thread.join(WAIT)


def test_a_wall_that_does_not_say_how_it_ended_is_freed_all_the_same(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails() -> None:
        raise KeyError("of mine")

    wall = _Stubborn(SystemExit("it is killed once"))
    monkeypatch.setattr(wall, "counters", fails)
    wall.asked = 2  # it has ended
    supervisor = Supervisor(load=lambda name: wall)  # type: ignore[arg-type,return-value]
    threads = [threading.Thread(target=supervisor.serve, args=(pair[1],))]
    threads.append(threading.Thread(target=supervisor.watch))
    for thread in threads:
        thread.start()
    ended = threading.Semaphore(0)
    link = SupervisorLink(pair[0], lambda *_: ended.release())
    link.ask("launch", WAIT, backend="stubborn", id="wall-1", spec={}, lease=None)
    assert ended.acquire(timeout=WAIT)
    link.close()
    supervisor.close()
    for thread in threads:
        thread.join(WAIT)


@pytest.mark.parametrize("kind", [SandboxError, SystemExit])
def test_what_cannot_be_freed_keeps_nothing_after_it(
    told: list[BaseException | None], kind: type[BaseException]
) -> None:
    finisher = Finisher()
    freed = threading.Event()

    def fails() -> None:
        raise kind("it cannot be freed")

    finisher.soon(fails)
    finisher.soon(freed.set)
    assert freed.wait(WAIT)
    finisher.close()
    (error,) = told
    assert "it cannot be freed" in str(error) and not isinstance(error, SystemExit)


def test_an_end_of_a_wall_that_fails_is_told_and_the_next_one_is_done(
    told: list[BaseException | None],
) -> None:
    endings, done = Endings(), threading.Event()

    def end(wall: str, reason: str) -> None:
        if reason == "fails":
            raise RuntimeError(wall)
        done.set()

    endings.start(end)
    endings.tell("first", "fails")
    endings.tell("second", "died")
    assert done.wait(WAIT)
    assert endings.works
    endings.close()
    assert [str(error) for error in told] == ["first"]


def test_a_daemon_is_served_though_the_one_before_has_just_gone(
    told: list[BaseException | None], pair: Pair
) -> None:
    """The thread of the daemon before may close its socket as the next one takes its place."""
    supervisor = Supervisor()
    before, its_daemon = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    first = threading.Thread(target=supervisor.serve, args=(before,))
    first.start()
    with its_daemon:
        wire.send(its_daemon, {"n": 1, "op": "hello"})
        its_daemon.settimeout(WAIT)
        assert wire.receive(its_daemon)[0]["n"] == 1  # it is served now
        before.close()
        ours, theirs = pair
        second = threading.Thread(target=supervisor.serve, args=(ours,))
        second.start()
        theirs.settimeout(WAIT)
        wire.send(theirs, {"n": 2, "op": "hello"})
        answer, _ = wire.receive(theirs)
    assert answer["n"] == 2 and "ok" in answer and told == []
    theirs.close()
    for thread in (first, second):
        thread.join(WAIT)
    supervisor.close()


def test_what_is_no_message_ends_its_daemon_alone(
    told: list[BaseException | None], pair: Pair
) -> None:
    supervisor = Supervisor()
    ours, theirs = pair
    served = threading.Thread(target=supervisor.serve, args=(ours,))
    served.start()
    theirs.settimeout(WAIT)
    held, other = os.pipe()
    socket.send_fds(theirs, [b"[1]"], [other])
    os.close(other)
    assert theirs.recv(1) == b""  # it has hung up
    served.join(WAIT)
    assert os.read(held, 1) == b""  # and kept no descriptor
    os.close(held)
    assert told == []
    supervisor.close()


@pytest.mark.parametrize("lease", ["nan", "inf", float("nan"), [], "soon"])
def test_a_lease_that_would_never_end_is_refused(pair: Pair, lease: object) -> None:
    supervisor = Supervisor()
    ours, theirs = pair
    threading.Thread(target=supervisor.serve, args=(ours,)).start()
    theirs.settimeout(WAIT)
    for op in ("launch", "restore"):
        spec = {"n": 1, "op": op, "backend": "host", "id": "wall-1", "spec": {}, "lease": lease}
        wire.send(theirs, spec)
        assert "error" in wire.receive(theirs)[0]
    wire.send(theirs, {"n": 2, "op": "list"})
    assert wire.receive(theirs)[0]["ok"] == {"sandboxes": [], "more": False, "after": ""}
    theirs.close()
    supervisor.close()

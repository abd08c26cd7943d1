"""A supervisor that is asked for several callers at once."""

import contextlib

import pytest
from tests.integration.test_supervisor import WAIT, Daemon, made, path, until

from agentd.model import context
from agentd.model.errors import SandboxEnded, SandboxError
from agentd.model.limits import Limits
from agentd.model.spec import SandboxSpec
from agentd.sandbox.supervisor import client

__all__ = ["path"]


def test_what_is_asked_for_one_caller_holds_up_no_other(path: str) -> None:
    daemon = Daemon(path)
    handle, wall = made(daemon)

    def begin(whose: str, op: str, **fields: object) -> client.PendingAnswer:
        token = context.principal.set(whose)
        try:
            return daemon.link.begin(op, id=wall.id, **fields)
        finally:
            context.principal.reset(token)

    waiting = [begin("alice", "wait", timeout=5) for _ in range(200)]
    begin("bob", "counters").result(WAIT)
    # Of hers no more than the first, at a time; his stood behind all of them.
    assert sum(one.answered for one in waiting) < 100
    daemon.manager.destroy(handle)
    for one in waiting:
        with contextlib.suppress(SandboxError):  # it has ended
            one.result(WAIT)
    daemon.manager.close()
    daemon.link.close()


def test_what_took_a_walls_memory_is_known_though_it_was_freed_meanwhile(
    path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    daemon = Daemon(path)
    handle = daemon.manager.create(SandboxSpec(limits=Limits(memory=48 << 20, disk=1 << 30)))
    if "oom" not in handle.wall.counters():
        daemon.manager.close()
        daemon.link.close()
        pytest.skip("no cgroup of ours bounds memory here")

    def late(timeout: float | None = None) -> bool:
        """As a busy daemon looks."""
        until(lambda: bool(daemon.ended))
        return True

    monkeypatch.setattr(handle.wall, "wait", late)
    pieces = (bytes(1 << 20) for _ in range(200))
    with pytest.raises(SandboxEnded) as ended:
        handle.guest.files.write("/tmp/large", pieces)
    assert ended.value.code == "oom"
    monkeypatch.undo()
    daemon.manager.destroy(handle)
    daemon.manager.close()
    daemon.link.close()

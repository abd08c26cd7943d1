"""A supervisor that is asked for several callers at once."""

import contextlib

from tests.integration.test_supervisor import WAIT, Daemon, made, path

from agentd.model import context
from agentd.model.errors import SandboxError
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

"""Commands of a user of whom too many descriptors are on their way (unix(7), ETOOMANYREFS)."""

import errno
import os
import socket
from typing import Any

import pytest

from agentd import Sandbox


@pytest.mark.parametrize("times", [1, 2])
def test_a_command_runs_without_pipes_of_its_own(
    monkeypatch: pytest.MonkeyPatch, times: int
) -> None:
    """The first of a stream, which greets the agent along with it, and one of a stream that was
    used before. The next has pipes again."""
    real, refused = socket.socket.sendmsg, []

    def crowded(sock: socket.socket, data: Any, beside: Any = (), *more: Any) -> int:
        if any(len(fds) > 1 for _, _, fds in beside):
            refused.append(len(beside))
            if len(refused) == times:
                raise OSError(errno.ETOOMANYREFS, os.strerror(errno.ETOOMANYREFS))
        return real(sock, data, beside, *more)

    with Sandbox.create(embedded=True) as sandbox:
        monkeypatch.setattr(socket.socket, "sendmsg", crowded)
        for _ in range(times):
            done = sandbox.run("cat; echo bad >&2; exit 3", stdin=b"words")
            assert (done.stdout, done.stderr, done.exit_code) == (b"words", b"bad\n", 3)
        assert sandbox.run("echo still there").text == "still there\n"
        monkeypatch.undo()
    assert len(refused) == times + 1

"""What one client of a daemon has open at once is bounded: what is forgotten has no room for ever,
and to end one of them takes none."""

import gc
import os

import pytest
from tests.security.daemons import Daemon, fixture, until

from agentd import Client, Sandbox
from agentd.client.http import connection

daemon = fixture()


@pytest.fixture(autouse=True)
def _few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "MAX_OPEN", 3)
    monkeypatch.setattr(connection, "MAX_WAIT", 1.0)


def test_commands_that_are_forgotten_hold_no_connections(daemon: Daemon) -> None:
    with Sandbox.create(url=daemon.url) as sandbox:
        sandbox.run("true")
        before = len(os.listdir("/proc/self/fd"))
        for _ in range(8):
            sandbox.start("exec sleep 600")
            gc.collect()
        until(lambda: sandbox.run("pgrep -c sleep").text == "8\n")  # they go on
        assert len(os.listdir("/proc/self/fd")) <= before + 1  # one idle connection


def test_a_command_is_ended_whatever_else_is_open(daemon: Daemon) -> None:
    sandbox = Sandbox.create(url=daemon.url)
    with Client(daemon.url) as other:
        open_ = [sandbox.start("exec sleep 600") for _ in range(3)]
        open_[0].close()
        until(lambda: [c.state for c in other.commands.list(sandbox.id)].count("running") == 2)
        another = sandbox.start("exec sleep 600")
        sandbox.kill()
        assert other.sandboxes.list() == ()
    for command in (*open_, another):
        command.detach()

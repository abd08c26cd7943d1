"""Commands that nobody waits for, in a sandbox that is paused while its daemon is another one."""

import contextlib
import os
import signal
import sqlite3
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tests.integration.test_client_of_a_daemon import Daemon

from agentd import Client, Conflict, Sandbox
from agentd.model.api import ExecBody, ProcessView

WAIT = 120.0
GOES_ON = "echo before; until [ -e go ]; do sleep 0.05; done; cat; echo after; exit 7"


def until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + WAIT
    while not condition():
        assert time.monotonic() < deadline, "it did not come to pass"
        time.sleep(0.02)


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Daemon]:
    made = Daemon(tmp_path)
    with (made.folder / "agentd.toml").open("a") as file:
        file.write('[sandbox]\nminimum = "process"\n')
    made.start()
    yield made
    made.stop()


def paused(daemon: Daemon, backend: str) -> tuple[str, ProcessView]:
    """A sandbox in which a command has begun to write, and that command."""
    sandbox = Sandbox.create(url=daemon.url, backend=backend, isolation="process", ttl="10m")
    with Client(daemon.url) as client:
        if "pause" not in client.sandboxes.get(sandbox.id).abilities:
            sandbox.kill()
            pytest.skip(f"{backend} cannot be paused here")
        begun = client.commands.start(sandbox.id, ExecBody(cmd=GOES_ON, stdin_open=True))
        until(lambda: client.commands.output(sandbox.id, begun.id) == b"before\n")
        client.sandboxes.pause(sandbox.id)
    return sandbox.id, begun


def restart(daemon: Daemon, *, kill: bool) -> None:
    daemon.stop(kill=kill)
    daemon.start()


@pytest.mark.parametrize(("backend", "kill"), [("linux", True), ("oci", False)])
def test_a_command_goes_on_past_a_pause_and_its_daemons(
    daemon: Daemon, backend: str, kill: bool
) -> None:
    sandbox, begun = paused(daemon, backend)
    for _ in range(2 if kill else 1):
        restart(daemon, kill=kill)
        with Client(daemon.url) as client:
            found = client.commands.get(sandbox, begun.id)
            assert (found.state, found.pid) == ("running", begun.pid)
            # What a killed daemon had not written down comes from the agent, later.
            assert client.commands.output(sandbox, begun.id) in (b"before\n", b"" if kill else b"-")
            for ask in (
                lambda c: c.commands.signal(sandbox, begun.id, signal.SIGKILL),
                lambda c: c.commands.write(sandbox, begun.id, b"lost"),
            ):
                with pytest.raises(Conflict, match="paused"):
                    ask(client)
    with Client(daemon.url) as client:
        client.sandboxes.resume(sandbox)
        client.files.write(sandbox, "/workspace/go", b"")
        until(lambda: fed(client, sandbox, begun.id))
        until(lambda: client.commands.get(sandbox, begun.id).state == "ended")
        ended = client.commands.get(sandbox, begun.id).result
        assert ended is not None
        assert (ended.cause.code, ended.exit_code) == ("exited", 7)
        assert client.commands.output(sandbox, begun.id) == b"before\nfed\nafter\n"
        assert ends(client, begun.id) == ["exited"]
        client.sandboxes.kill(sandbox)


def fed(client: Client, sandbox: str, process: str) -> bool:
    """It is followed again a moment after its sandbox has gone on."""
    try:
        client.commands.write(sandbox, process, b"fed\n", eof=True)
    except Conflict:
        return False
    return True


def ends(client: Client, process: str) -> list[str]:
    """What the audit log has of how it ended."""
    found = client.audit.records(limit=1000).records
    [request] = [r.request for r in found if r.fields.get("process") == process]
    return [r.fields["cause"]["code"] for r in found if (r.kind, r.request) == ("end", request)]


def test_with_a_sandbox_that_ends_while_it_is_paused_it_ends(daemon: Daemon) -> None:
    leased, killed, lost = (paused(daemon, "linux") for _ in range(3))
    restart(daemon, kill=True)
    with Client(daemon.url) as client:
        assert [ends(client, begun.id) for _, begun in (leased, killed, lost)] == [[], [], []]
        client.sandboxes.renew(leased[0], "1s")
        client.sandboxes.kill(killed[0])
        until(lambda: ends(client, leased[1].id) and ends(client, killed[1].id))
        lock = daemon.folder / "state" / "supervisor.sock.lock"
        os.kill(int(lock.read_text()), signal.SIGKILL)
        until(lambda: ends(client, lost[1].id))
        found = [ends(client, begun.id) for _, begun in (leased, killed, lost)]
    assert found == [["lease_expired"], ["cancelled"], ["backend_lost"]]
    # What version 1 still holds of one whose supervisor is gone, whoever makes the next one ends.
    Sandbox.create(url=daemon.url).kill()


def test_what_nobody_was_told_of_is_ended_after_the_pause_though_daemons_came_and_went(
    daemon: Daemon,
) -> None:
    sandbox, begun = paused(daemon, "linux")
    daemon.stop(kill=True)
    # As it is where the daemon is killed between the start and the record that it answers with.
    with contextlib.closing(sqlite3.connect(daemon.folder / "state/store.db")) as store, store:
        assert store.execute("DELETE FROM processes WHERE id = ?", (begun.id,)).rowcount == 1
    daemon.start()
    restart(daemon, kill=True)
    restart(daemon, kill=False)
    with Client(daemon.url) as client:
        assert ends(client, begun.id) == []
        client.sandboxes.resume(sandbox)
        until(lambda: ends(client, begun.id) == ["interrupted"])
        ps = client.commands.exec(sandbox, ExecBody(cmd=f"kill -0 {begun.pid}"))
        assert ps.exit_code == 1
        client.sandboxes.kill(sandbox)

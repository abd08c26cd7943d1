"""What follows a sandbox by the SDK ends, with the reason, once its key is revoked, or its user may
not do that any more."""

import signal
import threading
from collections.abc import Callable, Iterator

import pytest
from tests.security.daemons import WAIT, Daemon, running, until

from agentd import Client, Sandbox
from agentd.model.api import ExecBody
from agentd.model.errors import AgentdError

SCOPES = ("run", "create", "files", "read", "ports")


@pytest.fixture(scope="module")
def daemon() -> Iterator[Daemon]:
    with running() as made:
        yield made


class Stream(threading.Thread):
    """Follows something for ever; ``code`` is that of the error which ended it."""

    def __init__(self, name: str, follow: Callable[[Callable[[], object]], object]) -> None:
        super().__init__(name=name, daemon=True)
        self.begun = threading.Event()
        self.code = "it goes on"
        self._follow = follow
        self.start()

    def run(self) -> None:
        try:
            self._follow(self.begun.set)
            self.code = "it ended without a reason"
        except AgentdError as error:
            self.code = error.code
        finally:
            self.begun.set()


def test_each_ends_as_unauthenticated(daemon: Daemon) -> None:
    key = daemon.key("alice", *SCOPES)
    with (
        Client(daemon.url, api_key=key) as client,
        Sandbox.connect(daemon.sandbox(key), url=daemon.url, api_key=key) as sandbox,
    ):
        body = ExecBody(cmd="echo up; exec sleep 600")
        process = client.commands.start(sandbox.id, body)

        def followed(begun: Callable[[], object]) -> None:
            woken = threading.Event()
            output = client.commands.follow(sandbox.id, process.id, {}, woken.set)
            try:
                while True:
                    woken.clear()
                    for event in output.read(1 << 16):
                        begun()
                        assert event.kind != "exit"
                    assert woken.wait(WAIT)
            finally:
                output.close()

        def watched(begun: Callable[[], object]) -> None:
            for _ in client.files.watch(sandbox.id, "/workspace"):
                begun()

        def attached(begun: Callable[[], object]) -> None:
            with sandbox.attach(process.id) as again:
                for _ in again:
                    begun()

        def told(begun: Callable[[], object]) -> None:
            after = client.events.read(limit=1000).next
            begun()
            while True:
                after = client.events.read(after, wait="30s").next

        kinds = (followed, watched, attached, told)
        streams = [Stream(kind.__name__, kind) for kind in kinds]
        until(lambda: _touched(daemon, sandbox.id) and all(s.begun.is_set() for s in streams))
        (made,) = [one for one in daemon.ask("GET", "/v1/keys").json if one["name"] == "alice"]
        assert daemon.ask("DELETE", f"/v1/keys/{made['id']}").status == 204
        for stream in streams:
            stream.join(WAIT)
        assert {stream.name: stream.code for stream in streams} == {
            kind.__name__: "unauthenticated" for kind in kinds
        }
        assert daemon.ask("DELETE", f"/v1/sandboxes/{sandbox.id}").status == 204


def test_each_ends_as_forbidden_where_a_scope_is_taken_away() -> None:
    with running() as daemon, Client(daemon.url) as client:
        box = daemon.sandbox()
        process = client.commands.start(box, ExecBody(cmd="echo up; exec sleep 600"))

        def watched(begun: Callable[[], object]) -> None:
            changes = client.files.watch(box, "/workspace")
            begun()
            for _ in changes:
                pass

        def attached(begun: Callable[[], object]) -> None:
            with (
                Sandbox.connect(box, url=daemon.url) as sandbox,
                sandbox.attach(process.id) as again,
            ):
                for _ in again:
                    begun()

        streams = [Stream(kind.__name__, kind) for kind in (watched, attached)]
        until(lambda: all(stream.begun.is_set() for stream in streams))
        file = daemon.folder / "agentd.toml"
        file.write_text(file.read_text().replace('scopes = ["admin"]', 'scopes = ["create"]'))
        assert daemon.process is not None
        daemon.process.send_signal(signal.SIGHUP)
        for stream in streams:
            stream.join(WAIT)
        assert [stream.code for stream in streams] == ["forbidden", "forbidden"]
        assert daemon.ask("DELETE", f"/v1/sandboxes/{box}").status == 204


def _touched(daemon: Daemon, id_: str) -> bool:
    """Until the watcher has seen one: nobody says when it has begun."""
    body = {"cmd": "echo >> /workspace/changed"}
    return bool(daemon.ask("POST", f"/v1/sandboxes/{id_}/exec", body).status == 200)

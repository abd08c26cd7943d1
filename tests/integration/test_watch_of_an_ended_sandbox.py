"""A watch outlives nothing: it says why it ends."""

import pytest
from tests.security.daemons import Daemon, fixture

from agentd import Client
from agentd.model.errors import NotFound, SandboxEnded

daemon = fixture()


def test_a_watch_tells_that_its_sandbox_has_ended(daemon: Daemon) -> None:
    box = daemon.sandbox()
    with Client(daemon.url) as client:
        changes = client.files.watch(box, "/workspace")
        client.sandboxes.kill(box)
        # The latter where its caller is authorised anew just then.
        with pytest.raises((SandboxEnded, NotFound)):
            list(changes)

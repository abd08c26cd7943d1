"""What asks a wall for something, and finds that it has ended, says why that was."""

import contextlib
from types import SimpleNamespace

import pytest

from agentd.daemon.commands.ends import DESTROYED, LEASE_OVER
from agentd.daemon.observe.observed import Observer
from agentd.daemon.sandboxes.changes import Changing
from agentd.daemon.service.network import DaemonNetwork
from agentd.model.errors import BackendLost, SandboxEnded
from agentd.model.principal import local
from agentd.model.spec import SandboxSpec
from agentd.sandbox.handle import SandboxHandle


class Gone:
    """A wall that has ended meanwhile, as the supervisor says it."""

    def __getattr__(self, name):
        def ask(*_, **__):
            raise BackendLost("sandbox wall-1 has ended")

        return ask


class Handle(SandboxHandle):
    def __init__(self, why):
        self.id, self.why, self._wall = "sbx-1", why, None
        self.spec = SandboxSpec(net="restricted", egress=("example.com",))

    def able(self, ability, what):
        return Gone()


class Renewing(Changing):
    def __init__(self):
        self._publish = lambda *_, **__: None

    def lease(self, ttl):
        return ttl

    def _change(self, live, **fields):
        pass


class Network(DaemonNetwork):
    def __init__(self, live):
        config = SimpleNamespace(egress=SimpleNamespace(bounds=lambda: None))
        changing = Renewing()
        parts = SimpleNamespace(
            observer=Observer(),
            config=lambda: config,
            sandboxes=changing,
            asked=SimpleNamespace(rules_changed=lambda live: None),
        )
        super().__init__(parts, local("alice"))
        self.live = live

    def _live(self, scope, id_):
        return self.live

    def _judge(self, live, name, operation="", /, **parameters):
        return contextlib.nullcontext(SimpleNamespace(begin=lambda: None))


ASKS = {
    "cassette": lambda network: network.cassette("sbx-1"),
    "play": lambda network: network.play("sbx-1", b""),
    "connections": lambda network: network.connections("sbx-1"),
    "renew": lambda network: Renewing().renew(network.live, 60.0),
}


@pytest.mark.parametrize("why", [DESTROYED, LEASE_OVER, None], ids=["ended", "lease", "by itself"])
@pytest.mark.parametrize("asks", ASKS)
def test_what_finds_that_its_sandbox_has_ended_says_why(asks, why):
    live = SimpleNamespace(handle=Handle(why), wall=Gone(), require_running=lambda what: None)
    with pytest.raises(BackendLost) as caught:
        ASKS[asks](Network(live))
    assert isinstance(caught.value, SandboxEnded) is (why is not None)
    assert caught.value.code == (why.code if why else "backend_lost")

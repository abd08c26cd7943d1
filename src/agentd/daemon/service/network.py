"""What a caller's sandboxes may reach, and what they did."""

from collections.abc import Iterable
from hashlib import sha256

from agentd.daemon.admission import acts
from agentd.daemon.observe.observed import observed
from agentd.daemon.sandboxes import bodies
from agentd.daemon.service.noun import Noun
from agentd.egress import shown
from agentd.model.network import ConnectionPage, NetworkView
from agentd.model.options import require_rules
from agentd.sandbox.abilities import CASSETTE, NETWORK


class DaemonNetwork(Noun):
    """Implements ``model.network.Network``."""

    @observed("network")
    def get(self, sandbox: str) -> NetworkView:
        return shown.network(self._live("read", sandbox).handle.spec)

    @observed("set_network")
    def set(self, sandbox: str, net: str | Iterable[str]) -> NetworkView:
        live = self._live("egress", sandbox)
        live.require_running("change its network")
        asked = bodies.regranted(live.handle.spec, net, self._parts.config())
        wall = live.handle.able(NETWORK, "change the network of")
        rules = {"net": asked.net, "egress": list(asked.egress)}
        with self._judge(live, acts.NETWORK, **rules) as admission, live.handle.telling():
            admission.begin()
            self._parts.sandboxes.restrict(live, wall, asked)
            self._parts.asked.rules_changed(live)
        return shown.network(asked)

    @observed("cassette")
    def cassette(self, sandbox: str) -> bytes:
        live = self._live("read", sandbox)
        require_rules(live.handle.spec)
        with live.handle.telling():
            return live.handle.able(CASSETTE, "record what is asked in").cassette()

    @observed("play_cassette")
    def play(self, sandbox: str, cassette: bytes) -> None:
        from agentd.egress.cassettes import in_memory  # late: few need it

        live = self._live("create", sandbox)
        live.require_running("play a cassette to it")
        require_rules(live.handle.spec)
        wall = live.handle.able(CASSETTE, "replay what is asked in")
        spec = live.handle.spec
        rules = {"net": spec.net, "egress": list(spec.egress)}
        digest = sha256(cassette).hexdigest()
        judged = self._judge(live, acts.NETWORK, **rules, cassette=digest)
        with judged as admission, in_memory(cassette) as path, live.handle.telling():
            admission.begin()
            wall.play(path)

    @observed("connections")
    def connections(self, sandbox: str, after: int = 0) -> ConnectionPage:
        live = self._live("read", sandbox)
        require_rules(live.handle.spec)
        with live.handle.telling():
            return shown.connections(live.handle.able(NETWORK, "tell the connections of"), after)

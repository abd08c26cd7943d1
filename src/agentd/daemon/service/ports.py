"""The ports of a caller's sandboxes."""

import contextlib

from agentd.daemon.admission import acts
from agentd.daemon.observe.observed import observed
from agentd.daemon.service.noun import Noun
from agentd.transport.tunnel import Tunnel


class DaemonPorts(Noun):
    """Implements ``model.service.Ports``."""

    @observed("tunnel")
    def open(self, sandbox: str, port: int) -> Tunnel:
        live, admission = self._open(sandbox, acts.PORT, "reach a port of it", port=port)
        admission.begin(written=True)
        with contextlib.ExitStack() as undo:
            undo.enter_context(admission)
            tunnel = live.handle.guest.tunnel(port)
            tunnel.on_close = undo.pop_all().close
        return tunnel

"""The ports of a caller's sandboxes."""

import contextlib
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from agentd.daemon.admission import acts
from agentd.daemon.observe.observed import observed
from agentd.daemon.service.noun import Noun, Parts
from agentd.model import context
from agentd.model.errors import InvalidInput, Refused, Unsupported
from agentd.model.port import PortLink
from agentd.model.principal import Principal
from agentd.model.units import format_duration, parse_duration
from agentd.policy.scopes import scope_of
from agentd.transport.tunnel import Tunnel

if TYPE_CHECKING:
    from agentd.daemon.admission.admission import Admission

_LAST = 65535


class DaemonPorts(Noun):
    """Implements ``model.service.Ports``."""

    def __init__(
        self, parts: Parts, caller: Principal, again: Callable[[], Principal] | None = None
    ) -> None:
        super().__init__(parts, caller)
        self._again = again or (lambda: caller)

    @observed("tunnel")
    def open(self, sandbox: str, port: int) -> Tunnel:
        live, admission = self._open(sandbox, acts.PORT, "reach a port of it", port=port)
        admission.begin(written=True)
        with contextlib.ExitStack() as undo:
            undo.enter_context(admission)
            tunnel = live.handle.guest.tunnel(port)
            undo.pop_all()
            tunnel.on_close = lambda: _ended(admission, tunnel)
        return tunnel

    @observed("link")
    def link(self, sandbox: str, port: int, *, ttl: str | float = "1h") -> PortLink:
        self._who.require(scope_of(acts.PORT))
        seconds, most = parse_duration(ttl, "ttl"), float(self._parts.config().ports.max_ttl)
        if not 1 <= port <= _LAST:
            raise InvalidInput(f"{port} is no port", remediation=f"give 1 to {_LAST}")
        if seconds > most:
            raise Refused(
                f"a link may last {format_duration(most)} at most",
                cause=f"asked for: {format_duration(seconds)}",
                remediation="ask for less, or raise ports.max_ttl",
            )
        domain = self._parts.links.domain
        if domain is None:
            raise Unsupported(
                "no browser can reach this daemon: it listens on no TCP address of this machine",
                remediation='add a [[listen]] with address = "127.0.0.1:7070", or set ports.url; '
                "without it: agentd port ID PORT",
            )
        live, admission = self._open(sandbox, acts.PORT, "reach a port of it", port=port)
        with admission:
            admission.begin(written=True)
            token = self._parts.links.add(self._who.name, live.id, port, seconds, self._again)
        return PortLink(
            url=domain.url(live.id, port, token),
            sandbox=live.id,
            port=port,
            expires=round(time.time() + seconds, 3),
        )


def _ended(admission: "Admission", tunnel: Tunnel) -> None:
    # One that its client closes, or that has carried a whole answer, has come to its end.
    is_cut = context.client().is_shut() and not tunnel.is_over
    if tunnel.failure is None and not is_cut:
        admission.__exit__(None, None, None)
    else:
        admission.fail(tunnel.failure)
